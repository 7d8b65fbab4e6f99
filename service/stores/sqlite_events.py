"""Event logs in SQLite: append blocks behind the fence, read what attempts were granted.

`stores.sqlite` calls these functions inside a transaction of the store thread. A block becomes one row, or
several where it is over `ROW_LIMIT_BYTES`; a row of a page or more is compressed where that is smaller.
"""

import sqlite3
from typing import Final

from service.events import Block, EventId
from service.stores.packing import pack, unpack
from service.stores.sqlite_attempts import MAY_WRITE, fence

# DynamoDB's items end at 400 KB; the same pieces everywhere keep reads of a log bounded.
ROW_LIMIT_BYTES: Final = 300 * 1024
_COMPRESS_FROM_BYTES: Final = 4096

_ADVANCE: Final = f"""
    UPDATE invocations SET stored_seq = ?, updated_at_ms = ?
    WHERE invocation_id = ? AND attempt = ? AND stored_seq = ? AND {MAY_WRITE}
"""  # noqa: S608 - the part is a constant
_READ: Final = """
    SELECT e.attempt, e.first_seq, e.codec, e.blob, a.granted_seq
    FROM events AS e JOIN attempts AS a ON a.invocation_id = e.invocation_id AND a.number = e.attempt
    WHERE e.invocation_id = ? AND (e.attempt, e.last_seq) > (?, ?)
        AND (a.granted_seq IS NULL OR e.first_seq <= a.granted_seq)
    ORDER BY e.attempt, e.last_seq
"""


def append(db: sqlite3.Connection, invocation_id: str, block: Block, now_ms: int) -> bool:
    """Store a block that follows what its attempt has stored; events that are stored already are ignored.

    Returns:
        False if the attempt may not write: nothing was stored.

    Raises:
        ValueError: The block leaves a gap, or gives an id to a second event.
    """
    if block.events and _advance(db, invocation_id, block, now_ms):
        insert(db, invocation_id, block)
        return True
    barrier = fence(db, invocation_id)
    if barrier is None or not barrier.admits(block.attempt):
        return False
    if not block.events:
        return True
    if block.first_seq > barrier.stored_seq + 1:
        raise ValueError(
            f"{invocation_id}: a gap between {barrier.attempt}.{barrier.stored_seq} and {block.first_seq}"
        )
    _check_same(db, invocation_id, block, barrier.stored_seq)
    rest = block.after(EventId(block.attempt, barrier.stored_seq))
    if rest.events:
        _advance(db, invocation_id, rest, now_ms)
        insert(db, invocation_id, rest)
    return True


def _advance(db: sqlite3.Connection, invocation_id: str, block: Block, now_ms: int) -> bool:
    """Move the attempt's end past a block, if the attempt may write and the block begins right there."""
    place = (block.last.seq, now_ms, invocation_id, block.attempt, block.first_seq - 1)
    return db.execute(_ADVANCE, place).rowcount == 1


def insert(db: sqlite3.Connection, invocation_id: str, block: Block) -> None:
    """Write the rows of a block, whoever its attempt is; `append` asks the fence first."""
    for piece, codec, blob in pack(block, ROW_LIMIT_BYTES, _COMPRESS_FROM_BYTES):
        db.execute(
            "INSERT INTO events (invocation_id, attempt, first_seq, last_seq, codec, blob)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (invocation_id, piece.attempt, piece.first_seq, piece.last.seq, codec, blob),
        )


def _check_same(db: sqlite3.Connection, invocation_id: str, block: Block, stored_seq: int) -> None:
    again = block.events[: stored_seq - block.first_seq + 1]
    rows = db.execute(
        "SELECT first_seq, codec, blob FROM events WHERE invocation_id = ? AND attempt = ? AND last_seq >= ?"
        " ORDER BY last_seq",
        (invocation_id, block.attempt, block.first_seq),
    )
    stored = [
        event
        for first_seq, codec, blob in rows
        for seq, event in enumerate(unpack(codec, blob), first_seq)
        if seq >= block.first_seq
    ]
    if tuple(stored[: len(again)]) != again:
        raise ValueError(
            f"{invocation_id}: other events are stored from {block.attempt}.{block.first_seq} on"
        )


def read(db: sqlite3.Connection, invocation_id: str, after: EventId, limit_bytes: int) -> list[Block]:
    """Return granted events after a cursor, whole rows until `limit_bytes` are reached."""
    blocks: list[Block] = []
    size_bytes = 0
    for attempt, first_seq, codec, blob, granted_seq in db.execute(_READ, (invocation_id, *after)):
        events = unpack(codec, blob)
        if granted_seq is not None:
            events = events[: granted_seq - first_seq + 1]
        block = Block(attempt, first_seq, events).after(after)
        if block.events:
            blocks.append(block)
            size_bytes += sum(map(len, block.events))
            if size_bytes >= limit_bytes:
                break
    return blocks
