"""The bench's upstream and its load client, in one event loop: what is asked for is what is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from bench.load import measure
from bench.loads import Asking, Load
from bench.script import DELTA_MARK, Plan
from bench.upstream import Conversation, Wheel

PLAN = Plan(first_ms=1, deltas=5, interval_us=1000)
SILENT = Plan(first_ms=1, deltas=2, interval_us=360_000_000)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """An upstream on loopback; at the end all its connections are gone."""
    loop = asyncio.get_running_loop()
    wheel, everyone, gone = Wheel(loop), list[Seen](), asyncio.Semaphore(0)

    def accept() -> Seen:
        everyone.append(Seen(wheel, gone))
        return everyone[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0)
    async with server:
        number: int = server.sockets[0].getsockname()[1]
        yield number
        server.close()
        for conversation in everyone:
            conversation.hang_up()
            await gone.acquire()


class Seen(Conversation):
    """One connection, whose end can be waited for."""

    def __init__(self, wheel: Wheel, gone: asyncio.Semaphore) -> None:
        super().__init__(wheel, set())
        self._gone = gone

    def hang_up(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.release()


def asking(plan: Plan, path: str | None = None, body: str = "{}", end: str = '{"metadata"') -> Asking:
    head = (
        f"POST {path or f'/sse/{plan.model_id}'} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Asking([head + body], DELTA_MARK, end, plan.deltas)


def chat(plan: Plan) -> Asking:
    return asking(plan, "/v1/chat/completions", json.dumps({"model": plan.model_id}), "[DONE]")


def load(port: int, asked: Asking, way: str, **more: Any) -> Load:
    short = {"ramp_s": 0.0, "settle_s": 0.0, "window_s": 0.05, "limit_s": 20.0}
    return Load(port, asked, way, **{**short, **more})


@pytest.mark.parametrize("asked", [asking(PLAN), chat(PLAN)], ids=["sse", "chat"])
async def test_answers_are_timed_one_by_one(port: int, asked: Asking) -> None:
    result = await measure(load(port, asked, "sequential", times=3))

    assert (result.answers, result.errors) == (3, {})
    assert len(result.first_byte_ms) == len(result.first_delta_ms) == 3


async def test_a_number_of_answers_is_fetched_on_some_connections(port: int) -> None:
    result = await measure(load(port, asking(PLAN), "closed", streams=4, times=20))

    assert (result.answers, result.deltas, result.errors) == (20, 100, {})


async def test_a_window_counts_what_arrives_in_it_and_how_late(port: int) -> None:
    plan = Plan(first_ms=1, deltas=10_000, interval_us=2000, stamped=True)

    result = await measure(load(port, asking(plan), "window", streams=3, stamped=True, begin_s=10.0))

    assert (result.begun, result.unfinished, result.errors) == (3, 3, {})
    assert 0 < len(result.late_ms) <= result.deltas
    assert min(result.late_ms) >= 0


async def test_stalled_readers_take_their_first_delta_and_no_more(port: int) -> None:
    beside = asking(SILENT)

    result = await measure(load(port, asking(PLAN), "window", stalled=2, beside=beside, begin_s=10.0))

    assert (result.unfinished, result.errors) == (0, {})


async def test_all_hang_up_and_another_caller_is_answered(port: int) -> None:
    held = load(port, asking(SILENT), "hang-up", streams=3, beside=asking(PLAN), begin_s=10.0)

    result = await measure(held)

    assert (result.begun, result.errors) == (3, {})
    assert result.answers == len(result.first_byte_ms) > 0


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (replace(asking(PLAN), deltas=6), "5 deltas, not 6"),
        (replace(asking(PLAN), deltas=4), "5 deltas, not 4"),
        (replace(asking(PLAN), end_mark="[DONE]"), "no proper end"),
        (asking(PLAN, "/nothing"), "status 404"),
    ],
    ids=["too few", "too many", "another end", "no success"],
)
async def test_a_wrong_answer_is_an_error_and_never_a_figure(port: int, asked: Asking, error: str) -> None:
    result = await measure(load(port, asked, "sequential", times=3))

    assert (result.errors, result.answers) == ({error: 1}, 0)
