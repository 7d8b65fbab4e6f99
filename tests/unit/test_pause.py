"""The durable wait: between turns an invocation without quota waits without a process; then it goes on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.attempt import LONGEST_POSTPONEMENT_S
from service.takeover import LONGEST_LOOK_S
from tests.asgi import Answer
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text, tool_call
from tests.harness import Served, serving
from tests.id_tokens import bearer
from tests.sse import events_of, kinds_of

RECKONER = "/runtimes/reckoner/invocations"
JOB = {"prompt": "6 times 7?", "maxTokens": 100}
TIGHT = "[limits.writers]\ndaily_tokens = 10_000\ninvocation_tokens = 100_000\nconcurrent_invocations = 2"
LOOSE = TIGHT.replace("10_000\n", "20_000\n", 1)
DAY_S = 24 * 3600


def costly_turn(input_tokens: int) -> list[Step]:
    """Return a turn that asks for a tool and leaves no room for the next one."""
    return [*tool_call("multiply", '{"a":6,"b":7}')[:-1], stop("tool_use", input_tokens=input_tokens)]


async def paused(served: Served) -> str:
    """Submit a job that comes to wait after its first turn; return its location."""
    location = (await served.submit(JOB, RECKONER, prefer="respond-async")).headers["location"]
    await served.clock.advance(0)
    return location


async def resume(served: Served, location: str) -> Answer:
    return await served.submit(b"", f"{location}/resume")


async def record_of(served: Served, location: str) -> dict[str, Any]:
    return dict((await served.get(location, authorization=later(served.clock))).json())


def later(clock: ManualClock) -> str:
    """Return a token that is good now, however late it is."""
    now_s = clock.now_ms() // 1000
    return bearer({"iat": now_s, "exp": now_s + 600})


@pytest.mark.promise("pauses-at-quota")
async def test_a_turn_that_the_quota_has_no_room_for_waits_with_its_state_intact(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        record = await record_of(served, location)
        usage = (await served.get("/usage")).json()
        async with served.follow(location) as exchange:
            await clock.advance(30)
            body = exchange.body

    event_id, event = events_of(body)[-1]
    problem = event["invocationPaused"]["problem"]
    assert (record["state"], record["pausedAt"]) == ("paused", "2026-11-21T16:40:00.000Z")
    assert (problem["code"], problem["quota"]["used"]) == ("quota-exceeded", 9505)
    assert event["invocationPaused"]["resumesAt"] == record["resumesAt"] == "2026-11-22T16:50:00.000Z"
    assert record["attempts"][0] | {"startedAt": ""} == {
        "attempt": 1,
        "startedAt": "",
        "lastEventId": event_id,
        "end": "paused",
    }
    assert body.count(b": heartbeat phase=paused") >= 2
    assert (usage["runningInvocations"], usage["windows"][0]["reserved"]) == (0, 0)
    assert len(served.model.requests) == 1
    assert [(line["state"], line["code"]) for line in served.lines.attempts] == [("paused", "quota-exceeded")]


@pytest.mark.promise("pauses-at-quota", "reattach-exactly-once", "deadline-ends-job")
async def test_it_goes_on_when_the_window_has_room_and_its_deadline_stood_still(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        before = await record_of(served, location)
        clock.pass_time(DAY_S + 600)  # at once: day and night of looks would take long
        await clock.advance(LONGEST_POSTPONEMENT_S)
        record = await record_of(served, location)
        got = await served.get(f"{location}/events", authorization=later(clock))

    kinds = kinds_of(got.body)
    at = kinds.index("invocationPaused")
    assert (record["state"], record["result"]["text"]) == ("completed", "42")
    assert kinds[at : at + 4] == ["invocationPaused", "attemptRestarted", "invocationResumed", "messageStart"]
    assert events_of(got.body)[at + 1][1]["attemptRestarted"]["rewindTo"] == events_of(got.body)[at][0]
    assert record["deadlineAt"] > before["deadlineAt"]
    assert record["usage"]["inputTokens"] == 9510
    assert "pausedAt" not in record


@pytest.mark.promise("pauses-at-quota")
async def test_it_goes_on_within_a_minute_when_the_limit_is_raised(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
        await clock.advance(LONGEST_LOOK_S)
    async with serving(clock, answer("42"), catalog=LOOSE, store=path) as served:
        await clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S)
        record = await record_of(served, location)

    assert record["state"] == "completed"


@pytest.mark.promise("pauses-at-quota")
async def test_it_goes_on_when_it_is_asked_to_and_there_is_room(clock: ManualClock, tmp_path: Path) -> None:
    path, gate = tmp_path / "db", asyncio.Event()
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
        refused = await resume(served, location)
        still = await record_of(served, location)
    script: list[Step] = [start(), gate, text("42"), stop()]
    async with serving(clock, script, catalog=LOOSE, store=path) as served:
        answers = [await resume(served, location), await resume(served, location)]
        gate.set()
        await clock.advance(1)
        answers.append(await resume(served, location))

    assert (refused.status, refused.json()["code"], still["state"]) == (429, "quota-exceeded", "paused")
    assert "retry-after" in refused.headers
    assert [each.status for each in answers] == [202, 202, 409]
    assert [len(each.json().get("attempts", ())) for each in answers] == [2, 2, 0]


async def test_a_paused_invocation_takes_no_slot_and_waits_for_one_to_go_on(
    clock: ManualClock, tmp_path: Path
) -> None:
    path, never = tmp_path / "db", asyncio.Event()
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
    limits = LOOSE.replace("concurrent_invocations = 2", "concurrent_invocations = 1")
    async with serving(clock, [start(), never], catalog=limits, store=path) as served:
        served.store.only, served.store.down = {"resume"}, True
        running = await served.submit({"prompt": "?", "maxTokens": 9}, prefer="respond-async")
        served.store.down = False
        refused = await resume(served, location)

    assert (running.status, refused.status, refused.json()["code"]) == (202, 429, "concurrency-exceeded")


@pytest.mark.promise("cancel-reaches-everything")
async def test_a_paused_invocation_is_cancelled_at_once(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        asked = await served.submit(b"", f"{location}/cancel")
        await clock.advance(0)
        record = await record_of(served, location)
        got = await served.get(f"{location}/events")

    assert (asked.status, record["state"]) == (202, "cancelled")
    assert kinds_of(got.body)[-3:] == ["invocationPaused", "attemptRestarted", "invocationCancelled"]
    assert len(served.model.requests) == 1


@pytest.mark.promise("pauses-at-quota")
async def test_a_paused_invocation_waits_no_longer_than_its_limit(clock: ManualClock) -> None:
    catalog = TIGHT + "\n[service]\npause_limit_s = 7200"
    async with serving(clock, costly_turn(9500), answer("42"), catalog=catalog) as served:
        location = await paused(served)
        clock.pass_time(7000)
        await clock.advance(1)
        waiting = await record_of(served, location)
        await clock.advance(199 + LONGEST_POSTPONEMENT_S)
        record = await record_of(served, location)
        usage = (await served.get("/usage", authorization=later(clock))).json()

    assert (waiting["state"], record["state"]) == ("paused", "failed")
    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "pause-expired"
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (9505, 0)


@pytest.mark.promise("pauses-at-quota")
async def test_a_turn_that_never_fits_the_quota_fails(clock: ManualClock) -> None:
    async with serving(clock, [start(), asyncio.Event()], catalog=TIGHT) as served:
        await served.submit(JOB, RECKONER, prefer="respond-async")
        first_hold = (await served.get("/usage")).json()["windows"][0]["reserved"]
    tight = TIGHT.replace("10_000", str(first_hold + 10))  # the next turn has more to read
    async with serving(clock, costly_turn(1), answer("42"), catalog=tight) as served:
        location = await paused(served)
        record = await record_of(served, location)

    assert record["state"] == "failed"
    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "quota-exceeded"


async def test_a_pause_that_the_store_does_not_answer_is_made_once(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        served.store.only, served.store.deaf = {"pause"}, True
        location = await paused(served)
        await clock.advance(1)
        served.store.deaf = False
        await clock.advance(5)
        got = await served.get(location)
        log = await served.store.as_store.load_invocation(location.rpartition("/")[2])

    assert (got.json()["state"], len(got.json()["attempts"])) == ("paused", 1)
    assert log is not None


async def test_of_two_processes_one_resumes(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        location = await paused(served)
    async with (
        serving(clock, answer("42"), catalog=LOOSE, store=path) as one,
        serving(clock, answer("42"), catalog=LOOSE, store=path) as two,
    ):
        await asyncio.gather(resume(one, location), resume(two, location))
        await clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S)
        record = await record_of(one, location)

    assert (record["state"], len(record["attempts"])) == ("completed", 2)
    assert len(one.model.requests) + len(two.model.requests) == 1
