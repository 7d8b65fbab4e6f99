"""Embedded SQLite as the store: one file that several processes may share, or `:memory:`.

`app` opens it; `admission`, `runner`, `log`, `follow`, `ledger` and `api` call it through the port. Each
method is one operation of the store thread, so one transaction; its SQL stands in the siblings:

    SqliteStore ──> sqlite_thread     groups calls, commits, maps SQLite's errors
                ──> sqlite_ledger     quotas, holds, settlement        ──> windows
                ──> sqlite_records    records                          ──> sqlite_attempts: fence, turns
                ──> sqlite_events     event logs
                ──> sqlite_leases     leases, takeover, hand-over
                ──> sqlite_pauses     pause, resumption
                ──> sqlite_signals    what owners are told: cancel, somebody reads
                ──> sqlite_policies   denials, overridden limits
                    sqlite_schema     tables, migrations, the connection

Exact among processes because every write begins with `BEGIN IMMEDIATE`: SQLite has one writer at a time per
file, and a decision reads what it decides on after it has become that writer. A caller that is cancelled
stops waiting; what it called may still be done.
"""

import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self

from service.config import Limits
from service.errors import Fenced
from service.events import Block, EventId, event_type, is_terminal
from service.invocations import Invocation
from service.stores import (
    Account,
    Claim,
    Ending,
    EventBlock,
    HandOver,
    Hold,
    NewInvocation,
    Pause,
    Paused,
    Policies,
    Settlement,
    Turn,
)
from service.stores import sqlite_attempts as attempts
from service.stores import sqlite_events as events
from service.stores import sqlite_leases as leases
from service.stores import sqlite_ledger as ledger
from service.stores import sqlite_pauses as pauses
from service.stores import sqlite_policies as policies
from service.stores import sqlite_records as records
from service.stores import sqlite_signals as signals
from service.stores.sqlite_schema import open_database
from service.stores.sqlite_thread import QUEUE_LIMIT, StoreThread

BUSY_TIMEOUT_S: Final = 5.0


