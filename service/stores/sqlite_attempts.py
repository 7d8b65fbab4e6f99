"""Attempts in SQLite: the fence, how they begin and end, and the turns that they leave to the next one.

`stores.sqlite` and its siblings call these functions inside a transaction of the store thread.

Invariants: the number of the current attempt only grows, and `stored_seq` is how far its log is stored.
`owner` is '' while nobody runs an invocation that has not ended: it is paused, or was handed over and waits
to be claimed. So an attempt may write while its number is the current one, the state is `running` and there
is an owner. `ended` is NULL while an attempt runs, `granted_seq` until it is closed: one that was handed over
has the former before the latter. A turn has one row: of what was written, that with the latest boundary.
"""

import sqlite3
from typing import Final, NamedTuple

from service.events import EventId
from service.invocations import AttemptEnd
from service.stores import Turn

MAY_WRITE: Final = "state = 'running' AND owner <> ''"
"""What the fence asks of an invocation, beside the number of the attempt."""


class Fence(NamedTuple):
    """What decides whether an attempt may write."""

    attempt: int
    stored_seq: int
    is_open: bool

    def admits(self, attempt: int) -> bool:
        return self.is_open and self.attempt == attempt


def fence(db: sqlite3.Connection, invocation_id: str) -> Fence | None:
    """Return the fence of an invocation, or None if there is no such invocation."""
    row = db.execute(
        f"SELECT attempt, stored_seq, {MAY_WRITE} FROM invocations WHERE invocation_id = ?",  # noqa: S608
        (invocation_id,),
    ).fetchone()
    return None if row is None else Fence(row[0], row[1], bool(row[2]))


def may_write(db: sqlite3.Connection, invocation_id: str, attempt: int) -> bool:
    """Tell whether this is the attempt that runs."""
    barrier = fence(db, invocation_id)
    return barrier is not None and barrier.admits(attempt)


def begin(db: sqlite3.Connection, invocation_id: str, number: int, now_ms: int) -> None:
    """Write that an attempt begins."""
    db.execute(
        "INSERT INTO attempts (invocation_id, number, started_at_ms) VALUES (?, ?, ?)",
        (invocation_id, number, now_ms),
    )


def begin_next(db: sqlite3.Connection, invocation_id: str, number: int, owner: str, now_ms: int) -> None:
    """Make a further attempt the current one, and let `owner` run it; the one before it is closed."""
    begin(db, invocation_id, number, now_ms)
    db.execute(
        "UPDATE invocations SET state = 'running', attempt = ?, stored_seq = 0, owner = ?, updated_at_ms = ?"
        " WHERE invocation_id = ?",
        (number, owner, now_ms, invocation_id),
    )


def close(db: sqlite3.Connection, invocation_id: str, last: EventId, end: AttemptEnd) -> None:
    """Write why an attempt ended and what it is granted; one that was handed over keeps its reason."""
    db.execute(
        "UPDATE attempts SET granted_seq = ?, ended = coalesce(ended, ?)"
        " WHERE invocation_id = ? AND number = ?",
        (last.seq, end, invocation_id, last.attempt),
    )


def hand_over(db: sqlite3.Connection, invocation_id: str, attempt: int, now_ms: int) -> None:
    """Write that an attempt has ended without its invocation, which nobody runs from now on."""
    db.execute(
        "UPDATE attempts SET ended = ? WHERE invocation_id = ? AND number = ?",
        (AttemptEnd.HANDED_OVER, invocation_id, attempt),
    )
    db.execute(
        "UPDATE invocations SET owner = '', updated_at_ms = ? WHERE invocation_id = ?",
        (now_ms, invocation_id),
    )


def ended(db: sqlite3.Connection, invocation_id: str, attempt: int) -> tuple[str | None, int | None]:
    """Return why an attempt ended and what it was granted: (None, None) while it runs or if there is none."""
    row = db.execute(
        "SELECT ended, granted_seq FROM attempts WHERE invocation_id = ? AND number = ?",
        (invocation_id, attempt),
    ).fetchone()
    return (None, None) if row is None else (row[0], row[1])


def write_turn(db: sqlite3.Connection, invocation_id: str, turn: Turn) -> None:
    """Write what a turn has added by its boundary, over what it had added before.

    Raises:
        ValueError: Its events are not stored by the current attempt: a takeover would lose them.
    """
    number, messages, boundary = turn.number, turn.messages, turn.boundary
    stored = fence(db, invocation_id)
    if stored is None or boundary.attempt != stored.attempt or not 1 <= boundary.seq <= stored.stored_seq:
        raise ValueError(f"the boundary {boundary} of turn {number} is not a stored event of this attempt")
    db.execute(
        "INSERT INTO turns (invocation_id, number, messages, boundary_attempt, boundary_seq)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET messages = excluded.messages,"
        " boundary_attempt = excluded.boundary_attempt, boundary_seq = excluded.boundary_seq"
        " WHERE (excluded.boundary_attempt, excluded.boundary_seq) > (boundary_attempt, boundary_seq)",
        (invocation_id, number, messages, *boundary),
    )


def turns(db: sqlite3.Connection, invocation_id: str) -> tuple[Turn, ...]:
    """Return what the turns have added, in order."""
    return tuple(
        Turn(number, messages, EventId(attempt, seq))
        for number, messages, attempt, seq in db.execute(
            "SELECT number, messages, boundary_attempt, boundary_seq FROM turns WHERE invocation_id = ?"
            " ORDER BY number",
            (invocation_id,),
        )
    )
