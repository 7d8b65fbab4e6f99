"""Two processes decide on one invocation: whoever gets in between, all is as if one had come after the other.

Whatever the one has read, the other changes before the one writes. The one must notice, and decide anew.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from local.dynamodb import DynamoDbLocal
from service.errors import Fenced, HeadraceError
from service.events import EventId
from service.stores import HandOver, Store
from tests.contracts.store_cases import (
    LIMITS,
    MINUTE_MS,
    NOW,
    block,
    ending,
    entry,
    hold,
    new,
    pausing,
    settlement,
    turn,
    used,
)
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults, first
from tests.fleet.conftest import OpenStore
from tests.fleet.test_repeated_decisions import state

SECOND: Final = settlement(1, 2, used(70))


async def begin(store: Store) -> None:
    """Leave an invocation in its second turn; its hold is about to lapse, its owner's lease has expired."""
    await store.renew_lease("owner-1", NOW - 1)
    await store.create_invocation(new(1), LIMITS, NOW)
    await store.append_events([entry(1, 2)], NOW)
    await store.settle(settlement(1, 1, used(50), messages=b"[1]", boundary=EventId(1, 3)), NOW, block(3, 3))
    await store.reserve(hold(1, 2, 700, expires_at_ms=NOW + 1), LIMITS, NOW)


async def claim(store: Store) -> None:
    """Look twice: an invocation that changes while it is claimed is left for the next look."""
    for _ in range(2):
        await store.claim_expired("owner-2", NOW, limit=5)


RACING: Final[dict[str, Callable[[Store], Awaitable[Any]]]] = {
    "settle": lambda store: store.settle(SECOND, NOW),
    "settle-without-hold": lambda store: store.settle(settlement(1, 3, used(20)), NOW),
    "reserve": lambda store: store.reserve(hold(1, 3, 50), LIMITS, NOW),
    "complete": lambda store: store.complete_turn("inv_1", 1, turn(1, b"[1,2]", 1, 4), NOW, block(4, 4)),
    "finish": lambda store: store.finish(ending(1, 4, SECOND), NOW),
    "pause": lambda store: store.pause(pausing(1, 4, turn=3), NOW),
    "hand-over": lambda store: store.hand_over(HandOver("inv_1", 1), NOW),
    "cancel": lambda store: store.request_cancel("inv_1", NOW),
    "claim": claim,
    "create-over-lapsed": lambda store: store.create_invocation(
        new(2, tokens=400), LIMITS, NOW + MINUTE_MS
    ),
}  # fmt: skip


async def decide(decision: Callable[[Store], Awaitable[Any]], store: Store) -> str:
    """Decide; returns how it was refused, or nothing."""
    try:
        await decision(store)
    except Fenced:
        return "fenced"
    except HeadraceError as refusal:
        return refusal.code
    return ""


@pytest.mark.promise("settle-exactly-once")
@pytest.mark.parametrize("one", RACING)
async def test_what_another_process_decides_in_between_is_as_if_it_had_come_before(
    one: str, open_store: OpenStore, emulator: DynamoDbLocal
) -> None:
    async def told(other: str, *, between: bool) -> tuple[str, dict[str, Any]] | None:
        """Decide `other` before the transaction of `one`, or all before it; None: it has made none."""
        faults, met = Faults(), False
        with Tables.created(emulator) as tables:
            async with open_store(tables=tables, faults=faults) as mine, open_store(tables=tables) as theirs:
                await begin(mine)

                async def meanwhile() -> None:
                    nonlocal met
                    met = True
                    await decide(RACING[other], theirs)

                if between:
                    faults.at(1, first(meanwhile), operation="TransactWriteItems")
                else:
                    await meanwhile()
                outcome = await decide(RACING[one], mine)
                left = await state(theirs, tables, emulator)
                # Events are written before their turn is: an attempt that may not write leaves some, unread.
                left["invocations"] = [item for item in left["invocations"] if "first_seq" not in item]
                return (outcome, left) if met else None

    for other in RACING.keys() - {"reserve", "complete"}:  # only the owner does these, one after the other
        expected = await told(other, between=False)
        interrupted = await told(other, between=True)
        assert interrupted in (expected, None), f"{other} came before the transaction of {one}"
