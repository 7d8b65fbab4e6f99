"""The store's port, over every implementation: records and endings.

Its siblings: `test_store_quota` (admission), `test_store_settlement`, `test_store_events`,
`test_store_takeover`, `test_store_pauses`, `test_store_signals` and `test_store_model`.
"""

import asyncio

import pytest

from service.errors import Fenced, StoreUnavailable
from service.events import START, Block, EventId
from service.invocations import Attempt, AttemptEnd, State, Usage
from service.stores import Account, Ending, Store, Window
from tests.contracts.store_cases import (
    COMPLETED,
    DAY_MS,
    FAILED,
    HOUR_MS,
    LIMITS,
    NOW,
    ROOMY,
    after_finish,
    block,
    ending,
    entry,
    hold,
    new,
    running,
    settlement,
)

# ------------------------------------------------------------ records


async def test_a_created_invocation_is_the_record_that_is_loaded(store: Store) -> None:
    created = await store.create_invocation(new(), LIMITS, NOW)

    assert created == running()
    assert await store.load_invocation("inv_1") == running()


async def test_an_unknown_invocation_is_none(store: Store) -> None:
    assert await store.load_invocation("inv_1") is None


async def test_creating_again_with_the_same_id_returns_what_there_is_and_holds_once(store: Store) -> None:
    await store.create_invocation(new(tokens=600), LIMITS, NOW)

    again = await store.create_invocation(new(tokens=600), LIMITS, NOW + 1)

    assert again == running()
    account = await store.account("user-1", NOW + 1)
    assert (account.reserved_tokens, account.running) == (600, 1)


async def test_an_id_never_shows_another_principals_invocation(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    with pytest.raises(ValueError, match="another invocation's id"):
        await store.create_invocation(new(sub="user-2"), LIMITS, NOW)


async def test_the_list_is_of_one_principal_and_runtime_newest_first(store: Store) -> None:
    for number in (1, 2, 3):
        await store.create_invocation(new(number), ROOMY, NOW + number)
    await store.create_invocation(new(4, sub="user-2"), ROOMY, NOW)
    await store.create_invocation(new(5, runtime="research"), ROOMY, NOW)

    listed = await store.list_invocations("user-1", "writer", before=None, limit=10)

    assert listed == [running(number, at_ms=NOW + number) for number in (3, 2, 1)]


async def test_pages_of_the_list_follow_each_other_also_within_one_millisecond(store: Store) -> None:
    for number in range(1, 6):
        await store.create_invocation(new(number), ROOMY, NOW)

    pages, before = [], None
    for _ in range(3):
        page = await store.list_invocations("user-1", "writer", before=before, limit=2)
        pages.append([record.invocation_id for record in page])
        before = page[-1].invocation_id

    assert pages == [["inv_5", "inv_4"], ["inv_3", "inv_2"], ["inv_1"]]
    assert await store.list_invocations("user-1", "writer", before="inv_1", limit=2) == []


async def test_nothing_is_listed_before_an_invocation_that_is_not_there(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    assert await store.list_invocations("user-1", "writer", before="inv_9", limit=2) == []


# ------------------------------------------------------------ endings


async def test_finish_writes_the_last_events_the_settlement_and_the_state_at_once(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    await store.append_events([entry(1, 3)], NOW)

    ended = await after_finish(store, ending(1, 4, settlement()), NOW + 9)

    assert ended == await store.load_invocation("inv_1")
    assert (ended.state, ended.attempts, ended.last) == (
        State.COMPLETED,
        (Attempt(1, NOW, EventId(1, 4), AttemptEnd.FINISHED),),
        (1, 4),
    )
    assert (ended.terminal, ended.finished_at_ms, ended.updated_at_ms) == (COMPLETED, NOW + 9, NOW + 9)
    assert ended.usage == Usage(30, 20, 5, 10)
    assert await store.read_events("inv_1", START, limit_bytes=10**6) == [
        block(1, 3),
        Block(1, 4, (COMPLETED,)),
    ]
    month_ends_ms = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * 60_000
    assert await store.account("user-1", NOW + 9) == Account(
        (
            Window("daily", 86_400, Usage(30, 20, 5, 10), NOW + 600_000 + DAY_MS),
            Window("monthly", 30 * 86_400, Usage(30, 20, 5, 10), month_ends_ms),
        ),
        reserved_tokens=0,
        running=0,
    )


async def test_finishing_again_changes_nothing_and_counts_nothing_twice(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    ended = await after_finish(store, ending(1, 1, settlement()), NOW)

    again = await after_finish(store, ending(1, 1, settlement()), NOW + 5)

    assert again == ended
    assert (await store.account("user-1", NOW)).windows[0].used_tokens == 60


@pytest.mark.parametrize(
    "other",
    [
        ending(1, 1, state=State.CANCELLED),
        ending(1, 1, state=State.FAILED, terminal=FAILED),
        ending(1, 2),
        ending(1, 1, attempt=2),
        ending(2),
    ],
    ids=["state", "event", "id", "attempt", "unknown"],
)
async def test_another_ending_than_the_committed_one_is_fenced(store: Store, other: Ending) -> None:
    await store.create_invocation(new(), LIMITS, NOW)
    ended = await after_finish(store, ending(1, 1), NOW)

    with pytest.raises(Fenced):
        await store.finish(other, NOW)

    assert await store.load_invocation("inv_1") == ended


async def test_of_two_endings_at_once_one_is_committed(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    outcomes = await asyncio.gather(
        store.finish(ending(1, 1), NOW),
        store.finish(ending(1, 1, state=State.CANCELLED), NOW),
        return_exceptions=True,
    )

    record = await store.load_invocation("inv_1")
    assert record is not None
    first_won = outcomes[0] is None
    assert record.state == (State.COMPLETED if first_won else State.CANCELLED)
    assert isinstance(outcomes[1 if first_won else 0], Fenced)


async def test_a_hold_that_is_open_at_the_end_is_settled_at_its_full_size_as_an_estimate(
    store: Store,
) -> None:
    await store.create_invocation(new(tokens=100), LIMITS, NOW)
    await store.settle(settlement(1, 1, Usage(10, 5)), NOW)
    await store.reserve(hold(1, 2, 250, expires_at_ms=NOW + 5), LIMITS, NOW)

    ended = await after_finish(
        store, ending(), NOW + 10
    )  # the hold has expired: it was never settled all the same

    assert (ended.usage.counted_tokens, ended.usage.estimated) == (265, True)
    account = await store.account("user-1", NOW + 10)
    assert (account.windows[0].used_tokens, account.reserved_tokens) == (265, 0)


async def test_an_ending_needs_a_terminal_state_and_a_terminal_event(store: Store) -> None:
    await store.create_invocation(new(), LIMITS, NOW)

    for wrong in (
        ending(1, 1, state=State.RUNNING),
        ending(1, 1, terminal=b'{"messageStop":{}}'),
        ending(1, 2),  # a gap
    ):
        with pytest.raises(ValueError):
            await store.finish(wrong, NOW)

    assert await store.load_invocation("inv_1") == running()


# ------------------------------------------------------------ the end of the store


async def test_what_was_called_before_the_close_is_done_and_later_calls_are_refused(store: Store) -> None:
    calls = [asyncio.ensure_future(store.create_invocation(new(n), ROOMY, NOW)) for n in range(5)]
    await asyncio.sleep(0)

    await store.aclose()
    await store.aclose()

    assert await asyncio.gather(*calls) == [running(number) for number in range(5)]
    with pytest.raises(StoreUnavailable):
        await store.load_invocation("inv_1")
