"""Leases and takeover in SQLite.

`stores.sqlite` calls these functions inside a transaction of the store thread. An owner without a lease is
one whose lease has expired. Expiry ends nothing: `claim` does, by raising the attempt's number, which is the
fence of every later write.
"""

import sqlite3
from typing import Final

from service.stores import Claim, Turn
from service.stores.sqlite_ledger import open_holds
from service.stores.sqlite_records import load, turns

# Runs on the index of running invocations by owner: with none expired it reads that index and little else.
_EXPIRED: Final = """
    FROM invocations AS i LEFT JOIN leases AS l USING (owner)
    WHERE i.state = 'running' AND owner <> ? AND coalesce(l.expires_at_ms, 0) <= ?
"""
_SOME_EXPIRED: Final = f"SELECT EXISTS (SELECT 1 {_EXPIRED})"
_OLDEST_EXPIRED: Final = f"""
    SELECT i.invocation_id, i.attempt, i.stored_seq {_EXPIRED}
    ORDER BY i.created_at_ms, i.invocation_id LIMIT ?
"""


def renew(db: sqlite3.Connection, owner: str, expires_at_ms: int) -> None:
    """Create, prolong or shorten a lease."""
    db.execute(
        "INSERT INTO leases (owner, expires_at_ms) VALUES (?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET expires_at_ms = excluded.expires_at_ms",
        (owner, expires_at_ms),
    )


def some_expired(db: sqlite3.Connection, owner: str, now_ms: int) -> bool:
    """Tell whether there is anything to claim, without taking the write lock."""
    return bool(db.execute(_SOME_EXPIRED, (owner, now_ms)).fetchone()[0])


def claim(db: sqlite3.Connection, owner: str, now_ms: int, limit: int) -> list[Claim]:
    """Take over invocations whose owner's lease has expired, oldest first."""
    expired = db.execute(_OLDEST_EXPIRED, (owner, now_ms, limit)).fetchall()
    return [_take_over(db, owner, now_ms, *row) for row in expired]


def _take_over(
    db: sqlite3.Connection, owner: str, now_ms: int, invocation_id: str, attempt: int, stored_seq: int
) -> Claim:
    completed = turns(db, invocation_id)
    db.execute(
        "UPDATE attempts SET granted_seq = ? WHERE invocation_id = ? AND number = ?",
        (_granted_seq(completed, attempt, stored_seq), invocation_id, attempt),
    )
    db.execute("INSERT INTO attempts (invocation_id, number) VALUES (?, ?)", (invocation_id, attempt + 1))
    db.execute(
        "UPDATE invocations SET attempt = ?, stored_seq = 0, owner = ?, updated_at_ms = ?"
        " WHERE invocation_id = ?",
        (attempt + 1, owner, now_ms, invocation_id),
    )
    record = load(db, invocation_id)
    (body,) = db.execute("SELECT body FROM inputs WHERE invocation_id = ?", (invocation_id,)).fetchone()
    assert record is not None  # noqa: S101 - it was updated above
    return Claim(record, body, completed, open_holds(db, invocation_id))


def _granted_seq(completed: tuple[Turn, ...], attempt: int, stored_seq: int) -> int:
    """Return where a closed attempt's log ends: with its last completed turn, else at its first event.

    0 says that it stored none.
    """
    if completed and completed[-1].boundary.attempt == attempt:
        return completed[-1].boundary.seq
    return min(1, stored_seq)
