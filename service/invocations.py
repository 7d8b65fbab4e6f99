"""The words that the stations share: an invocation, its states and what it used.

Pure values: no I/O, no clock. A store writes and reads them, `runner` moves them on, `api` shows them.

    running ──> completed | failed | cancelled
    running <─> paused ──> completed | failed | cancelled
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from service.events import START, EventId


class State(StrEnum):
    """Where an invocation stands."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.RUNNING: frozenset({State.PAUSED, State.COMPLETED, State.FAILED, State.CANCELLED}),
    State.PAUSED: frozenset({State.RUNNING, State.COMPLETED, State.FAILED, State.CANCELLED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def timestamp(at_ms: int) -> str:
    """Write a time as the API does: ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Usage(NamedTuple):
    """Tokens of one or more model calls; `estimated`: an upstream never said, an upper estimate stands in."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False

    @property
    def counted_tokens(self) -> int:
        """What counts against a quota: input, output and cache writes; cache reads are only recorded."""
        return self.input_tokens + self.output_tokens + self.cache_write_tokens

    def plus(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.estimated or other.estimated,
        )

    def as_json(self) -> dict[str, Any]:
        """Show it as the API does; the names are Bedrock's, `estimated` is there only when true."""
        shown: dict[str, Any] = {
            "inputTokens": self.input_tokens,
            "outputTokens": self.output_tokens,
            "cacheReadInputTokens": self.cache_read_tokens,
            "cacheWriteInputTokens": self.cache_write_tokens,
        }
        return shown | {"estimated": True} if self.estimated else shown


class Tried(NamedTuple):
    """A model that was asked, `calls` times: `code` says why each was given up for the next one.

    Without a code the call ended there: the model answered, or the call failed with it.
    """

    model: str
    code: str = ""
    calls: int = 1


def all_tried(before: Iterable[Tried], more: Iterable[Tried]) -> tuple[Tried, ...]:
    """Add up what was tried, each model and code once, in the order in which they came first."""
    calls: dict[tuple[str, str], int] = {}
    for model, code, count in (*before, *more):
        calls[model, code] = calls.get((model, code), 0) + count
    return tuple(Tried(*tried, count) for tried, count in calls.items())


class AttemptEnd(StrEnum):
    """Why an attempt ended: with its invocation, or without it."""

    FINISHED = "finished"
    PAUSED = "paused"
    HANDED_OVER = "handed-over"
    LOST = "lost"


class Attempt(NamedTuple):
    """One execution: its number (the fencing number) and the last event that it was granted.

    `last` is None while the attempt runs; then everything that it stored counts. An attempt that was granted
    nothing has the `seq` 0. `end` is None while it runs; one that was handed over and waits for its successor
    has an `end` and no `last`.
    """

    number: int
    started_at_ms: int
    last: EventId | None = None
    end: AttemptEnd | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """The record of one job: durable, owned by a principal's `sub`, with a log of events."""

    invocation_id: str
    runtime_id: str
    sub: str
    session_id: str | None
    state: State
    attempts: tuple[Attempt, ...]
    created_at_ms: int
    updated_at_ms: int
    deadline_at_ms: int
    usage: Usage = Usage()
    finished_at_ms: int | None = None
    terminal: bytes | None = None
    """The terminal event, once `finish` has committed it."""
    cancel_requested_at_ms: int | None = None
    paused_at_ms: int | None = None
    """Set while it is paused; its deadline stands still from then on."""
    resumes_at_ms: int | None = None
    """While it is paused: when there may be room for its next model call."""
    models: tuple[str, ...] = ()
    """What its runtime's route was when it was admitted; older records have none."""
    tried: tuple[Tried, ...] = ()
    """The models that its settled calls have asked."""

    @property
    def attempt(self) -> int:
        """The current (or last) attempt's number."""
        return self.attempts[-1].number

    @property
    def last(self) -> EventId | None:
        """The id of the terminal event, once there is one."""
        return self.attempts[-1].last if self.state.is_terminal else None

    @property
    def rewind_to(self) -> EventId:
        """The last event that counts of all attempts before the current one; `START` if there is none."""
        granted = (attempt.last for attempt in reversed(self.attempts[:-1]))
        return next((last for last in granted if last is not None and last.seq), START)

    @property
    def lost_attempts(self) -> int:
        """How many attempts have been lost, since their process died or stalled, without any that got on.

        One got on whose part of the log counts beyond its first event: it has stored a turn.
        """
        lost = 0
        for attempt in reversed(self.attempts[:-1]):
            if attempt.last is not None and attempt.last.seq > 1:
                break
            lost += attempt.end is AttemptEnd.LOST
        return lost
