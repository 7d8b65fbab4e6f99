"""Follow an invocation: find its log (run here, run elsewhere, paused or ended), check the cursor, open a
reader.

`api` calls it; a submission is "start, then follow", and a reattach is the same without the start. Who starts
an attempt here says so with `adopt`. `app` says of which runtimes `presence` must know the readers.

An invocation that runs elsewhere, or waits for quota, is polled in the store: once per process, however many
readers it has here. A poll that was there before a takeover has seen events that are void since; it goes on
for the readers that it has, and the next reader gets a new one, which reads what counts.
"""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from service.config import ServiceConfig
from service.errors import (
    Draining,
    HeadraceError,
    InvalidCursor,
    Overloaded,
    StoreUnavailable,
    TooManyReaders,
)
from service.events import Block, EventId, event_type, is_terminal
from service.invocations import Invocation, State
from service.log import Log
from service.presence import Presence
from service.readers import PIECE_BYTES, Pace, Reader
from service.readers_wheel import Wheel
from service.stores import Store
from service.wire import Wire

logger = logging.getLogger(__name__)

POLL_S: Final = (0.25, 1.0)
TOKEN_GRACE_S: Final = 60.0
DRAIN_SPREAD_S: Final = 3.0


class Follow:
    """Who reads what in this process; one per process."""

    def __init__(
        self,
        store: Store,
        own_log: Callable[[str], Log | None],
        config: ServiceConfig,
        clock: Callable[[], float],
        now_s: Callable[[], float],
        *,
        presence: Presence | None = None,
        abandonable: Collection[str] = (),
    ) -> None:
        """Follow in `store` and in the logs of this process.

        `presence` is told of the readers of the runtimes in `abandonable`: those that nobody reads are
        cancelled.
        """
        self._store = store
        self._own_log = own_log
        self._config = config
        self._clock = clock
        self._now_s = now_s
        self._presence = presence
        self._abandonable = frozenset(abandonable)
        self.wheel = Wheel(config.heartbeat_s, clock)
        # The wheel looks at most one tick late: so silence never lasts longer than `heartbeat_s`.
        self._pace = Pace(config.heartbeat_s - self.wheel.tick_s, config.write_timeout_s)
        self._readers: dict[Reader, _Opened] = {}
        self._opening = 0
        self._by_principal: Counter[str] = Counter()  # open and about to be
        self._polls: dict[str, list[_Poll]] = {}
        self._draining = False

    def check_room(self, sub: str) -> None:
        """Refuse a further reader before anything is done for it.

        Raises:
            TooManyReaders: The principal has `readers_per_principal` open here.
            Overloaded, Draining: This process takes no further reader.
        """
        if self._draining:
            raise Draining("Follow again in a moment: another process answers.", retry_after_s=1)
        if len(self._readers) + self._opening >= self._config.open_readers:
            raise Overloaded("Too many streams are open here: try again.", retry_after_s=1)
        if self._by_principal[sub] >= self._config.readers_per_principal:
            raise TooManyReaders("Close one of your streams, then try again.", retry_after_s=5)

    @contextmanager
    def room(self, sub: str) -> Iterator[None]:
        """Keep room for a reader that is opened, with `checked`, as soon as this block has ended.

        Raises:
            TooManyReaders, Overloaded, Draining: As `check_room`.
        """
        self.check_room(sub)
        self._opening += 1
        self._count(sub, 1)
        try:
            yield
        finally:
            self._opening -= 1
            self._count(sub, -1)

    def _count(self, sub: str, change: int) -> None:
        self._by_principal[sub] += change
        if not self._by_principal[sub]:
            del self._by_principal[sub]

    def open(
        self,
        invocation: Invocation,
        cursor: EventId,
        wire: Wire,
        *,
        token_expires_at_s: float,
        origin_jti: str | None = None,
        checked: bool = False,
    ) -> Reader:
        """Open a reader of an invocation from a cursor; who opens it must `close` it.

        `token_expires_at_s` and `origin_jti` are those of the reader's token; its `sub` is the invocation's.
        `checked` says that there was `room` for this reader until now: the reader of a submission is refused
        before its invocation is admitted, or not at all.

        Raises:
            InvalidCursor: The cursor was never issued by this invocation.
            TooManyReaders, Overloaded, Draining: As `check_room`.
        """
        if not checked:
            self.check_room(invocation.sub)
        log = self._known_log(invocation)
        check_cursor(cursor, invocation, log)
        poll = None
        if log is None:
            poll = self._join_poll(invocation)
            log = poll.log
        reader = Reader(
            invocation.invocation_id,
            log,
            self._store,
            wire,
            cursor,
            self._pace,
            self.wheel,
            self._deadline(token_expires_at_s),
        )
        presence = self._presence if invocation.runtime_id in self._abandonable else None
        self._readers[reader] = _Opened(invocation.sub, origin_jti, poll, presence)
        self._count(invocation.sub, 1)
        if presence is not None:
            presence.opened(invocation.invocation_id)
        if self._draining:
            reader.close("drain")
        return reader

    def close(self, reader: Reader) -> None:
        """Forget a reader that has ended."""
        opened = self._readers.pop(reader)
        self._count(opened.sub, -1)
        if opened.poll is not None:
            self._leave_poll(reader.invocation_id, opened.poll)
        if opened.presence is not None:
            opened.presence.closed(reader.invocation_id)

    def adopt(self, invocation_id: str) -> None:
        """Note that an attempt starts here: readers that follow by polling are sent on to its log."""
        for poll in self._polls.get(invocation_id, ()):
            poll.log.move()

    def end_denied(self, refusal: Callable[[str, str | None], HeadraceError | None]) -> None:
        """End the readers of whom `refusal` refuses, by `sub` and `origin_jti`, with `streamEnded`."""
        for reader, opened in tuple(self._readers.items()):
            refused = refusal(opened.sub, opened.origin_jti)
            if refused is not None:
                reader.close(refused.code, refused.problem(invocationId=reader.invocation_id))

    async def drain(self) -> None:
        """Take no further reader; end the open ones with `reconnect`, spread so that they don't stampede."""
        self._draining = True
        loop = asyncio.get_running_loop()
        readers = tuple(self._readers)
        for number, reader in enumerate(readers):
            loop.call_later(DRAIN_SPREAD_S * number / len(readers), reader.close, "drain")

    def _deadline(self, token_expires_at_s: float) -> tuple[float, str]:
        now = self._clock()
        segment = (now + self._config.segment_s, "segment-end")
        token = (now + token_expires_at_s - self._now_s() + TOKEN_GRACE_S, "token-expired")
        return min(segment, token)

    def _known_log(self, invocation: Invocation) -> Log | None:
        """Return the log of an invocation that runs here or has ended; None if it runs elsewhere or nowhere.

        A log of an attempt before the record's is not it: that attempt has been taken over, and this process
        is the last to learn it.
        """
        own = self._own_log(invocation.invocation_id)
        if own is not None and not own.moved and own.head.attempt >= invocation.attempt:
            return own
        if invocation.last is None:
            return None
        log = Log(head=invocation.last, ended=True, started_at=self._started_at(invocation))
        log.phase = "replay"
        return log

    def _started_at(self, invocation: Invocation) -> float:
        return self._clock() - (self._now_s() - invocation.created_at_ms / 1000)

    def _join_poll(self, invocation: Invocation) -> "_Poll":
        """Return the poll of an invocation that does not run here; its log begins at the start.

        A reader with a cursor skips what it has; a poll that began at a cursor would believe the caller.
        """
        polls = self._polls.setdefault(invocation.invocation_id, [])
        if not polls or polls[-1].is_closed:
            log = Log(started_at=self._started_at(invocation))
            log.phase = "paused" if invocation.state is State.PAUSED else "elsewhere"
            log.elsewhere = True
            poll = _Poll(log, invocation.attempt)
            poll.task = asyncio.get_running_loop().create_task(self._feed(invocation.invocation_id, poll))
            polls.append(poll)
        polls[-1].readers += 1
        return polls[-1]

    def _leave_poll(self, invocation_id: str, poll: "_Poll") -> None:
        poll.readers -= 1
        if poll.readers:
            return
        poll.task.cancel()
        polls = self._polls[invocation_id]
        polls.remove(poll)
        if not polls:
            del self._polls[invocation_id]

    async def _feed(self, invocation_id: str, poll: "_Poll") -> None:
        """Feed the log of an invocation that does not run here, until its terminal event."""
        log = poll.log
        shortest_s, longest_s = POLL_S
        wait_s = shortest_s
        while not log.ended:
            try:
                blocks = await self._store.read_events(invocation_id, log.head, limit_bytes=PIECE_BYTES)
            except StoreUnavailable:
                logger.debug("poll waits for the store", extra={"invocation_id": invocation_id})
                blocks = []
            except Exception:  # the edge of the poll: its readers are sent on instead of waiting in vain
                logger.exception("poll failed", extra={"invocation_id": invocation_id})
                log.moved = True  # found at the wheel's next look, so that a lasting fault is no tight loop
                return
            for block in blocks:
                poll.publish(block)
            if blocks:  # there may be more: a poll that begins has the whole log to read
                wait_s = shortest_s
            elif not log.ended:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, longest_s)


