"""What becomes of the jobs of who is denied: cancelled where they run or wait, and not run again anywhere."""

import asyncio
from pathlib import Path

import pytest

from service.attempt import LONGEST_POSTPONEMENT_S
from service.policies import REFRESH_S, RETRY_S
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import answer
from tests.harness import serving
from tests.id_tokens import bearer
from tests.left_behind import LeftBehind
from tests.unit.test_denied import MARY, OTHER_SIGN_IN, THIS_SIGN_IN, deny, never
from tests.unit.test_pause import TIGHT, costly_turn, paused

USAGE_GRACE_S = 1.0


@pytest.mark.promise("denied-cancels-jobs", "one-terminal-event")
async def test_what_a_denied_principal_runs_is_cancelled_and_settled(clock: ManualClock) -> None:
    async with serving(clock, never()) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        others = (await served.submit(prefer="respond-async", as_user="user-2")).headers["location"]
        await deny(served, MARY)
        await clock.advance(REFRESH_S + USAGE_GRACE_S)
        await served.store.as_store.allow(MARY)
        await clock.advance(REFRESH_S)
        record = (await served.get(location)).json()
        others_record = (await served.get(others, as_user="user-2")).json()
        usage = (await served.get("/usage")).json()
        upstream_calls_cancelled = served.model.cancelled

    assert (record["state"], others_record["state"]) == ("cancelled", "running")
    assert record["terminalEvent"]["invocationCancelled"] == {"reason": "denied", "usage": record["usage"]}
    assert record["result"]["text"] == "Half an "
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)
    assert usage["windows"][0]["used"] > 0
    assert upstream_calls_cancelled == 1


@pytest.mark.promise("denied-cancels-jobs")
async def test_what_a_denied_sign_in_has_submitted_is_cancelled_and_no_other_job_of_its_user(
    clock: ManualClock,
) -> None:
    async with serving(clock, never()) as served:
        locations = [
            (await served.submit(prefer="respond-async", authorization=token)).headers["location"]
            for token in (bearer(), OTHER_SIGN_IN, bearer({"origin_jti": "another sign-in"}))
        ]
        await deny(served, THIS_SIGN_IN)
        await clock.advance(REFRESH_S + USAGE_GRACE_S)
        states = [
            (await served.get(location, authorization=OTHER_SIGN_IN)).json()["state"]
            for location in locations
        ]

    assert states == ["cancelled", "running", "running"]


@pytest.mark.promise("denied-cancels-jobs")
@pytest.mark.parametrize("subject", [MARY, THIS_SIGN_IN])
async def test_what_a_denied_principal_let_wait_is_cancelled_and_never_runs(
    clock: ManualClock, subject: str
) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        await deny(served, subject)
        await clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S + 1)
        await served.store.as_store.allow(subject)
        await clock.advance(REFRESH_S)
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()

    assert record["state"] == "cancelled"
    assert record["terminalEvent"]["invocationCancelled"]["reason"] == "denied"
    assert len(served.model.requests) == 1
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (9505, 0)


@pytest.mark.promise("denied-cancels-jobs")
async def test_another_sign_in_that_resumes_what_a_denied_one_has_submitted_sees_it_cancelled(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
    loose = TIGHT.replace("10_000\n", "20_000\n", 1)
    async with serving(clock, answer("42"), catalog=loose, store=path) as served:
        served.store.only, served.store.down = {"list_paused"}, True
        await deny(served, THIS_SIGN_IN)
        await clock.advance(REFRESH_S)
        await served.submit(b"", f"{location}/resume", authorization=OTHER_SIGN_IN)
        await clock.advance(1)
        record = (await served.get(location, authorization=OTHER_SIGN_IN)).json()
        usage = (await served.get("/usage", authorization=OTHER_SIGN_IN)).json()

    assert record["terminalEvent"]["invocationCancelled"]["reason"] == "denied"
    assert served.model.requests == []
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (9505, 0)


@pytest.mark.promise("denied-cancels-jobs")
async def test_what_a_dead_process_ran_for_a_denied_principal_is_ended_instead_of_run(
    clock: ManualClock,
) -> None:
    async with serving(clock, answer("42")) as served:
        await deny(served, MARY)
        await clock.advance(REFRESH_S)
        dead = await LeftBehind(served.store.as_store, clock).create()
        await dead.begun()
        await clock.advance(LONGEST_LOOK_S)
        record = await served.store.as_store.load_invocation(dead.invocation_id)

    assert record is not None
    assert record.terminal is not None
    assert (record.state, b'"reason":"denied"' in record.terminal) == ("cancelled", True)
    assert served.model.requests == []


@pytest.mark.promise("denied-cancels-jobs", "denial-outlasts-outage")
async def test_nothing_is_taken_over_before_it_is_known_who_is_denied(
    clock: ManualClock, tmp_path: Path
) -> None:
    path, loose = tmp_path / "db", TIGHT.replace("10_000\n", "20_000\n", 1)
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
    async with serving(clock, answer("42"), catalog=loose, store=path, store_is_down=True) as served:
        served.store.only = {"policies"}
        store = served.store.as_store
        dead = await LeftBehind(store, clock).create()
        await clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S)
        ids = dead.invocation_id, location.rpartition("/")[2]
        before = [await store.load_invocation(invocation_id) for invocation_id in ids]
        served.store.down = False
        await clock.advance(RETRY_S + LONGEST_LOOK_S)
        after = [await store.load_invocation(invocation_id) for invocation_id in ids]

    assert [record and record.state for record in before] == ["running", "paused"]
    assert [record and record.state for record in after] == ["completed", "completed"]


@pytest.mark.promise("denied-cancels-jobs")
async def test_a_job_that_was_let_in_just_before_the_denial_was_read_ends_at_the_next_reading(
    clock: ManualClock,
) -> None:
    async with serving(clock, never()) as served:
        served.store.only = {"create_invocation"}
        served.store.gate.clear()
        submitting = asyncio.ensure_future(served.submit(prefer="respond-async"))
        await clock.advance(0)
        await deny(served, MARY)
        await clock.advance(REFRESH_S)
        served.store.gate.set()
        got = await submitting
        await clock.advance(REFRESH_S + USAGE_GRACE_S)
        record = await served.store.as_store.load_invocation(got.json()["invocationId"])

    assert (got.status, record is not None and record.state) == (202, "cancelled")


async def test_a_job_that_is_being_cancelled_keeps_its_reason(clock: ManualClock) -> None:
    catalog = "[service]\nusage_grace_s = 30"
    async with serving(clock, never(), catalog=catalog) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        await served.submit(b"", f"{location}/cancel")
        served.store.only, served.store.down = {"cancel_requests"}, True  # it is heard no second time
        await deny(served, MARY)
        await clock.advance(40)
        record = await served.store.as_store.load_invocation(location.rpartition("/")[2])

    assert record is not None
    assert record.terminal is not None
    assert b'"reason":"requested"' in record.terminal
