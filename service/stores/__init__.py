"""The port of stores: durable, atomic decisions about invocations, their events and the ledger.

`admission`, `runner`, `log`, `follow`, `ledger` and `api` call it; `stores.sqlite` (and later
`stores.dynamodb`) implement it, under one contract suite. Each method is one decision in one transaction:
when it returns, the decision is durable; when it raises, nothing of it happened (but see `StoreUnavailable`).

Times are the caller's (`now_ms`, UTC epoch milliseconds): a store has no clock. Windows: the daily quota is
the sum of the 10-minute buckets that overlap the last 24 hours, the oldest counted whole; the monthly one is
the calendar month (UTC). Reads ignore what has expired. A quota counts what was settled in its window plus
all live reservations.

Every method may raise `StoreUnavailable`; after it the decision may or may not have been made, and calling
again with the same arguments is safe: `settle` and `finish` are idempotent by their keys, `append_events` by
event ids, `create_invocation` by the invocation id.

Fencing: `append_events`, `reserve`, `settle(messages=...)` and `finish` name their attempt; one that is not
the invocation's current attempt gets `Fenced`, and nothing that it wrote is ever read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.config import Limits
from service.events import Block, EventId
from service.invocations import Invocation, State, Usage

WINDOW_S = 24 * 3600
BUCKET_S = 600
ORPHAN_AGE_S = 60


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
    same). `messages` (JSON bytes) completes the turn: what the turn added to the conversation; `boundary` is
    then the id of the last event that belongs to it, from which a takeover goes on. A block of events up to
    the boundary can be stored with it in the same transaction.
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
    """A completed turn, as a takeover needs it."""

    number: int
    messages: bytes
    boundary: EventId


@dataclass(frozen=True, slots=True)
class Claim:
    """An invocation taken over from a dead owner: its new attempt is already this process's."""

    invocation: Invocation
    input: bytes
    turns: tuple[Turn, ...]
    open_holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """One quota window of one principal.

    `resets_at_ms`: when `used_tokens` next falls; of the daily one when its oldest bucket ages out.
    """

    name: str
    window_s: int
    used_tokens: int
    resets_at_ms: int


@dataclass(frozen=True, slots=True)
class Account:
    """What a principal has used and holds now: windows `daily` and `monthly`, in this order."""

    windows: tuple[Window, Window]
    reserved_tokens: int
    running: int


class Store(Protocol):
    """Where invocations, events and the ledger live."""

    async def create_invocation(self, new: NewInvocation, limits: Limits, now_ms: int) -> Invocation:
        """Admit: if quota, concurrency and budget have room, write record, input and the hold of turn 1.

        If `new.idempotency` has a key that is taken, nothing is written, and the invocation that took it is
        returned: its id is another than `new.invocation_id`.

        Raises:
            IdempotencyMismatch: The key was taken by a request with another body.
            QuotaExceeded: A window has no room; `extra["quota"]` says which, `retry_after_s` when.
            ConcurrencyExceeded: The principal runs `limits.concurrent_invocations` already.
            BudgetExceeded: The hold alone is over `limits.invocation_tokens`.
        """
        ...

    async def load_invocation(self, invocation_id: str) -> Invocation | None:
        """Return the record, or None."""
        ...

    async def list_invocations(
        self, sub: str, runtime_id: str, *, before: str | None, limit: int
    ) -> list[Invocation]:
        """Return a principal's invocations of a runtime, newest first, those before the id `before`."""
        ...

    async def reserve(self, hold: Hold, limits: Limits, now_ms: int) -> None:
        """Hold tokens for a further turn.

        Raises:
            QuotaExceeded: As `create_invocation`.
            BudgetExceeded: Settled usage of this invocation + the hold is over `limits.invocation_tokens`.
            Fenced: The attempt is not the current one, or the invocation has ended.
        """
        ...

    async def settle(self, settlement: Settlement, now_ms: int, block: Block | None = None) -> bool:
        """Replace a turn's hold by its usage: counters, record, usage record; with `messages` the turn.

        The usage is recorded exactly once however often this is called, and whether or not the attempt is
        fenced (tokens were spent); the first settlement of a (invocation, attempt, turn) wins.

        Returns:
            True if this call settled it, False if it had been settled before.

        Raises:
            Fenced: `messages` or `block` was given and the attempt is not the current one. The usage is
                settled all the same, and the turn is not written.
        """
        ...

    async def append_events(self, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
        """Store blocks of several invocations in one transaction (the group commit).

        Returns:
            The invocation ids whose attempt is fenced; nothing of these was stored.
        """
        ...

    async def read_events(self, invocation_id: str, after: EventId, *, limit_bytes: int) -> list[Block]:
        """Return stored events after a cursor, in order, only those that their attempts were granted.

        Returns at least one block if there is any, and stops at about `limit_bytes`; `[]` means: nothing
        (yet).
        """
        ...

    async def finish(self, ending: Ending, now_ms: int) -> Invocation:
        """End an invocation: last events, settlements, terminal state, concurrency slot freed.

        A hold of this invocation that is still open and not named by a settlement is settled at its full
        size, marked estimated: no reservation outlives its invocation. Idempotent for the same attempt: a
        repeated call returns the record.

        Raises:
            Fenced: The attempt is not the current one, or another ending was committed.
        """
        ...

    async def account(self, sub: str, now_ms: int) -> Account:
        """Return what a principal has used, holds and runs."""
        ...

    async def renew_lease(self, owner: str, expires_at_ms: int) -> None:
        """Create or prolong this process's lease; an `expires_at_ms` in the past gives it back."""
        ...

    async def claim_expired(
        self, owner: str, now_ms: int, *, limit: int, running: Collection[str] | None = None
    ) -> list[Claim]:
        """Take over running invocations whose owner's lease has expired, with a higher attempt number.

        `running` are the invocations that `owner` really runs. Others of its own that were admitted more than
        `ORPHAN_AGE_S` ago are claimed as well: their admission was never answered, or their attempt could not
        be finished, and while the owner lives nobody else would end them.

        The old attempt is closed: granted are its stored events up to its last completed turn's boundary, or
        up to `1.1`-like first event if no turn was completed. Two processes never claim the same attempt.
        """
        ...

    async def purge(self, now_ms: int, retention_s: float) -> int:
        """Delete invocations that ended longer ago than `retention_s`, and periods that no window counts.

        Usage records stay. Works in small decisions, so that others get in between; returns how many
        invocations were deleted.
        """
        ...

    async def aclose(self) -> None:
        """Finish what was called, then close."""
        ...
