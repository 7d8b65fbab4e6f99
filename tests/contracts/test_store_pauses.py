"""The store's port, over every implementation: invocations that wait for quota, and how they go on."""

import asyncio
from dataclasses import replace

import pytest

from service.config import Limits
from service.errors import BudgetExceeded, ConcurrencyExceeded, Fenced, HeadraceError, QuotaExceeded
from service.events import START, Block, EventId
from service.invocations import Attempt, AttemptEnd, Invocation, State, Usage
from service.stores import RESERVATION_GRACE_MS, Claim, Paused, Store
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    LIMITS,
    MINUTE_MS,
    NOW,
    PAUSED,
    ROOMY,
    after_finish,
    after_pause,
    block,
    charge,
    ending,
    entry,
    hold,
    new,
    pausing,
    running,
    settlement,
    turn,
    used,
)

INPUT = b'{"prompt":"hi"}'
PAUSED_AT = NOW + MINUTE_MS


async def paused(store: Store, number: int = 1, *, resumes_at_ms: int = NOW + HOUR_MS) -> Invocation:
    """Run a turn that uses 60 tokens, and pause before the second, which needs 200."""
    await store.create_invocation(new(number), ROOMY, NOW)
    first = settlement(number, 1, Usage(30, 20, 5, 10), messages=b"[1]", boundary=EventId(1, 3))
    await store.settle(first, NOW, block(1, 3))
    return await after_pause(store, pausing(number, 4, resumes_at_ms=resumes_at_ms), PAUSED_AT)


async def due(store: Store, now_ms: int, *, limit: int = 10) -> list[str]:
    return [waiting.invocation.invocation_id for waiting in await store.list_paused(now_ms, limit=limit)]


# ------------------------------------------------------------ pausing


async def test_a_paused_invocation_keeps_all_that_its_attempt_wrote_and_holds_nothing(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + DAY_MS)

    waiting = await paused(store)

    assert waiting == await store.load_invocation("inv_1")
    assert waiting == replace(
        running(),
        state=State.PAUSED,
        attempts=(Attempt(1, NOW, EventId(1, 4), AttemptEnd.PAUSED),),
        updated_at_ms=PAUSED_AT,
        usage=Usage(30, 20, 5, 10),
        paused_at_ms=PAUSED_AT,
        resumes_at_ms=NOW + HOUR_MS,
    )
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [
        block(1, 3),
        Block(1, 4, (PAUSED,)),
    ]
    account = await store.account("user-1", PAUSED_AT)
    assert (account.windows[0].used_tokens, account.reserved_tokens, account.running) == (60, 0, 0)
    assert await store.owned("owner-1") == {}


async def test_a_hold_that_is_open_at_a_pause_is_settled_as_at_an_ending(store: Store) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.settle(settlement(1, 1, Usage(10, 5)), NOW)
    await store.reserve(hold(1, 2, 250), LIMITS, NOW)

    waiting = await after_pause(store, pausing(), NOW)

    assert waiting.usage == Usage(260, 5, estimated=True)
    account = await store.account("user-1", NOW)
    assert (account.windows[0].used_tokens, account.reserved_tokens) == (265, 0)


async def test_a_paused_invocation_is_nobodys_and_is_never_claimed(store: Store) -> None:
    await paused(store)

    claims = await store.claim_expired("owner-2", NOW + 40 * DAY_MS, limit=10, running=[])

    assert claims == []


async def test_pausing_again_changes_nothing_even_after_the_next_attempt_has_begun(store: Store) -> None:
    waiting = await paused(store)

    again = await after_pause(store, pausing(1, 4), NOW + HOUR_MS)
    claim = await store.resume("inv_1", 1, "owner-2", NOW + 2 * HOUR_MS, limits=ROOMY)
    resumed = await after_pause(store, pausing(1, 4), NOW + 3 * HOUR_MS)

    assert (again, resumed) == (waiting, claim.invocation)


