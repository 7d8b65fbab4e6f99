"""The tail of an invocation's log in one process: a bounded stretch of events, and who listens.

`log` re-exports it: pens publish into it (or `follow`, of an invocation that another process runs), readers
take from it or are called.

Invariant: what is not stored yet is always in the tail, so the tail and the store together hold everything.

What is kept of an event is its bytes: no object per event that the garbage collector would have to visit, of
which there would be hundreds of thousands.
"""

from collections.abc import Callable
from typing import Final

from service.events import START, Block, EventId
from service.wire import Heartbeat

TAIL_LIMIT_BYTES: Final = 256 * 1024
_TRIM_BYTES: Final = TAIL_LIMIT_BYTES // 16  # at least so much at a time
FIRST_LINGER_S: Final = 0.25

Listener = Callable[[int, int, tuple[bytes, ...]], None]
"""Take a block as its three parts: on the way of a delta nobody makes an object of them."""


class _Run:
    """Consecutive events of one attempt; those before `begin` have been dropped already."""

    __slots__ = ("attempt", "begin", "events", "first_seq")

    def __init__(self, attempt: int, first_seq: int) -> None:
        self.attempt = attempt
        self.first_seq = first_seq
        self.events: list[bytes] = []
        self.begin = 0

    def after(self, cursor: EventId, limit_bytes: int) -> tuple[Block, int]:
        """Return what follows `cursor`, about `limit_bytes` of it, and its bytes."""
        begin = self.begin
        if cursor.attempt >= self.attempt:
            passed = cursor.seq + 1 - self.first_seq if cursor.attempt == self.attempt else len(self.events)
            begin = max(begin, passed)
        end, size_bytes = begin, 0
        while end < len(self.events) and size_bytes < limit_bytes:
            size_bytes += len(self.events[end])
            end += 1
        return Block(self.attempt, self.first_seq + begin, tuple(self.events[begin:end])), size_bytes

    def drop(self, stored: EventId, surplus_bytes: int) -> int:
        """Drop the oldest events that are stored, until `surplus_bytes` are gone; return their bytes."""
        events, begin, dropped_bytes = self.events, self.begin, 0
        end = len(events)
        if stored.attempt == self.attempt:
            end = min(end, stored.seq + 1 - self.first_seq)
        elif stored.attempt < self.attempt:
            return 0
        while begin < end and dropped_bytes < surplus_bytes:
            dropped_bytes += len(events[begin])
            events[begin] = b""
            begin += 1
        self.begin = begin
        if 2 * begin > len(events):
            del events[:begin]
            self.first_seq += begin
            self.begin = 0
        return dropped_bytes


class Log:
    """One invocation's log as this process sees it; fed by an `AttemptLog`, or by a poll of the store.

    Attributes:
        ended: The newest event is the terminal one.
        moved: The attempt is not run here any more: its readers must reattach.
        elsewhere: Another process runs the attempt; `head` is what the store showed last.
        stored: Everything up to this id is in the store.
        linger_s: How long an event waits for others before it is stored; longer in a longer answer.
        phase, turn, started_at: What heartbeats say (`started_at` in the loop's time).
    """

    __slots__ = (
        "_attempt",
        "_floor",
        "_leaving",
        "_listeners",
        "_newest",
        "_runs",
        "_seq",
        "_tail_bytes",
        "elsewhere",
        "ended",
        "linger_s",
        "moved",
        "phase",
        "started_at",
        "stored",
        "turn",
    )

    def __init__(self, *, head: EventId = START, ended: bool = False, started_at: float = 0.0) -> None:
        self._attempt, self._seq = head
        self.stored = head
        self.ended = ended
        self.elsewhere = False
        self.moved = False
        self.linger_s = FIRST_LINGER_S
        self.phase = "starting"
        self.turn = 0
        self.started_at = started_at
        self._floor = head  # the tail holds everything after this id
        self._newest = _Run(0, 0)
        self._runs: list[_Run] = []
        self._tail_bytes = 0
        self._listeners: tuple[Listener, ...] = ()
        self._leaving: set[Callable[[], None]] = set()

    def publish(self, attempt: int, first_seq: int, events: tuple[bytes, ...], *, ended: bool = False) -> int:
        """Take the next block: into the tail, and to every listener that is attached; returns its bytes."""
        run = self._newest
        if run.attempt != attempt or self._seq + 1 != first_seq:
            run = self._newest = _Run(attempt, first_seq)
            self._runs.append(run)
            self._attempt = attempt
        count = len(events)
        size_bytes = len(events[0]) if count == 1 else sum(map(len, events))
        self._seq = first_seq + count - 1
        run.events += events
        self._tail_bytes = tail_bytes = self._tail_bytes + size_bytes
        self.ended = ended
        if tail_bytes > TAIL_LIMIT_BYTES:
            self._trim()
        for listener in self._listeners:
            listener(attempt, first_seq, events)
        return size_bytes

    @property
    def head(self) -> EventId:
        """The id of the newest event known here; made when it is asked for, not with each event."""
        return EventId(self._attempt, self._seq)

    def mark_stored(self, up_to: EventId) -> None:
        """Note that the store has everything up to this id."""
        self.stored = max(self.stored, up_to)
        if self._tail_bytes > TAIL_LIMIT_BYTES:
            self._trim()

    def _trim(self) -> None:
        runs = self._runs
        while self._tail_bytes > TAIL_LIMIT_BYTES and runs:
            run = runs[0]
            dropped_bytes = run.drop(self.stored, self._tail_bytes - TAIL_LIMIT_BYTES + _TRIM_BYTES)
            if dropped_bytes:
                self._tail_bytes -= dropped_bytes
                self._floor = EventId(run.attempt, run.first_seq + run.begin - 1)
            if run.begin < len(run.events) or run is self._newest:
                return  # the rest is not stored yet, or may stay
            del runs[0]

    def after(self, cursor: EventId, *, limit_bytes: int) -> list[Block] | None:
        """Return what follows `cursor`, about `limit_bytes` of it; `[]` at the head; None: ask the store."""
        if cursor >= self.head:
            return []
        if cursor < self._floor:
            return None
        blocks: list[Block] = []
        gathered_bytes = 0
        for run in self._runs:
            block, size_bytes = run.after(cursor, limit_bytes - gathered_bytes)
            if block.events:
                blocks.append(block)
                gathered_bytes += size_bytes
                if gathered_bytes >= limit_bytes:
                    break
        return blocks

    def attach(self, listener: Listener) -> None:
        """Call `listener` with every block from now on; only for a reader whose cursor is the head."""
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)

    def detach(self, listener: Listener) -> None:
        """Stop calling `listener`; harmless if it is not attached."""
        self._listeners = tuple(each for each in self._listeners if each != listener)

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
