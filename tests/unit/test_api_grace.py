"""The grace before the first event: what the upstream refuses in it is a status, later it is an event."""

import asyncio
import re
from typing import Any

import pytest

from service.errors import (
    HeadraceError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from tests.clock import ManualClock
from tests.fakes import answer, start, stop, text
from tests.harness import INVOCATIONS, Served, serving
from tests.sse import events_of, kinds_of

REFUSALS = [
    UpstreamRejected("The model does not take images."),
    UpstreamMisconfigured(),
    UpstreamThrottled("The model is busy.", retry_after_s=2.5),
    UpstreamUnavailable(),
    UpstreamFailed(),
    UpstreamTimeout(),
]


def problem_of(error: HeadraceError, invocation_id: str) -> dict[str, Any]:
    return error.problem(instance=f"{INVOCATIONS}/{invocation_id}", invocationId=invocation_id)


async def only_record(served: Served) -> dict[str, Any]:
    (record,) = (await served.get(INVOCATIONS)).json()["invocations"]
    return dict(record)


@pytest.mark.promise("refusal-becomes-status", "problem-documents-everywhere", "one-terminal-event")
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
async def test_a_refusal_in_the_grace_is_a_status_and_a_failed_record_remains(
    clock: ManualClock, refusal: HeadraceError
) -> None:
    async with serving(clock, [refusal]) as served:
        got = await served.submit()
        record = await only_record(served)

    problem = problem_of(refusal, record["invocationId"])
    assert (got.status, got.json()) == (refusal.status, problem)
    assert got.headers["content-type"] == "application/problem+json"
    retry_after = {503: str(3 if refusal.retry_after_s else 1)}
    assert got.headers.get("retry-after") == retry_after.get(refusal.status)
    assert (record["state"], record["terminalEvent"]) == (
        "failed",
        {"id": "1.2", "invocationFailed": {"problem": problem}},
    )


@pytest.mark.promise("refusal-becomes-status", "one-terminal-event")
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
async def test_a_refusal_after_the_grace_is_the_streams_terminal_event(
    clock: ManualClock, refusal: HeadraceError
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [gate, refusal]) as served, served.post() as exchange:
        await clock.advance(0.999)
        assert exchange.status == 0
        await clock.advance(0.001)
        assert (exchange.status, exchange.headers["content-type"]) == (200, "text/event-stream")
        gate.set()
        got = await exchange.whole()
        record = await only_record(served)

    problem = problem_of(refusal, record["invocationId"])
    assert events_of(got.body)[1:] == [("1.2", {"invocationFailed": {"problem": problem}})]
    assert kinds_of(got.body) == ["invocationStarted", "invocationFailed"]
    assert record["terminalEvent"] == {"id": "1.2", "invocationFailed": {"problem": problem}}


async def test_the_first_event_ends_the_grace(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate, stop()]) as served, served.post() as exchange:
        await exchange.until(b"messageStart")

        assert (exchange.status, clock.monotonic_s()) == (200, 1000.0)
        gate.set()
        await exchange.whole()


async def test_a_failure_after_the_first_event_is_never_a_status(clock: ManualClock) -> None:
    async with serving(clock, [start(), text("Half"), UpstreamFailed()]) as served:
        got = await served.submit()

    assert got.status == 200
    assert kinds_of(got.body) == [
        "invocationStarted",
        "messageStart",
        "contentBlockDelta",
        "invocationFailed",
    ]


async def test_without_a_grace_the_response_begins_at_once(clock: ManualClock) -> None:
    catalog = "[service]\nfirst_event_grace_s = 0"
    async with serving(clock, [UpstreamThrottled()], catalog=catalog) as served:
        got = await served.submit()

    assert (got.status, kinds_of(got.body)) == (200, ["invocationStarted", "invocationFailed"])


async def test_a_refusal_that_the_store_can_not_take_yet_is_no_status_before_it_is_durable(
    clock: ManualClock,
) -> None:
    async with serving(clock, [UpstreamThrottled()]) as served:
        served.store.only, served.store.down = {"finish"}, True
        async with served.post() as exchange:
            await clock.advance(0.5)
            assert exchange.status == 0
            served.store.down = False
            await clock.advance(0.4)
            got = await exchange.whole()
        record = await only_record(served)

    assert (got.status, record["state"]) == (503, "failed")


@pytest.mark.promise("heartbeat-before-first-token")
async def test_heartbeats_come_from_before_the_first_token_and_say_what_is_waited_for(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [gate, *answer("At last.")]) as served, served.post() as exchange:
        await clock.advance(25)
        head, _, beats = exchange.body.partition(b"\n\n")

    assert head.startswith(b": connected\nid: 1.1\nevent: invocationStarted\n")
    said = [
        re.fullmatch(rb": heartbeat phase=model turn=1 elapsed_s=([0-9]+)", beat)
        for beat in beats.splitlines()
    ]
    first_s, second_s = [int(match[1]) for match in said if match]
    assert None not in said
    assert 8 <= first_s <= 10 < second_s <= 20


@pytest.mark.promise("heartbeat-before-first-token")
async def test_a_stream_is_never_silent_for_longer_than_the_heartbeat_interval(clock: ManualClock) -> None:
    never = asyncio.Event()
    catalog = "[service]\nheartbeat_s = 3"
    async with serving(clock, [never], catalog=catalog) as served, served.post() as exchange:
        await clock.advance(1)
        longest_s, silent_since, written = 0.0, clock.monotonic_s(), len(exchange.writes)
        for _ in range(400):
            await clock.advance(0.1)
            if len(exchange.writes) > written:
                written, silent_since = len(exchange.writes), clock.monotonic_s()
            longest_s = max(longest_s, clock.monotonic_s() - silent_since)

    assert longest_s <= 3.1  # looked at every 0.1 s
    assert exchange.body.count(b": heartbeat phase=model turn=1 elapsed_s=") >= 13


@pytest.mark.promise("job-survives-reader")
async def test_a_caller_that_leaves_in_the_grace_can_come_back_for_the_answer(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [gate, *answer("Here.")]) as served:
        async with served.post() as left:
            await clock.advance(0.5)
            left.hang_up()
            await clock.advance(1)
        gate.set()
        await clock.advance(0)
        record = await only_record(served)
        async with served.follow(f"{INVOCATIONS}/{record['invocationId']}") as exchange:
            got = await exchange.whole()

    assert record["state"] == "completed"
    assert kinds_of(got.body)[-1] == "invocationCompleted"
