"""Leases: kept while the process lives, given back when it ends, and claimed from processes that died."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.config import Limits
from service.errors import Interrupted
from service.events import Block, encode
from service.invocations import Usage
from service.leases import CLAIMS_AT_ONCE
from service.stores import ORPHAN_AGE_S, EventBlock, NewInvocation, Settlement
from tests.clock import ManualClock
from tests.fakes import Step, start, stop, text
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import CLAIMS
from tests.sse import events_of, kinds_of

DEAD = "inv_01M7ZFN7R0DEADDEADDEADDEAD"
HOLD_TOKENS = 5000
USER = str(CLAIMS["sub"])


async def left_by_a_dead_process(served: Served, *events: bytes) -> str:
    """Put an invocation into the store whose owner has no lease any more; return its path."""
    await served.clock.advance(0)  # the first look for expired leases is over
    store, now_ms = served.store.as_store, served.clock.now_ms()
    far_ms = now_ms + 3_600_000
    new = NewInvocation(DEAD, "writer", USER, None, b"{}", HOLD_TOKENS, "dead", far_ms, far_ms)
    await store.create_invocation(new, Limits(), now_ms)
    if events:
        await store.append_events([EventBlock(DEAD, Block(1, 1, events))], now_ms)
    return f"{INVOCATIONS}/{DEAD}"


def problem() -> dict[str, Any]:
    return Interrupted("Submit it again.").problem(instance=f"{INVOCATIONS}/{DEAD}", invocationId=DEAD)


STARTED = encode("invocationStarted", {"invocationId": DEAD, "runtimeId": "writer", "attempt": 1})
DELTA = b'{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"Half"}}}'


@pytest.mark.promise("one-terminal-event", "unreported-usage-estimated")
async def test_an_invocation_whose_process_died_is_ended_and_costs_its_caller_nothing(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED, DELTA)
        before = (await served.get("/usage")).json()
        await clock.advance(11)
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()
        async with served.follow(location) as exchange:
            replayed = await exchange.whole()

    assert (before["windows"][0]["reserved"], before["runningInvocations"]) == (HOLD_TOKENS, 1)
    assert [window["used"] for window in usage["windows"]] == [0, 0]
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)
    assert (record["state"], record["attempts"]) == (
        "failed",
        [{"attempt": 1, "lastEventId": "1.1"}, {"attempt": 2, "lastEventId": "2.2"}],
    )
    assert events_of(replayed.body)[1:] == [
        ("2.1", {"attemptRestarted": {"attempt": 2, "rewindTo": "1.1"}}),
        ("2.2", {"invocationFailed": {"problem": problem()}}),
    ]


@pytest.mark.promise("reattach-exactly-once")
async def test_a_reader_that_had_more_than_was_granted_goes_on_with_the_next_attempt(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED, DELTA)
        await clock.advance(11)
        for cursor in ("1.1", "1.2", "1.57"):
            got = await served.get(f"{location}/events", last_event_id=cursor)
            assert [event_id for event_id, _ in events_of(got.body)] == ["2.1", "2.2"]


async def test_a_reader_that_waits_for_a_dead_process_is_told_when_it_is_noticed(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED, DELTA)
        async with served.follow(location) as exchange:
            await clock.advance(12)
            got = await exchange.whole()

    assert kinds_of(got.body) == [
        "invocationStarted",
        "contentBlockDelta",
        "attemptRestarted",
        "invocationFailed",
    ]


async def test_what_a_dead_attempt_had_settled_stays_charged(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED)
        settled = Settlement(DEAD, 1, 1, USER, "writer", "bedrock/model-1", Usage(100, 20))
        await served.store.as_store.settle(settled, clock.now_ms())
        await clock.advance(11)
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()

    assert record["state"] == "failed"
    assert [window["used"] for window in usage["windows"]] == [120, 120]
    assert usage["windows"][0]["reserved"] == 0


async def test_an_invocation_of_which_nothing_was_stored_is_ended_too(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served)
        await clock.advance(11)
        got = await served.get(f"{location}/events")

    assert [event_id for event_id, _ in events_of(got.body)] == ["2.1", "2.2"]


async def test_more_than_one_round_of_dead_invocations_is_ended_at_once(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await clock.advance(0)
        store, now_ms = served.store.as_store, clock.now_ms()
        for number in range(CLAIMS_AT_ONCE + 4):
            new = NewInvocation(
                f"{DEAD[:-2]}{number:02}", "writer", USER, None, b"{}", 1, "dead", now_ms, now_ms
            )
            await store.create_invocation(new, Limits(concurrent_invocations=100), now_ms)
        await clock.advance(11)
        records = (await served.get(f"{INVOCATIONS}?limit=100")).json()["invocations"]

    assert [record["state"] for record in records] == ["failed"] * (CLAIMS_AT_ONCE + 4)


async def test_nothing_is_claimed_while_the_store_is_down(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED)
        served.store.down = True
        await clock.advance(60)
        served.store.down = False
        await clock.advance(15)
        record = (await served.get(location)).json()

    assert record["state"] == "failed"


async def test_a_claim_whose_end_waits_for_the_store_is_ended_when_it_is_back(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED)
        served.store.only, served.store.down = {"finish"}, True
        await clock.advance(30)
        assert (await served.get(location)).json()["state"] == "running"
        served.store.down = False
        await clock.advance(6)

        assert (await served.get(location)).json()["state"] == "failed"


async def test_a_claim_that_can_not_be_ended_is_tried_again_and_keeps_nothing_from_being_ended(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED)
        served.store.only, served.store.broken = {"finish"}, ValueError("a gap in the log")
        await clock.advance(11)
        assert (await served.get(location)).json()["state"] == "running"
        served.store.broken = None
        await clock.advance(ORPHAN_AGE_S + 11)
        record = (await served.get(location)).json()

    assert (record["state"], len(record["attempts"])) == ("failed", 3)


async def test_a_claim_that_is_claimed_in_turn_is_left_to_the_next(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = await left_by_a_dead_process(served, STARTED)
        served.store.only = {"finish"}
        served.store.gate.clear()
        await clock.advance(11)
        later_ms = clock.now_ms() + 10**9
        claims = await served.store.as_store.claim_expired("another", later_ms, limit=9)
        served.store.gate.set()
        await clock.advance(0)
        record = (await served.get(location)).json()

    assert [claim.invocation.attempt for claim in claims] == [3]
    assert (record["state"], len(record["attempts"])) == ("running", 3)


# -- what this process should run, and does not


@pytest.mark.promise("one-terminal-event")
async def test_an_invocation_whose_admission_was_never_answered_is_ended(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.deaf = {"create_invocation"}, True
        refused = await served.submit()
        served.store.deaf = False
        await clock.advance(ORPHAN_AGE_S + 11)
        (record,) = (await served.get(INVOCATIONS)).json()["invocations"]
        usage = (await served.get("/usage")).json()

    assert (refused.status, refused.json()["code"]) == (503, "store-unavailable")
    assert (record["state"], usage["runningInvocations"]) == ("failed", 0)
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (0, 0)


@pytest.mark.promise("one-terminal-event")
async def test_an_invocation_whose_attempt_could_not_be_finished_is_ended(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.broken = {"finish"}, ValueError("a gap in the log")
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        served.store.broken = None
        async with served.follow(location) as exchange:
            await clock.advance(ORPHAN_AGE_S + 11)
            got = await exchange.whole()

    assert kinds_of(got.body)[-2:] == ["attemptRestarted", "invocationFailed"]


async def test_what_runs_is_no_orphan_however_long_it_runs(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate, stop()]) as served, served.post() as exchange:
        await clock.advance(3 * ORPHAN_AGE_S)
        gate.set()
        got = await exchange.whole()

    assert kinds_of(got.body)[-1] == "invocationCompleted"


# -- this process's own lease


async def test_a_living_process_keeps_its_invocations(clock: ManualClock, tmp_path: Path) -> None:
    gate, path = asyncio.Event(), tmp_path / "db"
    script: list[Step] = [start(), text("A head"), gate, text("race."), stop()]
    async with (
        serving(clock, script, store=path) as runs,
        serving(clock, store=path) as other,
        runs.post() as exchange,
    ):
        await clock.advance(120)
        gate.set()
        got = await exchange.whole()
        record = (await other.get(got.headers["location"])).json()

    assert (record["state"], len(record["attempts"])) == ("completed", 1)
    assert kinds_of(got.body)[-1] == "invocationCompleted"


async def test_a_lease_is_renewed_every_third_of_its_length_and_given_back_at_the_end(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        await clock.advance(60)
        renewals = served.store.calls.count("renew_lease")

    assert 6 <= renewals <= 10  # two at the start, then one in 8 to 10 s
    assert served.store.calls[-1] == "renew_lease"


async def test_what_a_process_gave_back_is_claimed_at_once(clock: ManualClock, tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate], store=tmp_path / "db", catalog="") as gone:
        gone.store.only, gone.store.broken = {"finish"}, ValueError("a gap")
        location = (await gone.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
    async with serving(clock, store=tmp_path / "db") as next_one:
        await clock.advance(0)
        record = (await next_one.get(location)).json()

    assert (record["state"], [attempt["attempt"] for attempt in record["attempts"]]) == ("failed", [1, 2])


@pytest.mark.parametrize("down_at", ["start", "end"])
async def test_a_process_starts_and_ends_without_a_store(clock: ManualClock, down_at: str) -> None:
    async with serving(clock, store_is_down=down_at == "start") as served:
        served.store.down = down_at == "end"
        await clock.advance(0)
        ready = await served.client.request("GET", "/ready")

    assert ready.status == 200


@pytest.mark.promise("one-terminal-event")
async def test_an_invocation_whose_admission_was_never_answered_does_not_hold_tokens_for_ever(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        served.store.deaf = True
        refused = await served.submit()
        served.store.deaf = False
        (left,) = (await served.get(INVOCATIONS)).json()["invocations"]
        await clock.advance(75)
        (ended,) = (await served.get(INVOCATIONS)).json()["invocations"]
        usage = (await served.get("/usage")).json()

    assert (refused.status, refused.json()["code"]) == (503, "store-unavailable")
    assert (left["state"], ended["state"]) == ("running", "failed")
    assert (usage["runningInvocations"], usage["windows"][0]["reserved"]) == (0, 0)
