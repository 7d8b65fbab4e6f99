"""`on_disconnect = "cancel"`: what its caller has left is cancelled, what is read anywhere goes on."""

import asyncio
from pathlib import Path

import pytest

from service.attempt import LONGEST_POSTPONEMENT_S
from service.config import ServiceConfig
from service.events import START
from service.follow import Follow
from service.presence import Presence
from service.stores.sqlite import SqliteStore
from service.takeover import LONGEST_LOOK_S
from service.wire import SSE
from tests.clock import ManualClock
from tests.fakes import Step, start, stop, text
from tests.harness import serving
from tests.sse import kinds_of
from tests.stories import Story
from tests.unit.test_pause import JOB, TIGHT, costly_turn

ABANDON_S = 40.0
FRUGAL = """
[runtimes.frugal]
kind = "converse"
model = "bedrock/model-1"
on_disconnect = "cancel"

[service]
abandon_s = 40
"""
PATIENT = TIGHT + FRUGAL.replace('cancel"', 'cancel"\ntools = ["tests.unit.test_converse:multiply"]')
PATH = "/runtimes/frugal/invocations"


@pytest.mark.promise("abandoned-job-cancelled")
async def test_a_job_whose_only_reader_has_hung_up_is_cancelled(clock: ManualClock) -> None:
    async with serving(clock, [start(), text("A head"), asyncio.Event(), stop()], catalog=FRUGAL) as served:
        async with served.post(path=PATH) as exchange:
            await exchange.until(b"A head")
            await clock.advance(2 * ABANDON_S)
        location = exchange.headers["location"]
        await clock.advance(ABANDON_S - 1)
        before = (await served.get(location)).json()
        await clock.advance(ABANDON_S / 4 + 3)
        record = (await served.get(location)).json()

    assert (before["state"], record["state"]) == ("running", "cancelled")
    assert record["terminalEvent"]["invocationCancelled"]["reason"] == "abandoned"
    assert record["result"] == {"text": "A head"}
    assert served.model.cancelled == 1


@pytest.mark.promise("abandoned-job-cancelled")
@pytest.mark.parametrize(
    ("path", "headers"), [(PATH, {"prefer": "respond-async"}), ("/runtimes/writer/invocations", {})]
)
async def test_a_job_that_never_had_a_reader_goes_on_and_so_does_that_of_another_runtime(
    clock: ManualClock, path: str, headers: dict[str, str]
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), text("A head"), gate, stop()], catalog=FRUGAL) as served:
        async with served.post(path=path, **headers) as exchange:
            await clock.advance(1)
        await clock.advance(3 * ABANDON_S)
        gate.set()
        await clock.advance(1)
        record = (await served.get(exchange.headers["location"])).json()

    assert record["state"] == "completed"


@pytest.mark.promise("abandoned-job-cancelled")
async def test_a_job_that_is_read_in_another_process_goes_on(clock: ManualClock, tmp_path: Path) -> None:
    gate = asyncio.Event()
    script: list[Step] = [start(), text("A head"), gate, stop()]
    async with (
        serving(clock, script, catalog=FRUGAL, store=tmp_path / "db") as runs,
        serving(clock, catalog=FRUGAL, store=tmp_path / "db") as asked,
    ):
        async with runs.post(path=PATH) as exchange:
            await exchange.until(b"A head")
        location = exchange.headers["location"]
        async with asked.follow(location) as following:
            await clock.advance(3 * ABANDON_S)
            gate.set()
            await clock.advance(2)
            await following.whole()

    assert kinds_of(following.body)[-1] == "invocationCompleted"


@pytest.mark.promise("abandoned-job-cancelled", "pauses-at-quota")
async def test_a_paused_job_is_cancelled_too_once_nobody_has_read_it_for_long_enough(
    clock: ManualClock,
) -> None:
    async with serving(clock, costly_turn(9500), catalog=PATIENT) as served:
        async with served.post(JOB, PATH) as exchange:
            await clock.advance(5)
        location = exchange.headers["location"]
        async with served.follow(location):
            await clock.advance(3 * LONGEST_POSTPONEMENT_S)
            read = (await served.get(location)).json()
        await clock.advance(ABANDON_S - 2)
        waiting = (await served.get(location)).json()
        await clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S)
        record = (await served.get(location)).json()

    assert (read["state"], waiting["state"], record["state"]) == ("paused", "paused", "cancelled")
    assert record["terminalEvent"]["invocationCancelled"]["reason"] == "abandoned"
    assert len(served.model.requests) == 1


@pytest.mark.promise("abandoned-job-cancelled")
async def test_a_paused_job_whose_readers_could_not_be_noted_waits_on(clock: ManualClock) -> None:
    async with serving(clock, costly_turn(9500), catalog=PATIENT) as served:
        async with served.post(JOB, PATH) as exchange:
            await clock.advance(5)
        async with served.follow(exchange.headers["location"]) as following:
            await clock.advance(5)
            served.store.down = True
            await clock.advance(3 * LONGEST_POSTPONEMENT_S)
            served.store.down = False
            await clock.advance(3 * LONGEST_POSTPONEMENT_S)
            record = (await served.get(exchange.headers["location"])).json()

    assert (record["state"], b"invocationCancelled" in following.body) == ("paused", False)


@pytest.mark.promise("leaving-readers-leave-nothing", "abandoned-job-cancelled")
async def test_only_readers_of_runtimes_that_cancel_are_watched(clock: ManualClock) -> None:
    async with SqliteStore.open(":memory:") as store:
        story = Story(store, clock.now_ms)
        await story.begin()
        invocation = await story.record()
        presence = Presence(
            store, owner="process-1", abandon_s=ABANDON_S, now_ms=clock.now_ms, cancel=lambda _: None
        )
        counts = []
        for abandonable in ({"writer", "frugal"}, {"frugal"}, set[str]()):
            follow = Follow(
                store,
                lambda _: None,
                ServiceConfig(),
                clock.monotonic_s,
                lambda: clock.now_ms() / 1000,
                presence=presence,
                abandonable=abandonable,
            )
            readers = [follow.open(invocation, START, SSE, token_expires_at_s=1e10) for _ in range(2)]
            counts.append(len(presence))
            for reader in readers:
                follow.close(reader)
            counts.append(len(presence))
        await clock.advance(0)

    assert counts == [1, 0, 0, 0, 0, 0]