class SqliteStore:
    """`Store` on SQLite; made by `open`, used from the event loop that opened it."""

    def __init__(self, thread: StoreThread) -> None:
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: str | Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, queue_limit: int = QUEUE_LIMIT
    ) -> AsyncIterator[Self]:
        """Open a file, made and migrated as needed, or `:memory:`; at the end, finish what was called, close.

        Args:
            path: The file, or `:memory:` for a store of its own that ends with this block.
            busy_timeout_s: How long a call waits for another process's lock before it is `StoreUnavailable`.
            queue_limit: How many calls may wait; further ones are `StoreUnavailable` at once.

        Raises:
            ConfigError: The file can't be opened, is not ours, or is from a newer version.
            StoreUnavailable: Another process keeps it locked.
        """
        connect = partial(open_database, str(path), busy_timeout_s=busy_timeout_s)
        store = cls(await StoreThread.start(connect, busy_timeout_s=busy_timeout_s, queue_limit=queue_limit))
        try:
            yield store
        finally:
            await store.aclose()

    @property
    def waiting(self) -> int:
        """How many calls have no answer yet (a test on manual time waits while there are some)."""
        return self._thread.waiting

    async def create_invocation(self, new: NewInvocation, limits: Limits, now_ms: int) -> Invocation:
        """See `Store`. A repeated call with the same id returns what there is."""
        return await self._thread.write(_create, new, limits, now_ms)

    async def load_invocation(self, invocation_id: str) -> Invocation | None:
        """See `Store`."""
        return await self._thread.read(records.load, invocation_id)

    async def list_invocations(
        self, sub: str, runtime_id: str, *, before: str | None, limit: int
    ) -> list[Invocation]:
        """See `Store`. Nothing comes before an invocation that is not there."""
        return await self._thread.read(records.list_newest, sub, runtime_id, before, limit)

    async def reserve(self, hold: Hold, limits: Limits, now_ms: int) -> None:
        """See `Store`. A repeated call leaves the first hold as it is."""
        await self._thread.write(ledger.reserve, hold, limits, now_ms)

    async def settle(self, settlement: Settlement, now_ms: int, block: Block | None = None) -> bool:
        """See `Store`.

        Raises:
            Fenced: As the port says: the usage is settled all the same.
            ValueError: The turn's boundary is missing, or is not stored by now; or as `append_events`.
        """
        if (settlement.messages is None) != (settlement.boundary is None):
            raise ValueError("messages and boundary make a turn together")
        settled, fenced = await self._thread.write(_settle, settlement, now_ms, block)
        if fenced:
            raise Fenced
        return settled

    async def complete_turn(
        self, invocation_id: str, attempt: int, turn: Turn, now_ms: int, block: Block | None = None
    ) -> None:
        """See `Store`.

        Raises:
            Fenced: As the port says.
            ValueError: The turn's boundary is not stored by this attempt by now; or as `append_events`.
        """
        await self._thread.write(_complete_turn, invocation_id, attempt, turn, now_ms, block)

    async def append_events(self, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
        """See `Store`. Events whose ids are stored already are ignored.

        Raises:
            ValueError: A block leaves a gap, or gives a stored id to another event; nothing is stored then.
        """
        return await self._thread.write(_append, blocks, now_ms)

    async def read_events(self, invocation_id: str, after: EventId, *, limit_bytes: int) -> list[Block]:
        """See `Store`."""
        return await self._thread.read(events.read, invocation_id, after, limit_bytes)

    async def finish(self, ending: Ending, now_ms: int) -> None:
        """See `Store`.

        Raises:
            Fenced: As the port says.
            ValueError: The state or the last event is not terminal; or as `append_events`.
        """
        if not (ending.state.is_terminal and ending.block.events and is_terminal(ending.block.events[-1])):
            raise ValueError("an ending has a terminal state and a terminal event")
        await self._thread.write(_finish, ending, now_ms)

    async def hand_over(self, given: HandOver, now_ms: int) -> None:
        """See `Store`."""
        await self._thread.write(leases.hand_over, given, now_ms)

    async def pause(self, pause: Pause, now_ms: int) -> None:
        """See `Store`.

        Raises:
            Fenced: As the port says.
            ValueError: The last event is not `invocationPaused`; or as `append_events`.
        """
        if not pause.block.events or event_type(pause.block.events[-1]) != b"invocationPaused":
            raise ValueError("a pause ends with invocationPaused")
        await self._thread.write(pauses.pause, pause, now_ms)

    async def list_paused(
        self, now_ms: int, *, limit: int, runtimes: Collection[str] | None = None
    ) -> list[Paused]:
        """See `Store`."""
        return await self._thread.read(pauses.list_due, now_ms, limit, runtimes)

    async def postpone(self, invocation_id: str, attempt: int, look_at_ms: int) -> None:
        """See `Store`. One whose cancellation is asked for stays due."""
        await self._thread.write(pauses.postpone, invocation_id, attempt, look_at_ms)

    async def resume(
        self, invocation_id: str, attempt: int, owner: str, now_ms: int, *, limits: Limits | None
    ) -> Claim:
        """See `Store`."""
        return await self._thread.write(pauses.resume, invocation_id, attempt, owner, now_ms, limits)

    async def request_cancel(self, invocation_id: str, now_ms: int) -> Invocation | None:
        """See `Store`."""
        return await self._thread.write(signals.request_cancel, invocation_id, now_ms)

    async def cancel_requests(self, owner: str) -> frozenset[str]:
        """See `Store`."""
        return await self._thread.read(signals.cancel_requests, owner)

    async def note_read(self, invocation_ids: Collection[str], now_ms: int) -> None:
        """See `Store`. Where a later time is noted already, it stays."""
        if invocation_ids:
            await self._thread.write(signals.note_read, frozenset(invocation_ids), now_ms)

    async def unread(self, owner: str, since_ms: int) -> frozenset[str]:
        """See `Store`."""
        return await self._thread.read(signals.unread, owner, since_ms)

    async def owned(self, owner: str) -> Mapping[str, int]:
        """See `Store`."""
        return await self._thread.read(leases.owned, owner)

    async def account(self, sub: str, now_ms: int) -> Account:
        """See `Store`. With nothing used, the daily window resets now."""
        return await self._thread.read(ledger.account, sub, now_ms)

    async def policies(self, now_ms: int) -> Policies:
        """See `Store`."""
        return await self._thread.read(policies.policies, now_ms)

    async def deny(self, subject: str, now_ms: int, until_ms: int | None = None) -> None:
        """See `Store`."""
        await self._thread.write(policies.deny, subject, now_ms, until_ms)

    async def allow(self, subject: str) -> bool:
        """See `Store`."""
        return await self._thread.write(policies.allow, subject)

    async def set_limits(self, sub: str, overrides: Mapping[str, int] | None) -> None:
        """See `Store`."""
        await self._thread.write(policies.set_limits, sub, overrides)

    async def renew_lease(self, owner: str, expires_at_ms: int) -> None:
        """See `Store`."""
        await self._thread.write(leases.renew, owner, expires_at_ms)

    async def claim_expired(
        self,
        owner: str,
        now_ms: int,
        *,
        limit: int,
        running: Collection[str] | None = None,
        runtimes: Collection[str] | None = None,
    ) -> list[Claim]:
        """See `Store`. An owner that never had a lease counts as expired."""
        if not await self._thread.read(leases.some_expired, owner, now_ms, running, runtimes):
            return []
        return await self._thread.write(leases.claim, owner, now_ms, limit, running, runtimes)

    async def purge(self, now_ms: int, retention_s: float) -> int:
        """Delete invocations that ended longer ago than `retention_s`, and what no window counts any more.

        Batches of 200, each a decision of its own, so that others get in between. Usage records stay.

        Returns:
            How many invocations were deleted.
        """
        deleted = 0
        while batch := await self._thread.write(records.purge_invocations, now_ms - int(retention_s * 1000)):
            deleted += batch
        while await self._thread.write(records.purge_expired, now_ms):
            pass
        return deleted

    async def aclose(self) -> None:
        """See `Store`. Later calls are `StoreUnavailable`."""
        await self._thread.aclose()


def _create(db: sqlite3.Connection, new: NewInvocation, limits: Limits, now_ms: int) -> Invocation:
    known = records.load(db, new.invocation_id)
    if known is not None:
        if (known.sub, known.runtime_id) != (new.sub, new.runtime_id):
            raise ValueError(f"{new.invocation_id} is another invocation's id")
        return known
    if new.idempotency is not None:
        taken = records.attach(db, new.idempotency, now_ms)
        if taken is not None:
            return taken
    first = Hold(
        new.invocation_id, 1, 1, new.sub, new.first_reservation_tokens, new.reservation_expires_at_ms
    )
    ledger.admit(db, first, limits, now_ms)
    return records.insert(db, new, now_ms)


def _settle(
    db: sqlite3.Connection, settlement: Settlement, now_ms: int, block: Block | None
) -> tuple[bool, bool]:
    """Return whether this call settled the usage, and whether the rest of it was fenced out."""
    settled = ledger.settle(db, settlement, now_ms)
    if settlement.messages is None and block is None:
        return settled, False
    turn = None
    if settlement.messages is not None and settlement.boundary is not None:
        turn = Turn(settlement.turn, settlement.messages, settlement.boundary)
    written = _write_turn(db, settlement.invocation_id, settlement.attempt, turn, now_ms, block)
    return settled, not written


def _complete_turn(
    db: sqlite3.Connection, invocation_id: str, attempt: int, turn: Turn, now_ms: int, block: Block | None
) -> None:
    if not _write_turn(db, invocation_id, attempt, turn, now_ms, block):
        raise Fenced


def _write_turn(
    db: sqlite3.Connection,
    invocation_id: str,
    attempt: int,
    turn: Turn | None,
    now_ms: int,
    block: Block | None,
) -> bool:
    """Write the events of an attempt, then its turn; returns False if it is fenced: nothing was written."""
    if not attempts.may_write(db, invocation_id, attempt):
        return False
    if block is not None and not events.append(db, invocation_id, block, now_ms):
        return False
    if turn is not None:
        attempts.write_turn(db, invocation_id, turn)
    return True


def _append(db: sqlite3.Connection, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
    return frozenset(
        entry.invocation_id
        for entry in blocks
        if not events.append(db, entry.invocation_id, entry.block, now_ms)
    )


def _finish(db: sqlite3.Connection, ending: Ending, now_ms: int) -> None:
    written = ending.block.attempt == ending.attempt and events.append(
        db, ending.invocation_id, ending.block, now_ms
    )
    if not written:
        if records.has_ended_so(db, ending):
            return
        raise Fenced
    for settlement in ending.settlements:
        ledger.settle(db, settlement, now_ms)
    ledger.settle_open_holds(db, ending.invocation_id, now_ms, charged=True)
    records.end(db, ending.invocation_id, ending.state, ending.block, now_ms)
