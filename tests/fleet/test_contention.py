"""Two processes, one principal: at the edge of a limit they admit exactly what fits, in few round trips."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest

from service.config import Limits
from service.errors import QuotaExceeded
from service.stores import Idempotency, Store
from tests.contracts.store_cases import DAY_MS, NOW, ROOMY, charge, ending, hold, new, settlement, used
from tests.dynamodb_faults import Fault, Faults, answer_lost, conflicting, sometimes, throttled
from tests.fleet.conftest import OpenStore

SUBMISSIONS: Final = 200
ROUNDS: Final = {  # what fits in each: 20 in all
    "few-fit": (0, 1, 120),
    "most-fit": (181, 182, 183, 184, 185, 186),
    "nearly-all-fit": (187, 188, 189, 190, 191, 192),
    "all-but-a-few-fit": (196, 197, 198, 199, 200),
}
TOKENS: Final = 100
ROUND_TRIPS: Final = {"admitted": 1, "quota-exceeded": 5, "concurrency-exceeded": 2}
"""Of a submission whose principal is known: a transaction, and where there is no room reads that say why."""
FIRST_TRIPS: Final = 8
"""Of both processes together: their leases, a principal that they don't know yet."""


async def submit(
    stores: Sequence[Store], sub: str, limits: Limits, *, count: int = SUBMISSIONS, from_number: int = 0
) -> Counter[str]:
    """Let the stores submit in parallel, in turn, for one principal; return how often each outcome came."""
    for place, store in enumerate(stores):
        await store.renew_lease(f"owner-{place}", NOW + DAY_MS)
    submissions = [
        stores[number % len(stores)].create_invocation(
            new(from_number + number, tokens=TOKENS, sub=sub, owner=f"owner-{number % len(stores)}"),
            limits,
            NOW,
        )
        for number in range(count)
    ]
    answers = await asyncio.gather(*submissions, return_exceptions=True)
    return Counter(getattr(answer, "code", "admitted") for answer in answers)


def most_trips(told: Counter[str]) -> int:
    return FIRST_TRIPS + sum(ROUND_TRIPS[outcome] * count for outcome, count in told.items())


@pytest.mark.promise("quota-exact-under-concurrency")
@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS)
async def test_of_200_parallel_submissions_exactly_those_that_fit_are_admitted_in_every_round(
    open_store: OpenStore, rounds: Sequence[int]
) -> None:
    async with (
        open_store(faults=(one := Faults())) as first,
        open_store(faults=(other := Faults())) as second,
    ):
        for played, fits in enumerate(rounds):
            sub, edge = f"user-{played}", 250 + TOKENS * fits + TOKENS - 1
            limits = Limits(10**9, edge, 10**6) if played % 2 else Limits(edge, 10**9, 10**6)
            await charge(first, 1000 + played, 250, NOW, sub=sub)
            one.none()
            other.none()

            told = await submit([first, second], sub, limits, from_number=2000 + SUBMISSIONS * played)

            trips = len(one.calls) + len(other.calls)
            assert told == +Counter({"admitted": fits, "quota-exceeded": SUBMISSIONS - fits})
            account = await first.account(sub, NOW)
            assert (account.reserved_tokens, account.running) == (TOKENS * fits, fits)
            assert trips <= most_trips(told)


@pytest.mark.promise("quota-exact-under-concurrency")
@pytest.mark.parametrize("fits", [1, 150])
async def test_a_principal_runs_exactly_as_many_at_once_as_it_may(open_store: OpenStore, fits: int) -> None:
    limits = replace(ROOMY, concurrent_invocations=fits)
    async with (
        open_store(faults=(one := Faults())) as first,
        open_store(faults=(other := Faults())) as second,
    ):
        one.none()
        other.none()

        told = await submit([first, second], "user-1", limits)

        trips = len(one.calls) + len(other.calls)
        assert told == Counter({"admitted": fits, "concurrency-exceeded": SUBMISSIONS - fits})
        account = await first.account("user-1", NOW)
        assert (account.reserved_tokens, account.running) == (TOKENS * fits, fits)
        assert trips <= most_trips(told)


@pytest.mark.promise("quota-exact-under-concurrency")
@pytest.mark.parametrize("fault", [conflicting, throttled, answer_lost])
async def test_conflicts_throttling_and_lost_answers_change_no_admission(
    open_store: OpenStore, fault: Fault
) -> None:
    fits, faulty = 27, [Faults(forgets_tokens=True) for _ in range(2)]
    limits = replace(ROOMY, daily_tokens=TOKENS * fits)
    async with open_store(faults=faulty[0]) as first, open_store(faults=faulty[1]) as second:
        for seed, faults in enumerate(faulty):
            faults.always(sometimes(fault, 0.2, seed), operation="TransactWriteItems")

        told = await submit([first, second], "user-1", limits, count=60)

        assert told == Counter({"admitted": fits, "quota-exceeded": 60 - fits})
        account = await first.account("user-1", NOW)
        assert (account.reserved_tokens, account.running) == (TOKENS * fits, fits)


@pytest.mark.promise("settle-exactly-once")
async def test_what_ends_while_others_are_admitted_is_counted_once_and_its_room_given_back(
    open_store: OpenStore,
) -> None:
    """Everybody uses 40 of the 100 that it held, and all 50 fit in the end."""
    limits = replace(ROOMY, daily_tokens=40 * 50 + 60)
    ended = asyncio.Semaphore(0)

    async def run(store: Store, number: int) -> None:
        while True:
            try:
                await store.create_invocation(new(number, tokens=TOKENS), limits, NOW)
            except QuotaExceeded:
                await ended.acquire()  # somebody holds what is missing
            else:
                await store.finish(ending(number, 1, settlement(number, 1, used(40))), NOW)
                ended.release()
                return

    async with open_store(faults=Faults()) as first, open_store(faults=Faults()) as second:
        await asyncio.gather(*(run((first, second)[number % 2], number) for number in range(50)))

        account = await first.account("user-1", NOW)
        assert [window.used_tokens for window in account.windows] == [40 * 50, 40 * 50]
        assert (account.reserved_tokens, account.running) == (0, 0)


@pytest.mark.promise("retry-attaches")
async def test_two_processes_start_one_invocation_for_one_key(open_store: OpenStore) -> None:
    key = Idempotency("key-1", "body-1", NOW + DAY_MS)
    async with open_store(faults=Faults()) as first, open_store(faults=Faults()) as second:
        tries = [
            (first, second)[number % 2].create_invocation(replace(new(number), idempotency=key), ROOMY, NOW)
            for number in range(40)
        ]
        started = {created.invocation_id for created in await asyncio.gather(*tries)}

        assert len(started) == 1
        account = await first.account("user-1", NOW)
        assert (account.reserved_tokens, account.running) == (TOKENS, 1)


async def test_parallel_model_calls_of_one_invocation_never_get_in_each_others_way(
    open_store: OpenStore, faults: Faults
) -> None:
    turns = range(2, 32)
    async with open_store() as store:
        await store.create_invocation(new(1), ROOMY, NOW)
        faults.none()

        await asyncio.gather(*(store.reserve(hold(1, turn, 10), ROOMY, NOW) for turn in turns))
        await asyncio.gather(*(store.settle(settlement(1, turn, used(10)), NOW) for turn in turns))

        assert faults.operations.count("TransactWriteItems") == 2 * len(turns)
        assert (await store.account("user-1", NOW)).reserved_tokens == 100
