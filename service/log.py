"""The invocation's log in this process: append, fan out to readers, group-commit to the store.

    runner ── AttemptLog.append/deliver ──> Log.publish ──> attached readers     at once, in the same call
                        └────────────────> GroupCommit ──> store.append_events   every 250 ms or 64 KB

`Log` is what readers see: a bounded tail of blocks and who listens. `AttemptLog` is the one pen: it gives
ids. `GroupCommit` is the process's one writer of event logs.

Invariants: ids are contiguous within an attempt; what is not stored yet is always in the tail, so the tail
and the store together hold everything; a log whose unstored part grows over `UNSTORED_LIMIT_BYTES`, or a
process whose logs together do over `unstored_bytes`, holds its upstreams back; a pen publishes nothing while
this process's lease has lapsed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from service.errors import StoreUnavailable
from service.events import START, Block, EventId, from_frame
from service.models import Frame
from service.stores import EventBlock, Store
from service.wire import Heartbeat

logger = logging.getLogger(__name__)

TAIL_LIMIT_BYTES: Final = 256 * 1024
UNSTORED_LIMIT_BYTES: Final = 1024 * 1024
COMMIT_LINGER_S: Final = 0.25
COMMIT_AT_BYTES: Final = 64 * 1024
COMMIT_RETRY_S: Final = (0.25, 5.0)

Listener = Callable[[Block], None]


class Log:
    """One invocation's log as this process sees it; fed by an `AttemptLog`, or by a poll of the store.

    Attributes:
        head: The id of the newest event known here.
        ended: The newest event is the terminal one.
        moved: The attempt is not run here any more: its readers must reattach.
        elsewhere: Another process runs the attempt; `head` is what the store showed last.
        stored: Everything up to this id is in the store.
        phase, turn, started_at: What heartbeats say (`started_at` in the loop's time).
    """

    __slots__ = (
        "_floor",
        "_leaving",
        "_listeners",
        "_tail",
        "_tail_bytes",
        "elsewhere",
        "ended",
        "head",
        "moved",
        "phase",
        "started_at",
        "stored",
        "turn",
    )

    def __init__(self, *, head: EventId = START, ended: bool = False, started_at: float = 0.0) -> None:
        self.head = head
        self.stored = head
        self.ended = ended
        self.elsewhere = False
        self.moved = False
        self.phase = "starting"
        self.turn = 0
        self.started_at = started_at
        self._floor = head  # the tail holds everything after this id
        self._tail: deque[tuple[EventId, int, Block]] = deque()  # (its last id, its bytes, block)
        self._tail_bytes = 0
        self._listeners: set[Listener] = set()
        self._leaving: set[Callable[[], None]] = set()

    def publish(self, block: Block, *, ended: bool = False) -> int:
        """Take the next block: into the tail, and to every listener that is attached; returns its bytes."""
        last, size_bytes = block.last, block.size_bytes
        self._tail.append((last, size_bytes, block))
        self._tail_bytes += size_bytes
        self.head = last
        self.ended = ended
        if self._tail_bytes > TAIL_LIMIT_BYTES:
            self._trim()
        for listener in tuple(self._listeners):
            listener(block)
        return size_bytes

    def mark_stored(self, up_to: EventId) -> None:
        """Note that the store has everything up to this id."""
        self.stored = max(self.stored, up_to)
        if self._tail_bytes > TAIL_LIMIT_BYTES:
            self._trim()

    def _trim(self) -> None:
        tail, stored = self._tail, self.stored
        while self._tail_bytes > TAIL_LIMIT_BYTES and tail and tail[0][0] <= stored:
            self._floor, size_bytes, _ = tail.popleft()
            self._tail_bytes -= size_bytes

    def after(self, cursor: EventId, *, limit_bytes: int) -> list[Block] | None:
        """Return what follows `cursor`, about `limit_bytes` of it; `[]` at the head; None: ask the store."""
        if cursor >= self.head:
            return []
        if cursor < self._floor:
            return None
        blocks: list[Block] = []
        gathered_bytes = 0
        for last, size_bytes, block in self._tail:
            if last > cursor:
                blocks.append(block.after(cursor))
                gathered_bytes += size_bytes
                if gathered_bytes >= limit_bytes:
                    break
        return blocks

    def attach(self, listener: Listener) -> None:
        """Call `listener` with every block from now on; only for a reader whose cursor is the head."""
        self._listeners.add(listener)

    def detach(self, listener: Listener) -> None:
        """Stop calling `listener`; harmless if it is not attached."""
        self._listeners.discard(listener)

    @property
    def attached(self) -> int:
        return len(self._listeners)

    def move(self) -> None:
        """Note that the attempt is not run here any more, and send its readers on."""
        self.moved = True
        for leave in tuple(self._leaving):
            leave()

    def on_move(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the attempt moves; every reader's, attached or behind."""
        self._leaving.add(leave)

    def forget(self, leave: Callable[[], None]) -> None:
        """Take back what `on_move` was given."""
        self._leaving.discard(leave)

    def heartbeat(self, now: float) -> Heartbeat:
        """Say what the invocation is doing."""
        return Heartbeat(self.phase, self.turn, int(now - self.started_at))


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
        block = self.number(events)
        size_bytes = self.log.publish(block)
        return self._commit.add(self._invocation_id, self.log, block, size_bytes)

    def deliver(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        """Append a batch of upstream frames: the hot path, called from the connection's callback."""
        waiting = self.append([from_frame(kind, payload) for kind, payload in frames])
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

    async def take(self) -> Block | None:
        """Take what is not stored yet out of the group commit, to store it in a larger decision."""
        return await self._commit.take(self._invocation_id)

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

    __slots__ = ("attempt", "events", "first_seq", "log", "room", "size_bytes")

    def __init__(self, log: Log, block: Block) -> None:
        self.log = log
        self.attempt = block.attempt
        self.first_seq = block.first_seq
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
        on_fenced: Callable[[str], None],
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

    def add(self, invocation_id: str, log: Log, block: Block, size_bytes: int) -> Awaitable[None] | None:
        """Queue the next block; returns what to wait for when the log is too far ahead of the store."""
        pending = self._pending.get(invocation_id)
        if pending is None:
            pending = self._pending[invocation_id] = _Pending(log, block)
            self._some.set()
        pending.events += block.events
        pending.size_bytes += size_bytes
        self._pending_bytes += size_bytes
        if self._pending_bytes >= COMMIT_AT_BYTES:
            self._full.set()
        if pending.size_bytes < UNSTORED_LIMIT_BYTES and not self.is_full:
            return None
        if pending.room is None:
            pending.room = asyncio.get_running_loop().create_future()
        return asyncio.shield(pending.room)

    async def take(self, invocation_id: str) -> Block | None:
        """Take an invocation's pending events out for a larger decision; waits for a write under way."""
        async with self._writing:
            pending = self._pending.pop(invocation_id, None)
            if pending is None:
                return None
            self._pending_bytes -= pending.size_bytes
            _release(pending)
            return pending.block()

    def put_back(self, invocation_id: str, log: Log, block: Block) -> None:
        """Queue a taken block again, before what came since; what the store has of it already, it ignores."""
        taken = _Pending(log, block)
        taken.events += block.events
        taken.size_bytes = block.size_bytes
        self._put_back({invocation_id: taken})

    async def run(self) -> None:
        """Commit for ever; cancel it after the last attempt has finished."""
        while True:
            await self._some.wait()
            try:
                async with asyncio.timeout(COMMIT_LINGER_S):
                    await self._full.wait()
            except TimeoutError:
                pass
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
            writing, self._pending = self._pending, {}
            self._writing_bytes, self._pending_bytes = self._pending_bytes, 0
            self._some.clear()
            self._full.clear()
            if not writing:
                return True
            blocks = [
                EventBlock(invocation_id, pending.block()) for invocation_id, pending in writing.items()
            ]
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
        for invocation_id, pending in writing.items():
            _release(pending)
            if invocation_id in fenced:
                self._on_fenced(invocation_id)
            else:
                pending.log.mark_stored(pending.block().last)
        return True

    def _put_back(self, writing: dict[str, _Pending]) -> None:
        for invocation_id, pending in writing.items():
            newer = self._pending.get(invocation_id)
            if newer is not None:
                pending.events += newer.events
                pending.size_bytes += newer.size_bytes
                _release(newer)  # it asks again with its next batch
            self._pending[invocation_id] = pending
        self._pending_bytes = sum(pending.size_bytes for pending in self._pending.values())
        self._some.set()


def _release(pending: _Pending) -> None:
    if pending.room is not None and not pending.room.done():
        pending.room.set_result(None)
