"""Takeover in DynamoDB: whose lease has expired, and how the next attempt begins.

`stores.dynamodb` and `dynamodb_pauses` call these functions. All leases lie in one partition, and the index
`held` has who holds what, so a look at what is left costs two small queries while there is nothing. The index
lags, the record decides: expiry ends nothing, a claim does, by moving the fence.

Invariant: of a closed attempt the grant ends where the turns do that a takeover goes on from. A claim reads
the turns before it commits, and asks that the record's `boundary` is still the same.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from service.errors import StoreUnavailable
from service.events import START, Block, EventId, started
from service.invocations import Attempt, AttemptEnd
from service.stores import ORPHAN_AGE_S, Claim, Turn
from service.stores.dynamodb_attempts import closed, event_writes, reread, signal, unsignal
from service.stores.dynamodb_client import BATCH_READS, Item, Refused, check, delete
from service.stores.dynamodb_items import (
    HANDED_OVER,
    LEASES,
    Record,
    event_sk,
    lease_key,
    read_turn,
)
from service.stores.dynamodb_ledger import Change
from service.stores.dynamodb_records import Tables, load_input, load_many, read_content
from service.stores.dynamodb_tables import HELD_INDEX

logger = logging.getLogger(__name__)

FOR_EVER_MS: Final = 10**15
# Much longer than the index `held` may lag behind the records; every look asks what each of them still holds.
_LEASES_STAY_MS: Final = 3_600_000


async def claim_expired(
    tables: Tables,
    owner: str,
    now_ms: int,
    limit: int,
    running: Collection[str] | None,
    runtimes: Collection[str] | None,
) -> list[Claim]:
    """Take over invocations that nobody runs any more, oldest first."""
    leases = await tables.client.query(tables.invocations, "#pk = :pk", pk=LEASES)
    expired = {lease["sk"] for lease in leases if lease["expires_at_ms"] <= now_ms} - {owner}
    keys: list[Item] = []
    for holder in (HANDED_OVER, *sorted(expired)):
        keys += await held(tables, holder, FOR_EVER_MS)  # a clock ahead of ours may have begun it
    if running is not None:
        own = await held(tables, owner, now_ms - ORPHAN_AGE_S * 1000)
        keys += [key for key in own if key["pk"] not in running]
    keys.sort(key=lambda key: (key["held_at_ms"], key["pk"]))
    claims: list[Claim] = []
    try:
        for begin in range(0, len(keys), BATCH_READS):
            some = keys[begin : begin + BATCH_READS]
            records = await load_many(tables, [key["pk"] for key in some])
            for key in some:
                record = records.get(key["pk"])
                if record is None or not _claimable(record, key["holder"], owner, now_ms, runtimes):
                    continue
                claims += await _claimed(tables, record, owner, now_ms)
                if len(claims) == limit:
                    return claims
    except StoreUnavailable:
        if not claims:
            raise  # else these are ours already, and must run: the rest is looked at again
    return claims


async def _claimed(tables: Tables, record: Record, owner: str, now_ms: int) -> list[Claim]:
    """Claim an invocation; [] if that can't be."""
    try:
        return [await _take_over(tables, record, owner, now_ms)]
    except Refused:  # others were quicker, or it is changing: it is looked at again
        return []
    except StoreUnavailable:
        raise
    except Exception:  # the edge of one invocation: all others must go on, whatever is wrong with this one
        logger.exception("can't be taken over", extra={"invocation_id": record.shown.invocation_id})
        return []


def _claimable(
    record: Record, holder: str, owner: str, now_ms: int, runtimes: Collection[str] | None
) -> bool:
    """Tell whether a record, which the index may lag behind, is still held so, and is `owner`'s to claim."""
    shown = record.shown
    if record.holder != holder or shown.state.is_terminal:
        return False
    if holder == owner and shown.attempts[-1].started_at_ms > now_ms - ORPHAN_AGE_S * 1000:
        return False
    return runtimes is None or shown.runtime_id in runtimes or shown.deadline_at_ms <= now_ms


async def held(tables: Tables, holder: str, until_ms: int, *, limit: int | None = None) -> list[Item]:
    """Return the keys of what a holder holds, oldest first; eventually consistent."""
    return await tables.client.query(
        tables.invocations,
        "#holder = :holder AND #held_at_ms <= :until",
        index=HELD_INDEX,
        limit=limit,
        holder=holder,
        until=until_ms,
    )


