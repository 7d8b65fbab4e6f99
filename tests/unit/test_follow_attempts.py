"""Following across attempts: which log a reader gets, and how it comes to the next one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import InvalidCursor, StoreUnavailable
from service.events import START, EventId
from service.follow import POLL_S, Follow
from service.invocations import Invocation
from service.log import TAIL_LIMIT_BYTES, Log
from service.stores.sqlite import SqliteStore
from service.wire import SSE
from tests.asgi import AsgiClient, Exchange
from tests.clock import ManualClock
from tests.fakes import FaultyStore
from tests.sse import events_of
from tests.stories import INVOCATION_ID, Story, delta

HEARTBEAT_S = 10.0


class Following:
    """One process that is asked for an invocation; `own` is its attempt's log, if it runs one."""

    def __init__(self, opened: SqliteStore, clock: ManualClock) -> None:
        self.clock = clock
        self.story = Story(opened, clock.now_ms)
        self.faulty = FaultyStore(opened)
        self.own: Log | None = None
        self.follow = Follow(
            self.faulty.as_store,
            lambda _: self.own,
            ServiceConfig(heartbeat_s=HEARTBEAT_S),
            clock.monotonic_s,
            lambda: clock.now_ms() / 1000,
        )

    @asynccontextmanager
    async def read(
        self, cursor: EventId = START, record: Invocation | None = None
    ) -> AsyncIterator[Exchange]:
        """Follow as `api` does; `record` stands for one that was loaded earlier."""
        invocation = record or await self.story.record()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            reader = self.follow.open(invocation, cursor, SSE, token_expires_at_s=1e10)
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await reader.run(receive, send, scope["extensions"]["headrace.abort"])
            finally:
                self.follow.close(reader)

        async with AsgiClient(app).stream("GET", "/", body=()) as exchange:
            exchange._request.clear()
            await self.clock.advance(0)
            if exchange.task.done():
                exchange.task.result()
            yield exchange

    async def polls_in(self, seconds: float) -> int:
        before = self.faulty.calls.count("read_events")
        await self.clock.advance(seconds)
        return self.faulty.calls.count("read_events") - before


def ids_of(exchange: Exchange) -> list[str]:
    """Return the ids so far; a `reconnect` shows as its reason."""
    return [
        value["reconnect"]["reason"] if "reconnect" in value else event_id
        for event_id, value in events_of(exchange.body)
    ]


@pytest.fixture
async def following(clock: ManualClock) -> AsyncIterator[Following]:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        following = Following(opened, clock)
        turning = asyncio.ensure_future(following.follow.wheel.run())
        try:
            yield following
        finally:
            turning.cancel()
            await asyncio.wait([turning])
        assert asyncio.all_tasks() == {asyncio.current_task()}


# -- an attempt that runs here


@pytest.mark.promise("reattach-exactly-once")
@pytest.mark.parametrize(
    ("cursor", "ids"),
    [
        (START, ["1.1", "1.2", "1.3", "2.1", "2.2"]),
        (EventId(1, 2), ["1.3", "2.1", "2.2"]),
        (EventId(1, 3), ["2.1", "2.2"]),
        (EventId(1, 57), ["2.1", "2.2"]),
        (EventId(2, 1), ["2.2"]),
        (EventId(2, 2), []),
    ],
)
async def test_a_later_attempt_here_is_read_from_the_store_up_to_where_it_goes_on_and_then_live(
    following: Following, cursor: EventId, ids: list[str]
) -> None:
    await following.story.begin()
    await following.story.write(5)
    await following.story.lose(granted=3)
    following.own = Log(head=EventId(1, 3))
    following.own.publish(2, 1, (delta(2, 1), delta(2, 2)))

    async with following.read(cursor) as exchange:
        before = ids_of(exchange)
        following.own.publish(2, 3, (delta(2, 3),))

        assert (before, ids_of(exchange)) == (ids, [*ids, "2.3"])


async def test_a_log_that_is_behind_its_record_is_not_read(following: Following) -> None:
    await following.story.begin()
    following.own = Log()
    following.own.publish(1, 1, tuple(delta(1, seq) for seq in range(1, 7)))
    await following.story.lose(granted=1)

    async with following.read(EventId(2, 1)) as here, following.read() as whole:
        following.own.publish(1, 7, (delta(1, 7),))
        await following.story.write(1)
        await following.clock.advance(POLL_S[1])

        assert (ids_of(here), ids_of(whole)) == (["2.2"], ["1.1", "2.1", "2.2"])
    with pytest.raises(InvalidCursor):
        async with following.read(EventId(3, 1)):
            pass


async def test_a_log_that_has_moved_is_not_read(following: Following) -> None:
    await following.story.begin()
    following.own = Log()
    following.own.publish(1, 1, (delta(1, 1), delta(1, 2)))
    following.own.moved = True

    async with following.read() as exchange:
        assert ids_of(exchange) == ["1.1"]


