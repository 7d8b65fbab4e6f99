"""One invocation as the model of the store's port keeps it: what was decided about it, in plain values.

`store_books` decides, `test_store_model` reads.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from service.events import EventId
from service.invocations import Attempt, AttemptEnd, State, Usage
from service.stores import Turn

Call = tuple[str, int, int]
"""A model call: invocation, attempt, turn."""


class Line(NamedTuple):
    """What the ledger says of one model call; `model` '': a hold that nobody settled."""

    usage: Usage
    charged: bool
    model: str


class Held(NamedTuple):
    """A hold."""

    tokens: int
    until_ms: int


@dataclass
class Ran:
    """One attempt: how much of it is stored, how much of that it wrote itself, and what it was granted."""

    started_at_ms: int
    stored: int = 0
    wrote: int = 0
    granted: int | None = None
    end: AttemptEnd | None = None


@dataclass
class Wait:
    """A pause."""

    turn: int
    tokens: int
    paused_at_ms: int
    resumes_at_ms: int
    look_at_ms: int


NOBODY: Final = ""


@dataclass
class Job:
    """An invocation; `owner` is `NOBODY` while nobody runs it. Holds and ledger are by (attempt, turn)."""

    number: int
    sub: str
    owner: str
    created_at_ms: int
    deadline_at_ms: int
    attempts: list[Ran]
    turn: int = 1
    state: State = State.RUNNING
    usage: Usage = Usage()
    holds: dict[tuple[int, int], Held] = field(default_factory=dict)
    ledger: dict[tuple[int, int], Line] = field(default_factory=dict)
    turns: dict[int, EventId] = field(default_factory=dict)
    cancel_at_ms: int | None = None
    finished_at_ms: int | None = None
    wait: Wait | None = None

    @property
    def name(self) -> str:
        return f"inv_{self.number}"

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    @property
    def current(self) -> Ran:
        return self.attempts[-1]

    def admits(self, attempt: int) -> bool:
        """Tell whether this attempt may write."""
        return self.state is State.RUNNING and self.owner != NOBODY and attempt == self.attempt

    def record(self) -> tuple[object, ...]:
        """Return what the record shows of it."""
        attempts = tuple(
            Attempt(
                number,
                ran.started_at_ms,
                None if ran.granted is None else EventId(number, ran.granted),
                ran.end,
            )
            for number, ran in enumerate(self.attempts, 1)
        )
        wait = (None, None) if self.wait is None else (self.wait.paused_at_ms, self.wait.resumes_at_ms)
        times = (self.created_at_ms, self.deadline_at_ms, self.finished_at_ms, self.cancel_at_ms)
        return self.sub, self.state, attempts, self.usage, *times, *wait

    def logs(self) -> list[list[EventId]]:
        """Return what readers may get of the log: ids of events.

        Of an attempt that was handed over and is not closed yet they get all, or what it will be granted.
        """
        waiting = self.current.granted is None and self.current.end is AttemptEnd.HANDED_OVER
        return [self._log(self.current.stored)] + ([self._log(self.grant())] if waiting else [])

    def _log(self, last: int) -> list[EventId]:
        return [
            EventId(number, seq)
            for number, ran in enumerate(self.attempts, 1)
            for seq in range(1, 1 + (last if ran.granted is None else ran.granted))
        ]

    def grant(self) -> int:
        """Return what a claim grants the attempt that it closes: its turns, or else its first event."""
        boundary = max(self.turns.values(), default=EventId(0, 0))
        return boundary.seq if boundary.attempt == self.attempt else min(1, self.current.stored)

    def left(self) -> tuple[Turn, ...]:
        """Return the turns that the next attempt gets."""
        return tuple(Turn(number, messages(place), place) for number, place in sorted(self.turns.items()))


def messages(boundary: EventId) -> bytes:
    """Return what a turn that ends there has added: it says which write of it this was."""
    return b"%d.%d" % boundary
