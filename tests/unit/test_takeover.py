"""Takeover: what a process that died, stalled or drained has left goes on elsewhere, from its last turn."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.errors import StoreUnavailable
from service.stores import ORPHAN_AGE_S
from service.takeover import CLAIMS_AT_ONCE, LONGEST_LOOK_S, ORPHANS_EVERY_S
from service.tools import ToolCall, tool
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text, tool_call
from tests.harness import INVOCATIONS, Served, serving
from tests.left_behind import DEAD, DELTA, HOLD_TOKENS, LeftBehind
from tests.sse import events_of, kinds_of

AGENTS = """
[runtimes.counter]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_takeover:count"]
deadline_s = 600

[runtimes.brief]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_takeover:count"]
max_turns = 1
"""
CALLS: list[ToolCall] = []


@tool(description="Count.", input_schema={"type": "object"}, idempotent=True)
async def count(arguments: dict[str, Any], call: ToolCall) -> str:
    CALLS.append(call)
    return str(len(arguments))


async def left(served: Served, runtime: str = "writer") -> LeftBehind:
    return await LeftBehind(served.store.as_store, served.clock, runtime).create()


async def ended(served: Served, location: str) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Let it be found and run; return its record and its whole log."""
    await served.clock.advance(LONGEST_LOOK_S + 1)
    async with served.follow(location) as exchange:
        got = await exchange.whole()
    return (await served.get(location)).json(), events_of(got.body)


def code_of(record: dict[str, Any]) -> str:
    return str(record["terminalEvent"]["invocationFailed"]["problem"]["code"])


# -- going on


@pytest.mark.promise("killed-process-goes-on", "one-terminal-event", "unreported-usage-estimated")
async def test_an_invocation_whose_process_died_is_run_again_and_its_caller_pays_once(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        dead = await (await (await left(served)).begun()).wrote(DELTA)
        before = (await served.get("/usage")).json()
        record, events = await ended(served, dead.location)
        usage = (await served.get("/usage")).json()

    assert (before["windows"][0]["reserved"], before["runningInvocations"]) == (HOLD_TOKENS, 1)
    assert (record["state"], record["result"]["text"]) == ("completed", "A headrace carries water.")
    assert [(each["lastEventId"], each["end"]) for each in record["attempts"]] == [
        ("1.1", "lost"),
        ("2.8", "finished"),
    ]
    assert events[0][0] == "1.1"
    restarted = {"attemptRestarted": {"attempt": 2, "rewindTo": "1.1"}}
    assert next(event for event in events if event[0].startswith("2.")) == ("2.1", restarted)
    assert [window["used"] for window in usage["windows"]] == [15, 15]
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)


@pytest.mark.promise("killed-process-goes-on", "tool-key-stable", "settle-exactly-once")
async def test_a_turn_that_was_paid_for_is_not_asked_for_again_only_its_tools_are_run(
    clock: ManualClock,
) -> None:
    CALLS.clear()
    async with serving(clock, answer("42"), catalog=AGENTS) as served:
        dead = await (await (await left(served, "counter")).begun()).asked_for("count", {"a": 6})
        record, events = await ended(served, dead.location)
        usage = (await served.get("/usage")).json()
        (request,) = served.model.requests

    assert [each["lastEventId"] for each in record["attempts"]] == ["1.2", "2.9"]
    assert [kind for _, event in events[-9:] for kind in event][:4] == [
        "attemptRestarted",
        "toolStarted",
        "toolFinished",
        "messageStart",
    ]
    assert [(call.idempotency_key, call.turn) for call in CALLS] == [(f"{DEAD}:1:1", 1)]
    assert request.messages[-1]["content"][0]["toolResult"]["content"] == [{"text": "1"}]
    assert [window["used"] for window in usage["windows"]] == [120 + 15, 120 + 15]


