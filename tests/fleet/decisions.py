"""Every decision of the port that writes, with what there is before it: for tests that make each one fail.

`decide` is called again with the same arguments until the store has answered: so do `ledger`, `attempt` and
`log`.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

from service.events import Block, EventId
from service.stores import EventBlock, HandOver, Idempotency, Store
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    LIMITS,
    MINUTE_MS,
    NOW,
    ROOMY,
    block,
    charge,
    ending,
    entry,
    hold,
    new,
    pausing,
    settlement,
    turn,
    used,
)

LARGE: Final = random.Random(4).randbytes(320_000)  # noqa: S311 - not a secret
"""Does not get smaller: two parts beside the item."""
PIECES: Final = tuple(b"%06d" % number * 51_201 for number in range(30))
"""Each fills a piece of its own: more than one batch of writes."""
KEY: Final = Idempotency("key-1", "body-1", NOW + DAY_MS)


class Decision(NamedTuple):
    """What happens before, and what is decided then."""

    before: Callable[[Store], Awaitable[Any]]
    decide: Callable[[Store], Awaitable[Any]]


async def nothing(store: Store) -> None:
    """Leave the tables empty."""


async def one_runs(store: Store) -> None:
    await store.renew_lease("owner-1", NOW + HOUR_MS)
    await store.create_invocation(new(1), LIMITS, NOW)


async def one_has_written(store: Store) -> None:
    await one_runs(store)
    await store.append_events([entry(1, 2)], NOW)


async def one_turn_is_settled(store: Store) -> None:
    await one_has_written(store)
    done = settlement(1, 1, used(50), messages=b"[1]", boundary=EventId(1, 3))
    await store.settle(done, NOW, block(3, 3))
    await store.reserve(hold(1, 2), LIMITS, NOW)


async def one_is_to_be_cancelled(store: Store) -> None:
    await one_turn_is_settled(store)
    await store.request_cancel("inv_1", NOW)


async def one_was_handed_over(store: Store) -> None:
    await one_turn_is_settled(store)
    await store.hand_over(HandOver("inv_1", 1), NOW)


async def one_waits(store: Store) -> None:
    await one_has_written(store)
    await store.settle(settlement(1, 1, used(50)), NOW)
    await store.pause(pausing(1, 3), NOW)


async def two_are_left(store: Store) -> None:
    await one_is_to_be_cancelled(store)
    await store.create_invocation(new(2), LIMITS, NOW)
    await store.renew_lease("owner-1", NOW - 1)


async def three_run(store: Store) -> None:
    for number in (1, 2, 3):
        await store.create_invocation(new(number), ROOMY, NOW)


async def a_hold_has_lapsed(store: Store) -> None:
    lapsing = replace(new(1, tokens=800), reservation_expires_at_ms=NOW + 1)
    await store.create_invocation(lapsing, LIMITS, NOW)


async def something_was_used(store: Store) -> None:
    await charge(store, 1, 600, NOW - DAY_MS + MINUTE_MS)
    await charge(store, 2, 300, NOW - HOUR_MS)


async def a_lease_is_left(store: Store) -> None:
    await store.renew_lease("owner-1", NOW - 2 * HOUR_MS)


def created(number: int = 1, now_ms: int = NOW, **named: Any) -> Callable[[Store], Awaitable[Any]]:
    return lambda store: store.create_invocation(new(number, **named), LIMITS, now_ms)


async def claim_all(store: Store) -> None:
    """Look again while there is something to claim: of some the answer may be there, of others not."""
    while await store.claim_expired("owner-2", NOW, limit=5):
        pass


DECISIONS: Final[dict[str, Decision]] = {
    # -- admission and holds
    "create-first": Decision(nothing, created()),
    "create-further": Decision(one_runs, created(2)),
    "create-large-with-key": Decision(
        one_runs,
        lambda store: store.create_invocation(
            replace(new(2), input=LARGE, idempotency=KEY, owner="owner-2"), LIMITS, NOW
        ),
    ),
    "create-over-lapsed": Decision(a_hold_has_lapsed, created(2, NOW + MINUTE_MS, tokens=300)),
    "create-as-a-bucket-ages": Decision(something_was_used, created(3, NOW + 10 * MINUTE_MS, tokens=600)),
    "create-after-days": Decision(something_was_used, created(3, NOW + 2 * DAY_MS, tokens=900)),
    "reserve": Decision(one_has_written, lambda store: store.reserve(hold(1, 2), LIMITS, NOW)),
    # -- settlement, turns, events
    "settle": Decision(one_runs, lambda store: store.settle(settlement(1, 1, used(60)), NOW)),
    "settle-with-turn": Decision(
        one_has_written,
        lambda store: store.settle(
            settlement(1, 1, used(60), messages=b"[1]", boundary=EventId(1, 4)), NOW, block(3, 4)
        ),
    ),
    "settle-with-large-turn": Decision(
        one_has_written,
        lambda store: store.settle(
            settlement(1, 1, used(60), messages=LARGE, boundary=EventId(1, 2)), NOW, None
        ),
    ),
    "settle-without-record": Decision(
        nothing, lambda store: store.settle(settlement(9, 1, used(60)), NOW)
    ),
    "complete-turn": Decision(
        one_turn_is_settled,
        lambda store: store.complete_turn("inv_1", 1, turn(1, b"[1,2]", 1, 5), NOW, block(4, 5)),
    ),
    "append": Decision(
        three_run, lambda store: store.append_events([entry(1, 3, number) for number in (1, 2, 3)], NOW)
    ),
    "append-30-pieces": Decision(
        one_runs, lambda store: store.append_events([EventBlock("inv_1", Block(1, 1, PIECES))], NOW)
    ),
    # -- how attempts end and begin
    "finish": Decision(
        one_turn_is_settled, lambda store: store.finish(ending(1, 4, settlement(1, 2, used(70))), NOW)
    ),
    "finish-with-open-hold": Decision(one_turn_is_settled, lambda store: store.finish(ending(1, 4), NOW)),
    "finish-cancelled": Decision(one_is_to_be_cancelled, lambda store: store.finish(ending(1, 4), NOW)),
    "hand-over": Decision(
        one_turn_is_settled, lambda store: store.hand_over(HandOver("inv_1", 1), NOW)
    ),
    "hand-over-with-settlement": Decision(
        one_is_to_be_cancelled,
        lambda store: store.hand_over(
            HandOver("inv_1", 1, (settlement(1, 2, used(70), charged=False),)), NOW
        ),
    ),
    "pause": Decision(one_turn_is_settled, lambda store: store.pause(pausing(1, 4, turn=3), NOW)),
    "postpone": Decision(one_waits, lambda store: store.postpone("inv_1", 1, NOW + MINUTE_MS)),
    "resume": Decision(
        one_waits, lambda store: store.resume("inv_1", 1, "owner-2", NOW + MINUTE_MS, limits=LIMITS)
    ),
    "resume-to-end": Decision(
        one_waits, lambda store: store.resume("inv_1", 1, "owner-2", NOW + MINUTE_MS, limits=None)
    ),
    "claim": Decision(two_are_left, claim_all),
    # -- signals, leases, policies
    "cancel": Decision(one_turn_is_settled, lambda store: store.request_cancel("inv_1", NOW)),
    "cancel-paused": Decision(one_waits, lambda store: store.request_cancel("inv_1", NOW)),
    "cancel-handed-over": Decision(
        one_was_handed_over, lambda store: store.request_cancel("inv_1", NOW)
    ),
    "note-read": Decision(three_run, lambda store: store.note_read(["inv_1", "inv_9"], NOW)),
    "renew-lease": Decision(one_runs, lambda store: store.renew_lease("owner-1", NOW + DAY_MS)),
    "purge": Decision(a_lease_is_left, lambda store: store.purge(NOW, 0)),
    "deny": Decision(nothing, lambda store: store.deny("sub:user-1", NOW, NOW + HOUR_MS)),
    "allow": Decision(
        lambda store: store.deny("sub:user-1", NOW), lambda store: store.allow("sub:user-1")
    ),
    "set-limits": Decision(nothing, lambda store: store.set_limits("user-1", {"daily_tokens": 5})),
    "clear-limits": Decision(
        lambda store: store.set_limits("user-1", {"daily_tokens": 5}),
        lambda store: store.set_limits("user-1", None),
    ),
}  # fmt: skip
