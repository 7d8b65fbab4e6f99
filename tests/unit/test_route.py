"""A route goes from model to model before the first event, and never after it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.config import ModelName
from service.errors import (
    HeadraceError,
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models import Deliver, Frame, Model, ModelRequest
from service.models.route import Route, Routes
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, Step, answer, start, stop, text

A, B, C = (ModelName.of(name) for name in ("near/a", "far/b", "vllm/org/c"))
REQUEST = ModelRequest("", [{"role": "user", "content": [{"text": "?"}]}], 100)


def failing(kind: type[UpstreamError], *, billed: bool | None = None) -> UpstreamError:
    failure = kind("a failure")
    failure.billed = kind.billed if billed is None else billed
    return failure


class Call:
    """A call over a route to three models; writes down what it is told and delivered."""

    def __init__(self, clock: ManualClock, *scripts: Sequence[Step], first_event_s: float = 10.0) -> None:
        self.clock = clock
        self.models = [ScriptedModel(script) for script in scripts]
        self.breakers: list[dict[str, Any]] = []
        names = [A, B, C][: len(scripts)]
        upstreams: dict[str, Model] = {
            name.upstream: model for name, model in zip(names, self.models, strict=True)
        }
        self.routes = Routes(
            upstreams, now_s=clock.monotonic_s, on_breaker=lambda fields: self.breakers.append(dict(fields))
        )
        self.route: Route = self.routes.to(names, first_event_s=first_event_s)
        self.did: list[Any] = []
        self.frames: list[Frame] = []
        self.room = True

    def request(self) -> ModelRequest:
        async def give_up(failure: UpstreamError) -> None:
            self.did.append((failure.code, failure.billed))
            if not self.room:
                raise failure

        return REQUEST._replace(ask=self.did.append, give_up=give_up)

    async def make(self) -> None:
        await self.route.converse(self.request(), self._deliver)

    async def fails(self) -> HeadraceError:
        with pytest.raises(HeadraceError) as caught:
            await self.make()
        return caught.value

    def _deliver(self, frames: Sequence[Frame]) -> None:
        self.frames += frames

    @property
    def asked(self) -> list[list[str]]:
        """The model ids that each upstream was asked for."""
        return [[request.model_id for request in model.requests] for model in self.models]


YES = answer("Yes.")


async def test_the_first_model_that_answers_is_the_only_one_asked(clock: ManualClock) -> None:
    call = Call(clock, YES, answer("No."))

    await call.make()

    assert (call.asked, call.did) == ([["a"], []], ["near/a"])
    assert call.frames == [frame for step in YES for frame in step]  # type: ignore[union-attr]


@pytest.mark.promise("falls-over-before-first-event")
@pytest.mark.parametrize(
    "failure",
    [
        failing(UpstreamThrottled),
        failing(UpstreamThrottled, billed=True),
        failing(UpstreamUnavailable),
        failing(UpstreamTimeout),
    ],
)
async def test_a_model_that_refuses_for_now_is_given_up_for_the_next(
    clock: ManualClock, failure: UpstreamError
) -> None:
    call = Call(clock, [failure], YES)

    await call.make()

    assert call.did == ["near/a", (failure.code, failure.billed), "far/b"]
    assert (call.asked, call.frames[0]) == ([["a"], ["b"]], start()[0])


@pytest.mark.parametrize("kind", [UpstreamRejected, UpstreamMisconfigured, UpstreamFailed])
async def test_what_another_model_would_not_mend_is_the_callers(
    clock: ManualClock, kind: type[UpstreamError]
) -> None:
    call = Call(clock, [failing(kind)], YES)

    failure = await call.fails()

    assert (type(failure), call.did, call.asked) == (kind, ["near/a"], [["a"], []])


@pytest.mark.promise("half-answer-is-failure")
@pytest.mark.parametrize("kind", [UpstreamThrottled, UpstreamUnavailable, UpstreamTimeout, UpstreamFailed])
async def test_after_the_first_event_nothing_else_is_tried(
    clock: ManualClock, kind: type[UpstreamError]
) -> None:
    call = Call(clock, [start(), text("Half"), failing(kind)], YES)

    failure = await call.fails()

    assert (type(failure), call.did, call.asked) == (kind, ["near/a"], [["a"], []])
    assert call.frames == [*start(), *text("Half")]


async def test_the_last_models_failure_is_the_calls(clock: ManualClock) -> None:
    call = Call(
        clock, [failing(UpstreamThrottled)], [failing(UpstreamUnavailable)], [failing(UpstreamTimeout)]
    )

    failure = await call.fails()

    assert isinstance(failure, UpstreamTimeout)
    assert call.did == [
        "near/a",
        ("upstream-throttled", False),
        "far/b",
        ("upstream-unavailable", False),
        "vllm/org/c",
    ]
    assert call.asked == [["a"], ["b"], ["org/c"]]


@pytest.mark.parametrize("kind", [UpstreamRejected, UpstreamMisconfigured])
async def test_what_a_later_model_cant_take_leaves_the_call_failed_as_it_did(
    clock: ManualClock, kind: type[UpstreamError]
) -> None:
    call = Call(clock, [failing(UpstreamThrottled)], [failing(kind)], YES)

    failure = await call.fails()

    assert isinstance(failure, UpstreamThrottled)
    assert call.did == ["near/a", ("upstream-throttled", False), "far/b", (kind.code, False)]


async def test_what_a_later_model_takes_back_after_it_began_is_the_calls(clock: ManualClock) -> None:
    call = Call(clock, [failing(UpstreamThrottled)], [start(), failing(UpstreamRejected)])

    failure = await call.fails()

    assert isinstance(failure, UpstreamRejected)


async def test_without_room_for_what_was_billed_nothing_else_is_tried(clock: ManualClock) -> None:
    call = Call(clock, [failing(UpstreamTimeout)], YES)
    call.room = False

    failure = await call.fails()

    assert (type(failure), call.asked) == (UpstreamTimeout, [["a"], []])


async def test_only_a_model_without_a_successor_is_asked_again_by_its_adapter(clock: ManualClock) -> None:
    call = Call(clock, [failing(UpstreamThrottled)], YES)

    await call.make()

    assert [model.requests[0].has_successor for model in call.models] == [True, False]


# -- the first event in time


@pytest.mark.promise("falls-over-before-first-event")
async def test_a_model_that_is_silent_too_long_is_given_up_and_cut(clock: ManualClock) -> None:
    call = Call(clock, [asyncio.Event()], YES)
    made = asyncio.ensure_future(call.make())
    await clock.advance(9.9)
    before = list(call.did)

    await clock.advance(0.1)
    await made

    assert before == ["near/a"]
    assert call.did == ["near/a", ("upstream-timeout", True), "far/b"]
    assert call.models[0].cancelled == 1


async def test_a_model_that_has_begun_may_take_its_time(clock: ManualClock) -> None:
    go_on = asyncio.Event()
    call = Call(clock, [start(), go_on, stop()], YES)
    made = asyncio.ensure_future(call.make())
    await clock.advance(3600)

    go_on.set()
    await made

    assert call.did == ["near/a"]


async def test_the_last_model_may_be_silent_as_long_as_its_upstream_lets_it(clock: ManualClock) -> None:
    go_on = asyncio.Event()
    call = Call(clock, [failing(UpstreamThrottled)], [go_on, *YES])
    made = asyncio.ensure_future(call.make())
    await clock.advance(3600)

    go_on.set()
    await made

    assert call.frames[0] == start()[0]


async def test_what_its_caller_waits_for_is_not_a_models_silence(clock: ManualClock) -> None:
    held = asyncio.Event()

    class Withheld:
        """Connects for too long once, so that its caller is asked again."""

        async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
            await request.before_try()
            await request.before_try()
            deliver(start())

    waited = []

    async def before_try() -> None:
        waited.append(held.is_set())
        if len(waited) == 2:
            await held.wait()

    call = Call(clock, YES, YES)
    upstreams: dict[str, Model] = {"near": Withheld(), "far": call.models[1]}
    routes = Routes(upstreams, now_s=clock.monotonic_s, on_breaker=lambda _: None)
    request = call.request()._replace(before_try=before_try)
    made = asyncio.ensure_future(routes.to([A, B], first_event_s=10).converse(request, call.frames.extend))
    await clock.advance(3600)
    held.set()
    await made

    assert (waited, call.did, call.frames) == ([False, False], ["near/a"], start())


async def test_a_model_that_was_sent_nothing_in_time_has_cost_nothing(clock: ManualClock) -> None:
    class Connecting:
        async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
            await request.before_try()
            await asyncio.Event().wait()

    call = Call(clock, YES, YES)
    upstreams: dict[str, Model] = {"near": Connecting(), "far": call.models[1]}
    routes = Routes(upstreams, now_s=clock.monotonic_s, on_breaker=lambda _: None)
    route = routes.to([A, B], first_event_s=10)
    made = asyncio.ensure_future(route.converse(call.request(), call.frames.extend))

    await clock.advance(10)
    await made

    assert call.did == ["near/a", ("upstream-timeout", False), "far/b"]


async def test_an_event_that_comes_while_a_model_is_cut_ends_as_a_half_answer(clock: ManualClock) -> None:
    class Late:
        async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
            await request.before_try()
            request.may_send()
            try:
                await asyncio.Event().wait()
            finally:
                deliver(start())

    call = Call(clock, YES, YES)
    upstreams: dict[str, Model] = {"near": Late(), "far": call.models[1]}
    routes = Routes(upstreams, now_s=clock.monotonic_s, on_breaker=lambda _: None)
    route = routes.to([A, B], first_event_s=10)
    made = asyncio.ensure_future(route.converse(call.request(), call.frames.extend))
    await clock.advance(10)

    with pytest.raises(UpstreamTimeout):
        await made

    assert (call.frames, call.did, call.models[1].requests) == (start(), ["near/a"], [])


async def test_a_time_out_of_an_adapters_own_stays_what_it_is(clock: ManualClock) -> None:
    call = Call(clock, [TimeoutError("a fault")], YES)

    with pytest.raises(TimeoutError, match="a fault"):
        await call.make()

    assert call.did == ["near/a"]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_call_that_is_cancelled_tries_nothing_else(clock: ManualClock, begun: bool) -> None:
    call = Call(clock, [*([start()] if begun else []), asyncio.Event()], YES)
    made = asyncio.ensure_future(call.make())
    await clock.advance(1)

    made.cancel()
    await asyncio.wait([made])

    assert (made.cancelled(), call.models[0].cancelled, call.did) == (True, 1, ["near/a"])
