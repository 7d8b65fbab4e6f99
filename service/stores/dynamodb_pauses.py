"""Pauses in DynamoDB: invocations that wait for quota between two turns, and how they go on.

`stores.dynamodb` calls these functions. A paused invocation is held by `PAUSED`, and its place in the index
`held` is when somebody is to look at it: 0, before all others, while its cancellation is asked for.
"""

from collections.abc import Collection
from typing import Final

from service.config import Limits
from service.errors import Fenced
from service.invocations import AttemptEnd, State
from service.stores import FORSAKEN_MS, RESERVATION_GRACE_MS, Claim, Hold, Pause, Paused
from service.stores.dynamodb_attempts import closed, closing, event_writes, reread
from service.stores.dynamodb_client import BATCH_READS, Refused, Write, update
from service.stores.dynamodb_items import PAUSED, Record, call_name, record_key
from service.stores.dynamodb_ledger import Change
from service.stores.dynamodb_records import (
    Tables,
    decide,
    decide_as,
    keep_longer,
    load,
    load_input,
    load_many,
)
from service.stores.dynamodb_takeover import begin_next, held, turns
from service.stores.windows import check_budget

_KEEP_LONGER_AFTER_MS: Final = 24 * 3_600_000


async def pause(tables: Tables, given: Pause, now_ms: int) -> None:
    """Store the last events, close the attempt and let the invocation wait; once.

    Raises:
        Fenced: As the port says.
    """
    last = given.block.last

    async def once(record: Record | None) -> None:
        if record is None:
            raise Fenced
        shown = record.shown
        if record.fence != given.attempt or given.block.attempt != given.attempt:
            if given.attempt <= len(shown.attempts):
                was = shown.attempts[given.attempt - 1]
                if (was.end, was.last) == (AttemptEnd.PAUSED, last):
                    return
            raise Fenced
        change = closing(tables, record, (), now_ms)
        change.attempts(closed(shown.attempts, AttemptEnd.PAUSED, last))
        change.beside(*event_writes(tables, given.invocation_id, given.block, now_ms))
        change.set(
            state=State.PAUSED.value,
            fence=None,
            holder=PAUSED,
            held_at_ms=given.resumes_at_ms if shown.cancel_requested_at_ms is None else 0,
            paused_at_ms=now_ms,
            resumes_at_ms=given.resumes_at_ms,
            paused_turn=given.turn,
            paused_tokens=given.tokens,
        )
        change.ends()
        await change.commit()

    await decide_as(tables, given.invocation_id, given.attempt, once)


async def list_due(tables: Tables, now_ms: int, limit: int, runtimes: Collection[str] | None) -> list[Paused]:
    """Return what is to be looked at, longest due first."""
    keys = await held(tables, PAUSED, now_ms)
    keys.sort(key=lambda key: (key["held_at_ms"], key["pk"]))
    due: list[Paused] = []
    for begin in range(0, len(keys), BATCH_READS):
        some = keys[begin : begin + BATCH_READS]
        records = await load_many(tables, [key["pk"] for key in some])
        for key in some:
            record = records.get(key["pk"])
            if record is None or record.holder != PAUSED:
                continue  # the index lags behind
            forsaken = key["held_at_ms"] <= now_ms - FORSAKEN_MS
            if runtimes is None or forsaken or record.shown.runtime_id in runtimes:
                due.append(Paused(record.shown, await load_input(tables, record), record.read_at_ms))
            if len(due) == limit:
                return due
    return due


async def postpone(tables: Tables, invocation_id: str, attempt: int, look_at_ms: int) -> None:
    """Move the time at which to look, unless it is to be cancelled: then it is now."""
    record = await load(tables, invocation_id)
    if record is None or record.shown.attempt != attempt:
        return
    later = update(
        tables.invocations,
        record_key(invocation_id),
        "SET #held_at_ms = :look",
        "#holder = :paused AND #attempts = :attempts AND attribute_not_exists(#cancel_requested_at_ms)",
        look=look_at_ms,
        paused=PAUSED,
        attempts=record.item["attempts"],
    )
    try:
        await tables.client.write(later)
    except Refused:
        return  # it is not paused any more, or is to be cancelled


async def resume(
    tables: Tables, invocation_id: str, attempt: int, owner: str, now_ms: int, limits: Limits | None
) -> Claim:
    """Begin the next attempt of a paused invocation; with `limits`, if its next model call has room.

    Raises:
        Fenced, QuotaExceeded, ConcurrencyExceeded, BudgetExceeded: As the port says.
    """

    async def once() -> Record:
        record = await load(tables, invocation_id)
        if record is None or record.holder != PAUSED or record.shown.attempt != attempt:
            raise Fenced
        await _go_on(tables, record, owner, now_ms, limits)
        return record

    record = await decide(once)
    if now_ms - record.shown.created_at_ms >= _KEEP_LONGER_AFTER_MS:
        await keep_longer(tables, invocation_id, now_ms)
    body, all_turns = await load_input(tables, record), await turns(tables, invocation_id)
    return Claim(await reread(tables, invocation_id), body, all_turns)


async def _go_on(tables: Tables, record: Record, owner: str, now_ms: int, limits: Limits | None) -> None:
    shown = record.shown
    deadline_at_ms = shown.deadline_at_ms + max(0, now_ms - (shown.paused_at_ms or now_ms))
    change = Change(tables, record, now_ms)
    change.require(
        holder=PAUSED,
        attempts=record.item["attempts"],
        cancel_requested_at_ms=shown.cancel_requested_at_ms,
    )
    begin_next(tables, change, record, shown.attempts, owner, now_ms)
    change.set(
        deadline_at_ms=deadline_at_ms,
        paused_at_ms=None,
        resumes_at_ms=None,
        paused_turn=None,
        paused_tokens=None,
    )
    if limits is None:
        change.starts()
        await change.commit()
        return
    tokens, turn = record.paused_tokens, record.paused_turn
    check_budget(limits, used_tokens=record.committed_tokens, requested_tokens=tokens)
    expires_at_ms = deadline_at_ms + RESERVATION_GRACE_MS
    hold = Hold(shown.invocation_id, shown.attempt + 1, turn, shown.sub, tokens, expires_at_ms)
    change.hold(call_name(hold.attempt, turn), tokens)

    async def commit(account: Write) -> None:
        await tables.client.write_together([account, tables.accounts.reservation(hold), *change.writes()])

    await tables.accounts.hold(hold, limits, now_ms, commit, starts=True)
