"""Attempts that lose their lease while a tool runs, or are stopped late, twice, or by nobody of ours."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.runner import HAND_OVER_GRACE_S
from service.takeover import LONGEST_LOOK_S
from service.tools import ToolCall, tool
from tests.clock import ManualClock
from tests.fakes import Step, answer, frame, start, stop, text, tool_call
from tests.harness import serving
from tests.sse import kinds_of

LEASE_S = 30.0
RECKONER = "/runtimes/reckoner/invocations"
JOB = {"prompt": "6 times 7?", "maxTokens": 100}
WAITER = """
[runtimes.waiter]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_attempts:wait"]

[runtimes.repeater]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_attempts:wait_again"]

[runtimes.resister]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_attempts:resist"]
"""
WAITS_FOR: list[asyncio.Event] = []
"""What each call of a tool waits for, in order."""
CALLS: list[tuple[dict[str, Any], ToolCall]] = []


@tool(description="Wait.", input_schema={"type": "object"})
async def wait(arguments: dict[str, Any], call: ToolCall) -> str:
    await WAITS_FOR.pop(0).wait()
    return str(arguments)


@tool(description="Wait.", input_schema={"type": "object"}, idempotent=True)
async def wait_again(arguments: dict[str, Any], call: ToolCall) -> str:
    CALLS.append((arguments, call))
    await WAITS_FOR.pop(0).wait()
    return str(arguments)


@tool(description="Don't listen.", input_schema={"type": "object"})
async def resist(arguments: dict[str, Any], call: ToolCall) -> str:
    ends = WAITS_FOR.pop(0)
    while not ends.is_set():
        with suppress(asyncio.CancelledError):
            await ends.wait()
    return "late"


def asking_for(tools: int, name: str = "wait") -> list[Step]:
    """Return a turn that asks for this many tools."""
    uses = [{"toolUse": {"toolUseId": f"tool-{number}", "name": name}} for number in range(tools)]
    opened = [
        frame("contentBlockStart", {"contentBlockIndex": number, "start": use})
        for number, use in enumerate(uses)
    ]
    return [start(), opened, stop("tool_use")]


@pytest.mark.promise("lapsed-lease-sends-nothing", "lapsed-lease-spends-nothing")
@pytest.mark.parametrize("tools", [1, 2])
async def test_a_tool_that_ends_past_the_lease_is_followed_by_no_other_and_completes_no_turn(
    clock: ManualClock, tools: int
) -> None:
    ends = [asyncio.Event() for _ in range(tools)]
    WAITS_FOR[:] = ends
    async with serving(clock, asking_for(tools), answer("42"), catalog=WAITER) as served:
        path = "/runtimes/waiter/invocations"
        location = (await served.submit(path=path, prefer="respond-async")).headers["location"]
        await clock.advance(1)
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        for end in ends:
            end.set()
        await clock.advance(LEASE_S)
        completed, not_begun = served.store.calls.count("complete_turn"), len(WAITS_FOR)
        served.store.down = False
        await clock.advance(2)
        got = await served.get(f"{location}/events")

    kinds = kinds_of(got.body)
    assert (completed, not_begun, len(WAITS_FOR)) == (0, tools - 1, 0)
    assert [kind for kind in kinds if kind.startswith("tool")] == ["toolStarted", "toolFinished"] * tools
    assert kinds[-1] == "invocationCompleted"


@pytest.mark.promise("handed-over-goes-on")
async def test_a_tool_that_ignores_its_cancellation_does_not_keep_a_drain_from_handing_over(
    clock: ManualClock,
) -> None:
    ends = asyncio.Event()
    WAITS_FOR[:] = [ends]
    catalog = WAITER + "[service]\ndrain_s = 2"
    async with serving(clock, asking_for(1, "resist"), catalog=catalog) as served:
        path = "/runtimes/resister/invocations"
        location = (await served.submit(path=path, prefer="respond-async")).headers["location"]
        await clock.advance(1)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(2 + HAND_OVER_GRACE_S - 1)
        record = (await served.get(location)).json()
        ends.set()
        await draining

    assert [each["end"] for each in record["attempts"]] == ["handed-over"]


@pytest.mark.promise("no-tool-twice")
async def test_a_tool_that_runs_while_its_process_is_lost_is_not_run_again_elsewhere(
    clock: ManualClock, tmp_path: Path
) -> None:
    WAITS_FOR[:] = [asyncio.Event(), asyncio.Event()]
    script, path = asking_for(1), "/runtimes/waiter/invocations"
    async with (
        serving(clock, script, catalog=WAITER, store=tmp_path / "db") as lost,
        serving(clock, script, catalog=WAITER, store=tmp_path / "db") as other,
    ):
        location = (await lost.submit(path=path, prefer="respond-async")).headers["location"]
        await clock.advance(1)
        lost.store.down = True
        await clock.advance(LEASE_S + 5)
        record = (await other.get(location)).json()
        lost.store.down = False
        await clock.advance(5)

    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "outcome-unknown"
    assert (len(WAITS_FOR), other.model.requests) == (1, [])


@pytest.mark.promise("tool-key-stable", "killed-process-goes-on")
async def test_an_idempotent_tool_that_runs_while_its_process_is_lost_is_run_again_as_the_same_call(
    clock: ManualClock, tmp_path: Path
) -> None:
    CALLS.clear()
    WAITS_FOR[:] = [asyncio.Event(), ended := asyncio.Event(), ended]
    ended.set()
    script, path = asking_for(2, "wait_again"), "/runtimes/repeater/invocations"
    async with (
        serving(clock, script, catalog=WAITER, store=tmp_path / "db") as lost,
        serving(clock, answer("42"), catalog=WAITER, store=tmp_path / "db") as other,
    ):
        location = (await lost.submit(path=path, prefer="respond-async")).headers["location"]
        await clock.advance(1)
        lost.store.down = True
        await clock.advance(LEASE_S + 5)
        record = (await other.get(location)).json()
        lost.store.down = False
        await clock.advance(5)

    assert (record["state"], record["result"]["text"]) == ("completed", "42")
    assert [arguments for arguments, _ in CALLS] == [{}] * 3
    first, again, second = (call for _, call in CALLS)
    assert (first == again, second.idempotency_key == again.idempotency_key) == (True, False)


@pytest.mark.promise("handed-over-goes-on")
async def test_what_is_admitted_in_the_second_half_of_a_drain_leaves_between_two_turns_too(
    clock: ManualClock,
) -> None:
    gate, call = asyncio.Event(), tool_call("multiply", '{"a":6,"b":7}')
    script: list[Step] = [*call[:-1], gate, call[-1]]
    async with serving(clock, script, answer("42"), catalog="[service]\ndrain_s = 20") as served:
        served.store.only = {"create_invocation"}
        served.store.answers.clear()
        submitting = asyncio.ensure_future(served.submit(JOB, RECKONER, prefer="respond-async"))
        await clock.advance(0)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(11)
        served.store.answers.set()
        await clock.advance(1)
        gate.set()
        await clock.advance(0)
        record = (await served.get((await submitting).headers["location"])).json()

        assert draining.done()
    assert (record["state"], record["attempts"][0]["end"]) == ("running", "handed-over")
    assert (record["usage"]["inputTokens"], len(served.model.requests)) == (10, 1)


async def test_an_attempt_whose_task_is_cancelled_by_nobody_of_ours_decides_nothing(
    clock: ManualClock,
) -> None:
    async with serving(clock, [start(), text("Half"), asyncio.Event()]) as served:
        before = asyncio.all_tasks()
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        async with served.follow(location) as exchange:
            await exchange.until(b"Half")
            for task in asyncio.all_tasks() - before - {exchange.task}:  # as at the end of `asyncio.run`
                task.cancel()
            await clock.advance(0)
            got = await exchange.whole()
        record = (await served.get(location)).json()
        ping = (await served.client.request("GET", "/ping")).json()

    assert kinds_of(got.body)[-2:] == ["contentBlockDelta", "reconnect"]
    assert [(line["state"], line["code"]) for line in served.lines.attempts] == [("running", "unfinished")]
    assert (record["state"], [each.get("end") for each in record["attempts"]]) == ("running", [None])
    assert ping["status"] == "Healthy"


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_a_cancelled_attempt_that_turns_out_to_be_overtaken_stops_at_once_and_ends_nothing(
    clock: ManualClock,
) -> None:
    more, catalog = asyncio.Event(), "[service]\nusage_grace_s = 30"
    script: list[Step] = [start(), text("Half"), more, text(" more"), asyncio.Event()]
    async with serving(clock, script, catalog=catalog) as served, served.post() as exchange:
        await exchange.until(b"Half")
        await clock.advance(1)
        location, store = exchange.headers["location"], served.store.as_store
        later_ms = clock.now_ms() + 10**9
        await store.renew_lease("another", later_ms)
        await store.claim_expired("another", later_ms, limit=1)
        await served.submit(b"", f"{location}/cancel")
        await clock.advance(1)  # it is read on for its usage
        reading_on = served.model.cancelled
        more.set()
        await clock.advance(1)
        got = await exchange.whole()
        record = (await served.get(location)).json()

    assert (reading_on, served.model.cancelled) == (0, 1)
    assert [(line["state"], line["code"]) for line in served.lines.attempts] == [("running", "fenced")]
    assert kinds_of(got.body)[-1] == "reconnect"
    assert (record["state"], len(record["attempts"])) == ("running", 2)


async def test_an_attempt_that_is_overtaken_while_its_end_waits_for_the_store_is_fenced(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served, served.post() as exchange:
        served.store.only, served.store.down = {"finish", "renew_lease"}, True
        await exchange.until(b"metadata")
        await clock.advance(30)  # its lease lapses
        later_ms = clock.now_ms() + 10**9
        served.store.down = False
        await served.store.as_store.renew_lease("another", later_ms)
        await served.store.as_store.claim_expired("another", later_ms, limit=1)
        await clock.advance(5)
        got = await exchange.whole()

    assert [(line["state"], line["code"]) for line in served.lines.attempts] == [("running", "fenced")]
    assert kinds_of(got.body)[-1] == "reconnect"


@pytest.mark.promise("killed-process-goes-on")
async def test_a_late_word_that_an_attempt_was_fenced_does_not_stop_the_next_one_in_the_same_process(
    clock: ManualClock,
) -> None:
    never = asyncio.Event()
    async with serving(clock, [start(), text("Half"), never], answer("anew")) as served:
        served.store.only = {"append_events"}
        served.store.gate.clear()
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)  # the first attempt's events are on their way
        later_ms = clock.now_ms() + 60_000
        await served.store.as_store.claim_expired("dead", later_ms, limit=1)
        await clock.advance(LONGEST_LOOK_S)
        served.store.gate.set()
        await clock.advance(1)
        record = (await served.get(location)).json()

    assert (record["state"], record["result"]["text"]) == ("completed", "anew")
    assert [each["end"] for each in record["attempts"]] == ["lost", "lost", "finished"]
