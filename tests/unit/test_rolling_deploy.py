"""A rolling deploy: processes that serve different runtimes leave each other's jobs to each other."""

import asyncio
from pathlib import Path

import pytest

from service.events import Block, encode
from service.invocations import State
from service.stores import FORSAKEN_MS, Pause
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, text
from tests.harness import serving
from tests.left_behind import DEAD, LeftBehind
from tests.unit.test_pause import TIGHT

BRAND_NEW = """
[runtimes.brand-new]
kind = "converse"
model = "bedrock/model-1"
"""
LEAVING = "[service]\ndrain_s = 1"


@pytest.mark.promise("handed-over-goes-on")
async def test_a_job_of_a_new_runtime_waits_for_a_process_that_serves_it(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    half: list[Step] = [start(), text("Half"), asyncio.Event()]
    job = {"prompt": "?", "maxTokens": 10}
    async with (
        serving(clock, store=path) as old,
        serving(clock, answer("fine"), catalog=BRAND_NEW, store=path) as new,
    ):
        async with serving(clock, half, catalog=BRAND_NEW + LEAVING, store=path) as leaving:
            got = await leaving.submit(job, "/runtimes/brand-new/invocations", prefer="respond-async")
            new.store.only, new.store.down = {"claim_expired"}, True
            await clock.advance(1)
            draining = asyncio.ensure_future(leaving.drain())
            await clock.advance(2)
            await draining
        await clock.advance(2 * LONGEST_LOOK_S)  # the old one has looked, and more than once
        new.store.down = False
        await clock.advance(2 * LONGEST_LOOK_S)
        record = (await new.get(got.headers["location"])).json()

    assert (record["state"], record["result"]["text"]) == ("completed", "fine")
    assert [each["end"] for each in record["attempts"]] == ["handed-over", "finished"]
    assert old.model.requests == []


@pytest.mark.promise("one-terminal-event")
async def test_a_runtime_that_nobody_serves_ends_its_jobs_at_their_deadline(clock: ManualClock) -> None:
    async with serving(clock) as served:
        dead = LeftBehind(served.store.as_store, clock, "gone")
        await (await dead.create(deadline_s=30)).begun()
        await clock.advance(29)
        before = await dead.store.load_invocation(DEAD)
        await clock.advance(LONGEST_LOOK_S + 1)
        record = await dead.store.load_invocation(DEAD)

    assert before is not None
    assert record is not None
    assert record.terminal is not None
    assert (before.attempt, record.attempt) == (1, 2)
    assert b'"code":"runtime-gone"' in record.terminal


@pytest.mark.promise("one-terminal-event", "pauses-at-quota")
async def test_a_paused_job_of_a_runtime_that_nobody_serves_ends_an_hour_after_it_was_due(
    clock: ManualClock,
) -> None:
    async with serving(clock, catalog=TIGHT) as served:
        job = await (await LeftBehind(served.store.as_store, clock, "gone").create()).begun()
        block = Block(1, 2, (encode("invocationPaused", {"problem": {}}),))
        # More tokens than its quota will ever have room for: it is ended, not resumed.
        await job.store.pause(Pause(DEAD, 1, block, 1, 10**6, clock.now_ms()), clock.now_ms())
        clock.pass_time(FORSAKEN_MS / 1000 - 15)
        await clock.advance(14)
        before = await job.store.load_invocation(DEAD)
        await clock.advance(1 + LONGEST_LOOK_S)
        record = await job.store.load_invocation(DEAD)

    assert before is not None
    assert record is not None
    assert record.terminal is not None
    assert (before.state, record.state) == (State.PAUSED, State.FAILED)
    assert b'"code":"runtime-gone"' in record.terminal
