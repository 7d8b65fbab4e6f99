"""How a paused invocation goes on, or ends: is there room, who is quicker, what has changed meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.attempt import LONGEST_POSTPONEMENT_S
from service.errors import AlreadyEnded
from service.events import Block, encode
from service.stores import Pause
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text
from tests.harness import Served, serving
from tests.left_behind import LeftBehind
from tests.sse import events_of, kinds_of
from tests.unit.test_pause import DAY_S, JOB, LOOSE, RECKONER, TIGHT, costly_turn, later, paused, record_of

ONE_AT_A_TIME = "\n[service]\nrunning_invocations = 1"


async def left_paused(clock: ManualClock, path: Path) -> str:
    """Have a process leave a paused invocation in a store; return its location."""
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=path) as served:
        return await paused(served)


async def occupied(served: Served) -> None:
    """Let another principal's job take a place until its script lets it end."""
    busy = await served.submit({"prompt": "?", "maxTokens": 9}, prefer="respond-async", as_user="other")
    assert busy.status == 202
    await served.clock.advance(0)


def code_of(record: dict[str, Any]) -> str:
    return str(record["terminalEvent"]["invocationFailed"]["problem"]["code"])


# -- room


@pytest.mark.promise("sheds-before-work")
async def test_resumptions_at_once_take_no_more_than_the_process_has_room_for(
    clock: ManualClock, tmp_path: Path
) -> None:
    locations = []
    async with serving(clock, costly_turn(9500), catalog=TIGHT, store=tmp_path / "db") as served:
        for user in ("ann", "bea", "cyd"):
            answered = await served.submit(JOB, RECKONER, prefer="respond-async", as_user=user)
            await clock.advance(0)
            locations.append((user, answered.headers["location"]))
    catalog = LOOSE + ONE_AT_A_TIME
    async with serving(clock, [start(), asyncio.Event()], catalog=catalog, store=tmp_path / "db") as served:
        answers = await asyncio.gather(
            *(served.submit(b"", f"{location}/resume", as_user=user) for user, location in locations)
        )

        assert sorted(each.status for each in answers) == [202, 503, 503]


@pytest.mark.promise("pauses-at-quota", "sheds-before-work")
async def test_in_a_process_that_is_full_a_paused_invocation_waits_on_and_then_goes_on(
    clock: ManualClock, tmp_path: Path
) -> None:
    location, gate = await left_paused(clock, tmp_path / "db"), asyncio.Event()
    script: list[Step] = [start(), gate, text("42"), stop()]
    catalog = LOOSE + ONE_AT_A_TIME
    async with serving(clock, script, catalog=catalog, store=tmp_path / "db") as served:
        await occupied(served)
        await clock.advance(120)
        refused = await served.submit(b"", f"{location}/resume")
        waiting, asked = await record_of(served, location), served.store.calls.count("resume")
        gate.set()
        await clock.advance(2 * LONGEST_LOOK_S)
        record = await record_of(served, location)

    assert (refused.status, refused.json()["code"]) == (503, "overloaded")
    assert (waiting["state"], asked, record["state"]) == ("paused", 0, "completed")


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_a_process_past_its_lease_lets_nothing_go_on_that_was_paused(
    clock: ManualClock, tmp_path: Path
) -> None:
    location = await left_paused(clock, tmp_path / "db")
    async with serving(clock, answer("42"), catalog=LOOSE, store=tmp_path / "db") as served:
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(120)
        waiting, asked = await record_of(served, location), served.store.calls.count("resume")
        served.store.down = False
        await clock.advance(2 * LONGEST_LOOK_S)
        record = await record_of(served, location)

    assert (waiting["state"], asked, record["state"]) == ("paused", 0, "completed")


@pytest.mark.promise("cancel-reaches-everything")
async def test_a_paused_invocation_is_cancelled_at_once_though_the_process_is_full(
    clock: ManualClock, tmp_path: Path
) -> None:
    location, never = await left_paused(clock, tmp_path / "db"), asyncio.Event()
    catalog = LOOSE + ONE_AT_A_TIME
    async with serving(clock, [start(), never], catalog=catalog, store=tmp_path / "db") as served:
        await occupied(served)
        asked = await served.submit(b"", f"{location}/cancel")
        await clock.advance(0)
        record = await record_of(served, location)
        got = await served.get(f"{location}/events")

    assert (asked.status, asked.json()["state"], record["state"]) == (202, "paused", "cancelled")
    assert kinds_of(got.body)[-3:] == ["invocationPaused", "attemptRestarted", "invocationCancelled"]
    assert len(served.model.requests) == 1  # the other one's


async def test_a_pause_that_is_shorter_than_a_look_ends_when_it_said(clock: ManualClock) -> None:
    script = answer("Early.", input_tokens=4500)
    async with serving(clock, script, costly_turn(4500), answer("42"), catalog=TIGHT) as served:
        await served.submit({"prompt": "?", "maxTokens": 9})
        clock.pass_time(DAY_S + 600 - 20)  # 20 s before what was used first ages out
        await clock.advance(0)  # the lease is renewed
        headers = {"prefer": "respond-async", "authorization": later(clock)}
        location = (await served.submit(JOB, RECKONER, **headers)).headers["location"]
        await clock.advance(0)
        waiting = await record_of(served, location)
        await clock.advance(20 + LONGEST_LOOK_S)
        record = await record_of(served, location)

    assert (waiting["state"], waiting["resumesAt"]) == ("paused", "2026-11-22T16:50:00.000Z")
    assert (record["state"], record["result"]["text"]) == ("completed", "42")


