"""The store's port, over every implementation: an attempt that does not run any more writes nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from service.errors import Fenced
from service.events import START, EventId
from service.invocations import Usage
from service.stores import HandOver, Store
from tests.contracts.store_cases import (
    NOW,
    ROOMY,
    block,
    ending,
    entry,
    hold,
    new,
    pausing,
    settlement,
    turn,
)

Decide = Callable[[Store], Awaitable[object]]
LATER = NOW + 1_000
OWN = settlement(1, 2, Usage(1, 1))
HALF_TURN = settlement(1, 2, Usage(1, 1), messages=b"[1]", boundary=EventId(1, 4))


async def append(store: Store) -> None:
    """Append, and raise what the other writers do."""
    if await store.append_events([entry(4, 5)], LATER):
        raise Fenced


ENDS: dict[str, Decide] = {
    "claimed": lambda store: store.claim_expired("owner-2", NOW, limit=1),
    "handed over": lambda store: store.hand_over(HandOver("inv_1", 1), NOW),
    "paused": lambda store: store.pause(pausing(1, 4), NOW),
    "finished": lambda store: store.finish(ending(1, 4), NOW),
}
WRITERS: dict[str, Decide] = {
    "append": append,
    "reserve": lambda store: store.reserve(hold(1, 2), ROOMY, LATER),
    "complete_turn": lambda store: store.complete_turn("inv_1", 1, turn(1, b"[1]", 1, 3), LATER),
    "complete_turn with events": lambda store: store.complete_turn(
        "inv_1", 1, turn(1, b"[1]", 1, 4), LATER, block(4, 4)
    ),
    "hand_over": lambda store: store.hand_over(HandOver("inv_1", 1, (OWN,)), LATER),
    "pause": lambda store: store.pause(pausing(1, 5), LATER),
    "finish": lambda store: store.finish(ending(1, 5, OWN), LATER),
}
SETTLERS: dict[str, Decide] = {
    "settle with events": lambda store: store.settle(OWN, LATER, block(4, 4)),
    "settle with messages": lambda store: store.settle(HALF_TURN, LATER, block(4, 4)),
}


async def begun(store: Store) -> None:
    """Begin an invocation that has stored three events, and settled its first turn."""
    await store.create_invocation(new(), ROOMY, NOW)
    await store.settle(settlement(1, 1, Usage(10, 5)), NOW, block(1, 3))


async def seen(store: Store) -> tuple[Any, ...]:
    """Return all that a reader, a caller and their account can see."""
    return (
        await store.load_invocation("inv_1"),
        await store.read_events("inv_1", START, limit_bytes=10**6),
        await store.account("user-1", LATER),
    )


@pytest.mark.promise("lapsed-lease-sends-nothing")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("end", ENDS)
async def test_nothing_is_written_by_an_attempt_that_does_not_run_any_more(
    store: Store, end: str, writer: str
) -> None:
    await begun(store)
    await ENDS[end](store)
    before = await seen(store)

    if (end, writer) == ("handed over", "hand_over"):
        await WRITERS[writer](store)  # no fault, and nothing new
    else:
        with pytest.raises(Fenced):
            await WRITERS[writer](store)

    assert await seen(store) == before


@pytest.mark.promise("killed-process-goes-on", "settle-exactly-once")
@pytest.mark.parametrize("settler", SETTLERS)
@pytest.mark.parametrize("end", ENDS)
async def test_what_it_spent_is_settled_and_charged_only_if_no_other_attempt_has_begun(
    store: Store, end: str, settler: str
) -> None:
    await begun(store)
    await ENDS[end](store)
    _, events, account = await seen(store)

    with pytest.raises(Fenced):
        await SETTLERS[settler](store)

    assert await store.settle(OWN, LATER) is False  # it had been settled
    record, events_after, account_after = await seen(store)
    assert events_after == events
    used_tokens = account.windows[0].used_tokens + (0 if end == "claimed" else 2)
    assert account_after.windows[0].used_tokens == record.usage.counted_tokens == used_tokens


@pytest.mark.parametrize("end", ["claimed", "handed over", "paused"])
async def test_no_turn_is_left_to_the_next_attempt_by_one_that_does_not_run_any_more(
    store: Store, end: str
) -> None:
    await begun(store)
    await ENDS[end](store)

    with pytest.raises(Fenced):
        await store.settle(HALF_TURN, LATER, block(4, 4))
    with pytest.raises(Fenced):
        await store.complete_turn("inv_1", 1, turn(1, b"[1]", 1, 3), LATER)

    if end == "paused":
        claim = await store.resume("inv_1", 1, "owner-3", LATER, limits=None)
    else:
        (claim,) = await store.claim_expired("owner-3", LATER, limit=1)
    assert claim.turns == ()


@pytest.mark.parametrize("writer", WRITERS)
async def test_nothing_is_written_for_an_invocation_that_is_not_there(store: Store, writer: str) -> None:
    with pytest.raises(Fenced):
        await WRITERS[writer](store)

    assert (await store.account("user-1", LATER)).reserved_tokens == 0


async def test_an_attempt_that_has_not_begun_writes_nothing_either(store: Store) -> None:
    await begun(store)
    before = await seen(store)

    assert await store.append_events([entry(1, 1, attempt=2)], LATER) == {"inv_1"}
    for early in (
        store.finish(ending(1, 1, attempt=2), LATER),
        store.pause(pausing(1, 1, attempt=2), LATER),
        store.hand_over(HandOver("inv_1", 2), LATER),
        store.complete_turn("inv_1", 2, turn(1, b"[1]", 2, 1), LATER, block(1, 1, attempt=2)),
        store.reserve(hold(1, 2, attempt=2), ROOMY, LATER),
    ):
        with pytest.raises(Fenced):
            await early

    assert await seen(store) == before


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_events_of_another_attempt_than_the_one_that_writes_are_refused_with_all_that_comes_along(
    store: Store,
) -> None:
    await begun(store)
    before = await seen(store)
    others = block(4, 4, attempt=2)

    for mixed in (
        store.complete_turn("inv_1", 1, turn(1, b"[1]", 1, 3), LATER, others),
        store.pause(replace(pausing(1, 4, attempt=2), attempt=1), LATER),
        store.pause(replace(pausing(1, 4), attempt=2), LATER),
        store.finish(replace(ending(1, 4, attempt=2), attempt=1), LATER),
        store.finish(replace(ending(1, 4), attempt=2), LATER),
    ):
        with pytest.raises(Fenced):
            await mixed

    assert await seen(store) == before
