import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.config import Limits
from service.events import START, Block, EventId
from service.log import TAIL_LIMIT_BYTES, Log
from service.readers import PIECE_BYTES, Pace, Reader, Write
from service.readers_wheel import Wheel
from service.stores import EventBlock, NewInvocation, Store
from service.stores.sqlite import SqliteStore
from service.wire import SSE
from tests.asgi import AsgiClient, Exchange
from tests.clock import ManualClock
from tests.fakes import FaultyStore
from tests.sse import events_of, kinds_of, parse

INVOCATION_ID = "inv_1"
FAR = (1e9, "segment-end")


def delta(number: int, size_bytes: int = 0) -> bytes:
    return b'{"contentBlockDelta":{"n":%d,"p":"%b"}}' % (number, b"p" * size_bytes)


END = b'{"invocationCompleted":{"stopReason":"end_turn"}}'


class Reading:
    """A log, its store and a way to read it as a client would."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.log = Log(started_at=clock.monotonic_s())
        self.wheel = Wheel(1.0, clock.monotonic_s)
        self.readers: list[Reader] = []

    def publish(self, *events: bytes, ended: bool = False) -> Block:
        block = Block(1, self.log.head.seq + 1, events)
        self.log.publish(*block, ended=ended)
        return block

    async def publish_stored(self, *events: bytes, ended: bool = False) -> None:
        block = self.publish(*events, ended=ended)
        fenced = await self.store.append_events([EventBlock(INVOCATION_ID, block)], self.clock.now_ms())
        assert not fenced
        self.log.mark_stored(block.last)

    @asynccontextmanager
    async def read(
        self,
        cursor: EventId = START,
        deadline: tuple[float, str] = FAR,
        log: Log | None = None,
        write: Write = lambda _: False,
    ) -> AsyncIterator[Exchange]:
        pace = Pace(heartbeat_s=10.0, write_timeout_s=30.0)
        reader = Reader(INVOCATION_ID, log or self.log, self.store, SSE, cursor, pace, self.wheel, deadline)
        self.readers.append(reader)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            start: Message = {"type": "http.response.start", "status": 200, "headers": []}
            await send(start)
            await reader.run(receive, send, scope["extensions"]["headrace.abort"], write)

        async with AsgiClient(app).stream("GET", "/", body=()) as exchange:
            exchange._request.clear()
            await exchange.until(b": connected\n")
            yield exchange

    async def turn(self, seconds: float) -> None:
        """Let time pass, turning the wheel as its task does."""
        for _ in range(int(seconds)):
            await self.clock.advance(1.0)
            self.wheel.turn()
            await self.clock.advance(0)


@pytest.fixture
async def reading(clock: ManualClock) -> AsyncIterator[Reading]:
    async with SqliteStore.open(":memory:") as store:
        new = NewInvocation(INVOCATION_ID, "agent", "user-1", None, b"{}", 10, "owner", 10**15, 10**15)
        await store.create_invocation(new, Limits(), clock.now_ms())
        yield Reading(store, clock)


async def test_a_reader_gets_what_was_there_and_what_comes_to_the_terminal_event(reading: Reading) -> None:
    reading.publish(delta(1))
    async with reading.read() as exchange:
        reading.publish(delta(2))
        reading.publish(delta(3), delta(4))
        reading.publish(END, ended=True)
        answer = await exchange.whole()

    assert [event_id for event_id, _ in events_of(answer.body)] == ["1.1", "1.2", "1.3", "1.4", "1.5"]
    assert kinds_of(answer.body)[-1] == "invocationCompleted"
    assert (reading.readers[0].end, reading.readers[0].events_sent) == ("terminal", 5)


async def test_the_first_piece_is_the_greeting_and_what_is_there_already(reading: Reading) -> None:
    reading.publish(delta(1), delta(2))

    async with reading.read() as exchange:
        (first,) = exchange.writes

    assert first == SSE.connected + SSE.block(1, 1, (delta(1), delta(2)))


async def test_what_arrived_together_leaves_in_one_write(reading: Reading) -> None:
    async with reading.read() as exchange:
        before = len(exchange.writes)
        reading.publish(delta(1), delta(2), delta(3))

        assert len(exchange.writes) == before + 1


async def test_a_delta_reaches_an_attached_reader_in_the_same_call(reading: Reading) -> None:
    async with reading.read() as exchange:
        reading.publish(delta(1))

        assert exchange.writes[-1] == b"id: 1.1\nevent: contentBlockDelta\ndata: " + delta(1) + b"\n\n"


@pytest.mark.promise("reattach-exactly-once", "same-events-every-cursor")
async def test_from_every_cursor_follow_the_same_bytes(reading: Reading) -> None:
    for number in range(1, 9):
        await reading.publish_stored(delta(number), delta(number * 100))
    await reading.publish_stored(END, ended=True)
    ended = Log(head=reading.log.head, ended=True)
    async with reading.read() as exchange:
        whole = (await exchange.whole()).body.removeprefix(SSE.connected)

    for log in (reading.log, ended):
        for seq in range(1, 17):
            async with reading.read(EventId(1, seq), log=log) as exchange:
                rest = (await exchange.whole()).body.removeprefix(SSE.connected)
            assert rest == whole[whole.index(b"id: 1.%d\n" % (seq + 1)) :]


async def test_a_reader_at_the_terminal_event_gets_an_empty_end(reading: Reading) -> None:
    await reading.publish_stored(END, ended=True)

    async with reading.read(EventId(1, 1)) as exchange:
        answer = await exchange.whole()

    assert answer.body == SSE.connected


async def test_a_reader_behind_the_tail_is_served_from_the_store(reading: Reading) -> None:
    count = 3 * TAIL_LIMIT_BYTES // 10_000
    for number in range(count):
        await reading.publish_stored(delta(number, 10_000))
    assert reading.log.after(START, limit_bytes=1) is None

    async with reading.read() as exchange:
        await exchange.until(b"id: 1.%d\n" % count)
        reading.publish(END, ended=True)
        answer = await exchange.whole()

    assert [json_value["contentBlockDelta"]["n"] for _, json_value in events_of(answer.body)[:-1]] == list(
        range(count)
    )
    assert max(map(len, exchange.writes)) < 2 * PIECE_BYTES


@pytest.mark.promise("heartbeat-before-first-token")
async def test_silence_is_filled_with_heartbeats_that_say_what_goes_on(reading: Reading) -> None:
    reading.log.phase, reading.log.turn = "model", 1
    async with reading.read() as exchange:
        await reading.turn(25)

        assert exchange.body == SSE.connected + (
            b": heartbeat phase=model turn=1 elapsed_s=10\n: heartbeat phase=model turn=1 elapsed_s=20\n"
        )


async def test_a_stream_that_is_not_silent_has_no_heartbeats(reading: Reading) -> None:
    async with reading.read() as exchange:
        for number in range(10):
            await reading.turn(5)
            reading.publish(delta(number))

        assert b"heartbeat" not in exchange.body


@pytest.mark.promise("segment-ends-with-reconnect")
async def test_a_segment_ends_with_the_cursor_to_go_on_from(reading: Reading) -> None:
    deadline = (reading.clock.monotonic_s() + 15, "segment-end")
    async with reading.read(deadline=deadline) as exchange:
        reading.publish(delta(1))
        await reading.turn(20)
        answer = await exchange.whole()

    assert answer.body.endswith(
        b'event: reconnect\ndata: {"reconnect":{"after":"1.1","reason":"segment-end"}}\n\n'
    )
    assert reading.readers[0].end == "segment-end"


async def test_a_reconnect_before_any_event_has_no_cursor(reading: Reading) -> None:
    async with reading.read() as exchange:
        reading.readers[0].close("drain")
        answer = await exchange.whole()

    assert events_of(answer.body) == [("", {"reconnect": {"reason": "drain"}})]


@pytest.mark.promise("slow-reader-bounded")
async def test_a_peer_that_takes_nothing_holds_only_its_cursor_and_gets_all_when_it_reads_again(
    reading: Reading,
) -> None:
    async with reading.read() as exchange:
        exchange.block()
        for number in range(100):
            await reading.publish_stored(delta(number, 10_000))
        await reading.clock.advance(0)
        assert reading.log.attached == 0
        assert len(exchange.writes) == 1

        exchange.unblock()
        await exchange.until(b"id: 1.100\n")
        reading.publish(END, ended=True)
        answer = await exchange.whole()

    assert len({event.last_event_id for event in parse(answer.body)}) == 101
    assert max(map(len, exchange.writes)) < 2 * PIECE_BYTES


@pytest.mark.promise("slow-reader-bounded")
async def test_a_peer_that_takes_nothing_for_too_long_is_cut(reading: Reading) -> None:
    async with reading.read() as exchange:
        exchange.block()
        reading.publish(delta(1))

        await reading.turn(29)
        before = exchange.aborted
        await reading.turn(20)

        assert (before, exchange.aborted) == (False, True)
        assert reading.readers[0].end == "stuck"


async def test_a_blocked_peer_is_told_to_reconnect_once_it_reads_again(reading: Reading) -> None:
    async with reading.read() as exchange:
        exchange.block()
        reading.publish(delta(1))
        await reading.clock.advance(0)
        reading.readers[0].close("drain")
        exchange.unblock()
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["contentBlockDelta", "reconnect"]


async def test_a_terminal_event_that_the_peer_does_not_take_yet_ends_the_response_later(
    reading: Reading,
) -> None:
    async with reading.read() as exchange:
        exchange.block()
        reading.publish(END, ended=True)
        await reading.clock.advance(0)
        exchange.unblock()
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["invocationCompleted"]


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_reader_that_hangs_up_leaves_nothing_behind(reading: Reading) -> None:
    async with reading.read() as other:
        async with reading.read():
            reading.publish(delta(1))
        await reading.clock.advance(0)

        assert (reading.log.attached, len(reading.wheel)) == (1, 1)
        reading.publish(END, ended=True)
        answer = await other.whole()

    assert kinds_of(answer.body) == ["contentBlockDelta", "invocationCompleted"]
    assert reading.readers[1].end == "disconnect"
    assert len(reading.wheel) == 0


async def test_a_reader_that_hangs_up_while_blocked_leaves_nothing_behind(reading: Reading) -> None:
    async with reading.read() as exchange:
        exchange.block()
        reading.publish(delta(1))
        await reading.clock.advance(0)

    await reading.clock.advance(0)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert tasks == set()
    assert (reading.log.attached, len(reading.wheel)) == (0, 0)


def raises(body: bytes) -> bool:
    """Write, once the body has begun, as uvloop's transport does whose handle is closed."""
    if body == SSE.connected:
        return False
    raise RuntimeError("the handle is closed")


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_block_that_can_not_be_written_cuts_its_reader_and_reaches_all_others(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    async with reading.read(write=raises) as exchange, reading.read() as other:
        reading.publish(delta(1))
        reading.publish(END, ended=True)
        answer = await other.whole()

    assert (exchange.aborted, exchange.complete, reading.readers[0].end) == (True, False, "failed")
    assert [event_id for event_id, _ in events_of(answer.body)] == ["1.1", "1.2"]
    assert [record.getMessage() for record in caplog.records] == ["reader failed"]


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_heartbeat_that_can_not_be_written_cuts_its_reader_and_the_wheel_turns_on(
    reading: Reading,
) -> None:
    async with reading.read(write=raises) as exchange, reading.read() as other:
        await reading.turn(21)
        left = exchange.aborted

    assert (left, reading.readers[0].end) == (True, "failed")
    assert other.body.count(b": heartbeat") == 2


async def test_readers_of_an_attempt_that_is_not_run_here_any_more_are_sent_on(reading: Reading) -> None:
    async with reading.read() as exchange:
        reading.log.move()
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["reconnect"]


async def test_a_reader_that_comes_when_the_attempt_has_just_left_is_sent_on_too(reading: Reading) -> None:
    reading.log.move()
    async with reading.read() as exchange:
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["reconnect"]


async def test_a_log_whose_rows_have_expired_ends_with_reconnect_not_in_silence(reading: Reading) -> None:
    await reading.publish_stored(delta(1))
    ended = Log(head=EventId(1, 2), ended=True)

    async with reading.read(log=ended) as exchange:
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["contentBlockDelta", "reconnect"]


async def test_a_replay_waits_for_a_store_that_is_down(reading: Reading) -> None:
    await reading.publish_stored(END, ended=True)
    ended, faulty = Log(head=EventId(1, 1), ended=True), FaultyStore(reading.store)
    reading.store = faulty.as_store
    faulty.down = True
    async with reading.read(log=ended) as exchange:
        await reading.turn(12)
        assert (exchange.body.count(b": heartbeat"), exchange.complete) == (1, False)

        faulty.down = False
        await reading.turn(1)
        answer = await exchange.whole()

    assert kinds_of(answer.body) == ["invocationCompleted"]
