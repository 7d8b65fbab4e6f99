"""The store's port, over every implementation: quotas, their windows, concurrency, budget."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from service.config import Limits
from service.errors import BudgetExceeded, ConcurrencyExceeded, Fenced, HeadraceError, QuotaExceeded
from service.invocations import Usage
from service.stores import Account, Store, Window
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    LIMITS,
    MINUTE_MS,
    NOW,
    after_finish,
    charge,
    ending,
    hold,
    new,
    settlement,
    used,
)

BUCKET_MS = 10 * MINUTE_MS
MONTH_ENDS_MS = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * MINUTE_MS  # 2026-12-01T00:00:00Z


async def admitted(store: Store, calls: list[Any]) -> Counter[str]:
    """Run calls at once and count their outcomes by code."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(
        outcome.code if isinstance(outcome, HeadraceError) else type(outcome).__name__ for outcome in outcomes
    )


async def day_tokens(store: Store, now_ms: int) -> int:
    return (await store.account("user-1", now_ms)).windows[0].used_tokens


# ------------------------------------------------------------ exactness


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_parallel_submissions_at_the_edge_of_a_quota_admit_exactly_those_that_fit(store: Store) -> None:
    limits = Limits(1_000, 5_000, 10**6, 900)
    await charge(store, 0, 301, NOW)

    outcomes = await admitted(
        store, [store.create_invocation(new(n, tokens=100), limits, NOW) for n in range(1, 61)]
    )

    assert outcomes == {"Invocation": 6, "quota-exceeded": 54}
    account = await store.account("user-1", NOW)
    assert (account.windows[0].used_tokens, account.reserved_tokens, account.running) == (301, 600, 6)


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_parallel_turns_and_submissions_share_what_is_left(store: Store) -> None:
    limits = Limits(1_000, 5_000, 10**6, 10**6)
    await store.create_invocation(new(0, tokens=100), limits, NOW)

    turns = [store.reserve(hold(0, turn, 100), limits, NOW) for turn in range(2, 12)]
    submissions = [store.create_invocation(new(n, tokens=100), limits, NOW) for n in range(1, 11)]
    outcomes = await admitted(store, [call for pair in zip(turns, submissions, strict=True) for call in pair])

    assert outcomes["quota-exceeded"] == 11
    assert (await store.account("user-1", NOW)).reserved_tokens == 1_000


async def test_an_invocation_that_holds_nothing_is_admitted_by_a_quota_that_is_used_up(store: Store) -> None:
    limits = Limits(1_000, 5_000, 1, 900)
    await charge(store, 0, 1_000, NOW)

    outcomes = await admitted(store, [store.create_invocation(new(1, tokens=0), limits, NOW)])
    ended = await after_finish(store, ending(1, 1, settlement(1, usage=Usage())), NOW)

    account = await store.account("user-1", NOW)
    assert (outcomes, ended.usage) == ({"Invocation": 1}, Usage())
    assert (account.windows[0].used_tokens, account.reserved_tokens, account.running) == (1_000, 0, 0)


@pytest.mark.promise("concurrency-limit")
async def test_parallel_submissions_never_exceed_the_concurrency_limit(store: Store) -> None:
    limits = Limits(10**6, 10**6, 3, 900)

    outcomes = await admitted(store, [store.create_invocation(new(n), limits, NOW) for n in range(20)])

    assert outcomes == {"Invocation": 3, "concurrency-exceeded": 17}


@pytest.mark.promise("concurrency-limit")
async def test_an_ended_invocation_frees_its_place(store: Store) -> None:
    for number in (1, 2, 3):
        await store.create_invocation(new(number), LIMITS, NOW)
    with pytest.raises(ConcurrencyExceeded) as refused:
        await store.create_invocation(new(4), LIMITS, NOW)
    await store.finish(ending(2), NOW)

    await store.create_invocation(new(4), LIMITS, NOW)

    assert refused.value.extra == {"limit": 3, "running": 3}
    assert refused.value.retry_after_s == 1
    assert refused.value.detail == (
        "3 of your invocations are running and the limit is 3: wait until one has ended."
    )


async def test_principals_do_not_share_quotas(store: Store) -> None:
    await charge(store, 1, 1_000, NOW, sub="user-2")

    await store.create_invocation(new(2, tokens=900), LIMITS, NOW)

    assert await day_tokens(store, NOW) == 0


async def test_a_refused_submission_leaves_nothing(store: Store) -> None:
    await charge(store, 0, 950, NOW)

    with pytest.raises(QuotaExceeded):
        await store.create_invocation(new(1, tokens=100), LIMITS, NOW)

    assert await store.load_invocation("inv_1") is None
    assert (await store.account("user-1", NOW)).reserved_tokens == 0


