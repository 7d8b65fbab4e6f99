"""The lease of a process: renewed while it lives; past it nothing is begun, sent or paid for.

`clock.pass_time` is a process that is stopped: time goes on and nothing in it does.
"""

import asyncio
from pathlib import Path

import pytest

from service.errors import Overloaded, StoreUnavailable
from service.leases import Lease
from service.stores import Store
from service.stores.sqlite import SqliteStore
from tests.clock import ManualClock
from tests.fakes import FaultyStore, Step, answer, start, stop, text, tool_call
from tests.harness import serving
from tests.sse import events_of, kinds_of

LEASE_S = 30.0
HELD_S = 27.0
"""How long a process relies on a lease of 30 s: a tenth is for clocks that differ."""

RECKONER = "/runtimes/reckoner/invocations"
JOB = {"prompt": "6 times 7?", "maxTokens": 100}


def a_lease(store: Store, clock: ManualClock, owner: str = "me") -> Lease:
    return Lease(store, owner=owner, lease_s=LEASE_S, now_ms=clock.now_ms, clock=clock.monotonic_s)


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_a_lease_is_held_once_it_is_renewed_and_until_shortly_before_others_may_claim(
    clock: ManualClock,
) -> None:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        lease = a_lease(store, clock)
        held = [lease.is_held()]
        await lease.renew()
        for seconds in (0, HELD_S - 0.1, 0.1):
            clock.pass_time(seconds)
            held.append(lease.is_held())

    assert held == [False, True, True, False]


async def test_what_waits_for_the_lease_goes_on_when_it_is_renewed(clock: ManualClock) -> None:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        lease = a_lease(store, clock)
        waiting = [asyncio.ensure_future(lease.held()) for _ in range(2)]
        await clock.advance(1)
        before = [each.done() for each in waiting]
        await lease.renew()
        await clock.advance(0)

    assert (before, [each.done() for each in waiting]) == ([False, False], [True, True])


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_a_renewal_counts_from_when_it_was_asked_for(clock: ManualClock) -> None:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        store = FaultyStore(opened)
        lease, told = a_lease(store.as_store, clock), list[object]()
        store.answers.clear()
        renewing = asyncio.ensure_future(lease.renew(lambda: {"inv_1": 1}, told.append))
        await clock.advance(HELD_S)
        store.answers.set()
        renewed = await renewing

    assert (renewed, lease.is_held(), told) == (False, False, [])


async def test_a_lapse_tells_what_others_have_claimed_before_anybody_goes_on(clock: ManualClock) -> None:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        lease, told = a_lease(store, clock), list[object]()
        waiting = asyncio.ensure_future(lease.held())
        await clock.advance(0)
        await lease.renew(lambda: {"inv_1": 1}, lambda lost: told.append((dict(lost), waiting.done())))
        clock.pass_time(1)
        await lease.renew(lambda: {"inv_2": 1}, told.append)

    assert told == [({"inv_1": 1}, False)]


