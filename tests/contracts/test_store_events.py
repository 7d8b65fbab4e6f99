"""The store's port, over every implementation: logs are appended once and read from every cursor."""

import asyncio
from hashlib import sha256

import pytest

from service.events import START, Block, EventId, started
from service.stores import EventBlock, Store
from tests.contracts.store_cases import (
    COMPLETED,
    LIMITS,
    NOW,
    ROOMY,
    block,
    delta,
    ending,
    entry,
    new,
    running,
    settlement,
)

ALL_BYTES = 10**9


async def read(store: Store, after: EventId = START, limit_bytes: int = ALL_BYTES) -> list[bytes]:
    """Return the events after a cursor; within an attempt their ids must follow each other without a gap."""
    seen: list[bytes] = []
    last = after
    for piece in await store.read_events("inv_1", after, limit_bytes=limit_bytes):
        assert piece.events
        assert (piece.attempt, piece.first_seq) > last
        if piece.attempt == last.attempt and last != after:
            assert piece.first_seq == last.seq + 1
        last = piece.last
        seen += piece.events
    return seen


async def two_attempts(store: Store) -> list[tuple[EventId, bytes]]:
    """Store a log of two attempts and return it: 1.1 to 1.4 (of nine that are stored), then 2.1 to 2.3."""
    await store.create_invocation(new(), ROOMY, NOW)
    await store.append_events([entry(1, 2)], NOW)
    await store.settle(settlement(messages=b"[1]", boundary=EventId(1, 4)), NOW, block(3, 6))
    await store.append_events([entry(7, 9)], NOW)
    await store.claim_expired("owner-2", NOW, limit=1)
    await store.append_events([entry(1, 2, attempt=2)], NOW)
    await store.finish(ending(1, 3, attempt=2), NOW)
    first = [(EventId(1, seq), delta(seq)) for seq in range(1, 5)]
    second = [(EventId(2, seq), delta(seq, attempt=2)) for seq in (1, 2)]
    return [*first, *second, (EventId(2, 3), COMPLETED)]


# ------------------------------------------------------------ reading


async def test_every_cursor_gets_exactly_what_follows_it(store: Store) -> None:
    log = await two_attempts(store)

    for cursor in [START, *(event_id for event_id, _ in log)]:
        assert await read(store, cursor) == [event for event_id, event in log if event_id > cursor]


@pytest.mark.parametrize("cursor", [EventId(1, 5), EventId(1, 6), EventId(1, 9), EventId(1, 999_999_999)])
async def test_a_cursor_beyond_an_older_attempts_grant_gets_the_next_attempt(
    store: Store, cursor: EventId
) -> None:
    await two_attempts(store)

    assert await read(store, cursor) == [delta(1, attempt=2), delta(2, attempt=2), COMPLETED]


@pytest.mark.parametrize("cursor", [EventId(2, 3), EventId(2, 4), EventId(3, 1), EventId(999_999_999, 1)])
async def test_there_is_nothing_after_the_end(store: Store, cursor: EventId) -> None:
    await two_attempts(store)

    assert await store.read_events("inv_1", cursor, limit_bytes=ALL_BYTES) == []


async def test_an_unknown_invocation_has_no_events(store: Store) -> None:
    assert await store.read_events("inv_1", START, limit_bytes=ALL_BYTES) == []