# ------------------------------------------------------------ budget


@pytest.mark.promise("budget-per-invocation")
async def test_a_first_hold_over_the_budget_is_refused(store: Store) -> None:
    with pytest.raises(BudgetExceeded) as refused:
        await store.create_invocation(new(tokens=901), LIMITS, NOW)

    assert refused.value.extra == {"budget": {"limit": 900, "used": 0, "requested": 901}}
    assert await store.load_invocation("inv_1") is None


@pytest.mark.promise("budget-per-invocation")
async def test_a_turn_fits_the_budget_beside_what_was_used_and_is_held(store: Store) -> None:
    limits = Limits(10**6, 10**6, 3, 900)
    await store.create_invocation(new(tokens=100), limits, NOW)
    await store.settle(settlement(1, 1, used(500)), NOW)
    await store.reserve(hold(1, 2, 300), limits, NOW)

    with pytest.raises(BudgetExceeded) as refused:
        await store.reserve(hold(1, 3, 101), limits, NOW)
    await store.reserve(hold(1, 4, 100), limits, NOW)

    assert refused.value.extra == {"budget": {"limit": 900, "used": 800, "requested": 101}}
    assert (await store.account("user-1", NOW)).reserved_tokens == 400


@pytest.mark.promise("budget-per-invocation")
async def test_what_a_dead_attempt_held_does_not_narrow_the_budget(store: Store) -> None:
    await store.create_invocation(new(tokens=900), LIMITS, NOW)
    await store.claim_expired("owner-2", NOW, limit=1)
    await store.settle(settlement(1, 1, used(850), charged=False), NOW)

    await store.reserve(hold(1, 1, 900, attempt=2), LIMITS, NOW)

    record = await store.load_invocation("inv_1")
    assert record is not None
    assert record.usage == Usage()


async def test_reserving_again_holds_once(store: Store) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)

    await store.reserve(hold(1, 2, 700), LIMITS, NOW)
    await store.reserve(hold(1, 2, 700), LIMITS, NOW)

    assert (await store.account("user-1", NOW)).reserved_tokens == 800


async def test_nothing_is_reserved_for_an_invocation_that_has_ended_or_is_unknown(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.finish(ending(), NOW)

    for number in (1, 2):
        with pytest.raises(Fenced):
            await store.reserve(hold(number), LIMITS, NOW)


# ------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("settled_at_ms", "counts_until_ms"),
    [
        (NOW, NOW + BUCKET_MS + DAY_MS),
        (NOW + BUCKET_MS - 1, NOW + BUCKET_MS + DAY_MS),
        (NOW + BUCKET_MS, NOW + 2 * BUCKET_MS + DAY_MS),
    ],
)
async def test_a_bucket_counts_whole_as_long_as_any_of_it_is_within_24_hours(
    store: Store, settled_at_ms: int, counts_until_ms: int
) -> None:
    await charge(store, 1, 100, settled_at_ms)

    assert await day_tokens(store, counts_until_ms - 1) == 100
    assert await day_tokens(store, counts_until_ms) == 0


async def test_what_a_faster_clock_has_counted_ahead_counts_already(store: Store) -> None:
    await charge(store, 1, 100, NOW + HOUR_MS)

    assert await day_tokens(store, NOW) == 100


async def test_the_month_is_utcs_and_begins_with_nothing(store: Store) -> None:
    await charge(store, 1, 100, MONTH_ENDS_MS - 1)
    await charge(store, 2, 30, MONTH_ENDS_MS)

    november = await store.account("user-1", MONTH_ENDS_MS - 1)
    december = await store.account("user-1", MONTH_ENDS_MS)

    assert november.windows[1] == Window("monthly", 30 * 86_400, used(100), MONTH_ENDS_MS)
    assert december.windows[1] == Window("monthly", 31 * 86_400, used(30), MONTH_ENDS_MS + 31 * DAY_MS)


async def test_the_account_of_somebody_unknown_is_empty(store: Store) -> None:
    assert await store.account("nobody", NOW) == Account(
        (Window("daily", 86_400, Usage(), NOW), Window("monthly", 30 * 86_400, Usage(), MONTH_ENDS_MS)), 0, 0
    )


