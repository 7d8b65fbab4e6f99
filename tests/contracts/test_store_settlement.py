"""The store's port, over every implementation: usage is settled once, whatever happens to its turn."""

import asyncio

import pytest

from service.errors import Fenced
from service.events import START, EventId
from service.invocations import Usage
from service.stores import Claim, HandOver, Store, Turn
from tests.contracts.store_cases import (
    HOUR_MS,
    LIMITS,
    NOW,
    ROOMY,
    after_finish,
    block,
    ending,
    entry,
    hold,
    new,
    settlement,
    turn,
)

USAGE = Usage(30, 20, 5, 10)
HALF = settlement(1, 1, USAGE, messages=b"[1]", boundary=EventId(1, 2))
"""What the model said in turn 1; its tools are still to be run."""


async def counted(store: Store, now_ms: int = NOW) -> tuple[int, int, int]:
    """Return what user-1 used this day and this month, and holds."""
    account = await store.account("user-1", now_ms)
    day, month = account.windows
    return day.used_tokens, month.used_tokens, account.reserved_tokens


async def usage(store: Store) -> Usage:
    record = await store.load_invocation("inv_1")
    assert record is not None
    return record.usage


async def claim(store: Store, owner: str = "owner-2") -> Claim:
    (claimed,) = await store.claim_expired(owner, NOW, limit=1)
    return claimed


@pytest.mark.promise("settle-exactly-once")
async def test_a_settlement_replaces_the_hold_by_the_usage(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)

    assert await store.settle(settlement(1, 1, USAGE), NOW) is True

    assert await counted(store) == (60, 60, 0)
    assert await usage(store) == USAGE


@pytest.mark.promise("settle-exactly-once")
async def test_the_first_settlement_of_a_turn_stands_also_against_other_values(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)
    await store.settle(settlement(1, 1, USAGE), NOW)

    repeated = await store.settle(settlement(1, 1, USAGE), NOW + 1)
    other = await store.settle(settlement(1, 1, Usage(1, 1, 1, 1, True)), NOW + 2)

    assert (repeated, other) == (False, False)
    assert await counted(store) == (60, 60, 0)
    assert await usage(store) == USAGE


@pytest.mark.promise("settle-exactly-once")
async def test_of_many_settlements_at_once_one_counts(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)

    settled = await asyncio.gather(*(store.settle(settlement(1, 1, USAGE), NOW) for _ in range(20)))

    assert sorted(settled) == [False] * 19 + [True]
    assert await counted(store) == (60, 60, 0)


@pytest.mark.promise("settle-exactly-once")
async def test_an_ending_does_not_settle_again_what_was_settled(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)
    await store.settle(settlement(1, 1, USAGE), NOW)

    ended = await after_finish(store, ending(1, 1, settlement(1, 1, Usage(400, 0))), NOW)
    late = await store.settle(settlement(1, 1, Usage(400, 0)), NOW)

    assert (ended.usage, late) == (USAGE, False)
    assert await counted(store) == (60, 60, 0)


@pytest.mark.promise("settle-exactly-once")
@pytest.mark.parametrize("survivor_first", [True, False], ids=["claim", "hand-over"])
async def test_a_dead_attempts_turn_is_settled_once_and_not_charged_whoever_is_first(
    store: Store, survivor_first: bool
) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)
    if not survivor_first:
        await store.hand_over(HandOver("inv_1", 1, (settlement(1, 1, USAGE, charged=False),)), NOW)
    await claim(store)  # settles what is held

    late = await store.settle(settlement(1, 1, USAGE), NOW)

    assert late is False
    assert await counted(store) == (0, 0, 0)
    assert await usage(store) == Usage()


async def test_usage_adds_up_over_turns_and_one_estimate_marks_the_sum(store: Store) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.reserve(hold(1, 2), LIMITS, NOW)

    await store.settle(settlement(1, 1, Usage(1, 2, 3, 4)), NOW)
    exact = await usage(store)
    await store.settle(settlement(1, 2, Usage(10, 20, 30, 40, True)), NOW)

    assert (exact, await usage(store)) == (Usage(1, 2, 3, 4), Usage(11, 22, 33, 44, True))


async def test_usage_is_counted_at_the_time_of_its_settlement(store: Store) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)

    await store.settle(settlement(1, 1, USAGE), NOW + HOUR_MS)

    daily = (await store.account("user-1", NOW + HOUR_MS)).windows[0]
    assert daily.resets_at_ms == NOW + HOUR_MS + 600_000 + 24 * HOUR_MS


async def test_what_was_spent_without_a_hold_or_a_record_is_settled_too(store: Store) -> None:
    assert await store.settle(settlement(7, 3, USAGE), NOW) is True

    assert await counted(store) == (60, 60, 0)


# ------------------------------------------------------------ turns


async def test_what_the_model_said_is_stored_with_its_usage_and_its_events_in_one_decision(
    store: Store,
) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.append_events([entry(1, 2)], NOW)
    done = settlement(1, 1, USAGE, messages=b"[1]", boundary=EventId(1, 5))

    settled = await store.settle(done, NOW, block(3, 5))

    assert settled is True
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [block(1, 2), block(3, 5)]
    assert (await claim(store)).turns == (Turn(1, b"[1]", EventId(1, 5)),)


