"""Leases and takeover in SQLite.

`stores.sqlite` calls these functions inside a transaction of the store thread. An owner without a lease is
one whose lease has expired. Expiry ends nothing: `claim` does, by raising the attempt's number, which is the
fence of every later write.
"""

import json
import sqlite3
from collections.abc import Collection
from typing import Any, Final

from service.stores import ORPHAN_AGE_S, Claim, Turn
from service.stores.sqlite_ledger import open_holds
from service.stores.sqlite_records import load, turns

# Both run on the index of running invocations by owner: with none expired they read little else.
_EXPIRED: Final = """
    SELECT i.invocation_id, i.attempt, i.stored_seq, i.created_at_ms
    FROM invocations AS i LEFT JOIN leases AS l USING (owner)
    WHERE i.state = 'running' AND owner <> :owner AND coalesce(l.expires_at_ms, 0) <= :now
"""
_ORPHANED: Final = """
    SELECT invocation_id, attempt, stored_seq, created_at_ms FROM invocations
    WHERE state = 'running' AND owner = :owner AND created_at_ms <= :orphaned_before
        AND invocation_id NOT IN (SELECT value FROM json_each(:running))
"""
_SOME: Final = f"SELECT EXISTS ({_EXPIRED}) OR EXISTS ({_ORPHANED})"
_OLDEST: Final = f"""
    SELECT invocation_id, attempt, stored_seq FROM ({_EXPIRED} UNION ALL {_ORPHANED})
    ORDER BY created_at_ms, invocation_id LIMIT :limit
"""  # noqa: S608 - the parts are the constants above


def renew(db: sqlite3.Connection, owner: str, expires_at_ms: int) -> None:
    """Create, prolong or shorten a lease."""
    db.execute(
        "INSERT INTO leases (owner, expires_at_ms) VALUES (?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET expires_at_ms = excluded.expires_at_ms",
        (owner, expires_at_ms),
    )


def some_expired(db: sqlite3.Connection, owner: str, now_ms: int, running: Collection[str] | None) -> bool:
    """Tell whether there is anything to claim, without taking the write lock."""
    return bool(db.execute(_SOME, _expired(owner, now_ms, running)).fetchone()[0])


def _expired(owner: str, now_ms: int, running: Collection[str] | None) -> dict[str, Any]:
    """Return the parameters; where it is not known what runs, no own invocation is an orphan."""
    orphaned_before_ms = -1 if running is None else now_ms - ORPHAN_AGE_S * 1000
    return {
        "owner": owner,
        "now": now_ms,
        "orphaned_before": orphaned_before_ms,
        "running": json.dumps(list(running or ())),
    }


def claim(
    db: sqlite3.Connection, owner: str, now_ms: int, limit: int, running: Collection[str] | None
) -> list[Claim]:
    """Take over invocations whose owner's lease has expired, and the owner's own orphans."""
    parameters = _expired(owner, now_ms, running) | {"limit": limit}
    expired = db.execute(_OLDEST, parameters).fetchall()
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
