"""Peers that are slow, stuck or broken, and responses that break: they cost their reader, never the job."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.edge_answer import Answer
from service.edge_request import Request
from tests.asgi import AsgiClient
from tests.clock import ManualClock
from tests.fakes import Step, start, stop, text
from tests.harness import serving
from tests.routing import edge
from tests.sse import events_of, kinds_of


def halves(gate: asyncio.Event) -> list[Step]:
    """An answer of which 1.1 to 1.3 come at once, and 1.4 to 1.8 when the gate opens."""
    return [start(), text("A head"), gate, text("race."), stop()]


@pytest.mark.promise("slow-reader-bounded", "job-survives-reader")
async def test_a_peer_that_takes_nothing_is_cut_off_and_the_job_goes_on(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        exchange.block()
        gate.set()
        await clock.advance(29)
        still_open = not exchange.aborted
        await clock.advance(12)
        async with served.follow(exchange.headers["location"], last_event_id="1.3") as following:
            rest = await following.whole()

    assert (still_open, exchange.aborted) == (True, True)
    assert [event_id for event_id, _ in events_of(rest.body)] == [f"1.{seq}" for seq in range(4, 9)]
    assert sorted(line.get("end", "") for line in served.lines.requests) == ["stuck", "terminal"]


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_connection_that_fails_while_it_is_written_to_ends_its_reader_only(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        async with served.follow(exchange.headers["location"]) as other:
            await other.until(b"A head")
            exchange.fail(RuntimeError("the server's own"))
            gate.set()
            got = await other.whole()

    assert (exchange.aborted, exchange.complete) == (True, False)
    assert kinds_of(got.body)[-1] == "invocationCompleted"
    assert [line["state"] for line in served.lines.attempts] == ["completed"]
    assert [record.getMessage() for record in caplog.records] == ["reader failed"]


async def test_a_connection_that_fails_when_its_peer_reads_again_is_cut_off(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        exchange.block()
        gate.set()
        await clock.advance(1)
        exchange.fail(RuntimeError("the server's own"))
        exchange.unblock()
        await clock.advance(1)

        assert (exchange.aborted, exchange.complete) == (True, False)
    assert [line["end"] for line in served.lines.requests] == ["failed"]
    assert [record.getMessage() for record in caplog.records] == ["reader failed"]


# -- what breaks below the routes


class BreaksOff(Answer):
    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError


async def breaks_off(_: Request) -> Answer:
    return BreaksOff(200, [])


async def test_a_response_that_breaks_off_is_logged_once_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[Any] = []

    async with AsgiClient(edge({"/usage": {"GET": breaks_off}}, lines)).stream("GET", "/usage") as exchange:
        await exchange.task

    assert [line["status"] for line in lines] == [200]
    assert [record.getMessage() for record in caplog.records] == ["response broke off"]