async def test_a_pause_needs_its_event(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    for events in ((), (b'{"messageStop":{}}',), (PAUSED, b'{"messageStop":{}}')):
        with pytest.raises(ValueError, match="invocationPaused"):
            await store.pause(replace(pausing(), block=Block(1, 1, events)), NOW)
    with pytest.raises(ValueError, match="gap"):
        await store.pause(pausing(1, 2), NOW)

    assert await store.load_invocation("inv_1") == running()


# ------------------------------------------------------------ looking at paused ones


async def test_paused_invocations_are_listed_when_they_are_due_the_longest_due_first(store: Store) -> None:
    for number, wait_ms in ((1, 3_000), (2, 1_000), (3, 2_000)):
        await paused(store, number, resumes_at_ms=NOW + wait_ms)

    assert await due(store, NOW + 999) == []
    assert await due(store, NOW + 2_000) == ["inv_2", "inv_3"]
    assert await due(store, NOW + 3_000) == ["inv_2", "inv_3", "inv_1"]
    assert await due(store, NOW + 3_000, limit=2) == ["inv_2", "inv_3"]


async def test_whoever_looks_gets_the_record_and_the_input(store: Store) -> None:
    waiting = await paused(store)

    assert await store.list_paused(NOW + HOUR_MS, limit=1) == [Paused(waiting, INPUT)]


async def test_a_look_is_postponed_or_brought_forward_and_the_record_stays(store: Store) -> None:
    waiting = await paused(store)

    await store.postpone("inv_1", 1, NOW + 2 * HOUR_MS)
    later = [await due(store, NOW + 2 * HOUR_MS - 1), await due(store, NOW + 2 * HOUR_MS)]
    await store.postpone("inv_1", 1, NOW + 1_000)
    sooner = [await due(store, NOW + 999), await due(store, NOW + 1_000)]

    assert later == sooner == [[], ["inv_1"]]
    assert await store.load_invocation("inv_1") == waiting


async def test_only_a_pause_that_lasts_is_postponed(store: Store) -> None:
    await paused(store)
    await store.postpone("inv_1", 2, NOW + 9 * DAY_MS)
    await store.postpone("inv_9", 1, NOW)
    still = await due(store, NOW + HOUR_MS)
    claim = await store.resume("inv_1", 1, "owner-2", NOW + HOUR_MS, limits=ROOMY)

    await store.postpone("inv_1", 1, NOW)
    await store.postpone("inv_1", 2, NOW)

    assert still == ["inv_1"]
    assert await due(store, NOW + DAY_MS) == []
    assert await store.load_invocation("inv_1") == claim.invocation


async def test_a_paused_invocation_that_is_to_be_cancelled_is_due_at_once_and_first(store: Store) -> None:
    await paused(store, 1, resumes_at_ms=NOW + 1)
    await paused(store, 2)

    await store.request_cancel("inv_2", PAUSED_AT + 9)
    await store.postpone("inv_2", 1, NOW + DAY_MS)

    assert await due(store, PAUSED_AT) == ["inv_2", "inv_1"]
    assert await due(store, 0) == ["inv_2"]


async def test_an_invocation_that_was_to_be_cancelled_before_its_pause_is_due_at_once(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)
    await store.request_cancel("inv_1", NOW)

    await store.pause(pausing(), NOW)

    assert await due(store, NOW) == ["inv_1"]


# ------------------------------------------------------------ going on


async def test_a_resumed_invocation_is_running_with_its_call_held_and_its_deadline_moved(
    store: Store,
) -> None:
    waiting = await paused(store)
    now_ms = PAUSED_AT + 5 * HOUR_MS

    claim = await store.resume("inv_1", 1, "owner-2", now_ms, limits=ROOMY)

    resumed = replace(
        waiting,
        state=State.RUNNING,
        attempts=(*waiting.attempts, Attempt(2, now_ms)),
        updated_at_ms=now_ms,
        deadline_at_ms=NOW + 6 * HOUR_MS,
        paused_at_ms=None,
        resumes_at_ms=None,
    )
    assert claim == Claim(resumed, INPUT, (turn(1, b"[1]", 1, 3),))
    assert claim.invocation.rewind_to == (1, 4)
    assert await store.load_invocation("inv_1") == resumed
    account = await store.account("user-1", now_ms)
    assert (account.reserved_tokens, account.running) == (200, 1)
    assert await store.owned("owner-2") == {"inv_1": 2}
    assert await due(store, now_ms + 40 * DAY_MS) == []


async def test_the_hold_of_a_resumed_call_lapses_a_grace_after_the_moved_deadline(store: Store) -> None:
    await paused(store)
    claim = await store.resume("inv_1", 1, "owner-2", NOW + DAY_MS, limits=ROOMY)
    lapses_at_ms = claim.invocation.deadline_at_ms + RESERVATION_GRACE_MS

    held = [await store.account("user-1", at_ms) for at_ms in (lapses_at_ms - 1, lapses_at_ms)]

    assert [account.reserved_tokens for account in held] == [200, 0]


@pytest.mark.promise("pauses-at-quota")
async def test_the_held_call_is_settled_and_charged_like_any_other(store: Store) -> None:
    await paused(store)
    await store.resume("inv_1", 1, "owner-2", NOW + HOUR_MS, limits=ROOMY)

    await store.reserve(hold(1, 2, 200, attempt=2), LIMITS, NOW + HOUR_MS)  # it is there, and stays
    held = (await store.account("user-1", NOW + HOUR_MS)).reserved_tokens
    await store.append_events([entry(1, 2, attempt=2)], NOW + HOUR_MS)
    last = settlement(1, 2, Usage(7, 3), attempt=2)
    ended = await after_finish(store, ending(1, 3, last, attempt=2), NOW + HOUR_MS)

    assert (held, ended.usage) == (200, Usage(37, 23, 5, 10))
    assert (await store.account("user-1", NOW + HOUR_MS)).windows[0].used_tokens == 70


async def test_a_clock_that_is_behind_moves_no_deadline_back(store: Store) -> None:
    waiting = await paused(store)

    claim = await store.resume("inv_1", 1, "owner-2", PAUSED_AT - 5, limits=ROOMY)

    assert claim.invocation.deadline_at_ms == waiting.deadline_at_ms


async def test_a_paused_invocation_is_taken_over_to_be_ended_with_or_without_room(store: Store) -> None:
    await paused(store)

    claim = await store.resume("inv_1", 1, "owner-2", NOW + DAY_MS, limits=None)
    account = await store.account("user-1", NOW + DAY_MS)
    ended = await after_finish(store, ending(1, 1, attempt=2, state=State.CANCELLED), NOW + DAY_MS)

    assert (claim.invocation.state, claim.invocation.attempt) == (State.RUNNING, 2)
    assert (account.reserved_tokens, account.running) == (0, 1)
    assert (ended.state, ended.usage) == (State.CANCELLED, Usage(30, 20, 5, 10))


@pytest.mark.promise("pauses-at-quota")
@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        (Limits(259, 10**6, 3, 10**6), QuotaExceeded),
        (Limits(10**6, 259, 3, 10**6), QuotaExceeded),
        (Limits(10**6, 10**6, 0, 10**6), ConcurrencyExceeded),
        (Limits(10**6, 10**6, 3, 259), BudgetExceeded),
    ],
    ids=["day", "month", "concurrency", "budget"],
)
async def test_a_resumption_without_room_is_refused_and_changes_nothing(
    store: Store, limits: Limits, refusal: type[HeadraceError]
) -> None:
    waiting = await paused(store)
    account = await store.account("user-1", PAUSED_AT)

    with pytest.raises(refusal):
        await store.resume("inv_1", 1, "owner-2", PAUSED_AT, limits=limits)

    assert await store.load_invocation("inv_1") == waiting
    assert await store.account("user-1", PAUSED_AT) == account
    assert await due(store, NOW + HOUR_MS) == ["inv_1"]


