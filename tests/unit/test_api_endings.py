"""How invocations end: always with exactly one terminal event, which nobody sees before it is durable."""

import asyncio
from typing import Any

import pytest

from service.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    TurnsExhausted,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.events import TERMINAL_EVENT_TYPES
from tests.asgi import Answer
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text, tool_call
from tests.harness import INVOCATIONS, Served, serving
from tests.sse import events_of, kinds_of

RECKONER = "/runtimes/reckoner/invocations"
FOREIGN = "botched at 0x7f2c: the library's own words"
MULTIPLY = '{"a":6,"b":7}'


def problem_of(error: HeadraceError, location: str) -> dict[str, Any]:
    return error.problem(instance=location, invocationId=location.rpartition("/")[2])


async def check_failed(served: Served, got: Answer, error: HeadraceError) -> None:
    """Stream, replay, record and log line all end with this error's problem, once."""
    location = got.headers["location"]
    failed = {"invocationFailed": {"problem": problem_of(error, location)}}
    await check_ended(served, got, "failed", error.code)
    record = (await served.get(location)).json()
    assert events_of(got.body)[-1][1] == failed
    assert record["terminalEvent"] == {"id": events_of(got.body)[-1][0]} | failed


async def check_ended(served: Served, got: Answer, state: str, code: str = "") -> None:
    location = got.headers["location"]
    async with served.follow(location) as exchange:
        replayed = await exchange.whole()
    terminal = [kind for kind in kinds_of(got.body) if kind.encode() in TERMINAL_EVENT_TYPES]
    assert (got.status, replayed.body) == (200, without_heartbeats(got.body))
    assert terminal == kinds_of(got.body)[-1:]
    assert (await served.get(location)).json()["state"] == state
    (line,) = served.lines.attempts
    assert (line["state"], line["code"]) == (state, code)


def without_heartbeats(body: bytes) -> bytes:
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b": heartbeat"))


@pytest.mark.promise("one-terminal-event")
async def test_an_answer_ends_as_completed(clock: ManualClock) -> None:
    async with serving(clock) as served:
        got = await served.submit()

        await check_ended(served, got, "completed")
        assert served.lines.attempts == [
            {
                "invocation_id": got.headers["location"].rpartition("/")[2],
                "runtime_id": "writer",
                "sub": "3c1f9b1e-7d3b-4c0e-9a7d-0a5f6a1b2c3d",
                "attempt": 1,
                "state": "completed",
                "code": "",
                "turns": 1,
                "events": 8,
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
                "estimated": False,
                "tried": [{"model": "bedrock/model-1", "code": "", "calls": 1}],
                "first_frame_ms": 0,
                "duration_ms": 0,
            }
        ]


@pytest.mark.promise("one-terminal-event", "problem-documents-everywhere")
@pytest.mark.parametrize(
    "failure",
    [
        UpstreamRejected("The conversation is too long."),
        UpstreamMisconfigured(),
        UpstreamFailed("The connection broke off."),
        UpstreamThrottled(retry_after_s=3),
        UpstreamUnavailable(),
        UpstreamTimeout(),
    ],
    ids=lambda failure: failure.code,
)
async def test_an_upstream_that_fails_in_the_middle_fails_the_invocation(
    clock: ManualClock, failure: HeadraceError
) -> None:
    async with serving(clock, [start(), text("Half an ans"), failure]) as served:
        got = await served.submit()

        await check_failed(served, got, failure)


@pytest.mark.promise("truncation-is-failure", "one-terminal-event")
async def test_an_upstream_that_stops_without_messagestop_fails_the_invocation(clock: ManualClock) -> None:
    async with serving(clock, [start(), text("All of it, it seems.")]) as served:
        got = await served.submit()

        await check_failed(served, got, UpstreamFailed("The answer ended without messageStop."))


