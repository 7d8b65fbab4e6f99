"""The ledger in SQLite: quotas, holds, settlement, usage records.

`stores.sqlite` and its siblings call these functions inside a transaction of the store thread, so what a
function reads is what its decision is made on: no other process writes in between.

Invariants: a (invocation, attempt, turn) has one usage record at most, and the first one stands; whoever
writes it removes the hold and moves the counters in the same transaction. What an attempt that is not the
current one used is never charged, whichever side settles it first. An invocation's usage is what was charged.
"""

import json
import sqlite3
from functools import lru_cache
from typing import Final

from service.config import Limits
from service.errors import Fenced
from service.invocations import Tried, Usage, all_tried
from service.stores import WINDOW_S, Account, Hold, Settlement, Window
from service.stores.sqlite_attempts import MAY_WRITE
from service.stores.windows import (
    BUCKET_PREFIX_END,
    Bucket,
    Standing,
    bucket_id,
    check_budget,
    check_concurrency,
    month_bounds_ms,
    month_id,
    oldest_bucket_id,
)

COUNTED: Final = "input_tokens + output_tokens + cache_write_tokens"
"""What counts against a quota: `Usage.counted_tokens`, in SQL."""

_HOLD: Final = "(sub, invocation_id, attempt, turn) = (?, ?, ?, ?)"
_STANDING: Final = f"""
    SELECT
        (SELECT coalesce(sum({COUNTED}), 0) FROM usage
            WHERE user_id = :sub AND period_id >= :oldest AND period_id < :end),
        (SELECT coalesce(sum({COUNTED}), 0) FROM usage WHERE user_id = :sub AND period_id = :month),
        (SELECT coalesce(sum(tokens), 0) FROM reservations WHERE sub = :sub AND expires_at_ms > :now),
        (SELECT count(*) FROM invocations WHERE sub = :sub AND state = 'running')
"""  # noqa: S608 - the sum is the constant above
_USED: Final = """
    SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
        coalesce(sum(cache_read_tokens), 0), coalesce(sum(cache_write_tokens), 0)
    FROM usage WHERE user_id = ? AND period_id >= ? AND period_id < ?
"""
_BUCKETS: Final = f"""
    SELECT period_id, {COUNTED} FROM usage
    WHERE user_id = ? AND period_id >= ? AND period_id < ? AND {COUNTED} > 0 ORDER BY period_id
"""  # noqa: S608 - the sum is the constant above
_CHARGE: Final = """
    INSERT INTO usage
        (user_id, period_id, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens)
    VALUES (?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, period_id) DO UPDATE SET
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens
"""
_ADD: Final = """
    UPDATE invocations SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,
        cache_read_tokens = cache_read_tokens + ?, cache_write_tokens = cache_write_tokens + ?,
        estimated = estimated OR ?, tried = ?, updated_at_ms = ?
    WHERE invocation_id = ?
"""
_OPEN_HOLDS: Final = """
    SELECT r.attempt, r.turn, r.sub, i.runtime_id, r.tokens
    FROM invocations AS i JOIN reservations AS r USING (sub, invocation_id)
    WHERE i.invocation_id = ? ORDER BY r.attempt, r.turn
"""
_BUDGET: Final = f"""
    SELECT {COUNTED} + (
        SELECT coalesce(sum(tokens), 0) FROM reservations
        WHERE (sub, invocation_id, attempt) = (i.sub, i.invocation_id, i.attempt) AND expires_at_ms > ?
    ) FROM invocations AS i WHERE invocation_id = ? AND attempt = ? AND {MAY_WRITE}
"""  # noqa: S608 - the parts are constants


def admit(db: sqlite3.Connection, hold: Hold, limits: Limits, now_ms: int, *, used_tokens: int = 0) -> None:
    """Hold the tokens of an invocation that does not run yet, if budget, concurrency and quota have room.

    Args:
        hold: That of its first turn, or of the one that it was paused before.
        used_tokens: What it has used so far.

    Raises:
        BudgetExceeded, ConcurrencyExceeded, QuotaExceeded: As `Store.create_invocation`.
    """
    check_budget(limits, used_tokens=used_tokens, requested_tokens=hold.tokens)
    standing, running = _standing(db, hold.sub, now_ms)
    check_concurrency(limits, running=running)
    _check_quota(db, hold.sub, standing, limits, hold.tokens)
    _insert_hold(db, hold)


def reserve(db: sqlite3.Connection, hold: Hold, limits: Limits, now_ms: int) -> None:
    """Hold tokens for a further turn; a hold that is there already stays as it is.

    Raises:
        Fenced, BudgetExceeded, QuotaExceeded: As `Store.reserve`.
    """
    row = db.execute(_BUDGET, (now_ms, hold.invocation_id, hold.attempt)).fetchone()
    if row is None:
        raise Fenced
    key = (hold.sub, hold.invocation_id, hold.attempt, hold.turn)
    held = db.execute(f"SELECT 1 FROM reservations WHERE {_HOLD}", key)  # noqa: S608 - a constant
    if held.fetchone():
        return
    check_budget(limits, used_tokens=row[0], requested_tokens=hold.tokens)
    standing, _ = _standing(db, hold.sub, now_ms)
    _check_quota(db, hold.sub, standing, limits, hold.tokens)
    _insert_hold(db, hold)


