"""What DynamoDB and the network do now and then: a call is made again within its deadline, and no longer."""

import asyncio
from typing import Any, Final

import pytest

from service.errors import StoreUnavailable
from service.events import START
from service.stores import HandOver
from service.stores.dynamodb import DynamoStore
from tests.contracts.store_cases import (
    LIMITS,
    NOW,
    ROOMY,
    block,
    ending,
    entry,
    new,
    running,
    settlement,
    used,
)
from tests.dynamodb_faults import (
    Fault,
    Faults,
    answer_lost,
    conflicting,
    cut_off,
    failed_after,
    failing,
    first,
    forbidden,
    hanging,
    partly,
    throttled,
    unconnected,
    unreachable,
)
from tests.fleet.conftest import OpenStore

PASSING: Final = [
    throttled,
    conflicting,
    failing,
    unreachable,
    unconnected,
    answer_lost,
    cut_off,
    failed_after,
]
NOTHING_HAPPENS: Final = [throttled, conflicting, failing, unreachable, unconnected, hanging, forbidden]
IN_VAIN_S: Final = 0.2


async def standing(store: DynamoStore) -> tuple[int, int, int]:
    """Return what user-1 has used, holds and runs."""
    account = await store.account("user-1", NOW)
    return account.windows[0].used_tokens, account.reserved_tokens, account.running


def written(faults: Faults, operation: str = "BatchWriteItem") -> list[list[str]]:
    """Return whose items each call for a batch has named."""
    batches = []
    for made in faults.calls:
        if made.operation == operation:
            ((_, asked),) = made.parameters["RequestItems"].items()
            entries: list[Any] = asked["Keys"] if isinstance(asked, dict) else asked
            batches.append([(each.get("PutRequest", {}).get("Item") or each)["pk"]["S"] for each in entries])
    return batches


