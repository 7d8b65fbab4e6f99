"""How often a decision asks DynamoDB: what an attempt knows from its last decision it does not read again."""

from dataclasses import replace

import pytest

from service.errors import BudgetExceeded
from service.invocations import State
from tests.contracts.store_cases import LIMITS, NOW, ending, entry, hold, new, settlement, used
from tests.dynamodb_faults import Faults
from tests.fleet.conftest import OpenStore

WRITE = "TransactWriteItems"


async def test_an_invocation_of_one_turn_is_two_transactions(open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.none()

        await store.create_invocation(new(2), LIMITS, NOW)
        await store.finish(ending(2, 1, settlement(2, 1, used(60))), NOW)

        assert faults.operations == [WRITE, WRITE]


async def test_what_another_process_has_changed_is_read_before_it_is_decided_on(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store, open_store(faults=Faults()) as another:
        await store.create_invocation(new(1), LIMITS, NOW)
        await another.request_cancel("inv_1", NOW + 1)
        faults.none()

        await store.finish(ending(1, 1, state=State.CANCELLED), NOW + 2)

        assert faults.operations == [WRITE, "GetItem", WRITE]
        ended = await another.load_invocation("inv_1")
        assert ended is not None
        assert ended.cancel_requested_at_ms == NOW + 1


async def test_nothing_is_refused_by_what_is_only_remembered(open_store: OpenStore, faults: Faults) -> None:
    small = replace(LIMITS, invocation_tokens=150)
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.none()

        with pytest.raises(BudgetExceeded):
            await store.reserve(hold(1, 2), small, NOW)

        assert faults.operations == ["GetItem"]


async def test_of_the_records_of_a_commit_only_their_fences_are_read(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.none()

        assert await store.append_events([entry(1, 2)], NOW) == frozenset()

        (read,) = (made for made in faults.calls if made.operation == "BatchGetItem")
        (asked,) = read.parameters["RequestItems"].values()
        assert asked["ProjectionExpression"] == "#pk, #fence"
        assert asked["ExpressionAttributeNames"] == {"#pk": "pk", "#fence": "fence"}