def settle(db: sqlite3.Connection, settlement: Settlement, now_ms: int) -> bool:
    """Replace a hold by its usage, once; returns False if it had been settled before."""
    key = (settlement.invocation_id, settlement.attempt, settlement.turn)
    found = db.execute("SELECT attempt, tried FROM invocations WHERE invocation_id = ?", key[:1]).fetchone()
    attempt, tried = found or (settlement.attempt, None)  # of one that is gone the ledger alone stays
    charged = settlement.charged and settlement.attempt == attempt
    written = db.execute(
        "INSERT INTO usage_records (invocation_id, attempt, turn, sub, runtime_id, model, input_tokens,"
        " output_tokens, cache_read_tokens, cache_write_tokens, estimated, charged, settled_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            *key,
            settlement.sub,
            settlement.runtime_id,
            settlement.model,
            *settlement.usage,
            charged,
            now_ms,
        ),
    )
    db.execute(f"DELETE FROM reservations WHERE {_HOLD}", (settlement.sub, *key))  # noqa: S608 - the same
    if written.rowcount == 0:
        return False
    if charged:
        _charge(db, settlement.sub, settlement.usage, now_ms)
    if charged or settlement.tried:
        added = settlement.usage if charged else Usage()
        db.execute(_ADD, (*added, _with_tried(tried, settlement.tried), now_ms, settlement.invocation_id))
    return True


@lru_cache(maxsize=256)
def _with_tried(before: str | None, more: tuple[Tried, ...]) -> str | None:
    """Add to the models that a record says were tried: few texts, and the same ones again and again."""
    if not more:
        return before
    return json.dumps(all_tried((Tried(*each) for each in json.loads(before or "[]")), more))


def settle_open_holds(db: sqlite3.Connection, invocation_id: str, now_ms: int, *, charged: bool) -> None:
    """Settle what an invocation still holds at its full size, as an estimate; expired holds too."""
    for attempt, turn, sub, runtime_id, tokens in db.execute(_OPEN_HOLDS, (invocation_id,)).fetchall():
        usage = Usage(input_tokens=tokens, estimated=True)
        settle(db, Settlement(invocation_id, attempt, turn, sub, runtime_id, "", usage, charged), now_ms)


def account(db: sqlite3.Connection, sub: str, now_ms: int) -> Account:
    """Return what a principal has used, holds and runs."""
    standing, running = _standing(db, sub, now_ms)
    day, month = (
        Usage(*db.execute(_USED, (sub, first, end)).fetchone())
        for first, end in (
            (oldest_bucket_id(now_ms), BUCKET_PREFIX_END),
            (month_id(now_ms), month_id(now_ms) + "\0"),
        )
    )
    month_begins_ms, month_ends_ms = month_bounds_ms(now_ms)
    oldest = next(iter(_buckets(db, sub, now_ms)), None)
    day_resets_ms = now_ms if oldest is None else oldest.ages_out_at_ms
    return Account(
        (
            Window("daily", WINDOW_S, day, day_resets_ms),
            Window("monthly", (month_ends_ms - month_begins_ms) // 1000, month, month_ends_ms),
        ),
        standing.reserved_tokens,
        running,
    )


def _standing(db: sqlite3.Connection, sub: str, now_ms: int) -> tuple[Standing, int]:
    day, month, reserved, running = db.execute(
        _STANDING,
        {
            "sub": sub,
            "oldest": oldest_bucket_id(now_ms),
            "end": BUCKET_PREFIX_END,
            "month": month_id(now_ms),
            "now": now_ms,
        },
    ).fetchone()
    return Standing(now_ms, day, month, reserved), running


def _buckets(db: sqlite3.Connection, sub: str, now_ms: int) -> list[Bucket]:
    rows = db.execute(_BUCKETS, (sub, oldest_bucket_id(now_ms), BUCKET_PREFIX_END))
    return [Bucket(period_id, tokens) for period_id, tokens in rows]


def _check_quota(db: sqlite3.Connection, sub: str, standing: Standing, limits: Limits, tokens: int) -> None:
    if not standing.fits(limits, tokens):
        raise standing.refusal(limits, tokens, _buckets(db, sub, standing.now_ms))


def _insert_hold(db: sqlite3.Connection, hold: Hold) -> None:
    db.execute(
        "INSERT INTO reservations (invocation_id, attempt, turn, sub, tokens, expires_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (hold.invocation_id, hold.attempt, hold.turn, hold.sub, hold.tokens, hold.expires_at_ms),
    )


def _charge(db: sqlite3.Connection, sub: str, usage: Usage, now_ms: int) -> None:
    counts = usage[:4]
    db.execute(_CHARGE, (sub, bucket_id(now_ms), *counts, sub, month_id(now_ms), *counts))
