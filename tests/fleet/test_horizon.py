"""What has aged out of a quota counts no more, all else does: to the token, at every edge, in every process.

`assert_edge` lets a process say where the edge is: it refuses one token more than fits, and admits what does.
"""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from local.dynamodb import DynamoDbLocal
from service.config import Limits
from service.errors import QuotaExceeded
from service.invocations import Usage
from service.stores import Store
from service.stores.windows import month_bounds_ms
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    NOW,
    ROOMY,
    charge,
    ending,
    new,
    settlement,
    used,
)
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults, first
from tests.fleet.conftest import OpenStore

LIMITS: Final = Limits(10_000, 25_000, 10**6, 10**12)
BUCKET_MS: Final = 10 * MINUTE_MS
NOVEMBER_ENDS_MS: Final = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * MINUTE_MS


@dataclass
class Used:
    """What was used: the plainest ledger, against which the store's answers are held."""

    counted: list[tuple[int, int]] = field(default_factory=list)
    numbers: int = 0

    def room(self, now_ms: int) -> int:
        """Return what fits, with nothing held."""
        bucket_ends = [(at_ms // BUCKET_MS * BUCKET_MS + BUCKET_MS, tokens) for at_ms, tokens in self.counted]
        day = sum(tokens for ends_at_ms, tokens in bucket_ends if ends_at_ms + DAY_MS > now_ms)
        month = sum(
            tokens for at_ms, tokens in self.counted if month_bounds_ms(at_ms) == month_bounds_ms(now_ms)
        )
        return min(LIMITS.daily_tokens - day, LIMITS.monthly_tokens - month)

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    async def charge(self, store: Store, tokens: int, now_ms: int) -> None:
        await charge(store, self.next(), tokens, now_ms)
        self.counted.append((now_ms, tokens))


async def assert_edge(
    store: Store, book: Used, now_ms: int, *, fits: int | None = None, over: int | None = None
) -> None:
    """See that `over` is refused and `fits` is admitted (by the book: the edge), and give it back."""
    fits = book.room(now_ms) if fits is None else fits
    number = book.next()
    with pytest.raises(QuotaExceeded):
        await store.create_invocation(new(number, tokens=over or fits + 1), LIMITS, now_ms)
    await store.create_invocation(new(number, tokens=fits), LIMITS, now_ms)
    await store.finish(ending(number, 1, settlement(number, 1, Usage())), now_ms)


def let_expire(emulator: DynamoDbLocal, tables: Tables, now_ms: int) -> int:
    """Delete what DynamoDB would have deleted by now, at the earliest; returns how much."""
    names = {"#ttl": "ttl"}
    asked: dict[str, Any] = {
        "TableName": tables.usage,
        "FilterExpression": "#ttl <= :now",
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": {":now": {"N": str(now_ms // 1000)}},
    }
    expired = emulator.call("Scan", asked)["Items"]
    for item in expired:
        key = {name: item[name] for name in ("user_id", "period_id")}
        emulator.call("DeleteItem", {"TableName": tables.usage, "Key": key})
    return len(expired)


# ---------------------------------------------------------------- edge by edge

EDGES: Final = (
    NOW + BUCKET_MS,
    NOW + DAY_MS + BUCKET_MS - 1,  # the first bucket counts for the last time
    NOW + DAY_MS + BUCKET_MS,
    NOW + DAY_MS + 2 * BUCKET_MS - 1,
    NOW + DAY_MS + 2 * BUCKET_MS,
    NOVEMBER_ENDS_MS - 1,
    NOVEMBER_ENDS_MS,
    NOVEMBER_ENDS_MS + DAY_MS,
)


@pytest.mark.promise("quota-exact-under-concurrency")
@pytest.mark.parametrize("knowing", ["always", "from-the-beginning", "nothing"])
@pytest.mark.parametrize("deleted", [False, True], ids=["kept", "deleted"])
async def test_every_process_admits_what_fits_and_no_more_at_every_edge(
    knowing: str, deleted: bool, open_store: OpenStore, tables: Tables, emulator: DynamoDbLocal
) -> None:
    """Whether it has seen all that happened, has last looked long ago, or has just begun."""
    book = Used()
    async with open_store(now_ms=0) as busy, open_store(now_ms=0) as idle:
        await book.charge(busy, 3_000, NOW)
        await idle.create_invocation(new(number := book.next()), ROOMY, NOW)
        await idle.finish(ending(number, 1, settlement(number, 1, Usage())), NOW)
        await book.charge(busy, 2_000, NOW + BUCKET_MS - 1)
        await book.charge(busy, 1_000, NOW + BUCKET_MS)

        for edge_ms in EDGES:
            if deleted:
                let_expire(emulator, tables, edge_ms)
            async with open_store(now_ms=0) as fresh:
                store = {"always": busy, "from-the-beginning": idle, "nothing": fresh}[knowing]
                await assert_edge(store, book, edge_ms)
            if knowing != "from-the-beginning":
                await book.charge(busy, 7, edge_ms)


async def test_an_account_that_was_left_alone_is_exact_after_its_buckets_are_deleted(
    open_store: OpenStore, tables: Tables, emulator: DynamoDbLocal
) -> None:
    book = Used()
    async with open_store(now_ms=0) as store:
        await book.charge(store, 9_000, NOW)
        later = NOW + 26 * HOUR_MS

        assert let_expire(emulator, tables, later) == 1
        await assert_edge(store, book, later, fits=10_000)

        await book.charge(store, 9_000, later)
        await assert_edge(store, book, later, fits=1_000)


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_a_settlement_that_lands_after_another_process_saw_the_new_month_is_not_the_new_months(
    open_store: OpenStore, faults: Faults
) -> None:
    """It began before midnight; or the other clock is ahead, which is the same to the store."""
    book = Used()
    december = NOVEMBER_ENDS_MS + MINUTE_MS
    limits = replace(LIMITS, daily_tokens=10**9)
    async with open_store(now_ms=0, faults=Faults()) as quick, open_store(now_ms=0) as late:
        await late.create_invocation(new(number := book.next()), ROOMY, NOVEMBER_ENDS_MS - 1)

        async def see_december() -> None:
            await quick.create_invocation(new(other := book.next()), ROOMY, december)
            await quick.finish(ending(other, 1, settlement(other, 1, used(500))), december)

        faults.none()
        faults.at(1, first(see_december), operation="TransactWriteItems")
        await late.finish(ending(number, 1, settlement(number, 1, used(4_000))), NOVEMBER_ENDS_MS - 1)

        for store in (quick, late):
            over, fits = new(90, tokens=24_501), new(book.next(), tokens=24_500)
            with pytest.raises(QuotaExceeded) as refused:
                await store.create_invocation(over, limits, december)
            assert refused.value.extra["quota"]["used"] == 500
            await store.create_invocation(fits, limits, december)
            name = book.numbers
            await store.finish(ending(name, 1, settlement(name, 1, Usage())), december)


async def test_a_lapsed_hold_stands_in_nobodys_way_and_is_settled_once_all_the_same(
    open_store: OpenStore,
) -> None:
    book = Used()
    async with open_store(now_ms=0, faults=Faults()) as one, open_store(now_ms=0, faults=Faults()) as other:
        for number in (101, 102):
            lapsing = replace(new(number, tokens=4_000), reservation_expires_at_ms=NOW + MINUTE_MS)
            await one.create_invocation(lapsing, LIMITS, NOW)
        with pytest.raises(QuotaExceeded):
            await other.create_invocation(new(book.next(), tokens=2_001), LIMITS, NOW + MINUTE_MS - 1)

        await assert_edge(other, book, NOW + MINUTE_MS, fits=10_000)
        await one.settle(settlement(101, 1, used(1_500)), NOW + MINUTE_MS)
        await one.finish(ending(102, 1), NOW + MINUTE_MS)  # at its full size: 4,000

        await assert_edge(one, book, NOW + MINUTE_MS, fits=4_500)
        account = await other.account("user-1", NOW + MINUTE_MS)
        assert (account.windows[0].used_tokens, account.reserved_tokens, account.running) == (5_500, 0, 1)


# ---------------------------------------------------------------- at random

MOVES_MS: Final = (0, 1, MINUTE_MS, BUCKET_MS - 1, BUCKET_MS, 3 * HOUR_MS, DAY_MS - 1, DAY_MS, 26 * HOUR_MS)
STEPS: Final = 40


@pytest.mark.promise("quota-exact-under-concurrency")
@pytest.mark.parametrize("skews_ms", [(0, 0, 0), (0, 3 * MINUTE_MS, -4 * MINUTE_MS)], ids=["alike", "skewed"])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_processes_agree_with_the_book_whatever_happens_in_whatever_order(
    seed: int, skews_ms: Sequence[int], open_store: OpenStore, tables: Tables, emulator: DynamoDbLocal
) -> None:
    """Where clocks differ, nobody refuses what fits by its own, or admits what does not by the fastest."""
    dice, book = random.Random(seed), Used()  # noqa: S311 - not a secret
    now_ms = NOVEMBER_ENDS_MS - 3 * DAY_MS
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(now_ms=0)) for _ in skews_ms]
        for _ in range(STEPS):
            now_ms += dice.choice(MOVES_MS)
            place = dice.randrange(len(stores))
            store, own_ms = stores[place], now_ms + skews_ms[place]
            fits, over = book.room(own_ms), book.room(now_ms + max(skews_ms)) + 1
            if dice.random() < 0.3:
                let_expire(emulator, tables, now_ms + min(skews_ms))
            if fits < 1 or dice.random() < 0.5:
                await book.charge(store, dice.randrange(1, 2_500), own_ms)
            else:
                await assert_edge(store, book, own_ms, fits=fits, over=over)
