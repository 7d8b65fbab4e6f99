"""Composition: chooses the adapters, opens them in order, closes them in reverse; the only place that does.

`__main__` and the tests call `create_app`. The lifespan yields one frozen `Service` in the typed lifespan
state; everything else gets its collaborators as constructor arguments, the clock and the id maker included.
"""

import asyncio
import itertools
import logging
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypedDict

import aiohttp
from starlette.routing import Router
from starlette.types import ASGIApp

from service.agent_loops import open_agent_loops
from service.api import ROUTES, SESSION_HEADER, Service
from service.app_jobs import Jobs
from service.app_runtimes import Loops, Parts, agents_of, load_parts, make_runtimes
from service.config import (
    DYNAMODB,
    MAX_DEADLINE_S,
    Catalog,
    ConfigError,
    ServiceConfig,
    Settings,
)
from service.edge import Cors, Edge
from service.edge_request import Bodies
from service.errors import StoreUnavailable
from service.identity import Identity
from service.models import Model
from service.models.bedrock import BedrockModel
from service.models.openai_compat import OpenAICompatModel
from service.models.route import Routes
from service.problems import refuse
from service.stores import Store
from service.stores.dynamodb import DynamoStore
from service.stores.sqlite import SqliteStore
from service.telemetry import Telemetry

logger = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
OpenLoops = Callable[[Sequence[str], Callable[[Mapping[str, Any]], None]], AbstractAsyncContextManager[Loops]]
PURGE_EVERY_S: Final = 600.0
# A lease goes on while the machine is suspended; Linux's plain monotonic clock does not.
MONOTONIC_S: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
JWKS_LIMIT_BYTES: Final = 256 * 1024
CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(map("".join, itertools.product(CROCKFORD, repeat=2)))
_RANDOM_BYTES: Final = 10
_IDS_AT_ONCE: Final = 100


class State(TypedDict):
    """The lifespan state that every request sees."""

    service: Service


class Drain:
    """The way out, started by `__main__` at the first SIGTERM and awaited before the server stops."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], Awaitable[None]]] = []
        self.is_on = False

    async def __call__(self) -> None:
        """Stop being ready, end readers with `reconnect`, let attempts finish."""
        self.is_on = True
        await asyncio.gather(*(step() for step in self.steps))


@asynccontextmanager
async def jwks_client() -> AsyncIterator[Fetch]:
    """Open what gets the issuer's keys."""
    async with aiohttp.ClientSession() as session:

        async def fetch(url: str) -> bytes:
            async with session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                keys = b""
                async for piece in response.content.iter_any():
                    keys += piece
                    if len(keys) > JWKS_LIMIT_BYTES:
                        raise ValueError("the JWKS are larger than any issuer's")
                return keys

        yield fetch


def open_store(store: str, config: ServiceConfig | None = None) -> AbstractAsyncContextManager[Store]:
    """Open the store that `Settings.store` names; without a configuration it is an operator's command."""
    kind, _, place = store.partition(":")
    if kind != DYNAMODB:
        return SqliteStore.open(place)
    usage, invocations = place.split(":")
    times = config or ServiceConfig()
    return DynamoStore.open(
        usage_table=usage,
        invocations_table=invocations,
        retention_s=times.retention_s,
        content_s=MAX_DEADLINE_S + times.pause_limit_s + times.retention_s,
        probe=config is not None,  # an operator may do less
    )


@asynccontextmanager
async def open_upstreams(catalog: Catalog) -> AsyncIterator[Mapping[str, Model]]:
    """Open every upstream, by name, each with as many connections as invocations may run."""
    async with AsyncExitStack() as stack:
        upstreams: dict[str, Model] = {}
        for name in catalog.upstreams:
            upstreams[name] = await stack.enter_async_context(_upstream(catalog, name))
        yield upstreams


def _upstream(catalog: Catalog, name: str) -> AbstractAsyncContextManager[Model]:
    upstream, config = catalog.upstreams[name], catalog.service
    max_connections, silence_s = config.running_invocations, config.upstream_silence_s
    if upstream.kind == "bedrock":
        return BedrockModel.open(max_connections=max_connections, silence_s=silence_s)
    key = catalog.keys.get(name, "")
    return OpenAICompatModel.open(upstream, key, max_connections=max_connections, silence_s=silence_s)


@dataclass(frozen=True, slots=True)
class Adapters:
    """What `create_app` opens; tests put doubles in their place."""

    open_store: Callable[[str, ServiceConfig], AbstractAsyncContextManager[Store]] = open_store
    open_upstreams: Callable[[Catalog], AbstractAsyncContextManager[Mapping[str, Model]]] = open_upstreams
    open_jwks: Callable[[], AbstractAsyncContextManager[Fetch]] = jwks_client
    open_agent_loops: OpenLoops = open_agent_loops
    now_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = MONOTONIC_S
    telemetry: Telemetry = field(default_factory=Telemetry)