async def test_a_store_that_is_down_is_asked_again_soon_and_the_lease_lapses(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await clock.advance(1)
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(40)
        asked = served.store.calls.count("renew_lease")

    assert asked >= 30


async def test_a_lease_is_renewed_every_third_of_its_length_and_given_back_at_the_end(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        await clock.advance(60)
        renewals = served.store.calls.count("renew_lease")

    assert 6 <= renewals <= 10  # two at the start, then one in 8 to 10 s
    assert served.store.calls[-1] == "renew_lease"


async def test_giving_back_a_lease_ends_it_even_if_the_store_does_not_answer(clock: ManualClock) -> None:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        store = FaultyStore(opened)
        lease = a_lease(store.as_store, clock)
        await lease.renew()
        store.broken = StoreUnavailable()
        await lease.give_back()

    assert not lease.is_held()


@pytest.mark.parametrize("down_at", ["start", "end"])
async def test_a_process_starts_and_ends_without_a_store(clock: ManualClock, down_at: str) -> None:
    async with serving(clock, store_is_down=down_at == "start") as served:
        served.store.down = down_at == "end"
        await clock.advance(0)
        ready = await served.client.request("GET", "/ready")
        served.store.down = False
        await clock.advance(1)
        later = await served.client.request("GET", "/ready")
        served.store.down = down_at == "end"

    # What a process has read once it goes on with; what it never read it can't do without.
    assert (ready.status, later.status) == (503 if down_at == "start" else 200, 200)


# -- what looks expired


async def test_while_the_store_has_been_away_nothing_is_claimed_though_the_lease_is_good(
    clock: ManualClock,
) -> None:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        store = FaultyStore(opened)
        lease = a_lease(store.as_store, clock)
        await lease.renew()
        clock.pass_time(HELD_S - 1)
        store.down = True
        await lease.renew()
        store.down = False

        may_claim = lease.may_claim()

    assert (lease.is_held(), may_claim) == (True, False)


async def test_a_process_that_has_just_started_may_claim_as_soon_as_it_holds_its_lease(
    clock: ManualClock,
) -> None:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        lease = a_lease(store, clock)
        may = [lease.may_claim()]
        await lease.renew()
        for seconds in (0, HELD_S - 0.1, 0.1):
            clock.pass_time(seconds)
            may.append(lease.may_claim())

    assert may == [False, True, True, False]


async def test_after_an_outage_of_the_store_nothing_is_claimed_until_others_had_time_to_renew(
    clock: ManualClock,
) -> None:
    async with SqliteStore.open(":memory:") as opened:
        clock.wait_while(lambda: opened.waiting > 0)
        store = FaultyStore(opened)
        lease = a_lease(store.as_store, clock)
        await lease.renew()
        clock.pass_time(HELD_S - 1)
        store.down = True
        renewed = [await lease.renew()]
        store.down = False
        renewed.append(await lease.renew())
        may = [lease.may_claim()]
        for seconds in (LEASE_S / 3 - 0.1, 0.1):
            clock.pass_time(seconds)
            renewed.append(await lease.renew())  # further ones don't put it off
            may.append(lease.may_claim())

    assert (renewed, may) == ([False, True, True, True], [False, False, True])


async def test_a_process_that_was_stopped_claims_nothing_until_others_had_time_to_renew(
    clock: ManualClock,
) -> None:
    async with SqliteStore.open(":memory:") as store:
        clock.wait_while(lambda: store.waiting > 0)
        lease = a_lease(store, clock)
        await lease.renew()
        clock.pass_time(HELD_S)
        may = [lease.may_claim()]
        await lease.renew()
        for seconds in (0, LEASE_S / 3 - 0.1, 0.1):
            clock.pass_time(seconds)
            may.append(lease.may_claim())

    assert may == [False, False, False, True]


# -- what a lapse stops


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


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_past_its_lease_a_process_sends_nothing_and_goes_on_where_it_was_once_renewed(
    clock: ManualClock,
) -> None:
    gate, more = asyncio.Event(), asyncio.Event()
    script: list[Step] = [start(), text("A head"), gate, text("race "), more, text("carries."), stop()]
    async with serving(clock, script) as served, served.post() as exchange:
        await exchange.until(b"A head")
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        gate.set()
        await clock.advance(LEASE_S)
        lapsed = exchange.body
        served.store.down = False
        more.set()
        await clock.advance(2)
        got = await exchange.whole()

    assert b"race " not in lapsed
    assert [event_id for event_id, _ in events_of(got.body)] == [f"1.{seq}" for seq in range(1, 10)]
    assert kinds_of(got.body)[-1] == "invocationCompleted"


@pytest.mark.promise("lapsed-lease-sends-nothing", "lapsed-lease-spends-nothing")
async def test_a_process_that_was_stopped_and_overtaken_spends_and_sends_nothing_more(
    clock: ManualClock, tmp_path: Path
) -> None:
    gate, path = asyncio.Event(), tmp_path / "db"
    script: list[Step] = [start(), text("Stopped"), gate, text("void"), stop()]
    async with (
        serving(clock, script, store=path) as stopped,
        serving(clock, store=path) as other,
        stopped.post() as exchange,
    ):
        await exchange.until(b"Stopped")
        await clock.advance(1)
        later_ms = clock.now_ms() + 60_000
        await other.store.as_store.renew_lease("third", later_ms)
        (claim,) = await other.store.as_store.claim_expired("third", later_ms - 1, limit=1)
        clock.pass_time(LEASE_S)  # stopped: when it goes on, the upstream's bytes are there first
        gate.set()
        await clock.advance(12)
        got = await exchange.whole()
        record = (await other.get(exchange.headers["location"])).json()

    assert (claim.invocation.attempt, b"void" in got.body) == (2, False)
    assert (stopped.model.cancelled, [line["code"] for line in stopped.lines.attempts]) == (1, ["fenced"])
    assert (record["attempts"][0]["lastEventId"], record["attempts"][0]["end"]) == ("1.1", "lost")


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_past_its_lease_a_process_starts_no_model_call_and_no_tool(clock: ManualClock) -> None:
    gate = asyncio.Event()
    first = tool_call("multiply", '{"a":6,"b":7}')
    async with serving(clock, [*first[:-1], gate, first[-1]], answer("42")) as served:
        path = "/runtimes/reckoner/invocations"
        location = (
            await served.submit({"prompt": "?", "maxTokens": 100}, path, prefer="respond-async")
        ).headers["location"]
        await clock.advance(1)
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        gate.set()
        await clock.advance(LEASE_S)
        waiting = (await served.get(location)).json()
        calls = len(served.model.requests)
        served.store.down = False
        await clock.advance(2)
        record = (await served.get(location)).json()

    assert (waiting["state"], waiting["usage"]["inputTokens"], calls) == ("running", 0, 1)
    assert (record["state"], len(served.model.requests)) == ("completed", 2)


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_what_was_being_admitted_when_the_lease_lapsed_makes_no_model_call_until_it_is_renewed(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        served.store.only = {"create_invocation", "renew_lease"}
        served.store.answers.clear()
        submitting = asyncio.ensure_future(served.submit(prefer="respond-async"))
        await clock.advance(LEASE_S)
        served.store.down = True
        served.store.answers.set()
        location = (await submitting).headers["location"]
        await clock.advance(LEASE_S)
        calls = len(served.model.requests)
        served.store.down = False
        await clock.advance(2)
        record = (await served.get(location)).json()

    assert (calls, len(served.model.requests), record["state"]) == (0, 1, "completed")


@pytest.mark.promise("lapsed-lease-spends-nothing", "sheds-before-work")
async def test_past_its_lease_a_process_admits_nothing(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        refused = await served.submit()
        served.store.down = False
        await clock.advance(2)
        admitted = await served.submit()

    error = Overloaded("This process has to renew its lease first: try again.")
    assert (refused.status, refused.json(), refused.headers["retry-after"]) == (503, error.problem(), "1")
    assert (admitted.status, served.store.calls.count("create_invocation")) == (200, 1)


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_past_its_lease_a_process_ends_nothing_though_it_is_asked_to(clock: ManualClock) -> None:
    gate = asyncio.Event()
    script: list[Step] = [start(), text("A head"), gate, text("race "), asyncio.Event()]
    async with serving(clock, script) as served, served.post() as exchange:
        await exchange.until(b"A head")
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        gate.set()
        await served.submit(b"", f"{exchange.headers['location']}/cancel")
        await clock.advance(LEASE_S)
        lapsed, endings = exchange.body, served.store.calls.count("finish")
        served.store.down = False
        await clock.advance(2)
        got = await exchange.whole()

    events = events_of(got.body)
    assert (endings, b"invocationCancelled" in lapsed) == (0, False)
    assert [event_id for event_id, _ in events] == [f"1.{seq}" for seq in range(1, 6)]
    assert kinds_of(got.body)[-2:] == ["contentBlockDelta", "invocationCancelled"]


@pytest.mark.promise("lapsed-lease-sends-nothing", "lapsed-lease-spends-nothing")
async def test_past_its_lease_a_process_settles_no_turn_whose_model_call_has_ended(
    clock: ManualClock,
) -> None:
    gate, asked = asyncio.Event(), tool_call("multiply", '{"a":6,"b":7}')
    async with serving(clock, [*asked, gate], answer("42")) as served:
        location = (await served.submit(JOB, RECKONER, prefer="respond-async")).headers["location"]
        await clock.advance(1)
        served.store.only, served.store.down = {"renew_lease"}, True
        await clock.advance(LEASE_S)
        gate.set()
        await clock.advance(LEASE_S)
        waiting, settled = (await served.get(location)).json(), served.store.calls.count("settle")
        served.store.down = False
        await clock.advance(2)
        record = (await served.get(location)).json()

    assert (waiting["usage"]["inputTokens"], settled) == (0, 0)
    assert (record["state"], record["usage"]["inputTokens"]) == ("completed", 20)
