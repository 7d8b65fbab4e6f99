"""The tail of an invocation's log in one process: a bounded stretch of blocks, and who listens.

`log` re-exports it: pens publish into it (or `follow`, of an invocation that another process runs), readers
take from it or are called.

Invariant: what is not stored yet is always in the tail, so the tail and the store together hold everything.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from service.events import START, Block, EventId
from service.wire import Heartbeat

TAIL_LIMIT_BYTES: Final = 256 * 1024
FIRST_LINGER_S: Final = 0.25

Listener = Callable[[Block], None]


class Log:
    """One invocation's log as this process sees it; fed by an `AttemptLog`, or by a poll of the store.

    Attributes:
        head: The id of the newest event known here.
        ended: The newest event is the terminal one.
        moved: The attempt is not run here any more: its readers must reattach.
        elsewhere: Another process runs the attempt; `head` is what the store showed last.
        stored: Everything up to this id is in the store.
        linger_s: How long an event waits for others before it is stored; longer in a longer answer.
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
        "linger_s",
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
        self.linger_s = FIRST_LINGER_S
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
