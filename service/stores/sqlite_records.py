"""The records of invocations in SQLite: rows to `Invocation` and back, retention.

`stores.sqlite` and its siblings call these functions inside a transaction of the store thread.
"""

import json
import sqlite3
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from service.errors import IdempotencyMismatch
from service.events import Block, EventId
from service.invocations import Attempt, AttemptEnd, Invocation, State, Tried, Usage
from service.stores import Claim, Ending, Idempotency, NewInvocation
from service.stores.sqlite_attempts import begin, close, turns
from service.stores.windows import BUCKET_PREFIX, MONTH_PREFIX, oldest_kept

# Of attempts that schema 2 or an older process wrote, neither beginning nor end is noted: take it that they
# began with their invocation, and ended with it or were lost.
_COLUMNS: Final = """
    i.invocation_id, i.runtime_id, i.sub, i.session_id, i.state,
    i.created_at_ms, i.updated_at_ms, i.deadline_at_ms,
    i.input_tokens, i.output_tokens, i.cache_read_tokens, i.cache_write_tokens, i.estimated,
    i.finished_at_ms, i.terminal, i.cancel_requested_at_ms, i.paused_at_ms, i.resumes_at_ms,
    i.models, i.tried,
    a.number, coalesce(a.started_at_ms, i.created_at_ms), a.granted_seq,
    CASE WHEN a.ended IS NOT NULL OR a.granted_seq IS NULL THEN a.ended
        WHEN a.number = i.attempt AND i.finished_at_ms IS NOT NULL THEN 'finished' ELSE 'lost' END
"""
_LOAD: Final = f"""
    SELECT {_COLUMNS} FROM invocations AS i JOIN attempts AS a USING (invocation_id)
    WHERE invocation_id = ? ORDER BY a.number
"""  # noqa: S608 - the columns are the constant above
_LIST: Final = f"""
    SELECT {_COLUMNS} FROM (
        SELECT * FROM invocations
        WHERE sub = ? AND runtime_id = ? AND (created_at_ms, invocation_id) < (?, ?)
        ORDER BY created_at_ms DESC, invocation_id DESC LIMIT ?
    ) AS i JOIN attempts AS a USING (invocation_id)
    ORDER BY i.created_at_ms DESC, i.invocation_id DESC, a.number
"""  # noqa: S608 - the columns are the constant above
_AFTER_ALL: Final = (2**63 - 1, "")
_PURGE_ROWS: Final = 200


def attach(db: sqlite3.Connection, idempotency: Idempotency, now_ms: int) -> Invocation | None:
    """Return the invocation that took a key, if one did; a key that has expired is free.

    Raises:
        IdempotencyMismatch: It was taken by a request with another body.
    """
    row = db.execute(
        "SELECT invocation_id, body, expires_at_ms FROM idempotency_keys WHERE key = ?", (idempotency.key,)
    ).fetchone()
    if row is None:
        return None
    invocation_id, body, expires_at_ms = row
    if expires_at_ms <= now_ms:
        db.execute("DELETE FROM idempotency_keys WHERE key = ?", (idempotency.key,))
        return None
    if body != idempotency.body:
        raise IdempotencyMismatch("Send a retry with the same body, and a new request with a new key.")
    return load(db, invocation_id)


def insert(db: sqlite3.Connection, new: NewInvocation, now_ms: int) -> Invocation:
    """Write record, input, first attempt and idempotency key."""
    db.execute(
        "INSERT INTO invocations (invocation_id, runtime_id, sub, session_id, state, owner, attempt,"
        " created_at_ms, updated_at_ms, deadline_at_ms, models)"
        " VALUES (?, ?, ?, ?, 'running', ?, 1, ?, ?, ?, ?)",
        (
            new.invocation_id,
            new.runtime_id,
            new.sub,
            new.session_id,
            new.owner,
            now_ms,
            now_ms,
            new.deadline_at_ms,
            _models_text(new.models),
        ),
    )
    db.execute("INSERT INTO inputs (invocation_id, body) VALUES (?, ?)", (new.invocation_id, new.input))
    begin(db, new.invocation_id, 1, now_ms)
    if new.idempotency is not None:
        db.execute(
            "INSERT INTO idempotency_keys (key, body, invocation_id, expires_at_ms) VALUES (?, ?, ?, ?)",
            (new.idempotency.key, new.idempotency.body, new.invocation_id, new.idempotency.expires_at_ms),
        )
    return Invocation(
        new.invocation_id,
        new.runtime_id,
        new.sub,
        new.session_id,
        State.RUNNING,
        (Attempt(1, now_ms),),
        now_ms,
        now_ms,
        new.deadline_at_ms,
        models=new.models,
    )


@lru_cache(maxsize=256)
def _models_text(models: tuple[str, ...]) -> str:
    """Write a runtime's route: few texts, and the same ones again and again."""
    return json.dumps(models)


