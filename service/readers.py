"""One open response: replay from the cursor, then tail, with heartbeats, until the log or this segment ends.

`follow` makes readers, `log.Log` calls them with new blocks, `readers_wheel` drives all their timers.

    behind ──(nothing more after the cursor)──> attached ──(terminal event sent)──> closed
      ^                                            │
      └──────(the peer takes no more bytes)────────┘      both close: reconnect, denial, hang-up, a stuck peer

An attached reader writes from the log's callback, straight to the server's transport where the server offers
that (`write`). Else, and for all that is not the usual case, by ASGI's `send`: that finishes at once unless
the transport is full, so it is driven by hand. When it does not finish, a task takes it over, and the reader
is *behind*: it holds no events, only its cursor, and is served from the tail or the store, 64 KB at a time.
So a reader's memory is bounded, however slow its peer and long the log: by one such piece (64 KB and at most
one block of events more; the store's are up to 300 KB), and by uvicorn's write buffer (the same again).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, Final

from service.errors import StoreUnavailable
from service.events import START, Block, EventId
from service.log import Listener, Log
from service.readers_wheel import Wheel
from service.stores import Store
from service.wire import Wire

logger = logging.getLogger(__name__)

PIECE_BYTES: Final = 64 * 1024
STORE_RETRY_S: Final = 0.5
# A peer that is slow to take what was sent to it before it was denied is cut off sooner than others.
DENIED_WRITE_S: Final = 10.0

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Write = Callable[[bytes], bool]
"""Write a piece of a body at once, as `send` would; False: it was not, and `send` has to."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a reader: heartbeat after silence, cut-off of a peer that takes nothing."""

    heartbeat_s: float
    write_timeout_s: float


