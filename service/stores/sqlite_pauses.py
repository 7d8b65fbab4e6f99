"""Pauses in SQLite: invocations that wait for quota between two turns, and how they go on.

`stores.sqlite` calls these functions inside a transaction of the store thread.

Invariants: `paused_at_ms`, `resumes_at_ms`, `look_at_ms`, `paused_turn` and `paused_tokens` are set exactly
while the state is `paused`. A paused invocation has no owner, no hold and no concurrency slot, and its last
attempt is closed. `look_at_ms` is when somebody is to look at it: 0, which is before all others and whatever
the time is, while its cancellation is asked for.
"""

import json
import sqlite3
from collections.abc import Collection
from typing import Final

from service.config import Limits
from service.errors import Fenced
from service.invocations import AttemptEnd
from service.stores import FORSAKEN_MS, RESERVATION_GRACE_MS, Claim, Hold, Pause, Paused
from service.stores import sqlite_attempts as attempts
from service.stores import sqlite_events as events
from service.stores.sqlite_ledger import COUNTED, admit, settle_open_holds
from service.stores.sqlite_records import claimed, load, load_input

_PAUSE: Final = """
    UPDATE invocations SET state = 'paused', owner = '', updated_at_ms = :now, paused_at_ms = :now,
        resumes_at_ms = :resumes, paused_turn = :turn, paused_tokens = :tokens,
        look_at_ms = CASE WHEN cancel_requested_at_ms IS NULL THEN :resumes ELSE 0 END
    WHERE invocation_id = :id
"""
_PAUSED: Final = f"""
    SELECT sub, paused_turn, paused_tokens, {COUNTED}, deadline_at_ms, paused_at_ms FROM invocations
    WHERE invocation_id = ? AND attempt = ? AND state = 'paused'
"""  # noqa: S608 - the sum is a constant
_DUE: Final = """
    SELECT invocation_id, read_at_ms FROM invocations
    WHERE state = 'paused' AND look_at_ms <= :now AND (:runtimes IS NULL OR look_at_ms <= :forsaken
        OR runtime_id IN (SELECT value FROM json_each(:runtimes)))
    ORDER BY look_at_ms, invocation_id LIMIT :limit
"""
_GO_ON: Final = """
    UPDATE invocations SET deadline_at_ms = ?, paused_at_ms = NULL, resumes_at_ms = NULL, look_at_ms = NULL,
        paused_turn = NULL, paused_tokens = NULL
    WHERE invocation_id = ?
"""


def pause(db: sqlite3.Connection, pause: Pause, now_ms: int) -> None:
    """Store the last events, close the attempt and let the invocation wait; once.

    Raises:
        Fenced: As `Store.pause`.
        ValueError: As `events.append`.
    """
    last = pause.block.last
    if attempts.ended(db, pause.invocation_id, pause.attempt) == (AttemptEnd.PAUSED, last.seq):
        return
    running = attempts.may_write(db, pause.invocation_id, pause.attempt)
    if not (running and events.append(db, pause.invocation_id, pause.block, now_ms)):
        raise Fenced
    settle_open_holds(db, pause.invocation_id, now_ms, charged=True)
    attempts.close(db, pause.invocation_id, last, AttemptEnd.PAUSED)
    db.execute(
        _PAUSE,
        {
            "id": pause.invocation_id,
            "now": now_ms,
            "resumes": pause.resumes_at_ms,
            "turn": pause.turn,
            "tokens": pause.tokens,
        },
    )


def list_due(
    db: sqlite3.Connection, now_ms: int, limit: int, runtimes: Collection[str] | None
) -> list[Paused]:
    """Return what is to be looked at, in the order of the index: by `look_at_ms`, then by id."""
    served = None if runtimes is None else json.dumps(list(runtimes))
    parameters = {"now": now_ms, "limit": limit, "runtimes": served, "forsaken": now_ms - FORSAKEN_MS}
    due = db.execute(_DUE, parameters).fetchall()
    paused = ((load(db, invocation_id), read_at_ms) for invocation_id, read_at_ms in due)
    return [
        Paused(record, load_input(db, record.invocation_id), read_at_ms)
        for record, read_at_ms in paused
        if record is not None
    ]


def postpone(db: sqlite3.Connection, invocation_id: str, attempt: int, look_at_ms: int) -> None:
    """Move the time at which to look, unless it is to be cancelled: then it is now."""
    db.execute(
        "UPDATE invocations SET look_at_ms = ? WHERE invocation_id = ? AND attempt = ? AND state = 'paused'"
        " AND cancel_requested_at_ms IS NULL",
        (look_at_ms, invocation_id, attempt),
    )


def resume(
    db: sqlite3.Connection, invocation_id: str, attempt: int, owner: str, now_ms: int, limits: Limits | None
) -> Claim:
    """Begin the next attempt of a paused invocation; with `limits`, if its next model call has room.

    Raises:
        Fenced, QuotaExceeded, ConcurrencyExceeded, BudgetExceeded: As `Store.resume`.
    """
    row = db.execute(_PAUSED, (invocation_id, attempt)).fetchone()
    if row is None:
        raise Fenced
    sub, turn, tokens, used_tokens, deadline_at_ms, paused_at_ms = row
    deadline_at_ms += max(0, now_ms - paused_at_ms)
    if limits is not None:
        hold = Hold(invocation_id, attempt + 1, turn, sub, tokens, deadline_at_ms + RESERVATION_GRACE_MS)
        admit(db, hold, limits, now_ms, used_tokens=used_tokens)
    db.execute(_GO_ON, (deadline_at_ms, invocation_id))
    attempts.begin_next(db, invocation_id, attempt + 1, owner, now_ms)
    return claimed(db, invocation_id)