@pytest.mark.promise("pauses-at-quota")
async def test_what_has_no_room_yet_is_looked_at_once_a_minute(clock: ManualClock, tmp_path: Path) -> None:
    await left_paused(clock, tmp_path / "db")
    async with serving(clock, catalog=TIGHT, store=tmp_path / "db") as served:
        await clock.advance(3 * (LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S))
        looks = served.store.calls.count("resume")

    assert looks == 3


@pytest.mark.promise("pauses-at-quota", "killed-process-goes-on")
async def test_an_invocation_that_is_taken_over_without_quota_for_its_turn_waits_with_its_whole_log(
    clock: ManualClock,
) -> None:
    async with serving(clock, answer("Spent.", input_tokens=9900), catalog=TIGHT) as served:
        await served.submit({"prompt": "?", "maxTokens": 9})
        left = await (await LeftBehind(served.store.as_store, clock).create(tokens=1)).begun()
        await clock.advance(LONGEST_LOOK_S + 1)
        record = await record_of(served, left.location)
        async with served.follow(left.location) as exchange:
            await clock.advance(1)
            events = events_of(exchange.body)

    assert (record["state"], [each["end"] for each in record["attempts"]]) == ("paused", ["lost", "paused"])
    assert [(event_id, *event) for event_id, event in events] == [
        ("1.1", "invocationStarted"),
        ("2.1", "attemptRestarted"),
        ("2.2", "invocationPaused"),
    ]


# -- races


async def test_who_asks_while_it_goes_on_already_is_told_so(clock: ManualClock, tmp_path: Path) -> None:
    location, never = await left_paused(clock, tmp_path / "db"), asyncio.Event()
    async with serving(clock, [start(), never], catalog=LOOSE, store=tmp_path / "db") as served:
        both = [served.submit(b"", f"{location}/resume") for _ in range(2)]
        answers = await asyncio.gather(*both)

    assert served.store.calls.count("resume") == 2
    assert [each.status for each in answers] == [202, 202]
    assert [(each.json()["state"], len(each.json()["attempts"])) for each in answers] == [("running", 2)] * 2


async def test_who_asks_while_it_is_being_cancelled_elsewhere_is_told_how_it_ended(
    clock: ManualClock, tmp_path: Path
) -> None:
    location = await left_paused(clock, tmp_path / "db")
    async with (
        serving(clock, answer("42"), catalog=LOOSE, store=tmp_path / "db") as asked,
        serving(clock, catalog=LOOSE, store=tmp_path / "db") as other,
    ):
        asked.store.only = {"resume"}
        asked.store.gate.clear()
        resuming = asyncio.ensure_future(asked.submit(b"", f"{location}/resume"))
        await clock.advance(0)
        await other.submit(b"", f"{location}/cancel")
        await clock.advance(0)
        asked.store.gate.set()
        got = await resuming

    error = AlreadyEnded(
        "Its state is cancelled: its record says how it ended.", extra={"state": "cancelled"}
    )
    assert (got.status, got.json()) == (409, error.problem())
    assert asked.model.requests == []


# -- what has changed meanwhile


async def test_a_budget_that_has_become_too_small_ends_a_paused_invocation(
    clock: ManualClock, tmp_path: Path
) -> None:
    location = await left_paused(clock, tmp_path / "db")
    catalog = LOOSE.replace("invocation_tokens = 100_000", "invocation_tokens = 9_600")
    async with serving(clock, answer("42"), catalog=catalog, store=tmp_path / "db") as served:
        await clock.advance(60 + LONGEST_LOOK_S)
        record = await record_of(served, location)
        usage = (await served.get("/usage")).json()

    assert (record["state"], code_of(record), served.model.requests) == ("failed", "budget-exceeded", [])
    assert record["terminalEvent"]["invocationFailed"]["problem"]["budget"]["used"] == 9505
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (9505, 0)


async def test_a_paused_invocation_whose_input_can_not_be_read_is_ended(clock: ManualClock) -> None:
    async with serving(clock) as served:
        left = await (await LeftBehind(served.store.as_store, clock).create(body=b"no JSON")).begun()
        event = encode("invocationPaused", {"problem": {}, "resumesAt": "2026-11-21T16:40:01.000Z"})
        pause = Pause(left.invocation_id, 1, Block(1, 2, (event,)), 1, 10, clock.now_ms() + 1000)
        await left.store.pause(pause, clock.now_ms())
        await clock.advance(1 + LONGEST_LOOK_S)
        record = await record_of(served, left.location)

    assert (record["state"], code_of(record), served.model.requests) == ("failed", "internal-error", [])


@pytest.mark.promise("settle-exactly-once", "turn-limit")
async def test_a_resumed_job_that_has_no_turn_left_is_charged_for_no_call(
    clock: ManualClock, tmp_path: Path
) -> None:
    def catalog(limits: str, max_turns: int) -> str:
        return f"""{limits}
[runtimes.flexible]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_converse:multiply"]
max_turns = {max_turns}
"""

    path, tight, loose = tmp_path / "db", catalog(TIGHT, 3), catalog(LOOSE, 1)
    async with serving(clock, costly_turn(9500), catalog=tight, store=path) as served:
        submitted = await served.submit(JOB, "/runtimes/flexible/invocations", prefer="respond-async")
        await clock.advance(0)
    async with serving(clock, answer("42"), catalog=loose, store=path) as served:
        await clock.advance(60 + LONGEST_LOOK_S)
        record = await record_of(served, submitted.headers["location"])
        usage = (await served.get("/usage")).json()

    assert (code_of(record), served.model.requests) == ("turns-exhausted", [])
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (9505, 0)
    assert not record["usage"].get("estimated")