def load(db: sqlite3.Connection, invocation_id: str) -> Invocation | None:
    """Return the record, or None."""
    records = _records(db.execute(_LOAD, (invocation_id,)))
    return records[0] if records else None


def list_newest(
    db: sqlite3.Connection, sub: str, runtime_id: str, before: str | None, limit: int
) -> list[Invocation]:
    """Return a page, newest first; nothing comes before an invocation that is not there."""
    position: tuple[int, str] | None = _AFTER_ALL
    if before is not None:
        position = db.execute(
            "SELECT created_at_ms, invocation_id FROM invocations WHERE invocation_id = ? AND sub = ?",
            (before, sub),
        ).fetchone()
    return [] if position is None else _records(db.execute(_LIST, (sub, runtime_id, *position, limit)))


def _records(rows: Iterable[tuple[Any, ...]]) -> list[Invocation]:
    return [_record(list(lines)) for _, lines in groupby(rows, key=itemgetter(0))]


def _record(rows: list[tuple[Any, ...]]) -> Invocation:
    """Read a record from its rows, one per attempt."""
    invocation_id, runtime_id, sub, session_id, state, created, updated, deadline = rows[0][:8]
    *counts, estimated = rows[0][8:13]
    finished, terminal, cancel_requested, paused, resumes, models, tried = rows[0][13:20]
    return Invocation(
        invocation_id,
        runtime_id,
        sub,
        session_id,
        State(state),
        tuple(_attempt(*row[20:]) for row in rows),
        created,
        updated,
        deadline,
        Usage._make((*counts, bool(estimated))),
        finished,
        terminal,
        cancel_requested,
        paused,
        resumes,
        tuple(json.loads(models or "[]")),
        tuple(Tried(*each) for each in json.loads(tried or "[]")),
    )


def _attempt(number: int, started_at_ms: int, seq: int | None, ended: str | None) -> Attempt:
    last = None if seq is None else EventId(number, seq)
    return Attempt(number, started_at_ms, last, None if ended is None else AttemptEnd(ended))


def load_input(db: sqlite3.Connection, invocation_id: str) -> bytes:
    """Return what was submitted."""
    (body,) = db.execute("SELECT body FROM inputs WHERE invocation_id = ?", (invocation_id,)).fetchone()
    return bytes(body)


def claimed(db: sqlite3.Connection, invocation_id: str) -> Claim:
    """Return an invocation whose next attempt has begun, with all that it needs."""
    record = load(db, invocation_id)
    assert record is not None  # noqa: S101 - its attempt began in the same transaction
    return Claim(record, load_input(db, invocation_id), turns(db, invocation_id))


def end(db: sqlite3.Connection, invocation_id: str, state: State, block: Block, now_ms: int) -> None:
    """Write the terminal state; the last event of `block`, stored already, is the terminal one."""
    db.execute(
        "UPDATE invocations SET state = ?, terminal = ?, finished_at_ms = ?, updated_at_ms = ?"
        " WHERE invocation_id = ?",
        (state, block.events[-1], now_ms, now_ms, invocation_id),
    )
    close(db, invocation_id, block.last, AttemptEnd.FINISHED)


def has_ended_so(db: sqlite3.Connection, ending: Ending) -> bool:
    """Tell whether this ending has been committed, by a call whose answer was lost."""
    record = load(db, ending.invocation_id)
    if record is None or record.attempt != ending.attempt or not record.state.is_terminal:
        return False
    last = ending.block
    return (record.state, record.last, record.terminal) == (ending.state, last.last, last.events[-1])


def purge_invocations(db: sqlite3.Connection, finished_before_ms: int) -> int:
    """Delete some ended invocations with all that is theirs but the usage records; returns how many."""
    return db.execute(
        "DELETE FROM invocations WHERE invocation_id IN ("
        "SELECT invocation_id FROM invocations WHERE finished_at_ms < ? LIMIT ?)",
        (finished_before_ms, _PURGE_ROWS),
    ).rowcount


def purge_expired(db: sqlite3.Connection, now_ms: int) -> int:
    """Delete some buckets, months, leases and denials that nothing reads any more; returns how many.

    An invocation whose owner has no lease counts as one whose owner's lease has expired.
    """
    bucket, month = oldest_kept(now_ms)
    periods = db.execute(
        "DELETE FROM usage WHERE (user_id, period_id) IN (SELECT user_id, period_id FROM usage"
        " WHERE period_id >= ? AND period_id < ? OR period_id >= ? AND period_id < ? LIMIT ?)",
        (BUCKET_PREFIX, bucket, MONTH_PREFIX, month, _PURGE_ROWS),
    ).rowcount
    leases = db.execute("DELETE FROM leases WHERE expires_at_ms <= ?", (now_ms,)).rowcount
    denials = db.execute("DELETE FROM denials WHERE until_ms <= ?", (now_ms,)).rowcount
    return periods + leases + denials
