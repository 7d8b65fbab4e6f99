"""The invocation's log in this process: append, fan out to readers, group-commit to the store.

    runner ── AttemptLog.append/deliver ──> Log.publish ──> attached readers    at once, in the same call
                        └────────────────> GroupCommit ──> store.append_events  250 ms to 1 s later, or 64 KB

`Log` is what readers see: a bounded tail of blocks and who listens. `AttemptLog` is the one pen: it gives
ids. `GroupCommit` is the process's one writer of event logs.

Invariants: ids are contiguous within an attempt; what is not stored yet is always in the tail, so the tail
and the store together hold everything; a log whose unstored part grows over `UNSTORED_LIMIT_BYTES`, or a
process whose logs together do over `unstored_bytes`, holds its upstreams back; a pen publishes nothing while
this process's lease has lapsed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from service.errors import StoreUnavailable
from service.events import Block, from_frames
from service.log_tail import FIRST_LINGER_S
from service.log_tail import TAIL_LIMIT_BYTES as TAIL_LIMIT_BYTES
from service.log_tail import Listener as Listener
from service.log_tail import Log as Log
from service.models import Frame
from service.stores import EventBlock, Store

logger = logging.getLogger(__name__)

UNSTORED_LIMIT_BYTES: Final = 1024 * 1024
COMMIT_LINGER_S: Final = (FIRST_LINGER_S, 1.0)  # from an answer's first events on, twice as long each time
COMMIT_AT_BYTES: Final = 64 * 1024
COMMIT_RETRY_S: Final = (0.25, 5.0)


class AttemptLog:
    """The pen of one attempt: numbers events, publishes them, hands them to the group commit.

    While `may_publish` says no (the lease has lapsed: another attempt may be on its way), events are held
    back without an id, and with them the upstream; `catch_up` lets them go.
    """

    __slots__ = (
        "_attempt",
        "_commit",
        "_first_frame",
        "_held",
        "_invocation_id",
        "_let_go",
        "_may_publish",
        "_next_seq",
        "log",
    )

    def __init__(
        self,
        log: Log,
        invocation_id: str,
        attempt: int,
        commit: "GroupCommit",
        may_publish: Callable[[], bool] = lambda: True,
    ) -> None:
        self.log = log
        self._invocation_id = invocation_id
        self._attempt = attempt
        self._next_seq = 1
        self._commit = commit
        self._may_publish = may_publish
        self._first_frame: Callable[[], None] | None = None
        self._held: list[bytes] = []
        self._let_go: asyncio.Future[None] | None = None

    def on_first_frame(self, call: Callable[[], None]) -> None:
        """Call once, when the upstream's first frame has been appended."""
        self._first_frame = call

    def append(self, events: Sequence[bytes]) -> Awaitable[None] | None:
        """Append events; returns what to wait for before more may come, or None."""
        if self._held or not self._may_publish():
            return self._hold_back(events)
        log, attempt, first_seq, events = self.log, self._attempt, self._next_seq, tuple(events)
        self._next_seq = first_seq + len(events)
        size_bytes = log.publish(attempt, first_seq, events)
        return self._commit.add(self._invocation_id, log, attempt, first_seq, events, size_bytes)

    def deliver(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        """Append a batch of upstream frames: the hot path, called from the connection's callback."""
        waiting = self.append(from_frames(frames))
        if self._first_frame is not None:
            call, self._first_frame = self._first_frame, None
            call()
        return waiting

    def catch_up(self) -> None:
        """Publish what was held back: the lease is held again, and the attempt is still this process's."""
        held, self._held = self._held, []
        if held:
            self.append(held)
        if self._let_go is not None:
            let_go, self._let_go = self._let_go, None
            if not let_go.done():
                let_go.set_result(None)

    def _hold_back(self, events: Sequence[bytes]) -> Awaitable[None]:
        self._held += events
        if self._let_go is None:
            self._let_go = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._let_go)

    def take(self) -> Awaitable[Block | None]:
        """Take what is not stored yet out of the group commit, to store it in a larger decision."""
        return self._commit.take(self._invocation_id, self._attempt)

    def put_back(self, block: Block | None) -> None:
        """Give a taken block back to the group commit: whether the larger decision stored it is not known."""
        if block is not None:
            self._commit.put_back(self._invocation_id, self.log, block)

    def mark_stored(self, block: Block | None) -> None:
        """Note that a block which was taken is stored now."""
        if block is not None:
            self.log.mark_stored(block.last)

    def number(self, events: Sequence[bytes]) -> Block:
        """Give events their ids without publishing them: a terminal event is committed first."""
        block = Block(self._attempt, self._next_seq, tuple(events))
        self._next_seq += len(block.events)
        return block


class _Pending:
    """What one invocation has not stored yet."""

    __slots__ = ("attempt", "due_at", "events", "first_seq", "log", "room", "size_bytes")

    def __init__(self, log: Log, attempt: int, first_seq: int) -> None:
        self.log = log
        self.due_at = asyncio.get_running_loop().time() + log.linger_s
        self.attempt = attempt
        self.first_seq = first_seq
        self.events: list[bytes] = []
        self.size_bytes = 0
        self.room: asyncio.Future[None] | None = None

    def block(self) -> Block:
        return Block(self.attempt, self.first_seq, tuple(self.events))


