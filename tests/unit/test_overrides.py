"""Limits that an operator has overridden for one principal: what they change, and when."""

import asyncio
from typing import Any

import pytest

from service.attempt import LONGEST_POSTPONEMENT_S
from service.policies import REFRESH_S
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, tool_call
from tests.harness import Served, serving
from tests.left_behind import USER
from tests.unit.test_pause import JOB, RECKONER, TIGHT, costly_turn, paused

LIMITS = """
[limits.writers]
daily_tokens = 20_000
monthly_tokens = 50_000
concurrent_invocations = 1
invocation_tokens = 10_000
"""


async def override(served: Served, **limits: int) -> None:
    """Override limits of the usual user, and let every process read it."""
    await served.store.as_store.set_limits(USER, limits)
    await served.clock.advance(REFRESH_S)


async def limits_of(served: Served, sub: str = USER) -> list[int]:
    """Return a principal's daily, monthly and concurrent limit as the service shows them."""
    usage = (await served.get("/usage", as_user=sub)).json()
    return [*(window["limit"] for window in usage["windows"]), usage["concurrentInvocations"]]


def gated(gate: asyncio.Event, input_tokens: int) -> list[Step]:
    """Return a turn that asks for a tool once the gate opens."""
    return [*tool_call("multiply", '{"a":6,"b":7}')[:-1], gate, stop("tool_use", input_tokens=input_tokens)]


@pytest.mark.promise("override-counts")
async def test_an_override_replaces_the_named_limits_of_one_principal(clock: ManualClock) -> None:
    async with serving(clock, catalog=LIMITS) as served:
        await override(served, daily_tokens=7, hourly_tokens=1)  # the second is a newer version's
        await override(served, concurrent_invocations=9)
        mine, others = await limits_of(served), await limits_of(served, "user-2")
        await served.store.as_store.set_limits(USER, None)
        await clock.advance(REFRESH_S)
        cleared = await limits_of(served)

    assert (mine, others, cleared) == ([7, 50_000, 9], [20_000, 50_000, 1], [20_000, 50_000, 1])


@pytest.mark.promise("override-counts")
@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ({"daily_tokens": 1_000}, (429, "quota-exceeded")),
        ({"monthly_tokens": 1_000}, (429, "quota-exceeded")),
        ({"concurrent_invocations": 0}, (429, "concurrency-exceeded")),
        ({"invocation_tokens": 1_000}, (422, "budget-exceeded")),
    ],
)
async def test_a_lower_limit_refuses_what_the_group_would_allow(
    clock: ManualClock, limits: dict[str, int], refused: tuple[int, str]
) -> None:
    async with serving(clock, catalog=LIMITS) as served:
        await override(served, **limits)
        got = await served.submit()
        others = await served.submit(as_user="user-2")

    assert (got.status, got.json()["code"], others.status) == (*refused, 200)


@pytest.mark.promise("override-counts")
async def test_a_higher_limit_admits_what_the_group_would_not(clock: ManualClock) -> None:
    async with serving(clock, [start(), asyncio.Event()], catalog=LIMITS) as served:
        await override(served, concurrent_invocations=2)
        statuses = [(await served.submit(prefer="respond-async")).status for _ in range(3)]

    assert statuses == [202, 202, 429]


@pytest.mark.promise("override-counts", "pauses-at-quota")
@pytest.mark.parametrize(
    ("limits", "state", "turns"),
    [
        ({"daily_tokens": 5_000}, "paused", 1),
        ({}, "completed", 2),
        ({"invocation_tokens": 5_000}, "failed", 1),
    ],
)
async def test_a_lower_limit_counts_for_the_next_turn_of_what_runs(
    clock: ManualClock, limits: dict[str, int], state: str, turns: int
) -> None:
    gate = asyncio.Event()
    async with serving(clock, gated(gate, 4_900), answer("42"), catalog=LIMITS) as served:
        location = (await served.submit(JOB, RECKONER, prefer="respond-async")).headers["location"]
        await override(served, **limits)
        gate.set()
        await clock.advance(1)
        record = (await served.get(location)).json()

    assert (record["state"], len(served.model.requests)) == (state, turns)


@pytest.mark.promise("override-counts")
async def test_a_higher_limit_counts_for_the_next_turn_of_what_runs(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, gated(gate, 9_500), answer("42"), catalog=TIGHT) as served:
        location = (await served.submit(JOB, RECKONER, prefer="respond-async")).headers["location"]
        await override(served, daily_tokens=20_000)
        gate.set()
        await clock.advance(1)
        record = (await served.get(location)).json()

    assert (record["state"], len(served.model.requests)) == ("completed", 2)


async def wait_longer(served: Served, location: str) -> None:
    await served.clock.advance(LONGEST_POSTPONEMENT_S + LONGEST_LOOK_S)


async def ask(served: Served, location: str) -> None:
    assert (await served.submit(b"", f"{location}/resume")).status == 202


@pytest.mark.promise("override-counts", "pauses-at-quota")
@pytest.mark.parametrize("go_on", [wait_longer, ask])
async def test_with_a_higher_limit_what_waits_goes_on_when_asked_or_within_a_minute(
    clock: ManualClock, go_on: Any
) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        before = (await served.get(location)).json()["state"]
        await override(served, daily_tokens=20_000)
        await go_on(served, location)
        await clock.advance(1)
        record = (await served.get(location)).json()

    assert (before, record["state"]) == ("paused", "completed")


async def test_overrides_hold_while_the_store_is_away(clock: ManualClock) -> None:
    async with serving(clock, catalog=LIMITS) as served:
        await override(served, daily_tokens=7)
        served.store.only, served.store.down = {"policies"}, True
        await clock.advance(600)
        limits = await limits_of(served)

    assert limits == [7, 50_000, 1]