@pytest.mark.promise("one-terminal-event", "problem-documents-everywhere")
@pytest.mark.parametrize(
    "fault",
    [RuntimeError(FOREIGN), TimeoutError(FOREIGN), KeyError(FOREIGN)],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_fault_of_ours_fails_the_invocation_and_says_nothing_foreign(
    clock: ManualClock, fault: Exception
) -> None:
    async with serving(clock, [start(), fault]) as served:
        got = await served.submit()

        await check_failed(
            served, got, InternalError("The failure has been logged with this invocation's id.")
        )
        assert "botched" not in got.body.decode()


async def test_a_fault_of_ours_in_the_grace_is_a_500(clock: ManualClock) -> None:
    async with serving(clock, [RuntimeError(FOREIGN)]) as served:
        got = await served.submit()

    problem = problem_of(
        InternalError("The failure has been logged with this invocation's id."), got.json()["instance"]
    )
    assert (got.status, got.json()) == (500, problem)


@pytest.mark.promise("deadline-ends-job", "one-terminal-event")
async def test_no_invocation_outlives_its_deadline(clock: ManualClock) -> None:
    never = asyncio.Event()
    async with serving(clock, [start(), text("Half"), never]) as served, served.post() as exchange:
        await clock.advance(599.9)
        assert not exchange.complete
        await clock.advance(0.1)
        got = await exchange.whole()

        error = DeadlineExceeded("The deadline of this runtime has passed; what was produced is in the log.")
        await check_failed(served, got, error)
        assert served.model.cancelled == 1


@pytest.mark.promise("turn-limit", "one-terminal-event")
async def test_an_agent_that_never_stops_asking_for_tools_is_ended(clock: ManualClock) -> None:
    async with serving(clock, tool_call("multiply", MULTIPLY)) as served:
        got = await served.submit({"prompt": "6 times 7?", "maxTokens": 100}, RECKONER)

        await check_failed(
            served, got, TurnsExhausted("The agent asked for tools 3 times without an answer.")
        )
        assert len(served.model.requests) == 3
        assert kinds_of(got.body).count("toolFinished") == 2  # the third turn's tools would run for nothing


def costly_turn(input_tokens: int) -> list[Step]:
    return [*tool_call("multiply", MULTIPLY)[:-1], stop("tool_use", input_tokens=input_tokens)]


@pytest.mark.promise("budget-per-invocation", "one-terminal-event")
async def test_a_turn_that_the_budget_does_not_cover_is_not_started(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), answer("42")) as served:
        got = await served.submit({"prompt": "6 times 7?", "maxTokens": 100}, RECKONER)

        kind, value = events_of(got.body)[-1][1].popitem()
        await check_ended(served, got, "failed", "budget-exceeded")
        assert (kind, value["problem"]["code"]) == ("invocationFailed", "budget-exceeded")
        assert value["problem"]["budget"].items() >= {"limit": 10_000, "used": 9505}.items()
        assert len(served.model.requests) == 1


# -- nobody sees the end before it is durable


@pytest.mark.promise("terminal-after-commit")
async def test_the_terminal_event_waits_for_the_store_and_heartbeats_say_so(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only = {"finish"}
        served.store.gate.clear()
        async with served.post() as exchange:
            await exchange.until(b"metadata")
            await clock.advance(30)
            record = (await served.get(exchange.headers["location"])).json()
            waiting = exchange.body
            served.store.gate.set()
            got = await exchange.whole()

        assert (record["state"], "terminalEvent" in record) == ("running", False)
        assert kinds_of(waiting)[-1] == "metadata"
        assert b": heartbeat phase=committing turn=1 elapsed_s=" in waiting
        await check_ended(served, got, "completed")


@pytest.mark.promise("terminal-after-commit", "one-terminal-event")
async def test_a_store_that_is_down_at_the_end_is_asked_until_it_is_back(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.down = {"finish"}, True
        async with served.post() as exchange:
            await exchange.until(b"metadata")
            await clock.advance(60)
            waiting = exchange.body
            served.store.down = False
            await clock.advance(5)
            got = await exchange.whole()

        assert kinds_of(waiting)[-1] == "metadata"
        assert waiting.count(b"phase=committing") >= 5
        await check_ended(served, got, "completed")


@pytest.mark.promise("terminal-after-commit", "one-terminal-event", "settle-exactly-once")
async def test_an_end_whose_answer_was_lost_is_committed_and_counted_once(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.deaf = {"finish"}, True
        async with served.post() as exchange:
            await exchange.until(b"metadata")
            await clock.advance(3)
            assert kinds_of(exchange.body)[-1] == "metadata"
            served.store.deaf = False
            await clock.advance(5)
            got = await exchange.whole()
        usage = (await served.get("/usage")).json()

        assert served.store.calls.count("finish") > 2
        assert [window["used"] for window in usage["windows"]] == [15, 15]
        assert (usage["runningInvocations"], usage["windows"][0]["reserved"]) == (0, 0)
        await check_ended(served, got, "completed")


async def test_an_attempt_that_the_store_will_never_end_sends_its_readers_on(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.broken = {"finish"}, ValueError("a gap in the log")
        async with served.post() as exchange:
            await exchange.until(b"metadata")
            await clock.advance(10)
            got = await exchange.whole()

    assert events_of(got.body)[-1] == ("1.7", {"reconnect": {"after": "1.7", "reason": "segment-end"}})
    (line,) = served.lines.attempts
    assert (line["state"], line["code"]) == ("running", "unfinished")


async def test_invocations_are_listed_with_the_states_they_ended_in(clock: ManualClock) -> None:
    async with serving(clock, answer("Fine."), [start(), UpstreamFailed()]) as served:
        await served.submit()
        await clock.advance(1)
        await served.submit()
        records = (await served.get(INVOCATIONS)).json()["invocations"]

    assert [record["state"] for record in records] == ["failed", "completed"]
