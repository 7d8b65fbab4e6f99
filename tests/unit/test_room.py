"""What a process takes on: what counts against a principal's share, and a store that is too far behind."""

import asyncio

import pytest

from service.errors import Overloaded
from service.runner import FAIR_SHARE
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import start, stop, text
from tests.harness import serving
from tests.left_behind import DEAD, LeftBehind

BEHIND = "[service]\nunstored_bytes = 2000"
LONG = [start(), text("x" * 3000), stop()]


@pytest.mark.promise("fair-share")
async def test_what_was_taken_over_counts_against_its_principals_share(clock: ManualClock) -> None:
    never = asyncio.Event()
    catalog = "[service]\nrunning_invocations = 5\n[limits.writers]\nconcurrent_invocations = 100"
    async with serving(clock, [start(), never], catalog=catalog) as served:
        for number in range(4):
            one = LeftBehind(served.store.as_store, clock, invocation_id=f"{DEAD[:-1]}{number}")
            await one.create(tokens=10)
        await clock.advance(LONGEST_LOOK_S)
        taken_over = len(served.model.requests)
        refused = await served.submit(prefer="respond-async")
        other = await served.submit(prefer="respond-async", as_user="other")

    error = Overloaded("Most of what runs here is yours: try again.")
    assert taken_over == 4
    assert (refused.status, refused.json(), other.status) == (503, error.problem(), 202)


@pytest.mark.promise("fair-share")
async def test_what_has_ended_or_was_refused_counts_no_more(clock: ManualClock) -> None:
    catalog = "[service]\nrunning_invocations = 1\n[limits.writers]\ninvocation_tokens = 1050"
    async with serving(clock, catalog=catalog) as served:
        jobs = [{"prompt": "?", "maxTokens": 9}, {"prompt": "?", "maxTokens": 1000}] * (FAIR_SHARE + 1)
        answers = [await served.submit(job) for job in jobs]

    assert [each.status for each in answers] == [200, 422] * (FAIR_SHARE + 1)


@pytest.mark.promise("sheds-before-work")
async def test_a_process_whose_store_is_far_behind_takes_nothing_over(clock: ManualClock) -> None:
    async with serving(clock, LONG, catalog=BEHIND) as served:
        served.store.only, served.store.down = {"append_events", "finish"}, True
        await served.submit(prefer="respond-async")
        await clock.advance(1)
        dead = await LeftBehind(served.store.as_store, clock).create()
        await clock.advance(20)
        waiting = (await served.get(dead.location)).json()
        served.store.down = False
        await clock.advance(10 + LONGEST_LOOK_S)
        record = (await served.get(dead.location)).json()

    assert [len(each["attempts"]) for each in (waiting, record)] == [1, 2]
    assert record["state"] == "completed"


@pytest.mark.promise("sheds-before-work")
async def test_what_a_store_is_still_writing_counts_as_not_stored(clock: ManualClock) -> None:
    async with serving(clock, LONG, catalog=BEHIND) as served:
        served.store.only = {"append_events", "finish"}
        served.store.gate.clear()
        await served.submit(prefer="respond-async")
        await clock.advance(1)
        refused = await served.submit(prefer="respond-async", as_user="other")
        served.store.gate.set()
        await clock.advance(1)
        admitted = await served.submit(prefer="respond-async", as_user="other")

    error = Overloaded("The store is behind: try again.")
    assert (refused.status, refused.json(), admitted.status) == (503, error.problem(), 202)