async def test_a_turn_whose_usage_was_settled_before_can_still_be_stored(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(settlement(1, 1, USAGE), NOW, block(1, 3))
    done = settlement(1, 1, USAGE, messages=b"[1]", boundary=EventId(1, 4))

    again = [await store.settle(done, NOW, block(4, 4)) for _ in range(2)]

    assert again == [False, False]
    assert (await claim(store)).turns == (Turn(1, b"[1]", EventId(1, 4)),)
    assert await counted(store) == (60, 60, 0)


async def test_a_turn_is_completed_in_place_of_what_the_model_said_with_its_events(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(HALF, NOW, block(1, 2))
    await store.append_events([entry(3, 3)], NOW)

    for _ in range(2):
        await store.complete_turn("inv_1", 1, turn(1, b"[1,2]", 1, 5), NOW + 9, block(4, 5))

    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [
        block(1, 2),
        block(3, 3),
        block(4, 5),
    ]
    assert (await claim(store)).turns == (turn(1, b"[1,2]", 1, 5),)
    assert await counted(store) == (60, 60, 0)


async def test_a_turn_is_completed_without_events_if_they_are_stored(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(HALF, NOW, block(1, 2))
    await store.append_events([entry(3, 4)], NOW)

    await store.complete_turn("inv_1", 1, turn(1, b"[1,2]", 1, 4), NOW)

    assert (await claim(store)).turns == (turn(1, b"[1,2]", 1, 4),)


async def test_of_two_writes_of_a_turn_the_one_with_the_later_boundary_stays(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(HALF, NOW, block(1, 2))
    await store.complete_turn("inv_1", 1, turn(1, b"[1,2]", 1, 4), NOW, block(3, 4))

    await store.settle(HALF, NOW, block(1, 2))
    await store.complete_turn("inv_1", 1, turn(1, b"[1,3]", 1, 3), NOW)

    assert (await claim(store)).turns == (turn(1, b"[1,2]", 1, 4),)


async def test_a_later_attempt_completes_the_turn_that_an_earlier_one_settled(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(HALF, NOW, block(1, 2))
    half = await claim(store)

    await store.complete_turn("inv_1", 2, turn(1, b"[1,2]", 2, 1), NOW, block(1, 1, attempt=2))

    assert half.turns == (turn(1, b"[1]", 1, 2),)
    assert (await claim(store, "owner-3")).turns == (turn(1, b"[1,2]", 2, 1),)


async def test_turns_of_several_attempts_are_handed_over_in_order(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    first = settlement(1, 1, USAGE, messages=b"[1]", boundary=EventId(1, 1))
    await store.settle(first, NOW, block(1, 1))
    await claim(store)
    second = settlement(1, 2, USAGE, attempt=2, messages=b"[2]", boundary=EventId(2, 2))
    await store.settle(second, NOW, block(1, 2, attempt=2))

    claimed = await claim(store, "owner-3")

    assert claimed.turns == (Turn(1, b"[1]", EventId(1, 1)), Turn(2, b"[2]", EventId(2, 2)))


async def test_a_turn_is_not_stored_before_its_events_are(store: Store) -> None:
    await store.create_invocation(new(tokens=100), ROOMY, NOW)
    await store.append_events([entry(1, 2)], NOW)

    for boundary in (EventId(1, 4), EventId(2, 1), EventId(1, 0)):
        with pytest.raises(ValueError, match="not a stored event"):
            await store.settle(settlement(1, 1, USAGE, messages=b"[1]", boundary=boundary), NOW, block(3, 3))
        with pytest.raises(ValueError, match="not a stored event"):
            await store.complete_turn("inv_1", 1, Turn(1, b"[1]", boundary), NOW, block(3, 3))

    assert await counted(store) == (0, 0, 100)  # nothing of it happened
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [block(1, 2)]


async def test_messages_and_boundary_come_together(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)

    for wrong in (settlement(messages=b"[1]"), settlement(boundary=EventId(1, 1))):
        with pytest.raises(ValueError, match="together"):
            await store.settle(wrong, NOW)


@pytest.mark.promise("settle-exactly-once")
@pytest.mark.parametrize("end", ["claimed", "finished", "unknown"])
async def test_a_fenced_turn_is_settled_and_not_written(store: Store, end: str) -> None:
    if end != "unknown":
        await store.create_invocation(new(tokens=100), LIMITS, NOW)
    if end == "claimed":
        await claim(store)
    if end == "finished":
        await store.finish(ending(1, 1, settlement(1, 1, USAGE)), NOW)
    done = settlement(1, 1, USAGE, messages=b"[1]", boundary=EventId(1, 1))

    for _ in range(2):
        with pytest.raises(Fenced):
            await store.settle(done, NOW, block(1, 1))

    events = await store.read_events("inv_1", START, limit_bytes=10**6)
    assert block(1, 1) not in events
    assert await store.settle(settlement(1, 1, USAGE), NOW) is False  # it had been settled
    assert await counted(store) == {"claimed": (0, 0, 0)}.get(end, (60, 60, 0))