async def test_a_resumption_fits_exactly(store: Store) -> None:
    await paused(store)  # 60 used, 200 to be held

    claim = await store.resume("inv_1", 1, "owner-2", PAUSED_AT, limits=Limits(260, 260, 1, 260))

    assert claim.invocation.state is State.RUNNING


async def test_a_pause_ends_when_a_bucket_has_aged_out(store: Store) -> None:
    limits = Limits(1_000, 10**6, 3, 900)
    await charge(store, 9, 900, NOW - 2 * HOUR_MS)
    await paused(store)
    with pytest.raises(QuotaExceeded) as refused:
        await store.resume("inv_1", 1, "owner-2", NOW + HOUR_MS, limits=limits)
    assert refused.value.retry_after_s is not None
    room_at_ms = NOW + HOUR_MS + int(refused.value.retry_after_s * 1000)

    with pytest.raises(QuotaExceeded):
        await store.resume("inv_1", 1, "owner-2", room_at_ms - 1, limits=limits)
    claim = await store.resume("inv_1", 1, "owner-2", room_at_ms, limits=limits)

    assert claim.invocation.state is State.RUNNING


@pytest.mark.promise("concurrency-limit")
async def test_a_paused_invocation_has_no_place_and_gets_one_only_if_there_is_one(store: Store) -> None:
    one_at_a_time = Limits(10**6, 10**6, 1, 10**6)
    await paused(store)
    await store.create_invocation(new(2), one_at_a_time, NOW)  # its place is free

    with pytest.raises(ConcurrencyExceeded):
        await store.resume("inv_1", 1, "owner-2", PAUSED_AT, limits=one_at_a_time)
    await store.finish(ending(2), NOW)
    claim = await store.resume("inv_1", 1, "owner-2", PAUSED_AT, limits=one_at_a_time)

    assert claim.invocation.attempt == 2


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_parallel_resumptions_at_the_edge_of_a_quota_begin_exactly_those_that_fit(store: Store) -> None:
    for number in range(10):
        await paused(store, number)  # 600 used, and each needs 200
    limits = Limits(1_100, 10**6, 100, 900)

    outcomes = await asyncio.gather(
        *(store.resume(f"inv_{number}", 1, "owner-2", PAUSED_AT, limits=limits) for number in range(10)),
        return_exceptions=True,
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Claim"] * 2 + ["QuotaExceeded"] * 8
    account = await store.account("user-1", PAUSED_AT)
    assert (account.reserved_tokens, account.running) == (400, 2)


async def test_of_several_that_resume_at_once_one_does(store: Store) -> None:
    await paused(store)

    outcomes = await asyncio.gather(
        *(store.resume("inv_1", 1, f"owner-{number}", PAUSED_AT, limits=ROOMY) for number in range(5)),
        return_exceptions=True,
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Claim"] + ["Fenced"] * 4
    assert (await store.account("user-1", PAUSED_AT)).reserved_tokens == 200


@pytest.mark.parametrize("limits", [ROOMY, None])
async def test_only_what_is_paused_in_the_named_attempt_is_resumed(
    store: Store, limits: Limits | None
) -> None:
    await paused(store, 1)
    await store.create_invocation(new(2), ROOMY, NOW)
    await store.create_invocation(new(3), ROOMY, NOW)
    await store.finish(ending(3), NOW)

    for invocation_id, attempt in (("inv_1", 2), ("inv_2", 1), ("inv_3", 1), ("inv_9", 1)):
        with pytest.raises(Fenced):
            await store.resume(invocation_id, attempt, "owner-2", PAUSED_AT, limits=limits)

    assert await store.owned("owner-2") == {}


async def test_an_invocation_can_pause_more_than_once(store: Store) -> None:
    await paused(store)
    first = await store.resume("inv_1", 1, "owner-2", PAUSED_AT + HOUR_MS, limits=ROOMY)
    second_half = settlement(1, 2, used(40), attempt=2, messages=b"[2]", boundary=EventId(2, 2))
    await store.settle(second_half, PAUSED_AT + HOUR_MS, block(1, 2, attempt=2))
    again = pausing(1, 3, attempt=2, turn=3, tokens=50, resumes_at_ms=NOW + DAY_MS)

    waiting = await after_pause(store, again, PAUSED_AT + 2 * HOUR_MS)
    second = await store.resume("inv_1", 2, "owner-3", PAUSED_AT + 5 * HOUR_MS, limits=ROOMY)

    assert (waiting.paused_at_ms, waiting.resumes_at_ms) == (PAUSED_AT + 2 * HOUR_MS, NOW + DAY_MS)
    deadlines = [claim.invocation.deadline_at_ms for claim in (first, second)]
    assert deadlines == [NOW + 2 * HOUR_MS, NOW + 5 * HOUR_MS]
    assert second.turns == (turn(1, b"[1]", 1, 3), turn(2, b"[2]", 2, 2))
    assert [(one.end, one.last) for one in second.invocation.attempts] == [
        (AttemptEnd.PAUSED, (1, 4)),
        (AttemptEnd.PAUSED, (2, 3)),
        (None, None),
    ]
    assert (await store.account("user-1", PAUSED_AT + 5 * HOUR_MS)).reserved_tokens == 50


@pytest.mark.promise("attempts-limit", "pauses-at-quota")
async def test_a_resumed_attempt_that_dies_is_taken_over_from_where_it_paused(store: Store) -> None:
    await paused(store)
    await store.resume("inv_1", 1, "owner-2", PAUSED_AT, limits=ROOMY)

    (claim,) = await store.claim_expired("owner-3", PAUSED_AT + 1, limit=1)

    assert claim.turns == (turn(1, b"[1]", 1, 3),)
    assert (claim.invocation.rewind_to, claim.invocation.lost_attempts) == ((1, 4), 1)
    account = await store.account("user-1", PAUSED_AT + 1)
    assert (account.reserved_tokens, account.windows[0].used_tokens) == (0, 60)
