"""Claims in DynamoDB each stand for themselves: what goes wrong with one of them costs no other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from local.dynamodb import DynamoDbLocal
from service.errors import StoreUnavailable
from service.events import EventId
from service.runtimes.python_calls import CALLS_AT_ONCE
from service.stores import Claim, HandOver, Turn
from service.stores.dynamodb_values import pack
from tests.contracts.store_cases import LIMITS, NOW, ROOMY, entry, hold, new, settlement
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults, answer_lost, given_up_before, invalid
from tests.fleet.conftest import OpenStore
from tests.fleet.decisions import LARGE


def names(claims: Sequence[Claim]) -> list[str]:
    return [claim.invocation.invocation_id for claim in claims]


def delete_content(emulator: DynamoDbLocal, tables: Tables, beginning: str) -> int:
    """Delete what lies beside `inv_1`'s record under such keys, as time to live does; return how many."""
    query: dict[str, Any] = {
        "TableName": tables.invocations,
        "KeyConditionExpression": "pk = :pk AND begins_with(sk, :sk)",
        "ProjectionExpression": "pk, sk",
        "ExpressionAttributeValues": pack({":pk": "inv_1", ":sk": beginning}),
    }
    keys = emulator.call("Query", query)["Items"]
    for key in keys:
        emulator.call("DeleteItem", {"TableName": tables.invocations, "Key": key})
    return len(keys)


@pytest.mark.promise("killed-process-goes-on")
@pytest.mark.parametrize(
    ("beginning", "count", "left"),
    [
        ("input", 1, (b"", LARGE)),
        ("part:input", 2, (b"", LARGE)),
        ("part:turn", 2, (LARGE, b"")),
    ],
)
async def test_a_claim_whose_content_has_expired_has_none_and_keeps_no_other(
    open_store: OpenStore,
    emulator: DynamoDbLocal,
    tables: Tables,
    beginning: str,
    count: int,
    left: tuple[bytes, bytes],
) -> None:
    async with open_store() as store:
        await store.create_invocation(replace(new(1), input=LARGE), LIMITS, NOW)
        await store.append_events([entry(1, 2)], NOW)
        await store.complete_turn("inv_1", 1, Turn(1, LARGE, EventId(1, 2)), NOW)
        await store.create_invocation(new(2), LIMITS, NOW)
        deleted = delete_content(emulator, tables, beginning)

        claims = await store.claim_expired("owner-2", NOW, limit=10)

    assert (deleted, names(claims)) == (count, ["inv_1", "inv_2"])
    assert (claims[0].input, claims[0].turns[0].messages) == left


@pytest.mark.promise("killed-process-goes-on")
async def test_an_invocation_that_can_not_be_claimed_is_logged_and_keeps_no_other(
    open_store: OpenStore, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store() as store:
        for number in (1, 2):
            await store.create_invocation(new(number), LIMITS, NOW)
        faults.at(1, invalid, operation="TransactWriteItems")

        claims = await store.claim_expired("owner-2", NOW, limit=10)

    assert names(claims) == ["inv_2"]
    assert [(record.levelname, record.invocation_id) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("ERROR", "inv_1")
    ]


@pytest.mark.promise("killed-process-goes-on")
async def test_a_record_that_can_not_be_read_is_logged_and_hides_no_other(
    open_store: OpenStore, emulator: DynamoDbLocal, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store() as store:
        for number in (1, 2):
            await store.create_invocation(new(number), LIMITS, NOW)
        ruin: dict[str, Any] = {
            "TableName": tables.invocations,
            "Key": pack({"pk": "inv_1", "sk": "record"}),
            "UpdateExpression": "REMOVE attempts",
        }
        emulator.call("UpdateItem", ruin)

        claims = await store.claim_expired("owner-2", NOW, limit=10)

    assert names(claims) == ["inv_2"]
    assert [(record.levelname, record.invocation_id) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("ERROR", "inv_1")
    ]


@pytest.mark.promise("killed-process-goes-on")
async def test_what_is_claimed_before_the_store_goes_away_is_returned(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        for number in (1, 2):
            await store.create_invocation(new(number), LIMITS, NOW)
        faults.at(2, given_up_before, operation="TransactWriteItems", times=2)

        before = await store.claim_expired("owner-2", NOW, limit=10)
        with pytest.raises(StoreUnavailable):
            await store.claim_expired("owner-2", NOW, limit=10)
        after = await store.claim_expired("owner-2", NOW, limit=10)

    assert (names(before), names(after)) == (["inv_1"], ["inv_2"])


@pytest.mark.promise("handed-over-goes-on")
async def test_a_claim_whose_answer_is_lost_is_made_once_and_returned(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        await store.append_events([entry(1, 2)], NOW)
        await store.hand_over(HandOver("inv_1", 1, (settlement(1, 1),)), NOW)
        faults.at(1, answer_lost, operation="UpdateItem")
        faults.at(1, answer_lost, operation="TransactWriteItems")

        (claim,) = await store.claim_expired("owner-2", NOW, limit=10)

    assert [each.end for each in claim.invocation.attempts] == ["handed-over", None]


@pytest.mark.promise("killed-process-goes-on")
async def test_all_model_calls_that_an_agent_can_have_open_are_settled_by_one_claim(
    open_store: OpenStore,
) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), ROOMY, NOW)
        for turn in range(2, CALLS_AT_ONCE + 2):
            await store.reserve(hold(1, turn, 10), ROOMY, NOW)

        (claim,) = await store.claim_expired("owner-2", NOW, limit=1)

        assert claim.invocation.attempt == 2
        assert (await store.account("user-1", NOW)).reserved_tokens == 0
