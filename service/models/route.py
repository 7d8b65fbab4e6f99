"""A route: the models that a call may go to, in their order, as one `Model`.

`app` makes one `Routes` for the process, and each runtime's route from it; `runtimes.metered` calls it. It
calls the upstreams' models, and asks each one's `Breaker` before.

    converse ── model 1 ── throttled, unavailable, no first event in time ── model 2 ── ...
                   └── the first event: it is this one's answer, whatever becomes of it

Invariants: nothing is tried after an event was delivered; a call that may have cost tokens is given up only
if the caller says that there is room for what it cost (`ModelRequest.give_up`); while there is a next model,
the one that is asked is asked once, and the last one retries as its adapter does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.config import ModelName
from service.errors import (
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models import Deliver, Frame, Model, ModelRequest
from service.models.breaker import Breaker, Watched

_TOO_OFTEN: Final = "The model backend has failed too often, and is left alone for a moment: try again later."
_SILENT: Final = "The model did not begin its answer in time."


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of a route."""

    name: ModelName
    model: Model
    breaker: Breaker

    def asked(self, request: ModelRequest) -> ModelRequest:
        """Return the request as this model gets it."""
        model_id = self.name.model_id
        return request if request.model_id == model_id else request._replace(model_id=model_id)


class Routes:
    """Makes routes; has the breakers of all models of the process.

    Args:
        upstreams: The upstreams, by name.
        now_s: A monotonic clock.
        on_breaker: Told each change of a breaker.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Model],
        *,
        now_s: Callable[[], float],
        on_breaker: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._upstreams = upstreams
        self._now_s = now_s
        self._on_breaker = on_breaker
        self._breakers: dict[ModelName, Breaker] = {}

    def to(self, names: Sequence[ModelName], *, first_event_s: float) -> "Route":
        """Return the route to these models; the first ones have `first_event_s` to begin their answer."""
        candidates = [Candidate(name, self._upstreams[name.upstream], self._breaker(name)) for name in names]
        return Route(candidates, first_event_s=first_event_s)

    @property
    def upstreams(self) -> Mapping[str, Model]:
        """The upstreams as models: of each call the one that it names, through its breaker."""
        return {upstream: _Upstream(self, upstream) for upstream in self._upstreams}

    def _breaker(self, name: ModelName) -> Breaker:
        if name not in self._breakers:
            told = {"model": str(name)}
            self._breakers[name] = Breaker(self._now_s, lambda fields: self._on_breaker(told | fields))
        return self._breakers[name]


class _Upstream:
    """All models of one upstream."""

    def __init__(self, routes: Routes, upstream: str) -> None:
        self._routes = routes
        self._upstream = upstream

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        name = ModelName(self._upstream, request.model_id)
        await self._routes.to([name], first_event_s=0).converse(request, deliver)


class Route:
    """The models of one runtime, as a `Model`."""

    def __init__(self, candidates: Sequence[Candidate], *, first_event_s: float) -> None:
        self._candidates = candidates
        self._first_event_s = first_event_s

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Make the call on the first model that begins to answer; see `Model.converse`."""
        given_up: UpstreamError | None = None
        owed: UpstreamError | None = None  # given up, and not told yet
        for place, candidate in enumerate(self._candidates):
            if owed is not None and candidate.breaker.admits:
                await request.give_up(owed)
                owed = None
            if not candidate.breaker.admits:  # or no more: another call probes it since
                continue
            is_last = not any(later.breaker.admits for later in self._candidates[place + 1 :])
            request.ask(str(candidate.name))
            call = _Call(deliver, candidate.breaker.watch())
            try:
                with call.watched:
                    if is_last:
                        return await candidate.model.converse(candidate.asked(request), call.take)
                    return await _patiently(candidate, request, call, self._first_event_s)
            except (UpstreamThrottled, UpstreamUnavailable, UpstreamTimeout) as failure:
                if is_last or call.has_begun:
                    raise
                given_up = owed = failure
            except (UpstreamRejected, UpstreamMisconfigured) as refusal:
                if call.has_begun or not place:
                    raise
                await request.give_up(refusal)  # a model before it may take the call when it answers again
                raise given_up or _left_alone(self._candidates[:place]) from refusal
        raise given_up or _left_alone(self._candidates)


def _left_alone(candidates: Sequence[Candidate]) -> UpstreamError:
    soonest_s = min(candidate.breaker.retry_after_s for candidate in candidates)
    return UpstreamUnavailable(_TOO_OFTEN, retry_after_s=soonest_s)


class _Call:
    """One try at one model: knows whether the model has begun to answer."""

    __slots__ = ("_deliver", "has_begun", "patience", "watched")

    def __init__(self, deliver: Deliver, watched: Watched) -> None:
        self.watched = watched
        self.has_begun = False
        self.patience: asyncio.Timeout | None = None
        self._deliver = deliver

    def take(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        """Pass a batch on; the first one is the model's answer."""
        if not self.has_begun:
            self.has_begun = True
            self.watched.answered()
            if self.patience is not None and not self.patience.expired():  # else too late: a half answer
                self.patience.reschedule(None)
        return self._deliver(frames)


async def _patiently(candidate: Candidate, request: ModelRequest, call: _Call, first_event_s: float) -> None:
    """Make a try with a limit for its first event: there is another model to ask.

    Raises:
        UpstreamTimeout: It passed.
    """
    loop = asyncio.get_running_loop()
    patience = call.patience = asyncio.timeout(None)
    is_sent = False

    async def before_try() -> None:
        """What the caller waits for (its lease) is not the model's silence."""
        nonlocal is_sent
        is_sent = False
        patience.reschedule(None)
        await request.before_try()
        patience.reschedule(loop.time() + first_event_s)

    def may_send() -> bool:
        nonlocal is_sent
        is_sent = request.may_send()
        return is_sent

    asked = request._replace(
        model_id=candidate.name.model_id,
        has_successor=True,
        before_try=before_try,
        may_send=may_send,
    )
    try:
        async with patience:
            await candidate.model.converse(asked, call.take)
    except TimeoutError as error:
        if not patience.expired():
            raise
        failure = UpstreamTimeout(_SILENT)
        failure.billed = is_sent
        raise failure from error
