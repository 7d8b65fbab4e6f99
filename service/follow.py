"""Follow an invocation: find its log (run here, run elsewhere, or ended), check the cursor, open a reader.

`api` calls it; a submission is "start, then follow", and a reattach is the same without the start. An
invocation that another process runs is polled in the store, once per followed invocation per process, however
many readers it has here.
"""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from service.config import ServiceConfig
from service.errors import Draining, InvalidCursor, Overloaded, StoreUnavailable, TooManyReaders
from service.events import EventId, is_terminal
from service.invocations import Invocation
from service.log import Log
from service.readers import PIECE_BYTES, Pace, Reader, Wheel
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
    ) -> None:
        self._store = store
        self._own_log = own_log
        self._config = config
        self._clock = clock
        self._now_s = now_s
        self.wheel = Wheel(config.heartbeat_s, clock)
        # The wheel looks at most one tick late: so silence never lasts longer than `heartbeat_s`.
        self._pace = Pace(config.heartbeat_s - self.wheel.tick_s, config.write_timeout_s)
        self._readers: set[Reader] = set()
        self._by_principal: Counter[str] = Counter()
        self._polls: dict[str, _Poll] = {}
        self._draining = False

    def check_room(self, sub: str) -> None:
        """Refuse a further reader before anything is done for it.

        Raises:
            TooManyReaders: The principal has `readers_per_principal` open here.
            Overloaded, Draining: This process takes no further reader.
        """
        if self._draining:
            raise Draining("Follow again in a moment: another process answers.", retry_after_s=1)
        if len(self._readers) >= self._config.open_readers:
            raise Overloaded("Too many streams are open here: try again.", retry_after_s=1)
        if self._by_principal[sub] >= self._config.readers_per_principal:
            raise TooManyReaders("Close one of your streams, then try again.", retry_after_s=5)

    @asynccontextmanager
    async def reader(
        self,
        invocation: Invocation,
        cursor: EventId,
        wire: Wire,
        *,
        token_expires_at_s: float,
        checked: bool = False,
    ) -> AsyncIterator[Reader]:
        """Open a reader of an invocation from a cursor; leaving the block forgets it.

        `checked` says that `check_room` let this reader in before: the reader of a submission is refused
        before its invocation is admitted, or not at all.

        Raises:
            InvalidCursor: The cursor was never issued by this invocation.
            TooManyReaders, Overloaded, Draining: As `check_room`.
        """
        if not checked:
            self.check_room(invocation.sub)
        log = self._known_log(invocation)
        check_cursor(cursor, invocation, log)
        if log is None:
            log = self._polled_log(invocation)
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
        poll = self._polls.get(invocation.invocation_id)
        if poll is not None and poll.log is log:
            poll.readers += 1
        self._readers.add(reader)
        self._by_principal[invocation.sub] += 1
        if self._draining:
            reader.close("drain")
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self._by_principal[invocation.sub] -= 1
            if not self._by_principal[invocation.sub]:
                del self._by_principal[invocation.sub]
            self._unfollow(invocation.invocation_id, log)

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
        """Return the log of an invocation that runs here or has ended; None if it runs elsewhere."""
        own = self._own_log(invocation.invocation_id)
        if own is not None or invocation.last is None:
            return own
        log = Log(head=invocation.last, ended=True, started_at=self._started_at(invocation))
        log.phase = "replay"
        return log

    def _started_at(self, invocation: Invocation) -> float:
        return self._clock() - (self._now_s() - invocation.created_at_ms / 1000)

    def _polled_log(self, invocation: Invocation) -> Log:
        """Return the log of an invocation that runs elsewhere: that of its poll, which begins at the start.

        A reader with a cursor skips what it has; a poll that began at a cursor would believe the caller.
        """
        poll = self._polls.get(invocation.invocation_id)
        if poll is None:
            log = Log(started_at=self._started_at(invocation))
            log.phase, log.elsewhere = "elsewhere", True
            task = asyncio.get_running_loop().create_task(self._poll(invocation.invocation_id, log))
            poll = self._polls[invocation.invocation_id] = _Poll(log, task)
        return poll.log

    async def _poll(self, invocation_id: str, log: Log) -> None:
        """Feed the log of an invocation that another process runs, until its terminal event."""
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
                log.fenced = True
                return
            for block in blocks:
                log.mark_stored(block.last)
                log.publish(block, ended=is_terminal(block.events[-1]))
            if blocks:  # there may be more: a poll that begins has the whole log to read
                wait_s = shortest_s
            elif not log.ended:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, longest_s)

    def _unfollow(self, invocation_id: str, log: Log) -> None:
        poll = self._polls.get(invocation_id)
        if poll is not None and poll.log is log:  # else the reader had the log of an attempt that ran here
            poll.readers -= 1
            if not poll.readers:
                poll.task.cancel()
                del self._polls[invocation_id]


@dataclass(slots=True)
class _Poll:
    """The log of an invocation that runs elsewhere, the task that feeds it and how many readers need it."""

    log: Log
    task: asyncio.Task[None]
    readers: int = 0


def check_cursor(cursor: EventId, invocation: Invocation, log: Log | None) -> None:
    """Refuse a cursor that was never issued.

    A closed attempt may have issued more than it was granted, so any cursor of it is taken; so is one of an
    attempt that runs elsewhere (`log` None), whose newest id is not known here. Else the newest id is known.

    Raises:
        InvalidCursor: It is beyond what was issued.
    """
    newest = EventId(invocation.attempt, sys.maxsize) if log is None else log.head
    if cursor > newest and cursor.attempt >= invocation.attempt:
        shown = f"{invocation.attempt}.x" if log is None else str(newest)
        raise InvalidCursor(f"The newest event has the id {shown}: send the last id that you received.")
