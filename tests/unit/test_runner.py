"""Running attempts: room, drain, deadline and fencing, seen over HTTP."""

import asyncio
from pathlib import Path

import pytest

from service.errors import Draining, Overloaded
from service.runner import HAND_OVER_GRACE_S
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text, tool_call
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import bearer
from tests.sse import events_of, kinds_of

RECKONER = "/runtimes/reckoner/invocations"


def halves(gate: asyncio.Event) -> list[Step]:
    return [start(), text("A head"), gate, text("race."), stop()]


async def state_of(served: Served, location: str) -> str:
    return str((await served.get(location)).json()["state"])


async def test_a_process_runs_no_more_invocations_than_its_limit(clock: ManualClock) -> None:
    gate = asyncio.Event()
    catalog = "[service]\nrunning_invocations = 1"
    async with serving(clock, halves(gate), catalog=catalog) as served, served.post() as exchange:
        await exchange.until(b"A head")
        refused = await served.submit(as_user="user-2")
        calls = served.store.calls.count("create_invocation")
        gate.set()
        await exchange.whole()
        admitted = await served.submit(as_user="user-2")

    error = Overloaded("Too many invocations run here: try again.")
    assert (refused.status, refused.json()) == (503, error.problem())
    assert (refused.headers["retry-after"], calls, admitted.status) == ("1", 1, 200)


