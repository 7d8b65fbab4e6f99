"""What a review of the store on DynamoDB found wrong, and what holds since."""

import random

import pytest

from service.errors import Fenced, StoreUnavailable
from service.events import START, Block
from service.stores import EventBlock
from tests.contracts.store_cases import (
    DAY_MS,
    LIMITS,
    NOW,
    ROOMY,
    block,
    charge,
    ending,
    entry,
    hold,
    new,
    settlement,
    used,
)
from tests.dynamodb_faults import Faults, answer_lost, behind, failing
from tests.fleet.conftest import OpenStore


@pytest.mark.promise("same-events-every-cursor")
async def test_a_reader_gets_past_any_amount_that_a_dead_attempt_was_not_granted(
    open_store: OpenStore,
) -> None:
    noise = random.Random(5)  # noqa: S311 - not a secret
    async with open_store() as store:
        await store.create_invocation(new(1), ROOMY, NOW)
        for seq in range(1, 61):
            written = Block(1, seq, (noise.randbytes(3_000).hex().encode(),))
            await store.append_events([EventBlock("inv_1", written)], NOW)
        (claim,) = await store.claim_expired("owner-2", NOW, limit=1)
        await store.append_events([entry(1, 2, attempt=2)], NOW)

        granted = await store.read_events("inv_1", START, limit_bytes=64 * 1024)
        following = await store.read_events("inv_1", granted[-1].last, limit_bytes=64 * 1024)

        assert granted[-1].last == claim.invocation.attempts[0].last
        assert following == [block(1, 2, attempt=2)]


@pytest.mark.promise("settle-exactly-once")
async def test_a_call_is_settled_once_also_when_its_invocation_is_not_shown_any_more(
    open_store: OpenStore,
) -> None:
    later = NOW + 2 * DAY_MS
    async with open_store() as store, open_store(now_ms=later) as much_later:
        await charge(store, 1, 100, NOW)
        assert await much_later.load_invocation("inv_1") is None

        assert await much_later.settle(settlement(1, 1, used(100)), later) is False
        assert await much_later.settle(settlement(1, 2, used(7), charged=False), later) is True
        assert await much_later.settle(settlement(1, 2, used(7), charged=False), later) is False

        day, month = (await much_later.account("user-1", later)).windows
        assert (day.used_tokens, month.used_tokens) == (0, 100)


async def test_a_hold_of_a_call_that_is_settled_already_ends_with_its_invocation(
    open_store: OpenStore,
) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        await store.settle(settlement(1, 2, used(20)), NOW)
        await store.reserve(hold(1, 2, 50), LIMITS, NOW)

        await store.finish(ending(1, 1), NOW)

        account = await store.account("user-1", NOW)
        assert (account.windows[0].used_tokens, account.reserved_tokens, account.running) == (120, 0, 0)


async def test_events_that_could_not_be_stored_are_not_stored_afterwards(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store(deadline_s=0.2) as store, open_store(faults=Faults()) as other:
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.always(failing)

        with pytest.raises(StoreUnavailable):
            await store.append_events([entry(1, 2)], NOW)
        faults.none()

        assert await other.read_events("inv_1", START, limit_bytes=10**6) == []


async def test_a_resumption_whose_answer_is_lost_is_found_as_an_orphan(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        await store.renew_lease("owner-1", NOW + DAY_MS)
        faults.none()
        faults.forgets_tokens = True
        await store.create_invocation(new(1), LIMITS, NOW)
        faults.at(1, answer_lost, operation="TransactWriteItems")

        (lost,) = await store.claim_expired("owner-2", NOW + 2 * DAY_MS, limit=1) or (None,)
        (found,) = await store.claim_expired("owner-2", NOW + 2 * DAY_MS + 60_000, limit=1, running=())

        assert lost is None
        assert (found.invocation.attempt, found.invocation.attempts[1].end) == (3, "lost")
        with pytest.raises(Fenced):
            await store.finish(ending(1, 1, attempt=2), NOW)


async def test_a_replica_that_is_behind_fences_no_attempt(open_store: OpenStore, faults: Faults) -> None:
    async with open_store() as store:
        await store.create_invocation(new(1), LIMITS, NOW)
        await store.create_invocation(new(2), LIMITS, NOW)
        await store.finish(ending(2, 1), NOW)
        faults.always(behind, operation="BatchGetItem")

        fenced = await store.append_events([entry(1, 2), entry(2, 3, 2)], NOW)

        assert fenced == {"inv_2"}
        assert await store.read_events("inv_1", START, limit_bytes=10**6) == [block(1, 2)]


async def test_a_denial_that_is_lifted_was_there_though_the_answer_was_lost(
    open_store: OpenStore, faults: Faults
) -> None:
    async with open_store() as store:
        await store.deny("sub:user-1", NOW)
        faults.at(1, answer_lost)

        assert await store.allow("sub:user-1") is True
        assert await store.allow("sub:user-1") is False
