"""The store's port, over every implementation: which models a job may ask, and which it has."""

from dataclasses import replace

import pytest

from service.events import Block, EventId, started
from service.invocations import Tried, Usage
from service.stores import HandOver, Store
from tests.contracts.store_cases import LIMITS, NOW, after_finish, ending, new, settlement

MODELS = ("bedrock/a", "bedrock/arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/b")
FELL_OVER = (Tried("bedrock/a", "upstream-throttled"), Tried("bedrock/b"))


async def tried(store: Store) -> tuple[Tried, ...]:
    record = await store.load_invocation("inv_1")
    assert record is not None
    return record.tried


@pytest.mark.promise("tried-is-told")
async def test_a_record_has_the_models_of_its_admission_and_its_first_event_shows_them(store: Store) -> None:
    admitted = await store.create_invocation(replace(new(), models=MODELS), LIMITS, NOW)

    (claim,) = await store.claim_expired("owner-2", NOW, limit=1)
    (first,) = await store.read_events("inv_1", EventId(0, 0), limit_bytes=10**6)

    assert (admitted.models, claim.invocation.models) == (MODELS, MODELS)
    assert first == Block(1, 1, (started("inv_1", "writer", MODELS),))
    assert b'"models":["bedrock/a","bedrock/b"]' in first.events[0]


async def test_a_job_that_has_asked_nothing_has_tried_nothing(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    assert await tried(store) == ()


@pytest.mark.promise("tried-is-told")
async def test_what_each_settlement_tried_adds_up_once(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)
    first = replace(settlement(1, 1), tried=FELL_OVER)
    second = replace(settlement(1, 2), tried=FELL_OVER[1:])
    last = replace(settlement(1, 3), tried=(Tried("bedrock/b", "upstream-timeout"), Tried("vllm/c")))

    for each in (first, first, second):
        await store.settle(each, NOW)
    ended = await after_finish(store, ending(1, 1, second, last), NOW)

    assert ended.tried == (
        Tried("bedrock/a", "upstream-throttled", 1),
        Tried("bedrock/b", "", 2),
        Tried("bedrock/b", "upstream-timeout", 1),
        Tried("vllm/c", "", 1),
    )


async def test_what_an_attempt_that_left_has_tried_counts_too(store: Store) -> None:
    await store.create_invocation(new(tokens=500), LIMITS, NOW)
    unfinished = replace(settlement(1, 1, Usage(), charged=False), tried=FELL_OVER)

    await store.hand_over(HandOver("inv_1", 1, (unfinished,)), NOW)

    assert await tried(store) == FELL_OVER


async def test_a_settlement_after_its_record_is_gone_is_still_settled(store: Store) -> None:
    late = replace(settlement(1, 1), tried=FELL_OVER)

    assert await store.settle(late, NOW) is True
    assert await store.load_invocation("inv_1") is None
