"""The port of stores: durable, atomic decisions about invocations, their events and the ledger.

`admission`, `runner`, `log`, `follow`, `ledger`, `policies` and `api` call it, `operate` for operators;
`stores.sqlite` (and later `stores.dynamodb`) implement it, under one contract suite. Each method is one
decision in one transaction: when it returns, the decision is durable; when it raises, nothing of it happened
(but see `StoreUnavailable`). Its values are in `stores.values`.

Times are the caller's (`now_ms`, UTC epoch milliseconds): a store has no clock. Windows: the daily quota is
the sum of the 10-minute buckets that overlap the last 24 hours, the oldest counted whole; the monthly one is
the calendar month (UTC). Reads ignore what has expired. A quota counts what was settled in its window plus
all live reservations.

Every method may raise `StoreUnavailable`; after it the decision may or may not have been made, and calling
again with the same arguments is safe: `settle`, `finish`, `pause` and `hand_over` are idempotent by their
keys, `append_events` by event ids, `create_invocation` by the invocation id. An attempt that `resume` or
`claim_expired` has begun then is an orphan (see `claim_expired`).
Of `settle` and `complete_turn` without an answer the events may be stored and the turn not.

Fencing: `append_events`, `reserve`, `settle` with messages or a block, `complete_turn`, `hand_over`, `pause`
and `finish` name their attempt. One that is not the current attempt of a running invocation, or was handed
over, may not write: it gets `Fenced`, and nothing of what it writes is ever read (but an attempt's first
event, whose bytes are always the same).

Polls are cheap while there is nothing: `list_paused`, `cancel_requests`, `unread`, `claim_expired`.

    running ──claim_expired──> running, next attempt     its owner's lease has expired, or it was handed over
    running ──pause──> paused ──resume──> running, next attempt
    running ──finish──> completed | failed | cancelled
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from service.config import Limits
from service.events import Block, EventId
from service.invocations import Invocation
from service.stores.values import (
    Account,
    Claim,
    Denial,
    Ending,
    EventBlock,
    HandOver,
    Hold,
    Idempotency,
    NewInvocation,
    Pause,
    Paused,
    Policies,
    Settlement,
    Turn,
    Window,
)

WINDOW_S = 24 * 3600
BUCKET_S = 600
ORPHAN_AGE_S = 60
RESERVATION_GRACE_MS = 3_600_000  # from the deadline until a hold lapses: a backstop, settlement is sooner
FORSAKEN_MS = 3_600_000  # how long a paused invocation is left to processes that serve its runtime


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
            Fenced: The attempt may not write.
        """
        ...

    async def settle(self, settlement: Settlement, now_ms: int, block: Block | None = None) -> bool:
        """Replace a turn's hold by its usage: counters, record, usage record; with `messages` the turn.

        The usage is recorded exactly once however often this is called, and whether or not the attempt is
        fenced (tokens were spent); the first settlement of a (invocation, attempt, turn) wins.

        Returns:
            True if this call settled it, False if it had been settled before.

        Raises:
            Fenced: `messages` or `block` was given and the attempt may not write. The usage is settled all
                the same, and neither turn nor events are written.
        """
        ...

    async def complete_turn(
        self, invocation_id: str, attempt: int, turn: Turn, now_ms: int, block: Block | None = None
    ) -> None:
        """Write what a settled turn added to the conversation, in place of what `settle` wrote of it.

        `block` are the events up to the turn's boundary that are not stored yet. Of two writes of a turn the
        one with the later boundary stays, whichever comes last; it may be a later attempt's. Idempotent.

        Raises:
            Fenced: The attempt may not write.
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

        Returns at least one block if there is any, and stops at about `limit_bytes`; `[]`: nothing (yet).
        """
        ...

    async def finish(self, ending: Ending, now_ms: int) -> None:
        """End an invocation: last events, settlements, terminal state, concurrency slot freed.

        A hold of this invocation that is still open and not named by a settlement is settled at its full
        size, marked estimated: no reservation outlives its invocation. Idempotent for the same attempt.

        Raises:
            Fenced: The attempt may not write, or another ending was committed.
        """
        ...

    async def hand_over(self, given: HandOver, now_ms: int) -> None:
        """Leave a running invocation without an owner: `claim_expired` finds it at once.

        The attempt is fenced then. Idempotent, also after another process has claimed the invocation.

        Raises:
            Fenced: The attempt may not write.
        """
        ...

    async def pause(self, pause: Pause, now_ms: int) -> None:
        """Let a running invocation wait: last events, attempt closed, no owner, no concurrency slot.

        Open holds are settled as by `finish`. Idempotent, also after it was resumed.

        Raises:
            Fenced: The attempt may not write.
        """
        ...

    async def list_paused(
        self, now_ms: int, *, limit: int, runtimes: Collection[str] | None = None
    ) -> list[Paused]:
        """Return paused invocations that are to be cancelled, then those that are due, longest due first.

        Due: `resumes_at_ms` has passed, or what `postpone` said in its place. With `runtimes`, of those only
        the ones of these runtimes, and the ones of any that have been due for `FORSAKEN_MS` or longer.
        """
        ...

    async def postpone(self, invocation_id: str, attempt: int, look_at_ms: int) -> None:
        """Look at a paused invocation then, sooner or later; nothing happens if it is not paused any more."""
        ...

    async def resume(
        self, invocation_id: str, attempt: int, owner: str, now_ms: int, *, limits: Limits | None
    ) -> Claim:
        """Begin the next attempt of an invocation that was paused in `attempt`.

        Its deadline moves by as long as it was paused. With `limits` a concurrency slot is taken and the call
        that `pause` named is held for, as the new attempt's, until `RESERVATION_GRACE_MS` after the deadline;
        without, it is taken over only to be ended.

        Raises:
            Fenced: It is not paused (any more), or another attempt was.
            QuotaExceeded, ConcurrencyExceeded, BudgetExceeded: There is (still) no room.
        """
        ...

    async def request_cancel(self, invocation_id: str, now_ms: int) -> Invocation | None:
        """Ask for the end of an invocation, once, and return its record, or None; an ended one stays so."""
        ...

    async def cancel_requests(self, owner: str) -> frozenset[str]:
        """Return the owner's running invocations whose cancellation is asked for."""
        ...

    async def note_read(self, invocation_ids: Collection[str], now_ms: int) -> None:
        """Note that these invocations have a reader now; unknown and ended ones are ignored."""
        ...

    async def unread(self, owner: str, since_ms: int) -> frozenset[str]:
        """Return the owner's running invocations that had a reader once, and none after `since_ms`."""
        ...

    async def owned(self, owner: str) -> Mapping[str, int]:
        """Return the current attempt of each running invocation of this owner."""
        ...

    async def account(self, sub: str, now_ms: int) -> Account:
        """Return what a principal has used, holds and runs."""
        ...

    async def policies(self, now_ms: int) -> Policies:
        """Return what operators have decided, all of it: read by every process every 10 s."""
        ...

    async def deny(self, subject: str, now_ms: int, until_ms: int | None = None) -> None:
        """Deny a subject (see `Policies`) from now on, in place of the denial that it has, if it has one."""
        ...

    async def allow(self, subject: str) -> bool:
        """End a denial; returns whether there was one (an expired one may still count)."""
        ...

    async def set_limits(self, sub: str, overrides: Mapping[str, int] | None) -> None:
        """Override these fields of a principal's limits, besides those that are; None: none any more.

        Names and values are the caller's: a store takes any.
        """
        ...

    async def renew_lease(self, owner: str, expires_at_ms: int) -> None:
        """Create or prolong this process's lease; an `expires_at_ms` in the past gives it back."""
        ...

    async def claim_expired(
        self,
        owner: str,
        now_ms: int,
        *,
        limit: int,
        running: Collection[str] | None = None,
        runtimes: Collection[str] | None = None,
    ) -> list[Claim]:
        """Take over running invocations whose owner's lease has expired, with a higher attempt number.

        With `runtimes` only those of these runtimes, and those of any whose deadline has passed by `now_ms`:
        what `owner` does not serve is left to processes that do, as long as there may be one.

        Those that were handed over have no owner, and are claimed at once. `running` are the invocations that
        `owner` really runs. Others of its own whose attempt began `ORPHAN_AGE_S` ago or earlier are claimed
        as well: the answer to their admission, claim or resumption was lost, or their attempt could not be
        finished, and while the owner lives nobody else would end them. That look costs by the number of what
        it holds, so it is left out without `running`.

        The old attempt is closed: granted are its stored events up to its last turn's boundary, or, without
        one, up to its first event, if it stored any. A log of which nothing was stored gets its first event
        (`events.started`) now. What the invocation still holds is settled at its full size: estimated, not
        charged. Two processes never claim the same attempt.
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


__all__ = [
    "BUCKET_S",
    "FORSAKEN_MS",
    "ORPHAN_AGE_S",
    "RESERVATION_GRACE_MS",
    "WINDOW_S",
    "Account",
    "Claim",
    "Denial",
    "Ending",
    "EventBlock",
    "HandOver",
    "Hold",
    "Idempotency",
    "NewInvocation",
    "Pause",
    "Paused",
    "Policies",
    "Settlement",
    "Store",
    "Turn",
    "Window",
]