@pytest.mark.parametrize("fault", PASSING)
async def test_what_passes_is_not_noticed(fault: Fault, open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        faults.at(1, fault, operation="TransactWriteItems", times=2)

        created = await store.create_invocation(new(1), LIMITS, NOW)

        assert created == running(1)
        assert await standing(store) == (0, 100, 1)


@pytest.mark.parametrize("fault", PASSING)
async def test_reads_are_made_again_too(fault: Fault, open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        for operation in ("GetItem", "Query", "BatchGetItem"):
            faults.at(1, fault, operation=operation, times=2)

        assert await store.load_invocation("inv_1") == running(1)
        assert await standing(store) == (0, 100, 1)
        assert await store.owned("owner-1") == {"inv_1": 1}


@pytest.mark.parametrize("fault", NOTHING_HAPPENS)
async def test_what_does_not_pass_is_unavailable_and_nothing_has_happened(
    fault: Fault, open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store, open_store(deadline_s=IN_VAIN_S) as impatient:
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.none()
        faults.always(fault)

        for decide in (
            lambda: impatient.create_invocation(new(2), LIMITS, NOW),
            lambda: impatient.settle(settlement(1, 1, used(60)), NOW),
            lambda: impatient.append_events([entry(1, 2)], NOW),
        ):
            with pytest.raises(StoreUnavailable) as refused:
                await decide()
            assert refused.value.retry_after_s == 1

        faults.none()
        assert await standing(store) == (0, 100, 1)
        assert await store.load_invocation("inv_2") is None
        assert await store.read_events("inv_1", START, limit_bytes=10**6) == []


async def test_what_trying_again_would_not_mend_is_not_tried_again(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        faults.none()
        faults.always(forbidden)

        with pytest.raises(StoreUnavailable):
            await store.load_invocation("inv_1")

        assert faults.operations == ["GetItem"]


async def test_a_settlement_that_waits_for_the_store_is_exact_when_it_is_back(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store(deadline_s=IN_VAIN_S) as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        end = ending(1, 1, settlement(1, 1, used(60)))
        for outage in (throttled, unreachable, answer_lost):
            faults.always(outage, operation="TransactWriteItems")
            with pytest.raises(StoreUnavailable):
                await store.finish(end, NOW)
            faults.none()

        await store.finish(end, NOW)

        assert await standing(store) == (60, 0, 0)


async def test_a_batchs_failed_items_are_written_again_alone(open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        for number in (1, 2, 3, 4):
            await store.create_invocation(new(number), ROOMY, NOW)
        faults.none()
        faults.at(1, partly, operation="BatchWriteItem", times=2)

        fenced = await store.append_events([entry(1, 2, number) for number in (1, 2, 3, 4)], NOW)

        assert fenced == frozenset()
        assert written(faults) == [["inv_1", "inv_2", "inv_3", "inv_4"], ["inv_3", "inv_4"], ["inv_4"]]
        for number in (1, 2, 3, 4):
            assert await store.read_events(f"inv_{number}", START, limit_bytes=10**6) == [block(1, 2)]


async def test_a_batchs_failed_reads_are_made_again_alone(open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        for number in (1, 2, 3, 4):
            await store.create_invocation(new(number), ROOMY, NOW)
        faults.none()
        faults.at(1, partly, operation="BatchGetItem", times=2)

        owned = await store.owned("owner-1")

        assert owned == {"inv_1": 1, "inv_2": 1, "inv_3": 1, "inv_4": 1}
        assert [len(batch) for batch in written(faults, "BatchGetItem")] == [4, 2, 1]


async def test_a_batch_that_is_never_finished_is_unavailable_and_can_be_made_again(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store(deadline_s=IN_VAIN_S) as store:
        for number in (1, 2):
            await store.create_invocation(new(number), ROOMY, NOW)
        blocks = [entry(1, 2, number) for number in (1, 2)]
        faults.always(partly, operation="BatchWriteItem")

        with pytest.raises(StoreUnavailable):
            await store.append_events(blocks, NOW)
        faults.none()
        grown = [entry(1, 3, number) for number in (1, 2)]
        await store.append_events(grown, NOW)

        for number in (1, 2):
            blocks_read = await store.read_events(f"inv_{number}", START, limit_bytes=10**6)
            events = [event for piece in blocks_read for event in piece.events]
            assert tuple(events) == block(1, 3).events


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_a_store_that_hangs_refuses_all_submissions_of_a_principal_at_one_deadline(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store(deadline_s=IN_VAIN_S) as store:
        await store.create_invocation(new(1), ROOMY, NOW)
        faults.none()
        faults.always(hanging)

        outcomes = await asyncio.gather(
            *(store.create_invocation(new(number), ROOMY, NOW) for number in range(2, 42)),
            return_exceptions=True,
        )

        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        # One after the other, each with a deadline of its own, they would have made 40 calls and more.
        assert len(faults.calls) < 10


async def test_an_invocation_that_moves_while_the_index_is_read_is_looked_at_once(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store(faults=Faults()) as other, open_store() as store:
        await other.renew_lease("owner-2", NOW - 1)
        await other.renew_lease("owner-1", NOW - 1)
        await other.create_invocation(new(1), ROOMY, NOW - 2)
        handed = HandOver("inv_1", 1)
        await other.hand_over(handed, NOW - 2)
        faults.none()

        # The third query is for what the expired owners hold; by then another one, also expired, has it.
        faults.at(3, first(lambda: other.claim_expired("owner-2", NOW - 2, limit=1)), operation="Query")
        claims = await store.claim_expired("owner-3", NOW, limit=5)

        assert [claim.invocation.attempt for claim in claims] == [3]


async def test_a_decision_that_is_cut_short_lets_the_next_one_have_the_account(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), ROOMY, NOW)
        faults.none()
        called = asyncio.Event()

        async def hanging_loud(*call: Any) -> Any:
            called.set()
            return await hanging(*call)

        faults.at(1, hanging_loud)
        cancelled = asyncio.create_task(store.create_invocation(new(2), ROOMY, NOW))
        await called.wait()

        waiting = asyncio.create_task(store.create_invocation(new(3), ROOMY, NOW))
        cancelled.cancel()

        assert (await waiting).invocation_id == "inv_3"
        assert await standing(store) == (0, 200, 2)
