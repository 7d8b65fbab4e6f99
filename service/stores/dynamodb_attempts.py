"""Attempts in DynamoDB: what the one that runs writes, and how it ends.

`stores.dynamodb` calls these functions. The fence is the record's attribute `fence`: the number of the
attempt that may write, while one may. A decision that names its attempt asks in its transaction that it is
this one.
"""

from collections.abc import Sequence
from typing import Final

from service.config import Limits
from service.errors import Fenced
from service.events import Block, EventId
from service.invocations import Attempt, AttemptEnd, Invocation
from service.stores import Ending, HandOver, Hold, Settlement, Turn
from service.stores.dynamodb_client import Write, delete, put
from service.stores.dynamodb_items import (
    HANDED_OVER,
    Record,
    boundary_text,
    call_name,
    event_items,
    signals_pk,
    turn_sk,
)
from service.stores.dynamodb_ledger import Change, settle_alone
from service.stores.dynamodb_records import (
    Tables,
    content,
    decide,
    decide_as,
    load,
    load_ledger,
)
from service.stores.windows import check_budget

_NOT_LATER: Final = "attribute_not_exists(#pk) OR #boundary <= :boundary"


# ---------------------------------------------------------------- while it runs


async def reserve(tables: Tables, hold: Hold, limits: Limits, now_ms: int) -> None:
    """Hold tokens for a further turn; a hold that is there already stays as it is.

    Raises:
        Fenced, BudgetExceeded, QuotaExceeded: As the port says.
    """
    name = call_name(hold.attempt, hold.turn)

    async def once(record: Record | None) -> None:
        if record is None or record.fence != hold.attempt:
            raise Fenced
        if name in record.holds:
            return
        check_budget(limits, used_tokens=record.committed_tokens, requested_tokens=hold.tokens)
        change = Change(tables, record, now_ms)
        change.require(fence=hold.attempt)
        change.hold(name, hold.tokens)

        async def commit(account: Write) -> None:
            await tables.client.write_together([account, tables.accounts.reservation(hold), *change.writes()])

        await tables.accounts.hold(hold, limits, now_ms, commit, starts=False)
        tables.known.keep(change.left(), hold.attempt)

    async with tables.accounts.turn(hold.invocation_id):
        await decide_as(tables, hold.invocation_id, hold.attempt, once)


async def settle(tables: Tables, settlement: Settlement, now_ms: int, block: Block | None) -> bool:
    """Settle a call, and write its turn and events where its attempt may.

    Raises:
        Fenced: There was more to write than usage, and the attempt may not. The usage is settled.
    """
    more = settlement.messages is not None or block is not None
    turn = None
    if settlement.messages is not None and settlement.boundary is not None:
        turn = Turn(settlement.turn, settlement.messages, settlement.boundary)

    async def once() -> tuple[bool, bool]:
        record = await load_ledger(tables, settlement.invocation_id)
        if record is None:
            return await settle_alone(tables, settlement, now_ms), more
        change = Change(tables, record, now_ms)
        settled = change.settle(settlement)
        fenced = more and record.fence != settlement.attempt
        if more and not fenced:
            await _write_turn(tables, change, record, settlement.attempt, turn, block, now_ms)
        elif not settled:
            return False, fenced
        else:
            change.require(attempts=record.item["attempts"])  # charged or not: by the current attempt
        await change.commit()
        tables.known.keep(change.left(), settlement.attempt)
        return settled, fenced

    async with tables.accounts.turn(settlement.invocation_id):
        settled, fenced = await decide(once)
    if fenced:
        raise Fenced
    return settled


async def complete_turn(
    tables: Tables, invocation_id: str, attempt: int, turn: Turn, now_ms: int, block: Block | None
) -> None:
    """Write what a turn has added, over what it had added before.

    Raises:
        Fenced: The attempt may not write.
    """

    async def once() -> None:
        record = await load(tables, invocation_id)
        if record is None or record.fence != attempt:
            raise Fenced
        change = Change(tables, record, now_ms)
        await _write_turn(tables, change, record, attempt, turn, block, now_ms)
        await change.commit()
        tables.known.keep(change.left(), attempt)

    await decide(once)


async def _write_turn(
    tables: Tables,
    change: Change,
    record: Record,
    attempt: int,
    turn: Turn | None,
    block: Block | None,
    now_ms: int,
) -> None:
    """Add events and a turn to a change that only the attempt which may write can commit.

    The record has been read, not remembered: events are written before the transaction asks for the fence.
    """
    invocation_id = record.shown.invocation_id
    if block is not None and block.attempt != attempt:
        raise Fenced
    change.require(fence=attempt)
    if block is not None and block.events:
        # Before, at half the price: like all events they are fenced by their keys; the turn grants them.
        items = event_items(invocation_id, block, tables.content_ttl(now_ms))
        await tables.client.put_many(tables.invocations, items)
    if turn is None:
        return
    key = {"pk": invocation_id, "sk": turn_sk(turn.number)}
    boundary = boundary_text(turn.boundary)
    there = await tables.client.get(tables.invocations, key)
    if there is None or there["boundary"] <= boundary:
        written = await content(
            tables, key["pk"], key["sk"], turn.messages, now_ms, condition=_NOT_LATER, boundary=boundary
        )
        change.beside(written)
        change.boundary(turn.boundary)


