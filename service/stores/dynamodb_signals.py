"""What others tell the owner of an invocation, in DynamoDB: cancel it, and somebody reads it.

`stores.dynamodb` calls these functions. Owners poll often and find nothing: what is to be cancelled lies in a
partition of its owner's, empty as a rule, and moves with the invocation when another process takes it over.

Invariants: the first request to cancel stands, whoever runs the invocation by now; `read_at_ms` never goes
back; an invocation that has ended changes no more.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from service.invocations import Invocation
from service.stores.dynamodb_attempts import reread, signal
from service.stores.dynamodb_client import Refused, update
from service.stores.dynamodb_items import HANDED_OVER, PAUSED, record_key, signals_pk
from service.stores.dynamodb_ledger import Change
from service.stores.dynamodb_records import Tables, decide, load, load_many
from service.stores.dynamodb_takeover import FOR_EVER_MS, held

_AT_ONCE: Final = 32


async def request_cancel(tables: Tables, invocation_id: str, now_ms: int) -> Invocation | None:
    """Ask for the end of an invocation; of a paused one whoever looks for paused ones hears at once."""

    async def once() -> Invocation | None:
        record = await load(tables, invocation_id)
        if record is None:
            return None
        shown = record.shown
        if shown.state.is_terminal or shown.cancel_requested_at_ms is not None:
            return shown
        change = Change(tables, record, now_ms)
        change.set(cancel_requested_at_ms=now_ms)
        change.require(holder=record.holder, cancel_requested_at_ms=None)
        if record.holder == PAUSED:
            change.set(held_at_ms=0)
        elif record.holder is not None and record.holder != HANDED_OVER:
            change.beside(signal(tables, record.holder, invocation_id, now_ms))
        await change.commit()
        return await reread(tables, invocation_id)

    return await decide(once)


async def cancel_requests(tables: Tables, owner: str) -> frozenset[str]:
    """Return the owner's invocations that are to be cancelled."""
    signals = await tables.client.query(tables.invocations, "#pk = :pk", pk=signals_pk(owner))
    records = await load_many(tables, [each["sk"] for each in signals])
    return frozenset(
        name for name, record in records.items() if record.holder == owner and record.fence is not None
    )


async def note_read(tables: Tables, invocation_ids: Collection[str], now_ms: int) -> None:
    """Write that these have a reader now; one after the other, many at once."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def note(invocation_id: str) -> None:
        noted = update(
            tables.invocations,
            record_key(invocation_id),
            "SET #read_at_ms = :now",
            "attribute_exists(#holder) AND (attribute_not_exists(#read_at_ms) OR #read_at_ms < :now)",
            now=now_ms,
        )
        async with free:
            with suppress(Refused):
                await tables.client.write(noted)

    await asyncio.gather(*map(note, invocation_ids))


async def unread(tables: Tables, owner: str, since_ms: int) -> frozenset[str]:
    """Return the owner's invocations whose last reader was there at `since_ms` or before."""
    keys = await held(tables, owner, FOR_EVER_MS)
    records = await load_many(tables, [key["pk"] for key in keys])
    return frozenset(
        name
        for name, record in records.items()
        if record.holder == owner and record.read_at_ms is not None and record.read_at_ms <= since_ms
    )