@pytest.mark.promise("cache-metered-apart")
async def test_cache_reads_are_recorded_and_not_counted(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    ended = await after_finish(store, ending(1, 1, settlement(1, 1, Usage(0, 0, 500, 0))), NOW)

    assert ended.usage == Usage(0, 0, 500, 0)
    day = (await store.account("user-1", NOW)).windows[0]
    assert (day, day.used_tokens) == (Window("daily", 86_400, Usage(0, 0, 500, 0), NOW), 0)


async def test_an_expired_hold_no_longer_narrows_the_quota(store: Store) -> None:
    await store.create_invocation(new(1, tokens=100), LIMITS, NOW)
    await store.reserve(hold(1, 2, 700, expires_at_ms=NOW + 1_000), LIMITS, NOW)
    with pytest.raises(QuotaExceeded):
        await store.create_invocation(new(2, tokens=201), LIMITS, NOW + 999)

    await store.create_invocation(new(2, tokens=201), LIMITS, NOW + 1_000)

    assert (await store.account("user-1", NOW + 1_000)).reserved_tokens == 301


# ------------------------------------------------------------ what a refusal says


async def refusal(store: Store, tokens: int, limits: Limits, now_ms: int) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        await store.create_invocation(new(99, tokens=tokens), limits, now_ms)
    return refused.value


async def test_a_daily_refusal_says_when_enough_buckets_have_aged_out(store: Store) -> None:
    limits = Limits(1_000, 5_000, 10, 5_000)
    for number, tokens in enumerate((100, 300, 400)):
        await charge(store, number, tokens, NOW + number * HOUR_MS)
    await store.create_invocation(new(9, tokens=50), limits, NOW + 3 * HOUR_MS)

    # 800 used and 50 held: 300 more need 150, which the first bucket alone (100) does not free.
    error = await refusal(store, 300, limits, NOW + 3 * HOUR_MS)

    assert error.extra == {
        "quota": {
            "name": "daily",
            "limit": 1_000,
            "used": 800,
            "reserved": 50,
            "requested": 300,
            "resetsAt": "2026-11-22T17:50:00Z",
        }
    }
    assert error.retry_after_s == 22 * 3600 + 600
    assert error.detail == (
        "The daily quota is 1,000 tokens: 800 are used, 50 are held by running calls and this call needs up"
        " to 300. There is room from 2026-11-22T17:50:00Z."
    )
    resets_at_ms = NOW + HOUR_MS + BUCKET_MS + DAY_MS
    await refusal(store, 300, limits, resets_at_ms - 1)
    await store.create_invocation(new(98, tokens=300), limits, resets_at_ms)


async def test_a_monthly_refusal_says_when_the_next_month_begins(store: Store) -> None:
    limits = Limits(10_000, 1_000, 10, 5_000)
    await charge(store, 1, 900, NOW)

    error = await refusal(store, 101, limits, NOW)

    assert error.extra["quota"] == {
        "name": "monthly",
        "limit": 1_000,
        "used": 900,
        "reserved": 0,
        "requested": 101,
        "resetsAt": "2026-12-01T00:00:00Z",
    }
    assert error.retry_after_s == (MONTH_ENDS_MS - NOW) / 1000


async def test_of_two_full_windows_the_one_that_has_room_last_is_named(store: Store) -> None:
    await charge(store, 1, 900, NOW)

    error = await refusal(store, 200, Limits(1_000, 1_000, 10, 5_000), NOW)

    assert error.extra["quota"]["name"] == "monthly"


async def test_a_call_that_can_never_fit_is_told_so_and_not_to_retry(store: Store) -> None:
    error = await refusal(store, 1_001, Limits(1_000, 5_000, 10, 5_000), NOW)

    assert (error.retry_after_s, error.extra["quota"]["resetsAt"]) == (None, None)
    assert error.detail.endswith("A call of this size can never fit: ask for fewer tokens.")


async def test_a_call_that_only_holds_keep_out_may_retry_soon(store: Store) -> None:
    limits = Limits(1_000, 5_000, 10, 5_000)
    await store.create_invocation(new(1, tokens=950), limits, NOW)

    error = await refusal(store, 100, limits, NOW)

    assert (error.retry_after_s, error.extra["quota"]["resetsAt"]) == (5.0, None)
    assert error.detail.endswith("There is room again when running calls have used less than they hold.")


async def test_where_holds_alone_leave_no_room_the_earliest_moment_without_them_is_named(
    store: Store,
) -> None:
    limits = Limits(1_000, 5_000, 10, 5_000)
    await charge(store, 1, 200, NOW)
    await charge(store, 2, 300, NOW + HOUR_MS)
    await store.create_invocation(new(3, tokens=500), limits, NOW + HOUR_MS)

    error = await refusal(store, 600, limits, NOW + HOUR_MS)

    assert error.extra["quota"]["resetsAt"] == "2026-11-22T16:50:00Z"


async def test_a_limit_of_nothing_admits_nothing(store: Store) -> None:
    error = await refusal(store, 1, Limits(0, 5_000, 10, 5_000), NOW)

    assert error.extra["quota"]["limit"] == 0
