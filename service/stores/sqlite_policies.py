"""What operators have decided, in SQLite: who is denied, and whose limits are others.

`stores.sqlite` calls these functions inside a transaction of the store thread. Both tables are small, and
read whole by every process every 10 s; `sqlite_records.purge_expired` deletes denials that have ended.
"""

import sqlite3
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter

from service.stores import Denial, Policies


def policies(db: sqlite3.Connection, now_ms: int) -> Policies:
    """Return all that holds now."""
    denied = db.execute(
        "SELECT subject, since_ms, until_ms FROM denials WHERE until_ms IS NULL OR until_ms > ?", (now_ms,)
    )
    overrides = db.execute("SELECT sub, name, value FROM limit_overrides ORDER BY sub")
    return Policies(
        {subject: Denial(since_ms, until_ms) for subject, since_ms, until_ms in denied},
        {
            sub: {name: value for _, name, value in rows}
            for sub, rows in groupby(overrides, key=itemgetter(0))
        },
    )


def deny(db: sqlite3.Connection, subject: str, now_ms: int, until_ms: int | None) -> None:
    """Write a denial over the one that there is."""
    db.execute(
        "INSERT OR REPLACE INTO denials (subject, since_ms, until_ms) VALUES (?, ?, ?)",
        (subject, now_ms, until_ms),
    )


def allow(db: sqlite3.Connection, subject: str) -> bool:
    """Delete a denial; returns whether there was one."""
    return db.execute("DELETE FROM denials WHERE subject = ?", (subject,)).rowcount > 0


def set_limits(db: sqlite3.Connection, sub: str, overrides: Mapping[str, int] | None) -> None:
    """Write overrides beside and over those that there are, or delete all."""
    if overrides is None:
        db.execute("DELETE FROM limit_overrides WHERE sub = ?", (sub,))
        return
    db.executemany(
        "INSERT OR REPLACE INTO limit_overrides (sub, name, value) VALUES (?, ?, ?)",
        [(sub, name, value) for name, value in overrides.items()],
    )
