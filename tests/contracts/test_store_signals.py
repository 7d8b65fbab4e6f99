"""The store's port, over every implementation: what owners are told: cancel it, somebody reads it."""

from dataclasses import replace

from service.invocations import State
from service.stores import HandOver, Store
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    LIMITS,
    NOW,
    ROOMY,
    after_finish,
    after_pause,
    ending,
    new,
    pausing,
    running,
    settlement,
)

# ------------------------------------------------------------ cancellation


async def test_whoever_asks_for_the_end_its_owner_hears_it(store: Store) -> None:
    for number, owner in ((1, "owner-1"), (2, "owner-1"), (3, "owner-2")):
        await store.create_invocation(new(number, owner=owner), ROOMY, NOW)

    asked = await store.request_cancel("inv_1", NOW + 5)
    await store.request_cancel("inv_3", NOW + 5)

    assert asked == replace(running(), cancel_requested_at_ms=NOW + 5, updated_at_ms=NOW + 5)
    assert await store.load_invocation("inv_1") == asked
    assert await store.cancel_requests("owner-1") == {"inv_1"}
    assert await store.cancel_requests("owner-2") == {"inv_3"}
    assert await store.cancel_requests("owner-3") == frozenset()


async def test_of_several_requests_the_first_stands(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    first = await store.request_cancel("inv_1", NOW + 5)

    second = await store.request_cancel("inv_1", NOW + 9)

    assert first is not None
    assert second == first


async def test_an_invocation_that_has_ended_stays_as_it_is(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    ended = await after_finish(store, ending(), NOW)

    asked = await store.request_cancel("inv_1", NOW + 5)

    assert asked == ended
    assert await store.load_invocation("inv_1") == ended


async def test_nobody_can_cancel_what_is_not_there(store: Store) -> None:
    assert await store.request_cancel("inv_9", NOW) is None


async def test_a_request_outlives_the_attempt_and_is_told_to_the_next_owner(store: Store) -> None:
    await store.create_invocation(new(1), ROOMY, NOW)
    await store.create_invocation(new(2), ROOMY, NOW)
    await store.request_cancel("inv_1", NOW + 1)
    await store.hand_over(HandOver("inv_2", 1), NOW)
    await store.request_cancel("inv_2", NOW + 2)

    claims = await store.claim_expired("owner-2", NOW + 3, limit=2)

    assert [claim.invocation.cancel_requested_at_ms for claim in claims] == [NOW + 1, NOW + 2]
    assert await store.cancel_requests("owner-1") == frozenset()
    assert await store.cancel_requests("owner-2") == {"inv_1", "inv_2"}


async def test_a_request_is_heard_until_the_invocation_ends(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.request_cancel("inv_1", NOW + 1)
    ended = await after_finish(store, ending(1, 1, settlement(), state=State.CANCELLED), NOW + 2)

    assert ended.cancel_requested_at_ms == NOW + 1
    assert await store.cancel_requests("owner-1") == frozenset()


async def test_a_paused_invocation_is_cancelled_by_whoever_takes_it_over(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    waiting = await after_pause(store, pausing(), NOW)

    asked = await store.request_cancel("inv_1", NOW + 1)
    heard = await store.cancel_requests("owner-1")
    claim = await store.resume("inv_1", 1, "owner-2", NOW + 2, limits=None)

    assert asked == replace(waiting, cancel_requested_at_ms=NOW + 1, updated_at_ms=NOW + 1)
    assert heard == frozenset()
    assert claim.invocation.cancel_requested_at_ms == NOW + 1
    assert await store.cancel_requests("owner-2") == {"inv_1"}


# ------------------------------------------------------------ readers


async def test_an_invocation_is_unread_once_its_last_reader_was_there_at_the_moment_or_before(
    store: Store,
) -> None:
    for number, owner in ((1, "owner-1"), (2, "owner-1"), (3, "owner-1"), (4, "owner-2")):
        await store.create_invocation(new(number, owner=owner), ROOMY, NOW)
    await store.note_read(["inv_1", "inv_2", "inv_4"], NOW + 10)
    await store.note_read(["inv_2"], NOW + 20)

    unread = [await store.unread("owner-1", NOW + since_ms) for since_ms in (9, 10, 19, 20)]

    assert unread == [set(), {"inv_1"}, {"inv_1"}, {"inv_1", "inv_2"}]
    assert await store.unread("owner-2", NOW + 10) == {"inv_4"}


async def test_what_never_had_a_reader_is_not_unread(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)

    assert await store.unread("owner-1", NOW + DAY_MS) == frozenset()


async def test_a_note_of_a_clock_that_is_behind_takes_nothing_back(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.note_read(["inv_1"], NOW + 10)

    await store.note_read(["inv_1"], NOW + 5)

    assert await store.unread("owner-1", NOW + 9) == frozenset()
    assert await store.unread("owner-1", NOW + 10) == {"inv_1"}


async def test_notes_change_no_record_and_none_of_what_has_ended_or_is_unknown(store: Store) -> None:
    created = await store.create_invocation(new(1), LIMITS, NOW)
    await store.create_invocation(new(2), LIMITS, NOW)
    ended = await after_finish(store, ending(2), NOW)

    await store.note_read([], NOW + 1)
    await store.note_read(frozenset({"inv_1", "inv_2", "inv_9"}), NOW + 1)

    assert await store.load_invocation("inv_1") == created
    assert await store.load_invocation("inv_2") == ended
    assert await store.load_invocation("inv_9") is None
    assert await store.unread("owner-1", NOW + 1) == {"inv_1"}


async def test_thousands_are_noted_at_once(store: Store) -> None:
    await store.create_invocation(new(1_999), ROOMY, NOW)

    await store.note_read([f"inv_{number}" for number in range(2_000)], NOW)

    assert await store.unread("owner-1", NOW) == {"inv_1999"}


async def test_readers_of_a_paused_invocation_count_when_it_goes_on(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.note_read(["inv_1"], NOW)
    await store.pause(pausing(), NOW)
    await store.note_read(["inv_1"], NOW + HOUR_MS)
    while_paused = await store.unread("owner-1", NOW + DAY_MS)

    await store.resume("inv_1", 1, "owner-2", NOW + HOUR_MS, limits=ROOMY)

    assert while_paused == frozenset()
    assert await store.unread("owner-2", NOW + HOUR_MS - 1) == frozenset()
    assert await store.unread("owner-2", NOW + HOUR_MS) == {"inv_1"}


async def test_whoever_looks_at_a_paused_invocation_sees_when_it_was_read_last(store: Store) -> None:
    for number in (1, 2, 3):
        await store.create_invocation(new(number), ROOMY, NOW)
        await store.note_read([] if number == 3 else [f"inv_{number}"], NOW + 5)
        await store.pause(pausing(number), NOW + 10)

    await store.note_read(["inv_2"], NOW + 20)

    paused = await store.list_paused(NOW + HOUR_MS, limit=3)
    assert [one.read_at_ms for one in paused] == [NOW + 5, NOW + 20, None]