class _Opened(NamedTuple):
    """Whose an open reader is, and who must hear that it has closed."""

    sub: str
    origin_jti: str | None
    poll: "_Poll | None"
    presence: Presence | None


@dataclass(slots=True, eq=False)
class _Poll:
    """The log of an invocation that does not run here, the task that feeds it and how many readers need it.

    Attributes:
        attempt: The current attempt when the poll began: of this and later ones it may see what gets void.
        overtaken: It has seen such an attempt end: not all of its tail counts.
    """

    log: Log
    attempt: int
    task: asyncio.Task[None] = field(init=False)
    readers: int = 0
    overtaken: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether it takes no further reader."""
        return self.overtaken or self.log.moved

    def publish(self, block: Block) -> None:
        """Show a block that was read from the store."""
        log = self.log
        self.overtaken = self.overtaken or self.attempt <= log.head.attempt < block.attempt
        log.phase = "paused" if event_type(block.events[-1]) == b"invocationPaused" else "elsewhere"
        log.mark_stored(block.last)
        log.publish(*block, ended=is_terminal(block.events[-1]))


def check_cursor(cursor: EventId, invocation: Invocation, log: Log | None) -> None:
    """Refuse a cursor that was never issued.

    A closed attempt may have issued more than it was granted, so any cursor of it is taken; so is one of an
    attempt that runs elsewhere (`log` None), whose newest id is not known here. Else the newest id is known:
    from the log, or of a paused invocation from its record.

    Raises:
        InvalidCursor: It is beyond what was issued.
    """
    newest = invocation.attempts[-1].last if log is None else log.head
    beyond = EventId(invocation.attempt, sys.maxsize) if newest is None else newest
    if cursor > beyond and cursor.attempt >= invocation.attempt:
        shown = f"{invocation.attempt}.x" if newest is None else str(newest)
        raise InvalidCursor(f"The newest event has the id {shown}: send the last id that you received.")