class GroupCommit:
    """Writes all invocations' pending events together; one per process. `run` is its only task.

    A store that is down keeps the events pending and is tried again; readers go on from the tail meanwhile.
    """

    def __init__(
        self,
        store: Store,
        now_ms: Callable[[], int],
        on_fenced: Callable[[str, int], None],
        *,
        unstored_bytes: int = 64 * UNSTORED_LIMIT_BYTES,
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._on_fenced = on_fenced
        self._limit_bytes = unstored_bytes
        self._pending: dict[str, _Pending] = {}
        self._pending_bytes = 0
        self._writing_bytes = 0
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()

    @property
    def is_full(self) -> bool:
        """Whether the store is so far behind that this process should take no further work."""
        return self._pending_bytes + self._writing_bytes >= self._limit_bytes

    def add(
        self,
        invocation_id: str,
        log: Log,
        attempt: int,
        first_seq: int,
        events: tuple[bytes, ...],
        size_bytes: int,
    ) -> Awaitable[None] | None:
        """Queue the next block; returns what to wait for when the log is too far ahead of the store."""
        pending = self._pending.get(invocation_id)
        if pending is None or pending.attempt != attempt:
            if pending is not None and pending.attempt > attempt:
                return None  # void: the next attempt has begun, here too
            self._drop(invocation_id)
            pending = self._pending[invocation_id] = _Pending(log, attempt, first_seq)
            self._some.set()
        pending.events += events
        pending.size_bytes = pending_bytes = pending.size_bytes + size_bytes
        self._pending_bytes = all_bytes = self._pending_bytes + size_bytes
        if pending_bytes < COMMIT_AT_BYTES and all_bytes + self._writing_bytes < self._limit_bytes:
            return None
        if pending_bytes >= COMMIT_AT_BYTES:
            self._full.set()
        if pending_bytes < UNSTORED_LIMIT_BYTES and not self.is_full:
            return None
        if pending.room is None:
            pending.room = asyncio.get_running_loop().create_future()
        return asyncio.shield(pending.room)

    async def take(self, invocation_id: str, attempt: int) -> Block | None:
        """Take an attempt's pending events out for a larger decision; waits for a write under way."""
        async with self._writing:
            pending = self._pending.get(invocation_id)
            if pending is None or pending.attempt != attempt:
                return None
            self._drop(invocation_id)
            return pending.block()

    def _drop(self, invocation_id: str) -> None:
        pending = self._pending.pop(invocation_id, None)
        if pending is not None:
            self._pending_bytes -= pending.size_bytes
            _release(pending)

    def put_back(self, invocation_id: str, log: Log, block: Block) -> None:
        """Queue a taken block again, before what came since; what the store has of it already, it ignores."""
        taken = _Pending(log, block.attempt, block.first_seq)
        taken.events += block.events
        taken.size_bytes = block.size_bytes
        self._put_back({invocation_id: taken})

    async def run(self) -> None:
        """Commit for ever; cancel it after the last attempt has finished."""
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_LINGER_S[0]):
                    await self._full.wait()
            await self._commit()

    async def _commit(self) -> None:
        retry_s, longest_s = COMMIT_RETRY_S
        while not await self._write():
            logger.warning(
                "event log not stored yet", extra={"retry_s": retry_s, "pending_bytes": self._pending_bytes}
            )
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, longest_s)

    async def _write(self) -> bool:
        async with self._writing:
            writing = self._take_due()
            if not writing:
                return True
            blocks = [EventBlock(name, pending.block()) for name, pending in writing.items()]
            try:
                fenced = await self._store.append_events(blocks, self._now_ms())
            except StoreUnavailable:
                self._put_back(writing)
                return False
            except BaseException:
                self._put_back(writing)
                raise
            finally:
                self._writing_bytes = 0
        for written, pending in zip(blocks, writing.values(), strict=True):
            invocation_id = written.invocation_id
            _release(pending)
            if invocation_id in fenced:
                self._on_fenced(invocation_id, pending.attempt)
            else:
                pending.log.mark_stored(written.block.last)
                pending.log.linger_s = min(2 * pending.log.linger_s, COMMIT_LINGER_S[1])
        return True

    def _take_due(self) -> dict[str, _Pending]:
        """Take what has waited for long enough, or is much: of each invocation for itself.

        Were much of all together a reason, a busy process would write a row of every invocation every few
        milliseconds, with an event or two in it.
        """
        soon = asyncio.get_running_loop().time() + COMMIT_LINGER_S[0] / 2
        due = {
            invocation_id: pending
            for invocation_id, pending in self._pending.items()
            if pending.size_bytes >= COMMIT_AT_BYTES or pending.room is not None or pending.due_at <= soon
        }
        for invocation_id in due:
            del self._pending[invocation_id]
        self._writing_bytes = sum(pending.size_bytes for pending in due.values())
        self._pending_bytes -= self._writing_bytes
        self._full.clear()
        if not self._pending:
            self._some.clear()
        return due

    def _put_back(self, writing: dict[str, _Pending]) -> None:
        for invocation_id, pending in writing.items():
            newer = self._pending.get(invocation_id)
            if newer is not None and newer.attempt > pending.attempt:
                _release(pending)
                continue
            if newer is not None and newer.attempt == pending.attempt:
                pending.events += newer.events
                pending.size_bytes += newer.size_bytes
            if newer is not None:
                _release(newer)  # it asks again with its next batch
            self._pending[invocation_id] = pending
        self._pending_bytes = sum(pending.size_bytes for pending in self._pending.values())
        self._some.set()


def _release(pending: _Pending) -> None:
    if pending.room is not None and not pending.room.done():
        pending.room.set_result(None)