def create_app(
    settings: Settings,
    catalog: Catalog,
    *,
    drain: Drain | None = None,
    adapters: Adapters | None = None,
    on_config_error: Callable[[ConfigError], None] | None = None,
) -> ASGIApp:
    """Build the ASGI application; nothing is opened before its lifespan starts.

    A fault that only opening shows (the store's file, the region) goes to `on_config_error` and fails the
    start.

    Raises:
        ConfigError: A runtime's tools or agent can't be loaded.
    """
    adapters = adapters or Adapters()
    drain = drain or Drain()
    parts = load_parts(catalog)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            try:
                service = await _open(stack, settings, catalog, parts, drain, adapters)
            except ConfigError as error:
                if on_config_error is not None:
                    on_config_error(error)
                raise
            yield {"service": service}

    return Edge(
        ROUTES,
        refuse,
        _cors(settings.cors_origins),
        adapters.telemetry.request_finished,
        lifespan=Router(lifespan=lifespan).lifespan,
    )


def _cors(origins: Sequence[str]) -> Cors:
    """Let web pages of these origins call, and see what a client needs."""
    return Cors(
        origins,
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "Last-Event-ID",
            "Prefer",
            "X-Request-Id",
            SESSION_HEADER,
        ],
        expose_headers=[
            "Location",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-Id",
            SESSION_HEADER,
        ],
    )


async def _open(
    stack: AsyncExitStack,
    settings: Settings,
    catalog: Catalog,
    parts: Parts,
    drain: Drain,
    adapters: Adapters,
) -> Service:
    """Open the collaborators in order; `stack` closes them."""
    config = catalog.service
    fetch_jwks = await stack.enter_async_context(adapters.open_jwks())
    identity = Identity(
        issuer=settings.issuer,
        audiences=settings.audiences,
        fetch_jwks=lambda: fetch_jwks(settings.jwks_url),
        now_s=adapters.now_s,
        max_token_s=config.max_token_s,
    )
    await identity.start()
    store = await stack.enter_async_context(adapters.open_store(settings.store, catalog.service))
    upstreams = await stack.enter_async_context(adapters.open_upstreams(catalog))
    opening = adapters.open_agent_loops(agents_of(parts), adapters.telemetry.loop_blocked)
    loops = await stack.enter_async_context(opening)
    routes = Routes(upstreams, now_s=adapters.monotonic_s, on_breaker=adapters.telemetry.breaker_changed)
    runtimes = make_runtimes(catalog, parts, routes, loops)
    jobs = Jobs.of(
        store,
        catalog,
        runtimes,
        new_invocation_id=InvocationIds(),
        now_s=adapters.now_s,
        monotonic_s=adapters.monotonic_s,
        on_attempt_finished=adapters.telemetry.attempt_finished,
    )
    await jobs.policies.load()
    await jobs.lease.renew()
    background = _Background()
    stack.push_async_callback(jobs.lease.give_back)  # after the background has ended: `keep` would renew it
    stack.push_async_callback(background.aclose)
    for forever in (
        *jobs.forever(),
        identity.refresh_forever(),
        _purge_forever(store, config.retention_s, jobs.now_ms),
    ):
        background.start(forever)
    drain.steps = [jobs.follow.drain, partial(jobs.runner.drain, config.drain_s)]
    stack.push_async_callback(jobs.runner.drain, 0)
    return Service(
        catalog=catalog,
        identity=identity,
        policies=jobs.policies,
        admission=jobs.admission,
        runner=jobs.runner,
        takeover=jobs.takeover,
        follow=jobs.follow,
        store=store,
        bodies=Bodies(config.bodies_being_read_bytes),
        is_ready=lambda: identity.ready and jobs.policies.is_loaded and not drain.is_on,
        now_ms=jobs.now_ms,
    )


async def _purge_forever(store: Store, retention_s: float, now_ms: Callable[[], int]) -> None:
    """Delete what has been kept long enough, now and every ten minutes."""
    while True:
        try:
            deleted = await store.purge(now_ms(), retention_s)
        except StoreUnavailable:
            logger.warning("old invocations not purged")
        else:
            logger.debug("purged", extra={"invocations": deleted})
        await asyncio.sleep(PURGE_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311 (jitter)


class _Background:
    """Tasks that never end by themselves. One that fails drains the process: it can't work without."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, forever: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(forever)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical("background task failed", exc_info=task.exception())
            signal.raise_signal(signal.SIGTERM)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class InvocationIds:
    """Makes ids that sort by time: `inv_` and a ULID (https://github.com/ulid/spec).

    Asking the kernel for random bytes lets go of the interpreter's lock, dearer than the rest: so it is
    asked for those of many ids at once.
    """

    def __init__(self) -> None:
        self._random = memoryview(b"")

    def __call__(self, now_ms: int) -> str:
        if not self._random:
            self._random = memoryview(secrets.token_bytes(_RANDOM_BYTES * _IDS_AT_ONCE))
        number = now_ms << 80 | int.from_bytes(self._random[:_RANDOM_BYTES], "big")
        self._random = self._random[_RANDOM_BYTES:]
        return "inv_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -10, -10)])