class Reader:
    """One response being written. Made by `follow.Follow`, run by the request's task."""

    __slots__ = (
        "_abort",
        "_attempt",
        "_beat_at",
        "_began",
        "_close_reason",
        "_deadline",
        "_log",
        "_pace",
        "_problem",
        "_send",
        "_sending",
        "_seq",
        "_store",
        "_stuck_at",
        "_wheel",
        "_wire",
        "_write_now",
        "bytes_sent",
        "end",
        "events_sent",
        "invocation_id",
        "slot",
    )

    def __init__(
        self,
        invocation_id: str,
        log: Log,
        store: Store,
        wire: Wire,
        cursor: EventId,
        pace: Pace,
        wheel: Wheel,
        deadline: tuple[float, str],
    ) -> None:
        self.invocation_id = invocation_id
        self._attempt, self._seq = cursor
        self.end = ""
        self.bytes_sent = 0
        self.events_sent = 0
        self.slot = -1
        self._log = log
        self._store = store
        self._wire = wire
        self._pace = pace
        self._wheel = wheel
        self._deadline = deadline
        self._beat_at = 0.0
        self._began = False
        self._stuck_at: float | None = None
        self._close_reason: str | None = None
        self._problem: dict[str, Any] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._send: Send
        self._write_now: Write
        self._abort: Callable[[], None]

    async def run(
        self, receive: Receive, send: Send, abort: Callable[[], None], write: Write = lambda _: False
    ) -> None:
        """Write the body of a response that has been started; return at its end, or when the peer has left.

        `abort` cuts a response that can't go on. `write` is tried before `send`. Afterwards `end` says why it
        ended: `terminal`, `disconnect`, `stuck`, `failed`, or the reason that `close` was given.
        """
        self._send, self._abort, self._write_now = send, abort, write
        try:
            self._touch()
            self._began = True
            self._wheel.add(self)
            self._log.on_move(self._leave)
            self._begin()
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self.end = self.end or "disconnect"
            self._log.detach(self._listener)
            self._log.forget(self._leave)
            self._wheel.remove(self)
            if self._sending is not None:
                self._sending.cancel()

    # -- writing

    def _begin(self) -> None:
        """Write that the stream is there, and in the same piece what it has already."""
        ready: list[Block] = []
        if self._close_reason is None and not self._log.moved:
            ready = self._log.after(self.cursor, limit_bytes=PIECE_BYTES) or []
        is_written = self._write_blocks(ready, before=self._wire.connected)
        if self._log.moved:
            self._leave()
        if is_written:
            self._advance()

    def _on_block(self, attempt: int, first_seq: int, events: tuple[bytes, ...]) -> None:
        """Take a block from the log: called only while attached, with the block that follows the cursor."""
        self._attempt = attempt
        count = len(events)
        self._seq = first_seq + count - 1
        self.events_sent += count
        body = self._wire.block(attempt, first_seq, events)
        if self._log.ended:
            self._write(body, end="terminal")
            return
        try:
            is_written = self._write_now(body)
        except Exception as error:  # noqa: BLE001 - the edge: it ends this reader, never who writes the log
            self._fail(error)
            return
        if is_written:
            self.bytes_sent += len(body)
            self._beat_at = self._wheel.now + self._pace.heartbeat_s
        else:
            self._write(body)

    def _on_overlapping_block(self, attempt: int, first_seq: int, events: tuple[bytes, ...]) -> None:
        """Take a block of a polled log, which may repeat what this reader has."""
        rest = Block(attempt, first_seq, events).after(self.cursor)
        if rest.events:
            self._write_blocks([rest])
        elif self._log.ended:  # the cursor is beyond the end: it was never issued, or is the terminal event's
            self._write(b"", end="terminal")

    @property
    def cursor(self) -> EventId:
        """The id of the newest event that this reader has; made when it is asked for, not with each event."""
        return EventId(self._attempt, self._seq)

    @property
    def _listener(self) -> Listener:
        return self._on_overlapping_block if self._log.elsewhere else self._on_block

    def _advance(self) -> None:
        """Write what follows the cursor, as far as the peer takes it at once; attach at the head."""
        while not self.end:
            if self._close_reason is not None:
                self._reconnect(self._close_reason)
                return
            log = self._log
            if self.cursor > log.head and not (log.ended or log.elsewhere):
                # The store has shown events of a later attempt, before this process knows that it is fenced.
                self._reconnect("segment-end")
                return
            blocks = log.after(self.cursor, limit_bytes=PIECE_BYTES)
            if blocks is None:
                self._hand_over(self._replay())
                return
            if not blocks and log.ended:  # the cursor is the terminal event's: nothing follows
                self._write(b"", end="terminal")
            elif not blocks:
                log.attach(self._listener)
                return
            elif not self._write_blocks(blocks):
                return

    def _write_blocks(self, blocks: list[Block], before: bytes = b"") -> bool:
        body = before + self._wire.blocks(blocks)
        if blocks:
            self._attempt, self._seq = blocks[-1].last
        self.events_sent += sum(len(block.events) for block in blocks)
        return self._write(body, end="terminal" if self._log.ended and self.cursor == self._log.head else "")

    def _write(self, body: bytes, *, end: str = "") -> bool:
        """Send a piece; returns False if the peer does not take it now, and a task has it."""
        self.bytes_sent += len(body)
        if end:
            self._finished(end)
        try:
            if not end and self._write_now(body):
                self._beat_at = self._wheel.now + self._pace.heartbeat_s
                return True
            sending = self._send({"type": "http.response.body", "body": body, "more_body": not end})
            coroutine = sending if type(sending) is CoroutineType else _awaiting(sending)
            waits_for = coroutine.send(None)
        except StopIteration:
            self._touch()
            return True
        except Exception as error:  # noqa: BLE001 - the edge: it ends this reader, never who writes the log
            self._fail(error)
            return False
        self._hand_over(self._finish_sending(_Begun(coroutine, waits_for)))
        return False

    def _touch(self) -> None:
        self._beat_at = self._wheel.now + self._pace.heartbeat_s

    def _finished(self, end: str) -> None:
        self.end = end
        self._log.detach(self._listener)

    def _fail(self, error: Exception) -> None:
        """Cut this response: the reader can't go on, and must not look as if it did."""
        logger.error("reader failed", exc_info=error, extra={"invocation_id": self.invocation_id})
        self._stuck_at = None
        self._finished("failed")
        self._abort()

    def _reconnect(self, reason: str) -> None:
        value: dict[str, Any] = {"reason": reason}
        if self.cursor != START:
            value = {"after": str(self.cursor)} | value
        if self._problem is None:
            self._write(self._wire.control("reconnect", value), end=reason)
        else:
            self._write(self._wire.control("streamEnded", {"problem": self._problem}), end=reason)

    # -- behind: what could not be written at once

    def _hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task do what can't be done at once; the reader is behind until it is done."""
        self._log.detach(self._listener)
        self._stuck_at = None
        self._sending = asyncio.get_running_loop().create_task(self._behind(work))
        # One that is cancelled before its first step never awaits `work`.
        self._sending.add_done_callback(lambda _: work.close())

    async def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            self._sending = None
            self._advance()
        except Exception as error:  # noqa: BLE001 - the edge of this task: nobody awaits it
            self._fail(error)

    async def _finish_sending(self, begun: "_Begun") -> None:
        self._stuck_at = self._wheel.now + self._pace.write_timeout_s
        await begun
        self._stuck_at = None
        self._touch()

    async def _replay(self) -> None:
        """Read one piece from the store and send it; heartbeats go on while the store keeps it waiting."""
        reading = asyncio.ensure_future(self._read())
        try:
            while not reading.done() and self._close_reason is None:
                await asyncio.wait([reading], timeout=self._wheel.tick_s)
                if self._wheel.now >= self._beat_at:
                    await self._send_now(self._wire.heartbeat(self._log.heartbeat(self._wheel.now)))
        finally:
            reading.cancel()
        blocks = reading.result() if reading.done() else None
        if blocks is None:
            return
        if not blocks:  # its retention ended while it was read: a reattach will be told
            self.close("segment-end")
            return
        body = self._wire.blocks(blocks)
        self._attempt, self._seq = blocks[-1].last
        self.events_sent += sum(len(block.events) for block in blocks)
        if self._log.ended and self.cursor >= self._log.head:
            self._finished("terminal")
        await self._send_now(body)

    async def _read(self) -> list[Block] | None:
        """Read one piece; None, after a pause, if there is none yet; `[]` if there will be none."""
        try:
            blocks = await self._store.read_events(self.invocation_id, self.cursor, limit_bytes=PIECE_BYTES)
        except StoreUnavailable:
            # DEBUG: `log` and `leases` warn once for the whole process.
            logger.debug("replay waits for the store", extra={"invocation_id": self.invocation_id})
        else:
            if blocks or self._log.ended:
                return blocks
        await asyncio.sleep(STORE_RETRY_S)
        return None

    async def _send_now(self, body: bytes) -> None:
        self._stuck_at = self._wheel.now + self._pace.write_timeout_s
        self.bytes_sent += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": not self.end})
        self._stuck_at = None
        self._touch()

    # -- time

    def due_at(self) -> float:
        """Return when the wheel must look at this reader next."""
        return min(self._beat_at, self._deadline[0], self._stuck_at or self._beat_at)

    def look(self, now: float) -> None:
        """Do what is due: heartbeat, end of the segment, cut-off of a stuck peer. Called by the wheel.

        While a piece is being sent too: a peer that is slow all the time must not outlast its deadline.
        """
        if self.end and self._stuck_at is None:
            return
        if self._stuck_at is not None and now >= self._stuck_at:
            self.end = "stuck"
            self._abort()
        elif self._log.moved:
            self._leave()
        elif now >= self._deadline[0]:
            self.close(self._deadline[1])
        elif now >= self._beat_at and self._sending is None:
            self._write(self._wire.heartbeat(self._log.heartbeat(now)))

    def _leave(self) -> None:
        self.close("segment-end")

    def close(self, reason: str, problem: dict[str, Any] | None = None) -> None:
        """End this response, after what is being sent: with `reconnect`, or `streamEnded` and its problem."""
        if self.end or (self._close_reason is not None and problem is None):
            return
        self._close_reason, self._problem = reason, problem
        if problem is not None and self._stuck_at is not None:
            self._stuck_at = min(self._stuck_at, self._wheel.now + DENIED_WRITE_S)
        if self._sending is None and self._began:
            self._reconnect(reason)


class _Begun:
    """A coroutine that was driven by hand up to its first wait, to be finished by a task."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                yield waits_for
                waits_for = self._coroutine.send(None)
        except StopIteration:
            return
        finally:
            self._coroutine.close()


async def _awaiting(awaitable: Awaitable[None]) -> None:
    await awaitable
