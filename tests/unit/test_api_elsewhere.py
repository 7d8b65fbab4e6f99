"""An invocation is followed in one process while another one runs it; they share nothing but the store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import InvalidCursor
from service.follow import POLL_S
from tests.asgi import Exchange
from tests.clock import ManualClock
from tests.fakes import Step, start, stop, text
from tests.harness import Served, serving
from tests.sse import events_of, kinds_of

ALL = [f"1.{seq}" for seq in range(1, 9)]


class Two:
    """Two processes of one deployment: one runs an invocation, the other is asked for it."""

    def __init__(self, runs: Served, asked: Served, exchange: Exchange, gate: asyncio.Event) -> None:
        self.runs = runs
        self.asked = asked
        self.exchange = exchange
        self.gate = gate
        self.location = exchange.headers["location"]


@asynccontextmanager
async def two(clock: ManualClock, path: Path) -> AsyncIterator[Two]:
    """Run the first half of an answer, up to 1.3, in one process; the rest comes when the gate opens."""
    gate, store = asyncio.Event(), path / "db"
    script: list[Step] = [start(), text("A head"), gate, text("race."), stop()]
    async with (
        serving(clock, script, store=store) as runs,
        serving(clock, store=store) as asked,
        runs.post() as exchange,
    ):
        await exchange.until(b"A head")
        yield Two(runs, asked, exchange, gate)


def ids_of(exchange: Exchange) -> list[str]:
    return [event_id for event_id, _ in events_of(exchange.body)]


@pytest.mark.promise("reattach-exactly-once", "same-events-every-cursor")
@pytest.mark.parametrize("seq", range(4))
async def test_from_every_cursor_an_event_comes_once_and_in_order(
    clock: ManualClock, tmp_path: Path, seq: int
) -> None:
    after = {"last_event_id": f"1.{seq}"} if seq else {}
    async with two(clock, tmp_path) as both:
        await clock.advance(1)
        async with both.asked.follow(both.location, **after) as following:
            await clock.advance(1)
            before = ids_of(following)
            both.gate.set()
            await clock.advance(1)
            got = await following.whole()
        whole = await both.exchange.whole()

    assert before == ALL[seq:3]
    assert ids_of(following) == ALL[seq:]
    assert events_of(got.body) == events_of(whole.body)[seq:]


@pytest.mark.promise("reattach-exactly-once")
async def test_a_cursor_ahead_of_the_store_is_waited_for_and_nothing_comes_twice(
    clock: ManualClock, tmp_path: Path
) -> None:
    async with two(clock, tmp_path) as both:
        both.runs.store.only = {"append_events"}
        both.runs.store.gate.clear()
        assert ids_of(both.exchange) == ALL[:3]
        async with both.asked.follow(both.location, last_event_id="1.2") as following:
            await clock.advance(2)
            assert ids_of(following) == []
            both.runs.store.gate.set()
            both.gate.set()
            await clock.advance(2)
            await following.whole()

    assert ids_of(following) == ALL[2:]


async def test_a_cursor_that_was_never_issued_is_refused_once_the_end_is_known(
    clock: ManualClock, tmp_path: Path
) -> None:
    async with two(clock, tmp_path) as both:
        async with both.asked.follow(both.location, last_event_id="1.40") as following:
            await following.until(b": connected")
            both.gate.set()
            await clock.advance(2)
        again = await both.asked.get(f"{both.location}/events", last_event_id="1.40")

    assert (following.status, ids_of(following)) == (200, [])
    assert (again.status, again.json()["code"]) == (400, InvalidCursor.code)


@pytest.mark.promise("heartbeat-before-first-token")
async def test_heartbeats_say_that_another_process_runs_it(clock: ManualClock, tmp_path: Path) -> None:
    async with two(clock, tmp_path) as both, both.asked.follow(both.location) as following:
        await clock.advance(21)

        assert following.body.count(b": heartbeat phase=elsewhere turn=0 elapsed_s=") == 2


async def test_readers_of_one_invocation_share_one_poll_that_ends_with_the_last_of_them(
    clock: ManualClock, tmp_path: Path
) -> None:
    async with two(clock, tmp_path) as both:
        async with both.asked.follow(both.location) as one:
            async with both.asked.follow(both.location, last_event_id="1.2") as other:
                await clock.advance(10)
                alone = await polls_in(both, 10)
            shared = await polls_in(both, 10)
        left = await polls_in(both, 10)

    assert (ids_of(one), ids_of(other)) == (ALL[:3], ALL[2:3])
    assert alone == shared == 10 / POLL_S[1]
    assert left == 0


async def polls_in(both: Two, seconds: float) -> int:
    before = both.asked.store.calls.count("read_events")
    await both.asked.clock.advance(seconds)
    return both.asked.store.calls.count("read_events") - before


async def test_a_refused_cursor_leaves_no_poll_behind(clock: ManualClock, tmp_path: Path) -> None:
    async with two(clock, tmp_path) as both:
        got = await both.asked.get(f"{both.location}/events", last_event_id="2.1")

        assert (got.status, got.json()["code"]) == (400, InvalidCursor.code)
        assert await polls_in(both, 10) == 0


async def test_a_poll_waits_for_a_store_that_is_down(clock: ManualClock, tmp_path: Path) -> None:
    async with two(clock, tmp_path) as both, both.asked.follow(both.location) as following:
        await following.until(b": connected")
        both.asked.store.down = True
        both.gate.set()
        await clock.advance(5)
        assert kinds_of(following.body) == []
        both.asked.store.down = False
        await clock.advance(2)
        await following.whole()

    assert ids_of(following) == ALL


async def test_the_caller_leaves_the_process_that_runs_it_and_reads_on_in_the_other(
    clock: ManualClock, tmp_path: Path
) -> None:
    async with two(clock, tmp_path) as both:
        both.exchange.hang_up()
        both.gate.set()
        await clock.advance(1)
        async with both.asked.follow(both.location, last_event_id="1.3") as following:
            await following.whole()
        record = (await both.asked.get(both.location)).json()

        assert ids_of(both.exchange) + ids_of(following) == ALL
        assert (record["state"], record["result"]) == ("completed", {"text": "A headrace."})
        assert await polls_in(both, 10) == 0


@pytest.mark.promise("reattach-exactly-once")
async def test_a_record_that_was_read_just_before_the_end_leads_to_the_end(
    clock: ManualClock, tmp_path: Path
) -> None:
    async with two(clock, tmp_path) as both:
        both.runs.store.only = {"load_invocation"}
        both.runs.store.answers.clear()
        async with both.runs.follow(both.location, last_event_id="1.3") as following:
            await clock.advance(0)
            both.gate.set()
            await both.exchange.whole()
            both.runs.store.answers.set()
            await following.whole()

    assert ids_of(following) == ALL[3:]


async def test_a_poll_that_can_not_go_on_sends_its_readers_on(clock: ManualClock, tmp_path: Path) -> None:
    async with two(clock, tmp_path) as both, both.asked.follow(both.location) as following:
        await clock.advance(1)
        both.asked.store.only, both.asked.store.broken = {"read_events"}, ValueError("a gap")
        await clock.advance(20)
        got = await following.whole()

    assert events_of(got.body)[-1] == ("1.3", {"reconnect": {"after": "1.3", "reason": "segment-end"}})
