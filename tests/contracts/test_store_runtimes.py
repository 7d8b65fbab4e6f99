"""The store's port, over every implementation: what a process does not serve is left to those that do."""

from collections.abc import Sequence

from service.events import EventId
from service.stores import FORSAKEN_MS, ORPHAN_AGE_S, HandOver, Store
from tests.contracts.store_cases import (
    HOUR_MS,
    MINUTE_MS,
    NOW,
    ROOMY,
    block,
    new,
    pausing,
    settlement,
)

SERVED = ["writer", "editor"]
DEADLINE = NOW + HOUR_MS


async def claimed(
    store: Store, owner: str, now_ms: int, *, limit: int = 10, running: Sequence[str] | None = None
) -> list[str]:
    claims = await store.claim_expired(owner, now_ms, limit=limit, running=running, runtimes=SERVED)
    return [claim.invocation.invocation_id for claim in claims]


async def due(store: Store, now_ms: int, *, limit: int = 10) -> list[str]:
    paused = await store.list_paused(now_ms, limit=limit, runtimes=SERVED)
    return [one.invocation.invocation_id for one in paused]


async def paused(store: Store, number: int, runtime: str) -> None:
    await store.create_invocation(new(number, runtime=runtime), ROOMY, NOW)
    first = settlement(number, 1, messages=b"[1]", boundary=EventId(1, 3))
    await store.settle(first, NOW, block(1, 3))
    await store.pause(pausing(number, 4, resumes_at_ms=NOW + MINUTE_MS), NOW)


async def test_a_claim_leaves_runtimes_that_are_not_served_to_others_until_their_deadline(
    store: Store,
) -> None:
    for number, runtime in enumerate(("brand-new", "writer", "brand-new", "editor"), 1):
        await store.create_invocation(new(number, runtime=runtime), ROOMY, NOW + number)
    await store.hand_over(HandOver("inv_3", 1), NOW)

    served = [await claimed(store, "owner-2", NOW + 9, limit=1) for _ in range(3)]
    early = await claimed(store, "owner-2", DEADLINE - 1)
    late = await claimed(store, "owner-2", DEADLINE)

    assert served == [["inv_2"], ["inv_4"], []]
    assert (early, late) == ([], ["inv_1", "inv_3"])


async def test_who_serves_no_runtime_claims_only_what_is_past_its_deadline(store: Store) -> None:
    await store.create_invocation(new(), ROOMY, NOW)

    claims = [
        await store.claim_expired("owner-2", now_ms, limit=1, runtimes=())
        for now_ms in (DEADLINE - 1, DEADLINE)
    ]

    assert [len(claim) for claim in claims] == [0, 1]


async def test_an_orphan_of_a_runtime_that_is_not_served_waits_as_well(store: Store) -> None:
    for number, runtime in ((1, "brand-new"), (2, "writer")):
        await store.create_invocation(new(number, runtime=runtime), ROOMY, NOW)
    await store.renew_lease("owner-1", NOW + 10**9)

    orphans = [
        await claimed(store, "owner-1", now_ms, running=[])
        for now_ms in (NOW + ORPHAN_AGE_S * 1000, DEADLINE + MINUTE_MS)
    ]

    assert orphans == [["inv_2"], ["inv_1", "inv_2"]]


async def test_what_is_due_is_left_to_processes_that_serve_its_runtime_for_a_while(store: Store) -> None:
    for number, runtime in enumerate(("brand-new", "writer", "editor"), 1):
        await paused(store, number, runtime)
    due_at_ms = NOW + MINUTE_MS

    assert await due(store, due_at_ms - 1) == []
    assert await due(store, due_at_ms, limit=1) == ["inv_2"]
    assert await due(store, due_at_ms + FORSAKEN_MS - 1) == ["inv_2", "inv_3"]
    assert await due(store, due_at_ms + FORSAKEN_MS) == ["inv_1", "inv_2", "inv_3"]


async def test_who_looks_again_and_again_keeps_it_for_those_that_serve_it(store: Store) -> None:
    await paused(store, 1, "brand-new")

    await store.postpone("inv_1", 1, NOW + 2 * FORSAKEN_MS)

    assert await due(store, NOW + 3 * FORSAKEN_MS - 1) == []
    assert await due(store, NOW + 3 * FORSAKEN_MS) == ["inv_1"]


async def test_what_is_to_be_cancelled_anybody_may_end(store: Store) -> None:
    await paused(store, 1, "brand-new")

    await store.request_cancel("inv_1", NOW)

    assert await due(store, NOW) == ["inv_1"]