def event_writes(tables: Tables, invocation_id: str, block: Block, now_ms: int) -> list[Write]:
    """Return the writes of a block, for a transaction."""
    items = event_items(invocation_id, block, tables.content_ttl(now_ms))
    return [put(tables.invocations, item) for item in items]


# ---------------------------------------------------------------- how it ends


async def finish(tables: Tables, ending: Ending, now_ms: int) -> None:
    """Store the last events, settle, and write the terminal state.

    Raises:
        Fenced: The attempt may not write, or another ending was committed.
    """

    async def once(record: Record | None) -> None:
        if record is None or record.shown.attempt != ending.attempt:
            raise Fenced
        shown = record.shown
        if shown.state.is_terminal:
            if (shown.state, shown.last, shown.terminal) != (
                ending.state,
                ending.block.last,
                ending.block.events[-1],
            ):
                raise Fenced
            return
        if record.fence != ending.attempt or ending.block.attempt != ending.attempt:
            raise Fenced
        change = closing(tables, record, ending.settlements, now_ms)
        change.attempts(closed(shown.attempts, AttemptEnd.FINISHED, ending.block.last))
        change.beside(*event_writes(tables, ending.invocation_id, ending.block, now_ms))
        gone_at_ms = now_ms + int(tables.retention_s * 1000)
        change.set(
            state=ending.state.value,
            terminal=ending.block.events[-1],
            finished_at_ms=now_ms,
            gone_at_ms=gone_at_ms,
            ttl=(gone_at_ms // 1000) + int(tables.ledger_s),
            fence=None,
            holder=None,
            held_at_ms=None,
            input=None,
            input_codec=None,
        )
        change.ends()
        await change.commit()

    await decide_as(tables, ending.invocation_id, ending.attempt, once)


async def hand_over(tables: Tables, given: HandOver, now_ms: int) -> None:
    """Leave an invocation to whoever claims it next.

    Raises:
        Fenced: The attempt may not write.
    """

    async def once(record: Record | None) -> None:
        if record is None:
            raise Fenced
        if record.fence != given.attempt:
            attempts = record.shown.attempts
            known = 0 < given.attempt <= len(attempts)
            if known and attempts[given.attempt - 1].end is AttemptEnd.HANDED_OVER:
                return
            raise Fenced
        change = Change(tables, record, now_ms)
        for settlement in given.settlements:
            change.settle(settlement)
        change.require(fence=given.attempt, cancel_requested_at_ms=record.shown.cancel_requested_at_ms)
        change.attempts(closed(record.shown.attempts, AttemptEnd.HANDED_OVER, None))
        change.set(fence=None, holder=HANDED_OVER)
        change.beside(*unsignal(tables, record))
        await change.commit()

    await decide_as(tables, given.invocation_id, given.attempt, once)


def closing(tables: Tables, record: Record, settlements: Sequence[Settlement], now_ms: int) -> Change:
    """Begin the change by which an attempt that may write leaves: everything settled, no hold left."""
    change = Change(tables, record, now_ms)
    for settlement in settlements:
        change.settle(settlement)
    change.settle_open_holds(charged=True)
    change.require(
        fence=record.shown.attempt,
        holds=record.holds,
        cancel_requested_at_ms=record.shown.cancel_requested_at_ms,
    )
    change.beside(*unsignal(tables, record))
    return change


def closed(attempts: tuple[Attempt, ...], end: AttemptEnd, last: EventId | None) -> tuple[Attempt, ...]:
    """Close the last attempt; why it ended stays what was noted first."""
    *before, current = attempts
    return (*before, current._replace(last=last, end=current.end or end))


def unsignal(tables: Tables, record: Record) -> list[Write]:
    """Return the write that takes back what the owner was told."""
    if record.shown.cancel_requested_at_ms is None or record.fence is None or record.holder is None:
        return []
    key = {"pk": signals_pk(record.holder), "sk": record.shown.invocation_id}
    return [delete(tables.invocations, key)]


def signal(tables: Tables, owner: str, invocation_id: str, now_ms: int) -> Write:
    """Return the write that tells an owner to cancel."""
    ttl = tables.content_ttl(now_ms)
    return put(tables.invocations, {"pk": signals_pk(owner), "sk": invocation_id, "ttl": ttl})


async def reread(tables: Tables, invocation_id: str) -> Invocation:
    """Return a record that was there a moment ago."""
    record = await load(tables, invocation_id)
    if record is None:
        raise Fenced
    return record.shown
