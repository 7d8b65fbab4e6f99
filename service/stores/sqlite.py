"""Embedded SQLite as the store: one file that several processes may share, or `:memory:`.

`app` opens it; `admission`, `runner`, `log`, `follow`, `ledger` and `api` call it through the port. Each
method is one operation of the store thread, so one transaction; its SQL stands in the siblings:

    SqliteStore ──> sqlite_thread     groups calls, commits, maps SQLite's errors
                ──> sqlite_ledger     quotas, holds, settlement        ──> windows
                ──> sqlite_records    records, fences, turns
                ──> sqlite_events     event logs
                ──> sqlite_leases     leases, takeover
                    sqlite_schema     tables, migrations, the connection

Exact among processes because every write begins with `BEGIN IMMEDIATE`: SQLite has one writer at a time per
file, and a decision reads what it decides on after it has become that writer. A caller that is cancelled
stops waiting; what it called may still be done.
"""

import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self

from service.config import Limits
from service.errors import Fenced
from service.events import Block, EventId, is_terminal
from service.invocations import Invocation
from service.stores import Account, Claim, Ending, EventBlock, Hold, NewInvocation, Settlement
from service.stores import sqlite_events as events
from service.stores import sqlite_leases as leases
from service.stores import sqlite_ledger as ledger
from service.stores import sqlite_records as records
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
            raise ValueError("messages and boundary complete a turn together")
        settled, fenced = await self._thread.write(_settle, settlement, now_ms, block)
        if fenced:
            raise Fenced
        return settled

    async def append_events(self, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
        """See `Store`. Events whose ids are stored already are ignored; an ended invocation is fenced.

        Raises:
            ValueError: A block leaves a gap, or gives a stored id to another event; nothing is stored then.
        """
        return await self._thread.write(_append, blocks, now_ms)

    async def read_events(self, invocation_id: str, after: EventId, *, limit_bytes: int) -> list[Block]:
        """See `Store`."""
        return await self._thread.read(events.read, invocation_id, after, limit_bytes)

    async def finish(self, ending: Ending, now_ms: int) -> Invocation:
        """See `Store`.

        Raises:
            Fenced: As the port says.
            ValueError: The state or the last event is not terminal; or as `append_events`.
        """
        if not (ending.state.is_terminal and ending.block.events and is_terminal(ending.block.events[-1])):
            raise ValueError("an ending has a terminal state and a terminal event")
        return await self._thread.write(_finish, ending, now_ms)

    async def account(self, sub: str, now_ms: int) -> Account:
        """See `Store`. With nothing used, the daily window resets now."""
        return await self._thread.read(ledger.account, sub, now_ms)

    async def renew_lease(self, owner: str, expires_at_ms: int) -> None:
        """See `Store`."""
        await self._thread.write(leases.renew, owner, expires_at_ms)

    async def claim_expired(
        self, owner: str, now_ms: int, *, limit: int, running: Collection[str] | None = None
    ) -> list[Claim]:
        """See `Store`. An owner that never had a lease counts as expired."""
        if not await self._thread.read(leases.some_expired, owner, now_ms, running):
            return []
        return await self._thread.write(leases.claim, owner, now_ms, limit, running)

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
    ledger.admit(db, new, limits, now_ms)
    return records.insert(db, new, now_ms)


def _settle(
    db: sqlite3.Connection, settlement: Settlement, now_ms: int, block: Block | None
) -> tuple[bool, bool]:
    """Return whether this call settled the usage, and whether the rest of it was fenced out."""
    settled = ledger.settle(db, settlement, now_ms)
    if settlement.messages is None and block is None:
        return settled, False
    barrier = records.fence(db, settlement.invocation_id)
    if barrier is None or not barrier.admits(settlement.attempt):
        return settled, True
    if block is not None:
        events.append(db, settlement.invocation_id, block, now_ms)
    if settlement.messages is not None and settlement.boundary is not None:
        records.complete_turn(
            db, settlement.invocation_id, settlement.turn, settlement.messages, settlement.boundary
        )
    return settled, False


def _append(db: sqlite3.Connection, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
    return frozenset(
        entry.invocation_id
        for entry in blocks
        if not events.append(db, entry.invocation_id, entry.block, now_ms)
    )


def _finish(db: sqlite3.Connection, ending: Ending, now_ms: int) -> Invocation:
    record = records.load(db, ending.invocation_id)
    if record is None or record.attempt != ending.attempt:
        raise Fenced
    if record.state.is_terminal:
        committed = (record.state, record.last, record.terminal)
        if committed != (ending.state, ending.block.last, ending.block.events[-1]):
            raise Fenced
        return record
    events.append(db, ending.invocation_id, ending.block, now_ms)
    for settlement in ending.settlements:
        ledger.settle(db, settlement, now_ms)
    ledger.settle_open_holds(db, record, now_ms)
    records.end(db, ending.invocation_id, ending.state, ending.block, now_ms)
    ended = records.load(db, ending.invocation_id)
    assert ended is not None  # noqa: S101 - it was read above, in the same transaction
    return ended