async def _take_over(tables: Tables, record: Record, owner: str, now_ms: int) -> Claim:
    """Claim an invocation, as its record was read.

    Raises:
        Refused: It is not so any more.
    """
    shown, holder = record.shown, record.holder
    invocation_id = shown.invocation_id
    all_turns = await turns(tables, invocation_id)
    change = Change(tables, record, now_ms)
    change.settle_open_holds(charged=False)
    change.require(
        holder=holder,
        attempts=record.item["attempts"],
        boundary=record.boundary,
        holds=record.holds,
        cancel_requested_at_ms=shown.cancel_requested_at_ms,
    )
    if holder is not None and holder not in (HANDED_OVER, owner):
        change.beside(
            check(
                tables.invocations,
                lease_key(holder),
                "attribute_not_exists(#pk) OR #expires_at_ms <= :now",
                now=now_ms,
            )
        )
    last = await _granted(tables, change, record, all_turns, now_ms)
    begin_next(tables, change, record, closed(shown.attempts, AttemptEnd.LOST, last), owner, now_ms)
    body = await load_input(tables, record)
    await change.commit()
    tables.known.forget(invocation_id)
    return Claim(await reread(tables, invocation_id), body, all_turns)


def begin_next(
    tables: Tables,
    change: Change,
    record: Record,
    before: tuple[Attempt, ...],
    owner: str,
    now_ms: int,
) -> None:
    """Let `owner` run the next attempt; who asked for its end is heard by it."""
    number = len(before) + 1
    change.attempts((*before, Attempt(number, now_ms)))
    change.set(state="running", fence=number, holder=owner, held_at_ms=now_ms)
    # Of its own orphan an owner has the signal already, and an item can't be deleted and written at once.
    if record.shown.cancel_requested_at_ms is not None and record.holder != owner:
        change.beside(*unsignal(tables, record), signal(tables, owner, record.shown.invocation_id, now_ms))


async def _granted(
    tables: Tables, change: Change, record: Record, all_turns: Sequence[Turn], now_ms: int
) -> EventId:
    """Return where a closed attempt's log ends: with the last turn that it wrote, else at its first event.

    The first event of all is written in its writer's place: readers may have had it.
    """
    number = record.shown.attempt
    boundary = max((turn.boundary for turn in all_turns), default=START)
    if boundary.attempt == number:
        return boundary
    stored = await tables.client.query(
        tables.invocations,
        "#pk = :pk AND #sk BETWEEN :first AND :end",
        limit=1,
        pk=record.shown.invocation_id,
        first=event_sk(EventId(number, 1)),
        end=event_sk(EventId(number, 999_999_999)),
    )
    if not stored and number == 1:
        first = Block(
            1, 1, (started(record.shown.invocation_id, record.shown.runtime_id, record.shown.models),)
        )
        change.beside(*event_writes(tables, record.shown.invocation_id, first, now_ms))
        return first.last
    return EventId(number, 1 if stored and stored[0]["first_seq"] == 1 else 0)


async def turns(tables: Tables, invocation_id: str) -> tuple[Turn, ...]:
    """Return what the turns have added, in order."""
    items = await tables.client.query(
        tables.invocations, "#pk = :pk AND begins_with(#sk, :turn)", pk=invocation_id, turn="turn:"
    )
    return tuple([read_turn(item, await read_content(tables, item)) for item in items])


async def owned(tables: Tables, owner: str, begun: Iterable[str]) -> Mapping[str, int]:
    """Return the current attempt of each invocation that an owner runs.

    `begun` are those that this process knows of: the index may lag behind them.
    """
    keys = await held(tables, owner, FOR_EVER_MS)
    records = await load_many(tables, sorted({key["pk"] for key in keys} | set(begun)))
    return {name: record.fence for name, record in records.items() if _runs(record, owner) and record.fence}


def _runs(record: Record, owner: str) -> bool:
    return record.fence is not None and record.holder == owner


async def purge_leases(tables: Tables, now_ms: int) -> None:
    """Delete leases that expired long ago and under which nothing is held any more."""
    leases = await tables.client.query(tables.invocations, "#pk = :pk", pk=LEASES)
    for lease in leases:
        owner, expires_at_ms = lease["sk"], lease["expires_at_ms"]
        if expires_at_ms > now_ms - _LEASES_STAY_MS or await held(tables, owner, FOR_EVER_MS, limit=1):
            continue
        same = "#expires_at_ms = :seen"
        with suppress(Refused):  # it was renewed
            await tables.client.write(delete(tables.invocations, lease_key(owner), same, seen=expires_at_ms))
