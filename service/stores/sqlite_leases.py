"""Leases and takeover in SQLite.

`stores.sqlite` calls these functions inside a transaction of the store thread. An owner without a lease is
one whose lease has expired, and '' has none: what was handed over is claimed like what its process left.
Expiry ends nothing: `claim` does, by raising the attempt's number, which is the fence of every later write.

Invariant: of a closed attempt the grant ends where the turns do that a takeover goes on from, so whoever
follows the log reads what the conversation holds.
"""

import json
import sqlite3
from collections.abc import Collection
from typing import Any, Final

from service.errors import Fenced
from service.events import START, Block, EventId, started
from service.invocations import AttemptEnd, Invocation
from service.stores import ORPHAN_AGE_S, Claim, HandOver, Turn
from service.stores import sqlite_attempts as attempts
from service.stores import sqlite_events as events
from service.stores.sqlite_ledger import settle, settle_open_holds
from service.stores.sqlite_records import claimed, load

# The owners of what runs: one step of the index `invocations_owned` each, however much they run.
_OWNERS: Final = """
    WITH RECURSIVE owners (owner) AS (
        SELECT min(owner) FROM invocations WHERE state = 'running'
        UNION ALL
        SELECT (
            SELECT min(i.owner) FROM invocations AS i WHERE i.state = 'running' AND i.owner > owners.owner
        ) FROM owners WHERE owners.owner IS NOT NULL
    ),
    gone (owner) AS (
        SELECT owners.owner FROM owners LEFT JOIN leases AS l USING (owner)
        WHERE owners.owner <> :owner AND coalesce(l.expires_at_ms, 0) <= :now
    )
"""
_SERVED: Final = """(
        :runtimes IS NULL OR i.deadline_at_ms <= :now
        OR i.runtime_id IN (SELECT value FROM json_each(:runtimes))
    )"""
_EXPIRED: Final = f"""
    SELECT i.invocation_id, i.stored_seq, i.created_at_ms FROM gone JOIN invocations AS i USING (owner)
    WHERE i.state = 'running' AND {_SERVED}
"""  # noqa: S608 - the condition is the constant above
_ORPHANED: Final = f"""
    SELECT i.invocation_id, i.stored_seq, i.created_at_ms
    FROM invocations AS i JOIN attempts AS a ON a.invocation_id = i.invocation_id AND a.number = i.attempt
    WHERE :orphaned_before >= 0 AND i.state = 'running' AND i.owner = :owner
        AND i.invocation_id NOT IN (SELECT value FROM json_each(:running))
        AND coalesce(a.started_at_ms, i.created_at_ms) <= :orphaned_before
        AND {_SERVED}
"""  # noqa: S608 - the same
_SOME: Final = f"{_OWNERS} SELECT EXISTS ({_EXPIRED}) OR EXISTS ({_ORPHANED})"
_OLDEST: Final = f"""
    {_OWNERS}
    SELECT invocation_id, stored_seq FROM ({_EXPIRED} UNION ALL {_ORPHANED})
    ORDER BY created_at_ms, invocation_id LIMIT :limit
"""  # noqa: S608 - the parts are the constants above


def renew(db: sqlite3.Connection, owner: str, expires_at_ms: int) -> None:
    """Create, prolong or shorten a lease."""
    db.execute(
        "INSERT INTO leases (owner, expires_at_ms) VALUES (?, ?)"
        " ON CONFLICT (owner) DO UPDATE SET expires_at_ms = excluded.expires_at_ms",
        (owner, expires_at_ms),
    )


def owned(db: sqlite3.Connection, owner: str) -> dict[str, int]:
    """Return the current attempts of an owner's running invocations."""
    return dict(
        db.execute(
            "SELECT invocation_id, attempt FROM invocations WHERE state = 'running' AND owner = ?", (owner,)
        ).fetchall()
    )


def hand_over(db: sqlite3.Connection, given: HandOver, now_ms: int) -> None:
    """Leave an invocation to whoever claims it next; what was handed over already stays as it is.

    Raises:
        Fenced: As `Store.hand_over`.
    """
    if not attempts.may_write(db, given.invocation_id, given.attempt):
        if attempts.ended(db, given.invocation_id, given.attempt)[0] == AttemptEnd.HANDED_OVER:
            return
        raise Fenced
    for settlement in given.settlements:
        settle(db, settlement, now_ms)
    attempts.hand_over(db, given.invocation_id, given.attempt, now_ms)


def some_expired(
    db: sqlite3.Connection,
    owner: str,
    now_ms: int,
    running: Collection[str] | None,
    runtimes: Collection[str] | None,
) -> bool:
    """Tell whether there is anything to claim, without taking the write lock."""
    return bool(db.execute(_SOME, _expired(owner, now_ms, running, runtimes)).fetchone()[0])


def _expired(
    owner: str, now_ms: int, running: Collection[str] | None, runtimes: Collection[str] | None
) -> dict[str, Any]:
    """Return the parameters; where it is not known what runs, no own invocation is an orphan."""
    orphaned_before_ms = -1 if running is None else now_ms - ORPHAN_AGE_S * 1000
    return {
        "owner": owner,
        "now": now_ms,
        "orphaned_before": orphaned_before_ms,
        "running": json.dumps(list(running or ())),
        "runtimes": None if runtimes is None else json.dumps(list(runtimes)),
    }


def claim(
    db: sqlite3.Connection,
    owner: str,
    now_ms: int,
    limit: int,
    running: Collection[str] | None,
    runtimes: Collection[str] | None,
) -> list[Claim]:
    """Take over invocations whose owner's lease has expired, and the owner's own orphans."""
    parameters = _expired(owner, now_ms, running, runtimes) | {"limit": limit}
    expired = db.execute(_OLDEST, parameters).fetchall()
    return [_take_over(db, owner, now_ms, *row) for row in expired]


def _take_over(db: sqlite3.Connection, owner: str, now_ms: int, invocation_id: str, stored_seq: int) -> Claim:
    record = load(db, invocation_id)
    assert record is not None  # noqa: S101 - its row was read in the same transaction
    if record.attempt == 1 and stored_seq == 0:
        _store_start(db, record)
        stored_seq = 1
    settle_open_holds(db, invocation_id, now_ms, charged=False)
    last = _granted(attempts.turns(db, invocation_id), record.attempt, stored_seq)
    attempts.close(db, invocation_id, last, AttemptEnd.LOST)
    attempts.begin_next(db, invocation_id, record.attempt + 1, owner, now_ms)
    return claimed(db, invocation_id)


def _store_start(db: sqlite3.Connection, record: Invocation) -> None:
    """Store the first event in its writer's place: readers may have had it, and others count on it."""
    first = started(record.invocation_id, record.runtime_id, record.models)
    events.insert(db, record.invocation_id, Block(1, 1, (first,)))


def _granted(turns: tuple[Turn, ...], attempt: int, stored_seq: int) -> EventId:
    """Return where a closed attempt's log ends: with the last turn that it wrote, else at its first event.

    The `seq` 0 says that it stored none.
    """
    boundary = max((turn.boundary for turn in turns), default=START)
    return boundary if boundary.attempt == attempt else EventId(attempt, min(1, stored_seq))
