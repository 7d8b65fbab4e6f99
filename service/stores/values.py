"""The values of the store's port: what its decisions are asked with, and what they answer.

Imported through `service.stores`, whose methods say what becomes of each. Frozen, and without behaviour;
times are UTC epoch milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.events import Block, EventId
from service.invocations import Invocation, State, Tried, Usage


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a retry attach: `key` is unique to principal, runtime and the caller's key; `body` is a
    digest.

    Both are opaque text. The key is taken from the decision that first used it until `expires_at_ms`.
    """

    key: str
    body: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class NewInvocation:
    """What admission decides on: the invocation, its input and the reservation of its first model call.

    `input` is opaque to the store (JSON bytes, up to the body limit). `owner` is the process's lease.
    `models` are what its runtime may ask, in order.
    """

    invocation_id: str
    runtime_id: str
    sub: str
    session_id: str | None
    input: bytes
    first_reservation_tokens: int
    owner: str
    deadline_at_ms: int
    reservation_expires_at_ms: int
    idempotency: Idempotency | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation: `tokens` held for one turn's model call, until `settle` removes it."""

    invocation_id: str
    attempt: int
    turn: int
    sub: str
    tokens: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What replaces a hold: the usage record of one turn's model call.

    `charged` False keeps it from the caller's quota (what a dead attempt used; the ledger has it all the
    same). `tried` is added to the record's. `messages` (JSON bytes) is what the turn has added to the
    conversation so far: the model's message, whose tools are still to be run. `boundary` is then the id of
    the last event that belongs to it, from which a takeover goes on. A block of events up to the boundary can
    be stored with it in the same transaction.
    """

    invocation_id: str
    attempt: int
    turn: int
    sub: str
    runtime_id: str
    model: str
    usage: Usage
    charged: bool = True
    messages: bytes | None = None
    boundary: EventId | None = None
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class EventBlock:
    """A block of one invocation's events, for the group commit."""

    invocation_id: str
    block: Block


@dataclass(frozen=True, slots=True)
class Ending:
    """How an invocation ends: its last events (the terminal one last), its state and its last settlements."""

    invocation_id: str
    attempt: int
    state: State
    block: Block
    settlements: tuple[Settlement, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as a takeover needs it: what it added to the conversation, and its last event's id.

    Of the last turn `messages` may be what was settled: its tools had begun, or were about to.
    """

    number: int
    messages: bytes
    boundary: EventId


@dataclass(frozen=True, slots=True)
class Claim:
    """An invocation taken over from a dead owner, or resumed: its new attempt is already this process's."""

    invocation: Invocation
    input: bytes
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """How an attempt leaves its invocation to the next one: what it used and has not settled yet."""

    invocation_id: str
    attempt: int
    settlements: tuple[Settlement, ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """How an invocation comes to wait for quota between two turns.

    Attributes:
        block: Its last events, `invocationPaused` last; everything that the attempt wrote is granted.
        turn, tokens: The model call that found no room; it has no hold.
        resumes_at_ms: When there may be room.
    """

    invocation_id: str
    attempt: int
    block: Block
    turn: int
    tokens: int
    resumes_at_ms: int


@dataclass(frozen=True, slots=True)
class Paused:
    """A paused invocation that is due to be looked at.

    Attributes:
        input: Says whose limits count.
        read_at_ms: When `note_read` last noted a reader of it; None: never.
    """

    invocation: Invocation
    input: bytes
    read_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """One quota window of one principal.

    `resets_at_ms`: when `used_tokens` next falls; of the daily one when its oldest bucket ages out. Of `used`
    no call is marked `estimated`.
    """

    name: str
    window_s: int
    used: Usage
    resets_at_ms: int

    @property
    def used_tokens(self) -> int:
        """What counts against the window's quota."""
        return self.used.counted_tokens


@dataclass(frozen=True, slots=True)
class Account:
    """What a principal has used and holds now: windows `daily` and `monthly`, in this order."""

    windows: tuple[Window, Window]
    reserved_tokens: int
    running: int


@dataclass(frozen=True, slots=True)
class Denial:
    """Since when a subject is denied, and until when; None: until it is allowed again."""

    since_ms: int
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Policies:
    """What operators have decided about principals: a snapshot.

    Attributes:
        denied: The denials that hold, by subject: `sub:<sub>`, or `origin_jti:<origin_jti>` for one sign-in.
        limits: By `sub`, the fields of `config.Limits` that are overridden for it: only those.
    """

    denied: Mapping[str, Denial] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
