"""How breakers steer a route: whom it leaves alone, whom it probes, and what a call then fails with."""

import asyncio
from typing import Any

import pytest

from service.config import ModelName
from service.errors import (
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models.breaker import MIN_CALLS, OPEN_S
from service.models.route import Routes
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, start, stop
from tests.unit.test_route import REQUEST, YES, A, B, Call, failing


async def exhausted(call: Call, failures: int = MIN_CALLS) -> None:
    """Let the first model fail until it is left alone."""
    for _ in range(failures):
        await call.make()
    call.did.clear()


@pytest.mark.promise("breaker-leaves-alone")
async def test_a_model_that_fails_too_often_is_left_alone_and_probed(clock: ManualClock) -> None:
    call = Call(clock, [failing(UpstreamThrottled)], YES)
    await exhausted(call)

    await call.make()
    while_open = list(call.did)
    clock.pass_time(OPEN_S)
    await call.make()
    await call.make()

    assert while_open == ["far/b"]
    assert call.did == ["far/b", "near/a", ("upstream-throttled", False), "far/b", "far/b"]
    assert [(told["model"], told["state"]) for told in call.breakers] == [
        ("near/a", "open"),
        ("near/a", "half-open"),
        ("near/a", "open"),
    ]


async def fall_over_together(call: Call) -> list[Any]:
    """Give up the first model in three calls at once, while the second is to be probed."""
    for _ in range(MIN_CALLS):
        with pytest.raises(UpstreamThrottled):
            await call.routes.to([B], first_event_s=1).converse(REQUEST, lambda _: None)
    call.clock.pass_time(OPEN_S)
    call.models[1].play([asyncio.Event()])
    charged = asyncio.Event()

    async def give_up(failure: UpstreamError) -> None:
        call.did.append(failure.code)
        await charged.wait()

    request = REQUEST._replace(ask=call.did.append, give_up=give_up)
    made = [asyncio.ensure_future(call.route.converse(request, call.frames.extend)) for _ in range(3)]
    await call.clock.advance(0)
    charged.set()
    await call.clock.advance(0)
    for task in made:
        task.cancel()
    return await asyncio.gather(*made, return_exceptions=True)


@pytest.mark.promise("breaker-leaves-alone")
async def test_of_calls_that_fall_over_together_one_probes_and_the_others_fail_as_they_did(
    clock: ManualClock,
) -> None:
    call = Call(clock, [failing(UpstreamTimeout)], [failing(UpstreamThrottled)])

    outcomes = await fall_over_together(call)

    assert [type(outcome) for outcome in outcomes] == [
        asyncio.CancelledError,
        UpstreamTimeout,
        UpstreamTimeout,
    ]
    assert call.did == [*["near/a", "upstream-timeout"] * 3, "far/b"]


@pytest.mark.promise("breaker-leaves-alone", "given-up-calls-metered")
async def test_a_call_that_finds_the_next_model_probed_by_another_goes_on_charged_once(
    clock: ManualClock,
) -> None:
    call = Call(clock, [failing(UpstreamTimeout)], [failing(UpstreamThrottled)], YES)

    outcomes = await fall_over_together(call)

    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, type(None), type(None)]
    assert call.did == [*["near/a", "upstream-timeout"] * 3, "far/b", "vllm/org/c", "vllm/org/c"]


@pytest.mark.promise("breaker-leaves-alone")
async def test_a_call_that_no_model_may_be_asked_for_is_shed_with_the_time_to_come_back(
    clock: ManualClock,
) -> None:
    call = Call(clock, [failing(UpstreamThrottled)])
    for _ in range(MIN_CALLS):
        await call.fails()
    clock.pass_time(OPEN_S - 2)
    call.did.clear()

    failure = await call.fails()

    assert (failure.code, failure.retry_after_s, call.did) == ("upstream-unavailable", 2.0, [])


async def test_what_a_later_model_cant_take_is_not_the_calls_while_the_first_is_left_alone(
    clock: ManualClock,
) -> None:
    call = Call(clock, [failing(UpstreamThrottled)], YES)
    await exhausted(call)
    call.models[1].play([failing(UpstreamRejected)])

    failure = await call.fails()

    assert (failure.code, failure.retry_after_s) == ("upstream-unavailable", OPEN_S)
    assert call.did == ["far/b", ("upstream-rejected", False)]


async def test_a_model_whose_successors_are_left_alone_is_the_last_one(clock: ManualClock) -> None:
    call = Call(clock, YES, [failing(UpstreamUnavailable)])
    for _ in range(MIN_CALLS):
        with pytest.raises(UpstreamUnavailable):
            await call.routes.to([B], first_event_s=1).converse(REQUEST, lambda _: None)

    await call.make()

    assert [request.has_successor for request in call.models[0].requests] == [False]


async def test_a_probe_is_good_with_its_first_event(clock: ManualClock) -> None:
    go_on = asyncio.Event()
    call = Call(clock, [failing(UpstreamThrottled)], YES)
    await exhausted(call)
    clock.pass_time(OPEN_S)
    call.models[0].play([start(), go_on, stop()])
    probing = asyncio.ensure_future(call.make())
    await clock.advance(0)

    before_its_end = [told["state"] for told in call.breakers]
    go_on.set()
    await probing

    assert before_its_end == ["open", "half-open", "closed"]


async def test_all_routes_to_a_model_share_its_breaker(clock: ManualClock) -> None:
    model = ScriptedModel([failing(UpstreamThrottled)])
    routes = Routes({"near": model}, now_s=clock.monotonic_s, on_breaker=lambda _: None)
    for _ in range(MIN_CALLS):
        with pytest.raises(UpstreamThrottled):
            await routes.to([A], first_event_s=1).converse(REQUEST, lambda _: None)

    with pytest.raises(UpstreamUnavailable):
        await routes.to([A], first_event_s=1).converse(REQUEST, lambda _: None)
    with pytest.raises(UpstreamThrottled):
        await routes.to([ModelName("near", "other")], first_event_s=1).converse(REQUEST, lambda _: None)

    assert len(model.requests) == MIN_CALLS + 1
