"""What others tell the owner of an invocation, in SQLite: cancel it, and somebody reads it.

`stores.sqlite` calls these functions inside a transaction of the store thread. Owners poll: both searches run
on an index that holds only running invocations that are to be cancelled, or that had a reader.

Invariants: the first request to cancel stands, whoever runs the invocation by now; `read_at_ms` never goes
back; an invocation that has ended changes no more.
"""

import json
import sqlite3
from collections.abc import Collection

from service.invocations import Invocation
from service.stores.sqlite_records import load


def request_cancel(db: sqlite3.Connection, invocation_id: str, now_ms: int) -> Invocation | None:
    """Ask for the end of an invocation; of a paused one whoever looks for paused ones hears at once."""
    db.execute(
        "UPDATE invocations SET cancel_requested_at_ms = ?, updated_at_ms = ?,"
        " look_at_ms = CASE state WHEN 'paused' THEN 0 END"
        " WHERE invocation_id = ? AND cancel_requested_at_ms IS NULL AND finished_at_ms IS NULL",
        (now_ms, now_ms, invocation_id),
    )
    return load(db, invocation_id)


def cancel_requests(db: sqlite3.Connection, owner: str) -> frozenset[str]:
    """Return the owner's invocations that are to be cancelled."""
    rows = db.execute(
        "SELECT invocation_id FROM invocations INDEXED BY invocations_to_cancel"
        " WHERE owner = ? AND state = 'running' AND cancel_requested_at_ms IS NOT NULL",
        (owner,),
    )
    return frozenset(invocation_id for (invocation_id,) in rows)


def note_read(db: sqlite3.Connection, invocation_ids: Collection[str], now_ms: int) -> None:
    """Write that these have a reader now."""
    db.execute(
        "UPDATE invocations SET read_at_ms = :now WHERE invocation_id IN (SELECT value FROM json_each(:ids))"
        " AND finished_at_ms IS NULL AND coalesce(read_at_ms, 0) < :now",
        {"now": now_ms, "ids": json.dumps(list(invocation_ids))},
    )


def unread(db: sqlite3.Connection, owner: str, since_ms: int) -> frozenset[str]:
    """Return the owner's invocations whose last reader was there at `since_ms` or before."""
    rows = db.execute(
        "SELECT invocation_id FROM invocations INDEXED BY invocations_read"
        " WHERE owner = ? AND state = 'running' AND read_at_ms <= ?",
        (owner, since_ms),
    )
    return frozenset(invocation_id for (invocation_id,) in rows)
