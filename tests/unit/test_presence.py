"""Invocations that nobody reads any more are abandoned, whichever processes their readers were on."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from service.config import Limits
from service.events import Block, started
from service.invocations import Invocation, State
from service.presence import Presence
from service.stores import Ending, NewInvocation
from service.stores.sqlite import SqliteStore
from tests.clock import ManualClock
from tests.fakes import FaultyStore

ABANDON_S = 40.0
LOOK_S = ABANDON_S / 4
FAR_MS = 10**15
HERE, THERE = "process-1", "process-2"


class Watched:
    """Two processes of one deployment, as far as presence goes, on one store."""

    def __init__(self, store: SqliteStore, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.faulty = {owner: FaultyStore(store) for owner in (HERE, THERE)}
        self.cancelled: list[tuple[str, float]] = []
        self.presence = {owner: self._presence(owner) for owner in (HERE, THERE)}
        self.here = self.presence[HERE]
        self.there = self.presence[THERE]

    def _presence(self, owner: str) -> Presence:
        return Presence(
            self.faulty[owner].as_store,
            owner=owner,
            abandon_s=ABANDON_S,
            now_ms=self.clock.now_ms,
            cancel=lambda invocation_id: self.cancelled.append((invocation_id, self.clock.monotonic_s())),
        )

    async def run(self, invocation_id: str, owner: str = HERE) -> Invocation:
        """Have an invocation that `owner` runs."""
        new = NewInvocation(invocation_id, "agent", "user-1", None, b"{}", 10, owner, FAR_MS, FAR_MS)
        return await self.store.create_invocation(new, Limits(), self.clock.now_ms())

    async def end(self, invocation_id: str) -> None:
        events = (started(invocation_id, "agent"), b'{"invocationCancelled":{}}')
        ending = Ending(invocation_id, 1, State.CANCELLED, Block(1, 1, events))
        await self.store.finish(ending, self.clock.now_ms())

    @property
    def cancelled_ids(self) -> list[str]:
        return [invocation_id for invocation_id, _ in self.cancelled]


@asynccontextmanager
async def watching(clock: ManualClock, owners: Iterable[str] = (HERE, THERE)) -> AsyncIterator[Watched]:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        watched = Watched(store, clock)
        tasks = [asyncio.ensure_future(watched.presence[owner].run()) for owner in owners]
        try:
            yield watched
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)


@pytest.mark.promise("abandoned-job-cancelled")
@pytest.mark.parametrize("left_after_s", [0.0, 0.1, 4.0, 9.9, 10.0, 10.1, 77.7])
async def test_what_nobody_has_read_for_long_enough_is_cancelled_and_no_sooner(
    clock: ManualClock, left_after_s: float
) -> None:
    async with watching(clock) as watched:
        await watched.run("inv_1")
        watched.here.opened("inv_1")
        await clock.advance(left_after_s)
        watched.here.closed("inv_1")
        left_at = clock.monotonic_s()
        await clock.advance(ABANDON_S - 0.01)
        before = watched.cancelled_ids
        await clock.advance(LOOK_S + 0.02)

        assert (before, watched.cancelled_ids) == ([], ["inv_1"])
        assert ABANDON_S <= watched.cancelled[0][1] - left_at <= ABANDON_S + LOOK_S


async def test_what_is_read_goes_on_and_so_does_what_never_was(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        for invocation_id in ("inv_read", "inv_never"):
            await watched.run(invocation_id)
        watched.here.opened("inv_read")
        await clock.advance(10 * ABANDON_S)

        assert watched.cancelled == []


async def test_a_reader_on_another_process_counts(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        for invocation_id in ("inv_1", "inv_2"):
            await watched.run(invocation_id)
            watched.here.opened(invocation_id)
        watched.there.opened("inv_1")
        for invocation_id in ("inv_1", "inv_2"):
            watched.here.closed(invocation_id)
        await clock.advance(3 * ABANDON_S)
        before = watched.cancelled_ids
        watched.there.closed("inv_1")
        await clock.advance(ABANDON_S + LOOK_S)

        assert set(before) == {"inv_2"}
        assert "inv_1" in watched.cancelled_ids


async def test_only_the_owner_cancels(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await watched.run("inv_1", owner=THERE)
        watched.here.opened("inv_1")
        watched.here.closed("inv_1")
        await clock.advance(3 * ABANDON_S)

        assert watched.cancelled == []


async def test_a_reader_that_comes_back_in_time_begins_the_wait_anew(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        await watched.run("inv_1")
        for _ in range(4):
            watched.there.opened("inv_1")
            watched.there.closed("inv_1")
            await clock.advance(ABANDON_S - 1)

        assert watched.cancelled == []


async def test_it_is_given_again_while_it_runs_and_not_once_it_has_ended(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        await watched.run("inv_1")
        watched.here.opened("inv_1")
        watched.here.closed("inv_1")
        await clock.advance(2 * ABANDON_S)
        while_it_ran = len(watched.cancelled)
        await watched.end("inv_1")
        await clock.advance(10 * ABANDON_S)

        assert while_it_ran >= 2
        assert len(watched.cancelled) == while_it_ran


async def test_after_a_takeover_readers_have_time_to_come_back(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        for invocation_id in ("inv_back", "inv_gone"):
            await watched.run(invocation_id, owner="dead")
            await watched.store.note_read([invocation_id], clock.now_ms())
        await clock.advance(2 * ABANDON_S)
        await watched.store.renew_lease(HERE, FAR_MS)
        await watched.store.claim_expired(HERE, clock.now_ms(), limit=16, running=())
        await clock.advance(ABANDON_S / 2 - 1)
        watched.there.opened("inv_back")
        before = watched.cancelled_ids
        await clock.advance(ABANDON_S)

        assert before == []
        assert set(watched.cancelled_ids) == {"inv_gone"}


# -- what is written, and when


async def test_the_first_reader_and_the_end_of_the_last_are_noted_at_once(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await clock.advance(1)
        calls, counts = watched.faulty[HERE].calls, []
        for step in (watched.here.opened, watched.here.opened, watched.here.closed, watched.here.closed):
            step("inv_1")
            await clock.advance(0)
            counts.append(calls.count("note_read"))

        assert counts == [1, 1, 1, 2]
        assert len(watched.here) == 0


async def test_readers_that_come_together_are_noted_together(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await clock.advance(1)
        for number in range(1000):
            watched.here.opened(f"inv_{number}")
        await clock.advance(0)
        opened = watched.faulty[HERE].calls.count("note_read")
        for number in range(1000):
            watched.here.closed(f"inv_{number}")
        await clock.advance(0)

        assert (opened, watched.faulty[HERE].calls.count("note_read")) == (1, 2)


async def test_nothing_is_written_where_nobody_reads(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await clock.advance(10 * ABANDON_S)

        assert set(watched.faulty[HERE].calls) == {"unread"}
        assert watched.faulty[HERE].calls.count("unread") <= 41


async def test_readers_do_not_wait_for_the_store_and_who_comes_meanwhile_is_noted_next(
    clock: ManualClock,
) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        for invocation_id in ("inv_1", "inv_2"):
            await watched.run(invocation_id)
        await clock.advance(1)
        watched.faulty[HERE].gate.clear()
        watched.here.opened("inv_1")
        await clock.advance(1)
        watched.here.opened("inv_2")
        watched.here.closed("inv_1")
        watched.here.closed("inv_2")
        await clock.advance(1)
        watched.faulty[HERE].gate.set()
        await clock.advance(0)

        assert await watched.store.unread(HERE, clock.now_ms()) == {"inv_1", "inv_2"}
        assert watched.faulty[HERE].calls == ["unread", "note_read", "note_read"]


async def test_readers_that_come_and_go_all_the_time_keep_nobody_from_looking(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await watched.run("inv_1")
        watched.here.opened("inv_1")
        watched.here.closed("inv_1")
        for number in range(int(2 * ABANDON_S)):
            watched.faulty[HERE].gate.clear()
            watched.here.opened(f"inv_other_{number}")
            await clock.advance(1)
            watched.faulty[HERE].gate.set()
            watched.faulty[HERE].gate.clear()
            watched.here.closed(f"inv_other_{number}")
        watched.faulty[HERE].gate.set()

        assert "inv_1" in watched.cancelled_ids


@pytest.mark.promise("abandoned-job-cancelled")
async def test_who_comes_back_at_the_last_moment_is_seen(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await watched.run("inv_1")
        watched.here.opened("inv_1")
        watched.here.closed("inv_1")
        await clock.advance(ABANDON_S - 1)
        watched.faulty[HERE].only = {"unread"}
        watched.faulty[HERE].answers.clear()
        await clock.advance(LOOK_S)
        watched.here.opened("inv_1")
        watched.faulty[HERE].answers.set()
        await clock.advance(ABANDON_S)

        assert watched.cancelled == []


# -- the store is away


async def test_while_the_store_is_away_it_is_said_once_and_nothing_is_forgotten(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        await watched.run("inv_1")
        watched.faulty[HERE].down = True
        watched.here.opened("inv_1")
        await clock.advance(5 * LOOK_S)
        watched.here.closed("inv_1")
        await clock.advance(5 * LOOK_S)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        watched.faulty[HERE].down = False
        await clock.advance(LOOK_S)
        noted = await watched.store.unread(HERE, clock.now_ms())
        await clock.advance(ABANDON_S + LOOK_S)

        assert warnings == ["readers not noted: nothing is abandoned while the store is away"]
        assert noted == {"inv_1"}
        assert watched.cancelled_ids == ["inv_1"]


async def test_an_outage_abandons_nothing_that_is_read_elsewhere(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        await watched.run("inv_1")
        watched.there.opened("inv_1")
        for _ in range(3):
            await clock.advance(LOOK_S / 3)
            for faulty in watched.faulty.values():
                faulty.down = True
            await clock.advance(2 * ABANDON_S)
            for faulty in watched.faulty.values():
                faulty.down = False
            await clock.advance(ABANDON_S)

        assert watched.cancelled == []


async def test_who_comes_while_a_note_fails_is_not_forgotten(clock: ManualClock) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        for invocation_id in ("inv_1", "inv_2"):
            await watched.run(invocation_id)
        await clock.advance(1)
        watched.faulty[HERE].gate.clear()
        watched.here.opened("inv_1")
        await clock.advance(1)
        watched.here.opened("inv_2")
        watched.here.closed("inv_2")
        watched.faulty[HERE].down = True
        watched.faulty[HERE].gate.set()
        await clock.advance(1)
        watched.faulty[HERE].down = False
        await clock.advance(LOOK_S)

        assert await watched.store.unread(HERE, clock.now_ms()) == {"inv_1", "inv_2"}


async def test_who_comes_back_during_an_outage_is_not_taken_for_gone(clock: ManualClock) -> None:
    async with watching(clock) as watched:
        await watched.run("inv_1")
        watched.there.opened("inv_1")
        watched.there.closed("inv_1")
        await clock.advance(ABANDON_S - 1)
        for faulty in watched.faulty.values():
            faulty.down = True
        watched.there.opened("inv_1")
        await clock.advance(LOOK_S)
        for faulty in watched.faulty.values():
            faulty.down = False
        await clock.advance(2 * ABANDON_S)

        assert watched.cancelled == []


async def test_it_says_again_that_the_store_is_away_after_it_was_back(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(clock, owners=[HERE]) as watched:
        for _ in range(2):
            watched.faulty[HERE].down = True
            await clock.advance(3 * LOOK_S)
            watched.faulty[HERE].down = False
            await clock.advance(3 * LOOK_S)

        assert len(caplog.records) == 2


async def test_a_task_that_is_cancelled_while_it_writes_forgets_nobody(clock: ManualClock) -> None:
    async with watching(clock, owners=[]) as watched:
        await watched.run("inv_1")
        watched.faulty[HERE].gate.clear()
        watched.here.opened("inv_1")
        watched.here.closed("inv_1")
        first = asyncio.ensure_future(watched.here.run())
        await clock.advance(0)
        first.cancel()
        await asyncio.wait([first])
        watched.faulty[HERE].gate.set()
        second = asyncio.ensure_future(watched.here.run())
        await clock.advance(0)
        second.cancel()
        await asyncio.wait([second])

        assert await watched.store.unread(HERE, clock.now_ms()) == {"inv_1"}
