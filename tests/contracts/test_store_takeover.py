"""The store's port, over every implementation: leases, hand-over, and how the next attempt begins."""

import asyncio

import pytest

from service.errors import Fenced
from service.events import START, Block, EventId, started
from service.invocations import Attempt, AttemptEnd, State, Usage
from service.stores import ORPHAN_AGE_S, Claim, HandOver, Store
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

LOST = AttemptEnd.LOST
HANDED_OVER = AttemptEnd.HANDED_OVER


async def attempts(store: Store) -> tuple[Attempt, ...]:
    record = await store.load_invocation("inv_1")
    assert record is not None
    return record.attempts


async def claim(store: Store, owner: str = "owner-2", now_ms: int = NOW) -> Claim:
    (claimed,) = await store.claim_expired(owner, now_ms, limit=10)
    return claimed


# ------------------------------------------------------------ leases


async def test_nothing_is_claimed_while_leases_are_held(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + 30_000)
    await store.create_invocation(new(), LIMITS, NOW)

    assert await store.claim_expired("owner-2", NOW + 29_999, limit=10) == []


async def test_a_lease_can_be_given_back_and_renewed(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + 30_000)
    await store.create_invocation(new(), LIMITS, NOW)

    await store.renew_lease("owner-1", NOW + 60_000)
    held = await store.claim_expired("owner-2", NOW + 30_000, limit=10)
    await store.renew_lease("owner-1", 0)
    given_back = await store.claim_expired("owner-2", NOW + 30_000, limit=10)

    assert (len(held), len(given_back)) == (0, 1)


async def test_an_owner_learns_which_attempts_are_still_its_own(store: Store) -> None:
    for number, owner in ((1, "owner-1"), (2, "owner-1"), (3, "owner-2"), (4, "owner-1"), (5, "owner-1")):
        await store.create_invocation(new(number, owner=owner), ROOMY, NOW)
    await store.finish(ending(4), NOW)
    await store.hand_over(HandOver("inv_5", 1), NOW)
    await store.renew_lease("owner-1", NOW + HOUR_MS)
    await store.claim_expired("owner-1", NOW, limit=10)  # 3, of a dead owner, and 5

    assert await store.owned("owner-1") == {"inv_1": 1, "inv_2": 1, "inv_3": 2, "inv_5": 2}
    assert await store.owned("owner-2") == {}
    assert await store.owned("nobody") == {}


# ------------------------------------------------------------ claims


async def test_an_expired_owners_invocation_is_claimed_with_all_that_a_takeover_needs(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + 30_000)
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.append_events([entry(1, 4)], NOW)
    first = settlement(1, 1, Usage(10, 5), messages=b"[1]", boundary=EventId(1, 6))
    await store.settle(first, NOW, block(5, 6))
    await store.reserve(hold(1, 2, 300), LIMITS, NOW)
    await store.append_events([entry(7, 9)], NOW)

    claimed = await claim(store, now_ms=NOW + 30_000)

    taken = await store.load_invocation("inv_1")
    assert taken is not None
    assert claimed == Claim(taken, b'{"prompt":"hi"}', (turn(1, b"[1]", 1, 6),))
    assert taken.attempts == (Attempt(1, NOW, EventId(1, 6), LOST), Attempt(2, NOW + 30_000))
    assert (taken.state, taken.updated_at_ms, taken.usage) == (State.RUNNING, NOW + 30_000, Usage(10, 5))


@pytest.mark.promise("killed-process-goes-on", "settle-exactly-once")
async def test_what_a_dead_attempt_holds_is_settled_at_its_full_size_and_not_charged(store: Store) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.settle(settlement(1, 1, Usage(10, 5)), NOW)
    await store.reserve(hold(1, 2, 300), LIMITS, NOW)
    await store.reserve(hold(1, 3, 50, expires_at_ms=NOW + 1), LIMITS, NOW)

    claimed = await claim(store, now_ms=NOW + 2)

    account = await store.account("user-1", NOW + 2)
    assert (account.reserved_tokens, account.windows[0].used_tokens, account.running) == (0, 15, 1)
    assert claimed.invocation.usage == Usage(10, 5)
    late = [await store.settle(settlement(1, number, Usage(7, 7)), NOW + 3) for number in (2, 3)]
    assert late == [False, False]


@pytest.mark.promise("lapsed-lease-sends-nothing")
@pytest.mark.parametrize("stored", [1, 5])
async def test_without_a_turn_the_dead_attempt_is_granted_its_first_event(store: Store, stored: int) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.append_events([entry(1, stored)], NOW)

    claimed = await claim(store)

    assert claimed.invocation.attempts == (Attempt(1, NOW, EventId(1, 1), LOST), Attempt(2, NOW))
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [block(1, 1)]


