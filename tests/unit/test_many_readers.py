"""Two thousand readers leave at once and leave nothing behind; slow ones hold a piece each, not the log."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import TooManyReaders
from service.events import START, Block, EventId
from service.follow import Follow
from service.invocations import Invocation
from service.log import Log
from service.readers import PIECE_BYTES, Reader
from service.stores import EventBlock
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_events import ROW_LIMIT_BYTES
from service.wire import SSE
from tests.asgi import AsgiClient, Exchange
from tests.clock import ManualClock
from tests.fakes import FaultyStore
from tests.stories import INVOCATION_ID, Story, delta

READERS = 2000
EACH = READERS // 4


class Process:
    """A process with many readers: of invocations that it runs (`own`), and of one that runs elsewhere."""

    def __init__(self, opened: SqliteStore, clock: ManualClock) -> None:
        self.clock = clock
        self.story = Story(opened, clock.now_ms)
        self.faulty = FaultyStore(opened)
        self.own: dict[str, Log] = {}
        self.follow = Follow(
            self.faulty.as_store,
            self.own.get,
            ServiceConfig(open_readers=READERS + 1, readers_per_principal=READERS),
            clock.monotonic_s,
            lambda: clock.now_ms() / 1000,
        )
        self.in_flight: dict[Exchange, int] = {}
        self._client = AsgiClient(self._app)
        self._opening: Invocation

    def run(self, name: str, log: Log) -> Log:
        """Run an invocation here."""
        self.own[name] = log
        log.publish(1, log.head.seq + 1, (delta(1, log.head.seq + 1),))
        return log

    async def open(self, stack: AsyncExitStack, name: str, count: int) -> list[Exchange]:
        """Open readers of an invocation."""
        invocation = replace(await self.story.record(), invocation_id=name)
        exchanges = []
        for _ in range(count):
            self._opening = invocation
            exchange = await stack.enter_async_context(self._client.stream("GET", "/", body=()))
            exchange._request.clear()
            exchanges.append(exchange)
            await asyncio.sleep(0)  # its first step, which takes `_opening`
        await self.clock.advance(0)
        assert all(exchange.status == 200 for exchange in exchanges)
        return exchanges

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        invocation = self._opening
        exchange = scope["extensions"]["headrace.abort"].__self__

        async def counted(message: Message) -> None:
            self.in_flight[exchange] = len(message.get("body", b""))
            await send(message)
            del self.in_flight[exchange]

        reader = self.follow.open(invocation, START, SSE, token_expires_at_s=1e10)
        try:
            await counted({"type": "http.response.start", "status": 200, "headers": []})
            await reader.run(receive, counted, exchange.abort)
        finally:
            self.follow.close(reader)


@asynccontextmanager
async def serving_many(clock: ManualClock) -> AsyncIterator[Process]:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        process = Process(opened, clock)
        await process.story.begin()
        turning = asyncio.ensure_future(process.follow.wheel.run())
        try:
            yield process
        finally:
            turning.cancel()
            await asyncio.wait([turning])


@pytest.mark.promise("hang-up-hurts-nobody", "leaving-readers-leave-nothing")
async def test_two_thousand_readers_that_leave_at_once_leave_nothing_behind(clock: ManualClock) -> None:
    async with serving_many(clock) as process, AsyncExitStack() as stack:
        before = asyncio.all_tasks()
        attached, full = process.run("inv_attached", Log()), process.run("inv_full", Log())
        process.run("inv_behind", Log(head=EventId(1, 50)))  # what came before 1.50 is in the store only
        exchanges = await process.open(stack, INVOCATION_ID, EACH)
        exchanges += await process.open(stack, "inv_attached", EACH)
        exchanges += (stuck := await process.open(stack, "inv_full", EACH))
        process.faulty.only = {"read_events"}
        process.faulty.gate.clear()
        exchanges += await process.open(stack, "inv_behind", EACH)
        for exchange in stuck:
            exchange.block()
        full.publish(1, 2, (delta(1, 2),))
        await clock.advance(0)
        with pytest.raises(TooManyReaders):
            process.follow.check_room(process.story.sub)
        at_work = (len(process.follow.wheel), attached.attached, len(process.in_flight))

        for exchange in exchanges:
            exchange.hang_up()
        await clock.advance(0)

        assert at_work == (READERS, EACH, EACH)
        assert asyncio.all_tasks() == before
        assert (len(process.follow.wheel), [log.attached for log in process.own.values()]) == (0, [0, 0, 0])
        process.faulty.gate.set()
        process.faulty.calls.clear()
        await clock.advance(60)
        assert process.faulty.calls == []
        await stack.aclose()
        exchanges.clear()
        stuck.clear()
        del exchange
        gc.collect()
        assert [reader for reader in gc.get_objects() if isinstance(reader, Reader)] == []
        assert [
            name for name, kept in vars(process.follow).items() if kept and isinstance(kept, set | dict)
        ] == []


@pytest.mark.promise("hang-up-hurts-nobody", "leaving-readers-leave-nothing")
async def test_as_many_can_come_again(clock: ManualClock) -> None:
    async with serving_many(clock) as process:
        process.run("inv_attached", Log())
        for _ in range(2):
            async with AsyncExitStack() as stack:
                await process.open(stack, INVOCATION_ID, EACH)
                await process.open(stack, "inv_attached", READERS - EACH)


@pytest.mark.promise("slow-reader-bounded")
async def test_a_reader_that_takes_nothing_holds_one_piece_however_long_the_log_is(
    clock: ManualClock,
) -> None:
    count, size_bytes = 200, 20_000
    async with serving_many(clock) as process, AsyncExitStack() as stack:
        exchanges = await process.open(stack, INVOCATION_ID, 50)
        log = process.run("inv_here", Log())
        exchanges += await process.open(stack, "inv_here", 50)
        for exchange in exchanges:
            exchange.block()
        for seq in range(2, count + 2):
            block = Block(1, seq, (delta(1, seq) + b" " * size_bytes,))
            log.publish(*block)
            log.mark_stored(block.last)
            await process.story.store.append_events([EventBlock(INVOCATION_ID, block)], clock.now_ms())
            await clock.advance(0.05)

        assert len(process.in_flight) == len(exchanges)
        assert max(process.in_flight.values()) <= PIECE_BYTES + ROW_LIMIT_BYTES
        assert sum(process.in_flight.values()) < len(exchanges) * count * size_bytes / 10
        assert log.attached == 0
