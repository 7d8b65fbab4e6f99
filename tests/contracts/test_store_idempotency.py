"""Idempotency keys: one key starts one invocation, however often and however parallel it is tried."""

import asyncio
from dataclasses import replace

import pytest

from service.config import Limits
from service.errors import IdempotencyMismatch
from service.stores import Idempotency, NewInvocation, Store
from tests.contracts.store_cases import DAY_MS, LIMITS, NOW, after_finish, ending, new, running

KEY = Idempotency("key-1", "body-1", NOW + DAY_MS)


def with_key(number: int, key: Idempotency = KEY) -> NewInvocation:
    return replace(new(number), idempotency=key)


@pytest.mark.promise("retry-attaches")
async def test_a_taken_key_gives_the_invocation_that_took_it_and_writes_nothing(store: Store) -> None:
    await store.create_invocation(with_key(1), LIMITS, NOW)
    before = await store.account("user-1", NOW)

    attached = await store.create_invocation(with_key(2), LIMITS, NOW + 1)

    assert attached == running(1)
    assert await store.load_invocation("inv_2") is None
    assert await store.account("user-1", NOW) == before


@pytest.mark.promise("retry-attaches")
async def test_a_retry_attaches_when_the_principal_has_no_room_and_when_the_first_has_ended(
    store: Store,
) -> None:
    one_at_a_time = Limits(concurrent_invocations=1)
    await store.create_invocation(with_key(1), one_at_a_time, NOW)

    still_running = await store.create_invocation(with_key(2), one_at_a_time, NOW)
    ended = await after_finish(store, ending(1), NOW)
    after_its_end = await store.create_invocation(with_key(3), one_at_a_time, NOW)

    assert (still_running, after_its_end) == (running(1), ended)


async def test_a_taken_key_refuses_another_body(store: Store) -> None:
    await store.create_invocation(with_key(1), LIMITS, NOW)

    with pytest.raises(IdempotencyMismatch) as refused:
        await store.create_invocation(with_key(2, replace(KEY, body="body-2")), LIMITS, NOW)

    assert refused.value.code == "idempotency-mismatch"
    assert await store.load_invocation("inv_2") is None


async def test_a_key_is_free_again_once_it_has_expired(store: Store) -> None:
    await store.create_invocation(with_key(1), LIMITS, NOW)

    attached = await store.create_invocation(with_key(2), LIMITS, NOW + DAY_MS - 1)
    later = replace(KEY, body="body-2", expires_at_ms=NOW + 2 * DAY_MS)
    started = await store.create_invocation(with_key(3, later), LIMITS, NOW + DAY_MS)

    assert (attached.invocation_id, started.invocation_id) == ("inv_1", "inv_3")


async def test_a_refused_admission_leaves_its_key_free(store: Store) -> None:
    with pytest.raises(Exception, match="limit is 0"):
        await store.create_invocation(with_key(1), Limits(concurrent_invocations=0), NOW)

    started = await store.create_invocation(with_key(2), LIMITS, NOW)

    assert started.invocation_id == "inv_2"


@pytest.mark.promise("retry-attaches")
async def test_of_many_parallel_tries_one_starts(store: Store) -> None:
    tries = [store.create_invocation(with_key(number), LIMITS, NOW) for number in range(1, 31)]

    ids = {invocation.invocation_id for invocation in await asyncio.gather(*tries)}

    assert len(ids) == 1
    assert (await store.account("user-1", NOW)).running == 1