async def test_a_limit_cuts_between_blocks_and_gives_at_least_one(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    for seq in range(1, 10, 3):
        await store.append_events([entry(seq, seq + 2)], NOW)
    size_bytes = sum(map(len, block(1, 3).events))

    pages = [
        await store.read_events("inv_1", START, limit_bytes=limit_bytes)
        for limit_bytes in (1, size_bytes, size_bytes + 1, ALL_BYTES)
    ]

    first, second, third = block(1, 3), block(4, 6), block(7, 9)
    assert pages == [[first], [first], [first, second], [first, second, third]]
    assert await store.read_events("inv_1", EventId(1, 2), limit_bytes=1) == [block(3, 3)]


async def test_pages_of_any_size_make_up_the_whole_log(store: Store) -> None:
    log = await two_attempts(store)

    for limit_bytes in (1, 60, 150, ALL_BYTES):
        seen: list[bytes] = []
        cursor = START
        while blocks := await store.read_events("inv_1", cursor, limit_bytes=limit_bytes):
            seen += [event for piece in blocks for event in piece.events]
            cursor = blocks[-1].last
        assert seen == [event for _, event in log]


async def test_events_of_any_size_come_back_as_they_were(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    noise = b"".join(sha256(b"%d" % n).digest() for n in range(300)).replace(b"\n", b"")  # does not compress
    events = (
        noise,
        b"{}",
        b"x" * 4_095,
        bytes(range(14, 256)) * 20,
        b"y" * 400_000,
        "z\u2028é".encode(),
        b"w" * 299_000,
    )
    await store.append_events([EventBlock("inv_1", Block(1, 1, events * 3))], NOW)

    assert await read(store) == list(events * 3)
    assert await read(store, EventId(1, 4)) == list((events * 3)[4:])


# ------------------------------------------------------------ appending


async def test_blocks_of_several_invocations_are_stored_together(store: Store) -> None:
    await store.create_invocation(new(1), LIMITS, NOW)
    await store.create_invocation(new(2), LIMITS, NOW)

    fenced = await store.append_events([entry(1, 2), entry(1, 3, 2), entry(3, 4), entry(1, 1, 9)], NOW + 5)

    assert fenced == {"inv_9"}
    assert await store.read_events("inv_1", START, limit_bytes=ALL_BYTES) == [block(1, 2), block(3, 4)]
    assert await store.read_events("inv_2", START, limit_bytes=ALL_BYTES) == [block(1, 3)]


async def test_a_block_that_is_sent_again_is_stored_once(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    for _ in range(2):
        assert await store.append_events([entry(1, 2), entry(3, 5)], NOW) == frozenset()

    assert await store.append_events([entry(1, 2)], NOW) == frozenset()

    assert await store.read_events("inv_1", START, limit_bytes=ALL_BYTES) == [block(1, 2), block(3, 5)]


async def test_a_block_that_is_sent_again_with_more_behind_it_adds_what_is_new(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.append_events([entry(1, 2), entry(3, 5)], NOW)

    # As the log does after an append whose answer was lost: it comes back with what was queued meanwhile.
    assert await store.append_events([entry(3, 7)], NOW) == frozenset()

    assert await store.read_events("inv_1", START, limit_bytes=ALL_BYTES) == [
        block(1, 2),
        block(3, 5),
        block(6, 7),
    ]


async def test_a_gap_is_a_fault_and_stores_nothing(store: Store) -> None:
    await store.create_invocation(new(1), LIMITS, NOW)
    await store.create_invocation(new(2), LIMITS, NOW)
    await store.append_events([entry(1, 3)], NOW)
    before_all = Block(1, 0, (b"{}",))

    for wrong in (EventBlock("inv_1", before_all), entry(5, 6)):
        with pytest.raises(ValueError, match="inv_1"):
            await store.append_events([entry(1, 1, 2), wrong], NOW)

    assert await read(store) == list(block(1, 3).events)
    assert await store.load_invocation("inv_2") == running(2)


async def test_an_empty_block_stores_nothing(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    fenced = await store.append_events(
        [EventBlock("inv_1", Block(1, 1, ())), EventBlock("inv_2", Block(1, 1, ()))], NOW + 5
    )

    assert fenced == {"inv_2"}
    assert await store.load_invocation("inv_1") == running()


async def test_nothing_follows_the_terminal_event(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.append_events([entry(1, 2)], NOW)
    await store.finish(ending(1, 3), NOW)

    for late in (entry(4, 4), entry(1, 2)):
        assert await store.append_events([late], NOW) == {"inv_1"}

    assert await read(store) == [delta(1), delta(2), COMPLETED]


async def test_a_dead_attempt_can_not_write_where_the_next_one_begins(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.claim_expired("owner-2", NOW, limit=1)

    assert await store.append_events([entry(1, 2)], NOW) == {"inv_1"}
    assert await store.append_events([entry(1, 2, attempt=2)], NOW) == frozenset()

    assert await read(store) == [started("inv_1", "writer"), delta(1, attempt=2), delta(2, attempt=2)]


async def test_a_group_is_stored_whole_beside_others_that_run_at_once(store: Store) -> None:
    for number in range(10):
        await store.create_invocation(new(number), ROOMY, NOW)

    groups = [[entry(seq, seq, number) for number in range(10)] for seq in range(1, 21)]
    fenced = await asyncio.gather(*(store.append_events(group, NOW) for group in groups))

    assert set(fenced) == {frozenset()}
    for number in range(10):
        blocks = await store.read_events(f"inv_{number}", START, limit_bytes=ALL_BYTES)
        assert [event for piece in blocks for event in piece.events] == list(block(1, 20).events)