async def test_a_reader_that_finds_a_later_attempt_in_the_store_is_sent_on_in_order(
    following: Following,
) -> None:
    """The process does not know yet that it is fenced; its reader is behind what its tail holds."""
    await following.story.begin()
    await following.story.write(2)
    record = await following.story.record()
    following.own = Log(head=EventId(1, 3))
    for seq in range(4, 10):
        void = delta(1, seq) + b" " * (TAIL_LIMIT_BYTES // 4)
        following.own.publish(1, seq, (void,))
        following.own.mark_stored(EventId(1, seq))
    await following.story.lose(granted=3)

    async with following.read(EventId(1, 2), record) as exchange:
        await following.clock.advance(0)
        ids = ids_of(exchange)
        following.own.publish(1, 10, (delta(1, 10),))

        assert exchange.complete
        assert ids == ids_of(exchange) == ["1.3", "2.1", "segment-end"]


# -- an attempt that runs elsewhere


@pytest.mark.promise("same-events-every-cursor", "reattach-exactly-once")
async def test_after_a_takeover_elsewhere_who_was_there_goes_on_and_who_comes_gets_what_counts(
    following: Following,
) -> None:
    await following.story.begin()
    await following.story.write(5)
    async with following.read() as first:
        await following.story.lose(granted=3)
        await following.clock.advance(POLL_S[1])
        async with following.read() as second, following.read(EventId(1, 2)) as third:
            await following.story.write(1)
            await following.clock.advance(10)
            ids = [ids_of(exchange) for exchange in (first, second, third)]
            polls = await following.polls_in(10)
        alone = await following.polls_in(10)
    left = await following.polls_in(10)

    assert ids == [
        ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "2.1", "2.2"],
        ["1.1", "1.2", "1.3", "2.1", "2.2"],
        ["1.3", "2.1", "2.2"],
    ]
    assert (polls, alone, left) == (2 * 10 / POLL_S[1], 10 / POLL_S[1], 0)


async def test_one_poll_is_enough_for_who_comes_after_the_takeover(following: Following) -> None:
    await following.story.begin()
    await following.story.lose(granted=1)
    async with following.read(), following.read(), following.read(EventId(2, 1)):
        await following.clock.advance(10)
        assert await following.polls_in(10) == 10 / POLL_S[1]


async def test_an_attempt_that_was_handed_over_is_waited_for(following: Following) -> None:
    await following.story.begin()
    await following.story.write(2)
    await following.story.hand_over(granted=2)
    async with following.read(EventId(1, 9)) as beyond, following.read(EventId(1, 2)) as exchange:
        await following.clock.advance(5)
        before = (ids_of(beyond), ids_of(exchange))
        await following.story.take_over()
        await following.story.end()
        await following.clock.advance(POLL_S[1])

        assert before == ([], ["1.3"])
        assert (ids_of(beyond), ids_of(exchange)) == (["2.1", "2.2"], ["1.3", "2.1", "2.2"])


async def test_an_attempt_that_starts_here_takes_over_its_readers(following: Following) -> None:
    await following.story.begin()
    await following.story.write(2)
    async with following.read() as polling:
        await following.story.lose(granted=3)
        following.own = Log(head=EventId(1, 3))
        following.own.publish(2, 1, (delta(2, 1),))
        following.follow.adopt(INVOCATION_ID)
        async with following.read(EventId(1, 3)) as attached:
            following.own.publish(2, 2, (delta(2, 2),))
            live = ids_of(attached)
        await polling.whole()

    assert live == ["2.1", "2.2"]
    assert ids_of(polling) == ["1.1", "1.2", "1.3", "segment-end"]
    assert await following.polls_in(10) == 0


async def test_adopting_what_nobody_follows_changes_nothing(following: Following) -> None:
    await following.story.begin()
    following.follow.adopt(INVOCATION_ID)

    async with following.read() as exchange:
        assert ids_of(exchange) == ["1.1"]


async def test_after_a_poll_that_failed_the_next_reader_gets_a_new_one(following: Following) -> None:
    await following.story.begin()
    async with following.read() as sent_on:
        following.faulty.only, following.faulty.broken = {"read_events"}, ValueError("a gap")
        await following.clock.advance(POLL_S[1])
        following.faulty.broken = None
        await following.story.write(1)
        async with following.read() as exchange:
            await following.clock.advance(HEARTBEAT_S)

            assert ids_of(exchange) == ["1.1", "1.2"]
        assert ids_of(sent_on) == ["1.1", "segment-end"]


# -- paused


async def test_readers_of_a_paused_invocation_are_told_so_and_go_on_with_it(following: Following) -> None:
    await following.story.begin()
    await following.story.pause()
    async with following.read() as exchange:
        await following.clock.advance(HEARTBEAT_S + 1)
        paused = exchange.body
        await following.story.resume()
        await following.clock.advance(HEARTBEAT_S + POLL_S[1])
        await following.story.end()
        await following.clock.advance(POLL_S[1])
        await exchange.whole()

    assert b": heartbeat phase=paused turn=0 elapsed_s=" in paused
    assert b": heartbeat phase=elsewhere turn=0 elapsed_s=" in exchange.body.removeprefix(paused)
    assert ids_of(exchange) == ["1.1", "1.2", "2.1", "2.2", "2.3"]


async def test_a_reader_that_waits_for_the_store_knows_of_the_pause_from_the_record(
    following: Following,
) -> None:
    await following.story.begin()
    await following.story.pause()
    following.faulty.only, following.faulty.broken = {"read_events"}, StoreUnavailable()
    async with following.read(EventId(1, 2)) as exchange:
        await following.clock.advance(HEARTBEAT_S)

        assert exchange.body.count(b": heartbeat phase=paused turn=0 elapsed_s=") == 1
        following.faulty.broken = None