@pytest.mark.promise("sheds-before-work")
async def test_submissions_at_the_same_moment_fill_a_process_no_further_than_its_limit(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    catalog = "[service]\nrunning_invocations = 2"
    async with serving(clock, halves(gate), catalog=catalog) as served:
        exchanges = [
            asyncio.ensure_future(served.submit(prefer="respond-async", as_user=f"user-{number}"))
            for number in range(5)
        ]
        statuses = sorted([(await exchange).status for exchange in exchanges])

        assert statuses == [202, 202, 503, 503, 503]


@pytest.mark.promise("fair-share")
async def test_a_burst_of_one_principal_leaves_room_for_others(clock: ManualClock) -> None:
    gate = asyncio.Event()
    catalog = """
[service]
running_invocations = 10
[limits.writers]
concurrent_invocations = 100
daily_tokens = 1_000_000
monthly_tokens = 1_000_000
"""
    async with serving(clock, halves(gate), catalog=catalog) as served:
        burst = [
            asyncio.ensure_future(served.submit(prefer="respond-async", as_user="greedy")) for _ in range(30)
        ]
        answers = [await each for each in burst]
        calls = served.store.calls.count("create_invocation")
        other = await served.submit(prefer="respond-async", as_user="other")
        gate.set()
        await clock.advance(1)
        again = await served.submit(as_user="greedy")

    statuses = [each.status for each in answers]
    refused = next(each for each in answers if each.status == 503)
    assert (statuses.count(202), statuses.count(503), calls) == (8, 22, 8)
    assert refused.json() == Overloaded("Most of what runs here is yours: try again.").problem()
    assert (refused.headers["retry-after"], other.status, again.status) == ("1", 202, 200)


@pytest.mark.promise("sheds-before-work")
async def test_a_process_whose_store_is_far_behind_takes_no_new_work_until_it_has_caught_up(
    clock: ManualClock,
) -> None:
    catalog = "[service]\nunstored_bytes = 2000"
    async with serving(clock, [start(), text("x" * 3000), stop()], catalog=catalog) as served:
        served.store.only, served.store.down = {"append_events", "finish"}, True
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        refused = await served.submit(as_user="other")
        served.store.down = False
        await clock.advance(6)
        admitted = await served.submit(as_user="other", prefer="respond-async")
        state = await state_of(served, location)

    error = Overloaded("The store is behind: try again.")
    assert (refused.status, refused.json()) == (503, error.problem())
    assert (admitted.status, state) == (202, "completed")


@pytest.mark.promise("sheds-before-work")
async def test_a_process_that_is_full_says_so_before_it_has_read_the_body(clock: ManualClock) -> None:
    gate, never = asyncio.Event(), asyncio.Event()
    catalog = "[service]\nrunning_invocations = 1"
    async with serving(clock, halves(gate), catalog=catalog) as served, served.post() as exchange:
        await exchange.until(b"A head")
        body: list[bytes | asyncio.Event] = [b'{"prompt":', never]
        headers = {"authorization": bearer({"sub": "user-2"})}
        async with served.client.stream("POST", INVOCATIONS, body=body, headers=headers) as other:
            await clock.advance(0)
            refused = await other.whole()

    error = Overloaded("Too many invocations run here: try again.")
    assert (refused.status, refused.json()) == (503, error.problem())


@pytest.mark.promise("sheds-before-work")
async def test_a_process_that_has_filled_up_while_the_body_came_in_admits_no_more(clock: ManualClock) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()
    catalog = "[service]\nrunning_invocations = 1"
    async with serving(clock, halves(gate), catalog=catalog) as served:
        body: list[bytes | asyncio.Event] = [b'{"prompt":', rest, b'"Hi"}']
        headers = {"authorization": bearer({"sub": "user-2"})}
        async with served.client.stream("POST", INVOCATIONS, body=body, headers=headers) as slow:
            await clock.advance(0)
            admitted = await served.submit(prefer="respond-async")
            rest.set()
            refused = await slow.whole()

        assert (admitted.status, refused.status, refused.json()["code"]) == (202, 503, "overloaded")
        assert served.store.calls.count("create_invocation") == 1


async def test_ping_says_whether_anything_runs_and_since_when(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served:
        since_s = clock.now_ms() // 1000
        await clock.advance(60)
        async with served.post() as exchange:
            await exchange.until(b"A head")
            await clock.advance(60)
            busy = (await served.client.request("GET", "/ping")).json()
            gate.set()
            await exchange.whole()
        idle = (await served.client.request("GET", "/ping")).json()

    assert busy == {"status": "HealthyBusy", "time_of_last_update": since_s + 60}
    assert idle == {"status": "Healthy", "time_of_last_update": since_s + 120}


# -- drain


async def test_a_drain_lets_running_attempts_finish_and_ends_with_the_last(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(99)
        assert not draining.done()
        gate.set()
        await draining

        assert await state_of(served, location) == "completed"


async def test_a_drain_with_nothing_running_is_done_at_once(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await served.drain()

        assert clock.monotonic_s() == 1000


@pytest.mark.promise("sigterm-reconnects-readers")
async def test_a_body_that_was_still_coming_in_when_the_drain_began_is_not_admitted(
    clock: ManualClock,
) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()
    pieces: list[bytes | asyncio.Event] = [b'{"prompt":', rest, b'"Hi"}']
    async with serving(clock, halves(gate)) as served:
        headers = {"authorization": bearer()}
        async with served.client.stream("POST", INVOCATIONS, body=pieces, headers=headers) as exchange:
            await clock.advance(0)
            await served.drain()
            rest.set()
            got = await exchange.whole()

        error = Draining("Submit again in a moment: another process answers.")
        assert (got.status, got.json()) == (503, error.problem())
        assert "create_invocation" not in served.store.calls


@pytest.mark.promise("handed-over-goes-on")
@pytest.mark.parametrize("answered_after_s", [1, 7], ids=["in time", "after the others were stopped"])
async def test_what_was_being_admitted_when_the_drain_began_is_drained_too(
    clock: ManualClock, answered_after_s: float
) -> None:
    never = asyncio.Event()
    catalog = "[service]\ndrain_s = 5"
    async with serving(clock, halves(never), catalog=catalog) as served:
        served.store.only = {"create_invocation"}
        served.store.answers.clear()
        submitting = asyncio.ensure_future(served.submit(prefer="respond-async"))
        await clock.advance(0)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(answered_after_s)
        served.store.answers.set()
        location = (await submitting).headers["location"]
        await clock.advance(6)
        await draining

        assert await state_of(served, location) == "running"
        assert [line["code"] for line in served.lines.attempts] == ["handed-over"]


@pytest.mark.promise("handed-over-goes-on")
async def test_an_attempt_that_is_stopped_before_its_first_step_is_handed_over_too(
    clock: ManualClock,
) -> None:
    catalog = "[service]\ndrain_s = 5"
    async with serving(clock, catalog=catalog) as served:
        served.store.only = {"create_invocation"}
        served.store.answers.clear()
        submitting = asyncio.ensure_future(served.submit(prefer="respond-async"))
        await clock.advance(0)
        # At the same moment as the drain's time is up: the attempt starts, and is stopped right after.
        asyncio.get_running_loop().call_later(5, served.store.answers.set)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(5)
        await draining
        record = (await served.get((await submitting).headers["location"])).json()
        usage = (await served.get("/usage")).json()

    assert (record["state"], record["attempts"][0]["end"]) == ("running", "handed-over")
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (0, 0)
    assert served.model.requests == []


async def test_an_ending_that_is_being_committed_is_not_interrupted(clock: ManualClock) -> None:
    async with serving(clock, catalog="[service]\ndrain_s = 1") as served:
        served.store.only = {"finish"}
        served.store.gate.clear()
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(1 + HAND_OVER_GRACE_S / 2)
        assert not draining.done()
        served.store.gate.set()
        await draining

        assert await state_of(served, location) == "completed"


@pytest.mark.promise("process-ends-in-time")
async def test_a_drain_does_not_wait_for_ever_for_a_store_that_is_down(clock: ManualClock) -> None:
    async with serving(clock, catalog="[service]\ndrain_s = 1") as served:
        served.store.only, served.store.down = {"finish"}, True
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(1 + HAND_OVER_GRACE_S)
        await draining
        await clock.advance(0)

        assert await state_of(served, location) == "running"  # a later process ends it: its lease runs out
    assert [(line["state"], line["code"]) for line in served.lines.attempts] == [("running", "unfinished")]


@pytest.mark.promise("handed-over-goes-on")
async def test_what_still_runs_when_the_process_stops_goes_on_elsewhere(
    clock: ManualClock, tmp_path: Path
) -> None:
    never = asyncio.Event()
    async with serving(clock, halves(never), store=tmp_path / "db") as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)

    async with serving(clock, store=tmp_path / "db") as later:
        await clock.advance(0)
        record = (await later.get(location)).json()
    assert (record["state"], record["result"]["text"]) == ("completed", "A headrace carries water.")
    assert [attempt["end"] for attempt in record["attempts"]] == ["handed-over", "finished"]


# -- deadline and fencing


@pytest.mark.promise("deadline-ends-job", "settle-exactly-once")
async def test_the_deadline_ends_an_attempt_that_waits_for_the_store(clock: ManualClock) -> None:
    catalog = """
[runtimes.quick]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_converse:multiply"]
max_output_tokens = 100
deadline_s = 20
"""
    async with serving(
        clock, tool_call("multiply", '{"a":6,"b":7}'), answer("42"), catalog=catalog
    ) as served:
        served.store.only, served.store.down = {"settle", "finish"}, True
        async with served.post(path="/runtimes/quick/invocations") as exchange:
            await clock.advance(30)
            assert not exchange.complete
            served.store.down = False
            await clock.advance(5)
            got = await exchange.whole()
        usage = (await served.get("/usage")).json()

    assert events_of(got.body)[-1][1]["invocationFailed"]["problem"]["code"] == "deadline-exceeded"
    assert [window["used"] for window in usage["windows"]] == [15, 15]
    assert len(served.model.requests) == 1


async def test_an_attempt_that_another_process_claimed_stops_and_sends_its_readers_on(
    clock: ManualClock,
) -> None:
    gate, never = asyncio.Event(), asyncio.Event()
    script: list[Step] = [start(), text("A head"), gate, text("race."), never]
    async with serving(clock, script) as served, served.post() as exchange:
        await exchange.until(b"A head")
        await clock.advance(1)
        later_ms = clock.now_ms() + 10**9
        await served.store.as_store.renew_lease("another", later_ms)
        (claim,) = await served.store.as_store.claim_expired("another", later_ms, limit=1)
        gate.set()
        await clock.advance(12)
        got = await exchange.whole()

    assert (claim.invocation.attempt, served.model.cancelled) == (2, 1)
    assert events_of(got.body)[-1] == ("1.4", {"reconnect": {"after": "1.4", "reason": "segment-end"}})
    assert [(line["attempt"], line["code"]) for line in served.lines.attempts] == [(1, "fenced")]


async def test_an_end_that_comes_after_another_process_claimed_it_is_not_shown(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        later_ms = clock.now_ms() + 10**9
        await served.store.as_store.renew_lease("another", later_ms)
        await served.store.as_store.claim_expired("another", later_ms, limit=1)
        gate.set()
        await clock.advance(12)
        got = await exchange.whole()

    assert kinds_of(got.body)[-2:] == ["metadata", "reconnect"]
    assert [(line["attempt"], line["code"]) for line in served.lines.attempts] == [(1, "fenced")]


async def test_a_settlement_that_comes_after_another_process_claimed_it_ends_the_attempt(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    first = tool_call("multiply", '{"a":6,"b":7}')
    async with (
        serving(clock, [*first[:1], gate, *first[1:]], answer("42")) as served,
        served.post({"prompt": "?", "maxTokens": 100}, RECKONER) as exchange,
    ):
        await exchange.until(b"messageStart")
        later_ms = clock.now_ms() + 10**9
        await served.store.as_store.renew_lease("another", later_ms)
        await served.store.as_store.claim_expired("another", later_ms, limit=1)
        gate.set()
        await clock.advance(12)
        got = await exchange.whole()

    assert kinds_of(got.body)[-2:] == ["metadata", "reconnect"]
    assert [line["code"] for line in served.lines.attempts] == ["fenced"]
    assert len(served.model.requests) == 1