@pytest.mark.promise("one-terminal-event")
async def test_a_log_of_which_nothing_was_stored_gets_its_first_event_from_whoever_claims_it(
    store: Store,
) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    claimed = await claim(store)
    await store.append_events([entry(1, 1, attempt=2)], NOW)

    assert claimed.invocation.attempts == (Attempt(1, NOW, EventId(1, 1), LOST), Attempt(2, NOW))
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [
        Block(1, 1, (started("inv_1", "writer"),)),
        block(1, 1, attempt=2),
    ]


async def test_a_later_attempt_that_stored_nothing_is_granted_nothing(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.append_events([entry(1, 2)], NOW)
    await claim(store)

    claimed = await claim(store, "owner-3", NOW + 5)

    assert claimed.invocation.attempts == (
        Attempt(1, NOW, EventId(1, 1), LOST),
        Attempt(2, NOW, EventId(2, 0), LOST),
        Attempt(3, NOW + 5),
    )
    assert claimed.invocation.rewind_to == (1, 1)
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [block(1, 1)]


async def test_a_second_takeover_grants_the_turns_of_its_own_attempt_only(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    done = settlement(messages=b"[1]", boundary=EventId(1, 2))
    await store.settle(done, NOW, block(1, 2))
    await claim(store)
    await store.append_events([entry(1, 3, attempt=2)], NOW)

    claimed = await claim(store, "owner-3")

    assert claimed.invocation.attempts == (
        Attempt(1, NOW, EventId(1, 2), LOST),
        Attempt(2, NOW, EventId(2, 1), LOST),
        Attempt(3, NOW),
    )
    assert claimed.turns == (turn(1, b"[1]", 1, 2),)


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_a_turn_that_a_later_attempt_completed_is_granted_to_that_one_too(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    half = settlement(messages=b"[1]", boundary=EventId(1, 3))
    await store.settle(half, NOW, block(1, 3))
    await store.append_events([entry(4, 5)], NOW)  # a tool had begun
    await claim(store)
    await store.complete_turn("inv_1", 2, turn(1, b"[1,2]", 2, 4), NOW, block(1, 4, attempt=2))
    await store.append_events([entry(5, 6, attempt=2)], NOW)

    claimed = await claim(store, "owner-3")

    assert claimed.turns == (turn(1, b"[1,2]", 2, 4),)
    assert claimed.invocation.rewind_to == (2, 4)
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [
        block(1, 3),
        block(1, 4, attempt=2),
    ]


async def test_claims_are_limited_oldest_first_and_never_of_what_has_ended_or_is_ones_own(
    store: Store,
) -> None:
    for number in (3, 2, 1, 4, 5):
        owner = "owner-2" if number == 4 else "owner-1"
        await store.create_invocation(new(number, owner=owner), ROOMY, NOW - number)
    await store.finish(ending(5), NOW)

    claimed = [
        [one.invocation.invocation_id for one in await store.claim_expired("owner-2", NOW, limit=2)]
        for _ in range(3)
    ]

    assert claimed == [["inv_3", "inv_2"], ["inv_1"], []]


async def test_what_an_owner_does_not_run_though_it_is_its_own_is_claimed_after_a_while(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + 10**9)
    for number in (1, 2, 3):
        await store.create_invocation(new(number), ROOMY, NOW)
    late = NOW + ORPHAN_AGE_S * 1000

    early = await store.claim_expired("owner-1", late - 1, limit=10, running=["inv_2"])
    unknown = await store.claim_expired("owner-1", late, limit=10)
    claims = await store.claim_expired("owner-1", late, limit=10, running=["inv_2"])
    elsewhere = await store.claim_expired("owner-2", late, limit=10, running=[])

    assert (early, unknown, elsewhere) == ([], [], [])
    assert [(one.invocation.invocation_id, one.invocation.attempt) for one in claims] == [
        ("inv_1", 2),
        ("inv_3", 2),
    ]


async def test_an_orphan_is_as_old_as_its_attempt_not_as_its_invocation(store: Store) -> None:
    await store.create_invocation(new(owner="dead"), ROOMY, NOW)
    claimed_at_ms = NOW + HOUR_MS
    await claim(store, "owner-1", claimed_at_ms)  # and the answer was lost
    late = claimed_at_ms + ORPHAN_AGE_S * 1000

    early = await store.claim_expired("owner-1", late - 1, limit=10, running=[])
    claims = await store.claim_expired("owner-1", late, limit=10, running=[])

    assert (early, [one.invocation.attempt for one in claims]) == ([], [3])


async def test_two_owners_that_race_never_claim_the_same_attempt(store: Store) -> None:
    await store.renew_lease("owner-2", NOW + HOUR_MS)
    await store.renew_lease("owner-3", NOW + HOUR_MS)
    for number in range(20):
        await store.create_invocation(new(number), ROOMY, NOW)

    rounds = [store.claim_expired(owner, NOW, limit=3) for owner in ("owner-2", "owner-3") * 10]
    claims = [one for claimed in await asyncio.gather(*rounds) for one in claimed]

    assert sorted(one.invocation.invocation_id for one in claims) == sorted(f"inv_{n}" for n in range(20))
    assert {one.invocation.attempt for one in claims} == {2}


async def test_the_record_tells_why_each_attempt_ended(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await claim(store, "owner-2", NOW + 1)
    await store.append_events([entry(1, 2, attempt=2)], NOW + 1)
    await store.hand_over(HandOver("inv_1", 2), NOW + 2)
    await claim(store, "owner-3", NOW + 3)
    ended = await after_finish(store, ending(1, 1, attempt=3), NOW + 4)

    assert ended.attempts == (
        Attempt(1, NOW, EventId(1, 1), LOST),
        Attempt(2, NOW + 1, EventId(2, 1), HANDED_OVER),
        Attempt(3, NOW + 3, EventId(3, 1), AttemptEnd.FINISHED),
    )
    assert (ended.lost_attempts, ended.last) == (1, (3, 1))


# ------------------------------------------------------------ hand-over


async def test_what_was_handed_over_is_claimed_at_once_though_its_owner_lives(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + HOUR_MS)
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    half = settlement(1, 1, Usage(10, 5), messages=b"[1]", boundary=EventId(1, 2))
    await store.settle(half, NOW, block(1, 2))
    await store.append_events([entry(3, 4)], NOW)

    await store.hand_over(HandOver("inv_1", 1), NOW + 5)
    waiting = await store.load_invocation("inv_1")
    claimed = await claim(store, now_ms=NOW + 6)

    assert waiting is not None
    assert (waiting.state, waiting.attempts, waiting.updated_at_ms) == (
        State.RUNNING,
        (Attempt(1, NOW, None, HANDED_OVER),),
        NOW + 5,
    )
    assert claimed.turns == (turn(1, b"[1]", 1, 2),)
    assert claimed.invocation.attempts == (
        Attempt(1, NOW, EventId(1, 2), HANDED_OVER),
        Attempt(2, NOW + 6),
    )


async def test_whoever_handed_over_may_claim_it_too(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + HOUR_MS)
    await store.create_invocation(new(), LIMITS, NOW)
    await store.hand_over(HandOver("inv_1", 1), NOW)

    claimed = await claim(store, "owner-1")

    assert claimed.invocation.attempt == 2


async def test_a_hand_over_settles_what_it_names_as_given_and_the_claim_what_is_held_besides(
    store: Store,
) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.reserve(hold(1, 2, 300), LIMITS, NOW)
    used = (settlement(1, 1, Usage(10, 5)), settlement(1, 7, Usage(4, 4), charged=False))

    await store.hand_over(HandOver("inv_1", 1, used), NOW)
    handed_over = await store.account("user-1", NOW)
    await claim(store)
    claimed = await store.account("user-1", NOW)

    assert (handed_over.windows[0].used_tokens, handed_over.reserved_tokens) == (15, 300)
    assert (claimed.windows[0].used_tokens, claimed.reserved_tokens) == (15, 0)
    assert [await store.settle(settlement(1, number), NOW) for number in (1, 2, 7)] == [False] * 3


async def test_handing_over_again_is_no_fault_even_after_the_next_attempt_has_begun(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    given = HandOver("inv_1", 1, (settlement(1, 1, Usage(10, 5), charged=False),))
    await store.hand_over(given, NOW)

    await store.hand_over(given, NOW + 1)
    await claim(store, now_ms=NOW + 2)
    await store.hand_over(given, NOW + 3)

    assert await attempts(store) == (Attempt(1, NOW, EventId(1, 1), HANDED_OVER), Attempt(2, NOW + 2))
    assert await store.owned("owner-2") == {"inv_1": 2}


async def test_what_is_lost_is_not_handed_over(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await claim(store)

    with pytest.raises(Fenced):
        await store.hand_over(HandOver("inv_1", 1), NOW)

    assert await attempts(store) == (Attempt(1, NOW, EventId(1, 1), LOST), Attempt(2, NOW))
