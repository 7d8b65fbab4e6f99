"""Event logs in DynamoDB: append without conditions, read what attempts were granted.

`stores.dynamodb` calls these functions.

A batch of writes has no conditions, so the fence is in the keys: an attempt's blocks lie under its number,
and a reader takes of each attempt only what the record grants it. The record is read after the events, so
what a fenced-out process wrote is never taken for an attempt's that may still write. Nor can a block that
came late leave a gap: a reader goes on only with the event that follows.

    event:0001:000000040     the block whose last event is 1.40; it may overlap the one before (a retry that
                             has grown), whose events it repeats
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from service.events import START, Block, EventId
from service.invocations import Attempt
from service.stores import EventBlock
from service.stores.dynamodb_client import Item
from service.stores.dynamodb_items import (
    Record,
    event_items,
    event_sk,
    read_block,
    read_boundary,
    record_key,
)
from service.stores.dynamodb_records import Tables, load, read_blob

_PAGE: Final = 32
_PENS: Final = 100_000
_AFTER_ALL: Final = "event:~"


class Pens:
    """How far this process has written the logs of the attempts that it has begun.

    Nothing in the table would show that a block leaves a gap, and readers would wait for ever: a defect of
    the caller's is found here. It also knows what it has begun before an index does.
    """

    def __init__(self) -> None:
        self._ends: dict[str, EventId] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ends)

    def begin(self, invocation_id: str, attempt: int) -> None:
        """Note an attempt that this process runs now; one that it is known to run stays where it is."""
        if self._ends.get(invocation_id, EventId(0, 0)).attempt != attempt:
            self._ends[invocation_id] = EventId(attempt, 0)
        if len(self._ends) > _PENS:
            del self._ends[next(iter(self._ends))]

    def wrote(self, invocation_id: str, block: Block | None) -> None:
        """Note what has been stored."""
        end = self._ends.get(invocation_id)
        if end is not None and block is not None and block.events and end.attempt == block.attempt:
            self._ends[invocation_id] = max(end, block.last)

    def end(self, invocation_id: str, attempt: int) -> None:
        """Forget an attempt."""
        if self._ends.get(invocation_id, EventId(0, 0)).attempt == attempt:
            del self._ends[invocation_id]

    def check(
        self, invocation_id: str, attempt: int, block: Block | None, boundary: EventId | None = None
    ) -> None:
        """See to it that a block follows what is stored, and that a turn's boundary is stored with it.

        Raises:
            ValueError: They don't.
        """
        end = self._ends.get(invocation_id)
        if end is None or end.attempt != attempt:
            return
        if block is not None and block.events and block.attempt == attempt:
            if not 1 <= block.first_seq <= end.seq + 1:
                raise ValueError(f"{invocation_id}: a gap between {end} and {block.first_seq}")
            end = max(end, block.last)
        if boundary is not None and not (boundary.attempt == attempt and 1 <= boundary.seq <= end.seq):
            raise ValueError(f"{invocation_id}: {boundary} is not a stored event of this attempt")


async def append(tables: Tables, pens: Pens, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
    """Store blocks, each for itself; returns the invocations whose attempt may not write.

    Raises:
        ValueError: A block leaves a gap; nothing is stored then.
    """
    follows: dict[str, Block] = {}
    for entry in blocks:
        before = follows.get(entry.invocation_id)
        if before is None or before.last.seq + 1 != entry.block.first_seq:
            pens.check(entry.invocation_id, entry.block.attempt, entry.block)
        follows[entry.invocation_id] = entry.block
    for entry in blocks:
        pens.wrote(entry.invocation_id, entry.block)
    ttl = tables.content_ttl(now_ms)
    items = (item for entry in blocks for item in event_items(entry.invocation_id, entry.block, ttl))
    attempts = {entry.invocation_id: entry.block.attempt for entry in blocks}
    # Half the price of a consistent read; one that is not up to date is told at the next commit.
    reading = _others(tables, attempts, consistent=False)
    writing = tables.client.put_many(tables.invocations, items)
    # Both are over before this is: what was called unavailable must not be written after all.
    fenced, written = await asyncio.gather(reading, writing, return_exceptions=True)
    if isinstance(written, BaseException):
        raise written
    if isinstance(fenced, BaseException):
        raise fenced
    if fenced:  # such a read may also be from before the attempt began: it alone ends none
        fenced = await _others(tables, fenced, consistent=True)
    for each in fenced.items():
        tables.known.take(*each)
    return frozenset(fenced)


async def _others(tables: Tables, attempts: Mapping[str, int], *, consistent: bool) -> dict[str, int]:
    """Return those of these attempts that may not write, by invocation."""
    keys = list(map(record_key, attempts))
    asked = ("pk", "fence")
    records = await tables.client.get_many(tables.invocations, keys, consistent=consistent, only=asked)
    fences = {record["pk"]: record.get("fence") for record in records}
    return {name: attempt for name, attempt in attempts.items() if fences.get(name) != attempt}


async def read(tables: Tables, invocation_id: str, after: EventId, limit_bytes: int) -> list[Block]:
    """Return granted events after a cursor, whole items until `limit_bytes` are reached."""

    def enough(items: Sequence[Item]) -> bool:
        return sum(len(item.get("blob", b"")) for item in items) >= limit_bytes

    while True:
        items = await tables.client.query(
            tables.invocations,
            "#pk = :pk AND #sk BETWEEN :first AND :end",
            limit=_PAGE,
            enough=enough,
            pk=invocation_id,
            first=event_sk(EventId(after.attempt, after.seq + 1)),
            end=_AFTER_ALL,
        )
        items = await _whole(tables, items)
        record = await load(tables, invocation_id) if items else None
        if record is None:
            return []
        granted = {each.number: _grant(record, each) for each in record.shown.attempts}
        blocks = _granted(granted, items, after, limit_bytes)
        following = _next_attempt(after, after.attempt + 1, granted)
        if blocks or following == after or following.attempt not in granted:
            return blocks
        after = following  # all that was found is more than its attempt was granted


async def _whole(tables: Tables, items: Sequence[Item]) -> list[Item]:
    """Fetch the parts of items that are too large for one; ends before an item whose parts are not there."""
    whole: list[Item] = []
    for item in items:
        blob = await read_blob(tables, item)
        if blob is None:
            break
        whole.append(item | {"blob": blob})
    return whole


def _granted(
    granted: dict[int, EventId | None], items: Sequence[Item], after: EventId, limit_bytes: int
) -> list[Block]:
    """Take from each attempt what it was granted, and nothing after a gap."""
    blocks: list[Block] = []
    size_bytes = 0
    cursor = after
    for item in items:
        block = read_block(item)
        if block.attempt not in granted:
            break
        if block.attempt > cursor.attempt:
            cursor = _next_attempt(cursor, block.attempt, granted)
            if cursor.attempt != block.attempt:
                break
        last = granted[block.attempt]
        if last is not None:
            block = block._replace(events=block.events[: max(0, last.seq - block.first_seq + 1)])
        if block.first_seq > cursor.seq + 1 and block.events:
            break
        block = block.after(cursor)
        if block.events:
            blocks.append(block)
            cursor = block.last
            size_bytes += block.size_bytes
            if size_bytes >= limit_bytes:
                break
    return blocks


def _grant(record: Record, attempt: Attempt) -> EventId | None:
    """Return the last event that an attempt is granted; None: all that it stores.

    One that was handed over is granted what the claim to come will grant.
    """
    if attempt.last is not None or attempt.end is None:
        return attempt.last
    boundary = START if record.boundary is None else read_boundary(record.boundary)
    return boundary if boundary.attempt == attempt.number else EventId(attempt.number, 1)


def _next_attempt(cursor: EventId, attempt: int, granted: dict[int, EventId | None]) -> EventId:
    """Return where an attempt's log begins if the cursor has all that was granted before; else the cursor."""
    for number in range(max(1, cursor.attempt), attempt):
        last = granted.get(number)
        if last is None or (cursor.seq if number == cursor.attempt else 0) < last.seq:
            return cursor
    return EventId(attempt, 0)
