"""Every decision, with every one of its calls lost: made again, it leaves what it leaves without a fault."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from local.dynamodb import DynamoDbLocal
from service.errors import Fenced, StoreUnavailable
from service.events import START
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_values import unpack
from tests.contracts.store_cases import NOW
from tests.dynamodb import Tables
from tests.dynamodb_faults import (
    Fault,
    Faults,
    answer_lost,
    given_up_after,
    given_up_before,
    partly,
)
from tests.fleet.conftest import OpenStore
from tests.fleet.decisions import DECISIONS, Decision

BATCHES: Final = ("BatchWriteItem", "BatchGetItem")
READS: Final = ("GetItem", "Query", "BatchGetItem", "TransactGetItems")
TRIES: Final = 3


async def persist(decide: Callable[[], Any]) -> None:
    """Decide until the store answers, as `ledger.persist` does, without its pauses."""
    for _ in range(TRIES):
        try:
            await decide()
        except StoreUnavailable:
            continue
        except Fenced:
            pass  # what `resume` began before its answer was lost: an orphan
        return
    pytest.fail("the decision was not made")


def items_of(emulator: DynamoDbLocal, table: str) -> list[Any]:
    """Return all items of a table, in order."""
    items: list[Any] = []
    page: dict[str, Any] = {}
    while True:
        answer = emulator.call("Scan", {"TableName": table, **page})
        items += answer["Items"]
        if "LastEvaluatedKey" not in answer:
            return sorted(map(unpack, items), key=lambda item: sorted(map(str, item.values())))
        page = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


async def state(store: DynamoStore, tables: Tables, emulator: DynamoDbLocal) -> dict[str, Any]:
    """Return all there is: as the tables have it, and as the port shows it."""
    return {
        "usage": items_of(emulator, tables.usage),
        "invocations": items_of(emulator, tables.invocations),
        "account": await store.account("user-1", NOW),
        "records": [await store.load_invocation(f"inv_{number}") for number in (1, 2, 3)],
        "log": await store.read_events("inv_1", START, limit_bytes=10**8),
    }


def losses(operation: str, before: Sequence[str]) -> list[tuple[Fault, bool]]:
    """Return what can happen to a call, and whether DynamoDB has forgotten its token by then.

    A read that is lost before anything is written leaves nothing: one of them is enough.
    """
    if operation in READS and before and set(before) <= set(READS):
        return []
    faults: list[tuple[Fault, bool]] = [(given_up_before, False)]
    if operation not in READS:
        faults += [(given_up_after, False), (answer_lost, True)]
    if operation == "TransactWriteItems":
        faults.append((answer_lost, False))
    if operation in BATCHES:
        faults.append((partly, False))
    return faults


@pytest.mark.promise("settle-exactly-once")
@pytest.mark.parametrize("decision", DECISIONS.values(), ids=DECISIONS)
async def test_a_decision_whose_call_is_lost_leaves_what_it_leaves_without_a_fault(
    decision: Decision, open_store: OpenStore, emulator: DynamoDbLocal
) -> None:
    async def made(faults: Faults, place: int = 0, fault: Fault = given_up_before) -> dict[str, Any]:
        with Tables.created(emulator) as tables:
            async with open_store(tables=tables, faults=faults) as store:
                await decision.before(store)
                faults.none()
                if place:
                    faults.at(place, fault)
                await persist(lambda: decision.decide(store))
                operations[:] = operations or faults.operations
                faults.none()
                return await state(store, tables, emulator)

    operations: list[str] = []
    expected = await made(Faults())

    assert operations
    for place, operation in enumerate(tuple(operations), 1):
        for fault, forgets_tokens in losses(operation, operations[: place - 1]):
            left = await made(Faults(forgets_tokens=forgets_tokens), place, fault)
            told = f"call {place} of {operations}: {fault.__name__}, tokens forgotten: {forgets_tokens}"
            assert left == expected, told