@pytest.mark.promise("no-tool-twice")
async def test_a_tool_that_must_not_run_twice_ends_the_invocation_with_its_outcome_unknown(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        dead = await (await (await left(served, "reckoner")).begun()).asked_for("multiply", {"a": 6, "b": 7})
        record, _ = await ended(served, dead.location)
        usage = (await served.get("/usage")).json()

    problem = record["terminalEvent"]["invocationFailed"]["problem"]
    assert (problem["code"], "multiply" in problem["detail"], "retryable" in problem) == (
        "outcome-unknown",
        True,
        False,
    )
    assert served.model.requests == []
    assert [window["used"] for window in usage["windows"]] == [120, 120]
    assert usage["windows"][0]["reserved"] == 0


@pytest.mark.promise("attempts-limit")
async def test_an_invocation_that_three_processes_have_lost_is_ended(clock: ManualClock) -> None:
    async with serving(clock) as served:
        dead = await (await left(served)).begun()
        claims = [
            await dead.store.claim_expired(f"dead-{number}", clock.now_ms() + 10**6, limit=1)
            for number in range(2)
        ]
        record, events = await ended(served, dead.location)

    assert [claim.invocation.attempt for (claim,) in claims] == [2, 3]
    assert (record["state"], code_of(record)) == ("failed", "attempts-exhausted")
    assert [each["end"] for each in record["attempts"]] == ["lost", "lost", "lost", "finished"]
    assert events[-2] == ("4.1", {"attemptRestarted": {"attempt": 4, "rewindTo": "1.1"}})
    assert served.model.requests == []


@pytest.mark.promise("attempts-limit", "killed-process-goes-on")
async def test_an_invocation_that_two_processes_have_lost_goes_on(clock: ManualClock) -> None:
    async with serving(clock) as served:
        dead = await (await left(served)).begun()
        await dead.store.claim_expired("dead-2", clock.now_ms() + 10**6, limit=1)
        record, _ = await ended(served, dead.location)

    assert (record["state"], [each["end"] for each in record["attempts"]]) == (
        "completed",
        ["lost", "lost", "finished"],
    )


async def test_a_deadline_that_passed_meanwhile_ends_it_without_a_model_call(clock: ManualClock) -> None:
    async with serving(clock) as served:
        dead = LeftBehind(served.store.as_store, clock)
        await (await dead.create(deadline_s=0.5)).begun()
        record, _ = await ended(served, dead.location)

    assert (code_of(record), served.model.requests) == ("deadline-exceeded", [])


@pytest.mark.parametrize("body", [b"{}", b"[]", b"no JSON", b""])
async def test_an_input_that_can_not_be_read_ends_it_and_keeps_nothing_else_from_going_on(
    clock: ManualClock, body: bytes
) -> None:
    async with serving(clock) as served:
        dead = await LeftBehind(served.store.as_store, clock).create(body=body)
        other = await LeftBehind(dead.store, clock, "writer", DEAD[:-1] + "E").create()
        record, _ = await ended(served, dead.location)
        another, _ = await ended(served, other.location)

    assert (code_of(record), another["state"]) == ("internal-error", "completed")


@pytest.mark.promise("killed-process-goes-on")
async def test_an_invocation_of_which_nothing_was_stored_has_its_first_event_all_the_same(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        dead = await left(served)
        _, events = await ended(served, dead.location)

    assert events[:2] == [
        ("1.1", {"invocationStarted": {"invocationId": DEAD, "runtimeId": "writer", "attempt": 1}}),
        ("2.1", {"attemptRestarted": {"attempt": 2, "rewindTo": "1.1"}}),
    ]


@pytest.mark.promise("reattach-exactly-once")
async def test_a_reader_that_had_more_than_was_granted_goes_on_with_the_next_attempt(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        dead = await (await (await left(served)).begun()).wrote(DELTA)
        await ended(served, dead.location)
        for cursor in ("1.1", "1.2", "1.57"):
            got = await served.get(f"{dead.location}/events", last_event_id=cursor)
            assert [event_id for event_id, _ in events_of(got.body)] == [f"2.{seq}" for seq in range(1, 9)]


# -- finding


async def test_more_than_one_round_of_dead_invocations_is_found_at_once(clock: ManualClock) -> None:
    limits = "[limits.writers]\ndaily_tokens = 1_000_000\nmonthly_tokens = 1_000_000"
    async with serving(clock, catalog=limits) as served:
        for number in range(CLAIMS_AT_ONCE + 4):
            one = LeftBehind(served.store.as_store, clock, invocation_id=f"{DEAD[:-2]}{number:02}")
            await one.create(tokens=1)
        await clock.advance(LONGEST_LOOK_S + 1)
        records = (await served.get(f"{INVOCATIONS}?limit=100")).json()["invocations"]

    assert [record["state"] for record in records] == ["completed"] * (CLAIMS_AT_ONCE + 4)


@pytest.mark.promise("sheds-before-work")
async def test_a_process_claims_no_more_than_it_has_room_for(clock: ManualClock) -> None:
    gate, catalog = asyncio.Event(), "[service]\nrunning_invocations = 2"
    async with serving(clock, [start(), gate, stop()], catalog=catalog) as served:
        for number in range(3):
            await LeftBehind(served.store.as_store, clock, invocation_id=f"{DEAD[:-1]}{number}").create()
        await clock.advance(LONGEST_LOOK_S + 1)
        attempts = [
            len(record["attempts"]) for record in (await served.get(INVOCATIONS)).json()["invocations"]
        ]
        gate.set()
        await clock.advance(2 * LONGEST_LOOK_S)
        records = (await served.get(INVOCATIONS)).json()["invocations"]

    assert sorted(attempts) == [1, 2, 2]
    assert [record["state"] for record in records] == ["completed"] * 3


async def test_nothing_is_claimed_while_the_store_is_down(clock: ManualClock) -> None:
    async with serving(clock) as served:
        dead = await (await left(served)).begun()
        served.store.down = True
        await clock.advance(60)
        served.store.down = False
        await clock.advance(5)
        early = (await served.get(dead.location)).json()
        await clock.advance(10)  # the others have had time to renew their leases
        record, _ = await ended(served, dead.location)

    assert (len(early["attempts"]), record["state"]) == (1, "completed")


@pytest.mark.promise("one-terminal-event")
async def test_an_invocation_whose_admission_was_never_answered_is_run(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.deaf = {"create_invocation"}, True
        refused = await served.submit()
        served.store.deaf = False
        await clock.advance(ORPHAN_AGE_S + ORPHANS_EVERY_S + LONGEST_LOOK_S)
        (record,) = (await served.get(INVOCATIONS)).json()["invocations"]
        usage = (await served.get("/usage")).json()

    assert (refused.status, refused.json()["code"]) == (503, StoreUnavailable.code)
    assert (record["state"], usage["runningInvocations"]) == ("completed", 0)
    assert usage["windows"][0]["reserved"] == 0


@pytest.mark.promise("one-terminal-event")
async def test_an_invocation_whose_attempt_could_not_be_finished_is_run_again(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.broken = {"finish"}, ValueError("a gap in the log")
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        served.store.broken = None
        await clock.advance(ORPHAN_AGE_S + ORPHANS_EVERY_S + LONGEST_LOOK_S)
        got = await served.get(f"{location}/events")

    kinds = kinds_of(got.body)
    assert (kinds.count("attemptRestarted"), kinds[-1]) == (1, "invocationCompleted")


async def test_what_runs_is_no_orphan_however_long_it_runs(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate, stop()]) as served, served.post() as exchange:
        await clock.advance(3 * ORPHAN_AGE_S)
        gate.set()
        got = await exchange.whole()

    assert kinds_of(got.body)[-1] == "invocationCompleted"


# -- readers


@pytest.mark.promise("killed-process-goes-on")
async def test_a_reader_that_waits_for_a_dead_process_goes_on_with_the_process_that_takes_over(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), text("Anew"), gate, stop()]) as served:
        dead = await (await (await left(served)).begun()).wrote(DELTA)
        async with served.follow(dead.location) as exchange:
            await clock.advance(LONGEST_LOOK_S + 1)
            got = await exchange.whole()
        cursor = events_of(got.body)[-1][1]["reconnect"]["after"]
        async with served.follow(dead.location, last_event_id=cursor) as exchange:
            await exchange.until(b"Anew")
            gate.set()
            await clock.advance(0)
            rest = await exchange.whole()

    assert events_of(got.body)[-1][1]["reconnect"]["reason"] == "segment-end"
    assert kinds_of(rest.body)[-1] == "invocationCompleted"


# -- a drain hands over


@pytest.mark.promise("handed-over-goes-on")
async def test_a_drain_hands_over_what_does_not_end_in_time_and_another_process_goes_on(
    clock: ManualClock, tmp_path: Path
) -> None:
    never, path = asyncio.Event(), tmp_path / "db"
    script: list[Step] = [start(), text("Half"), never]
    async with (
        serving(clock, script, catalog="[service]\ndrain_s = 5", store=path) as leaving,
        serving(clock, store=path) as staying,
    ):
        location = (await leaving.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        draining = asyncio.ensure_future(leaving.drain())
        await clock.advance(4.9)
        assert not draining.done()
        await clock.advance(0.1)
        await draining
        handed = (await staying.get(location)).json()
        record, _ = await ended(staying, location)
        usage = (await staying.get("/usage")).json()

    assert (handed["state"], handed["attempts"][0]["end"]) == ("running", "handed-over")
    assert (record["state"], record["result"]["text"]) == ("completed", "A headrace carries water.")
    assert [window["used"] for window in usage["windows"]] == [15, 15]
    assert usage["windows"][0]["reserved"] == 0


@pytest.mark.promise("handed-over-goes-on")
async def test_in_the_second_half_of_a_drain_an_attempt_leaves_between_two_turns(
    clock: ManualClock, tmp_path: Path
) -> None:
    gate, path = asyncio.Event(), tmp_path / "db"
    calls = tool_call("count", '{"a":6}')
    first = [*calls[:-1], gate, calls[-1]]
    catalog = AGENTS + "[service]\ndrain_s = 10"
    async with (
        serving(clock, first, answer("not here"), catalog=catalog, store=path) as leaving,
        serving(clock, answer("42"), catalog=AGENTS, store=path) as staying,
    ):
        path_of = "/runtimes/counter/invocations"
        location = (await leaving.submit(path=path_of, prefer="respond-async")).headers["location"]
        await clock.advance(0)
        draining = asyncio.ensure_future(leaving.drain())
        await clock.advance(6)
        gate.set()
        await clock.advance(0)
        assert draining.done()
        record, _ = await ended(staying, location)

    assert (len(leaving.model.requests), len(staying.model.requests)) == (1, 1)
    assert (record["state"], record["result"]["text"]) == ("completed", "42")
    assert not record["usage"].get("estimated")


@pytest.mark.promise("handed-over-goes-on", "attempts-limit")
async def test_an_attempt_that_was_handed_over_is_not_one_that_was_lost(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    for _ in range(4):
        async with serving(clock, [start(), asyncio.Event()], store=path) as served:
            listed = (await served.get(INVOCATIONS)).json()["invocations"]
            if not listed:
                await served.submit(prefer="respond-async")
            await clock.advance(LONGEST_LOOK_S)
    async with serving(clock, store=path) as served:
        (record,) = (await served.get(INVOCATIONS)).json()["invocations"]
        record, _ = await ended(served, record["events"].removesuffix("/events"))

    assert [each["end"] for each in record["attempts"]] == ["handed-over"] * 4 + ["finished"]
    assert record["state"] == "completed"
