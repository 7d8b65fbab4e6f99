"""The whole service in one process on manual time: real app, real SQLite store in memory, scripted upstream
and issuer.

HTTP promises are tested through it: `async with serving(clock) as served`, then `served.post(...)` and
friends.
"""

import asyncio
import contextlib
import json
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.app import Adapters, Drain, Fetch, create_app
from service.app_runtimes import Loops
from service.config import Catalog, ServiceConfig, Settings
from service.models import Model
from service.stores import Store
from service.stores.sqlite import SqliteStore
from tests.asgi import Answer, AsgiClient, Exchange, lifespan
from tests.clock import ManualClock
from tests.fakes import FaultyStore, ScriptedModel, Step, answer
from tests.id_tokens import CLIENT, ISSUER, ScriptedIssuer, bearer

CATALOG = """
[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/model-1"
instructions = "Be brief."
max_output_tokens = 1000
deadline_s = 600

[runtimes.editor]
kind = "converse"
model = "bedrock/model-1"
groups = ["editors"]

[runtimes.reckoner]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_converse:multiply"]
max_turns = 3

[limits.default]
daily_tokens = 20_000
monthly_tokens = 100_000
concurrent_invocations = 3
invocation_tokens = 10_000
"""
INVOCATIONS = "/runtimes/writer/invocations"


@dataclass
class Lines:
    """Stands for `Telemetry`: keeps the canonical lines."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    breakers: list[dict[str, Any]] = field(default_factory=list)
    loops: list[dict[str, Any]] = field(default_factory=list)

    def request_finished(self, fields: Mapping[str, Any]) -> None:
        self.requests.append(dict(fields))

    def attempt_finished(self, fields: Mapping[str, Any]) -> None:
        self.attempts.append(dict(fields))

    def breaker_changed(self, fields: Mapping[str, Any]) -> None:
        self.breakers.append(dict(fields))

    def loop_blocked(self, fields: Mapping[str, Any]) -> None:
        self.loops.append(dict(fields))


@dataclass
class Served:
    """A running service and what stands around it."""

    client: AsgiClient
    model: ScriptedModel
    store: FaultyStore
    clock: ManualClock
    drain: Drain
    lines: Lines

    def post(
        self, body: Any = None, path: str = INVOCATIONS, *, as_user: str = "", **headers: str
    ) -> AbstractAsyncContextManager[Exchange]:
        """Open a submission's stream; a body of bytes goes out as it is."""
        body = {"prompt": "What is a headrace?"} if body is None else body
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.stream("POST", path, body=raw, headers=self._headers(as_user, headers))

    async def submit(
        self, body: Any = None, path: str = INVOCATIONS, *, as_user: str = "", **headers: str
    ) -> Answer:
        """Submit and read the whole answer."""
        async with self.post(body, path, as_user=as_user, **headers) as exchange:
            return await exchange.whole()

    async def get(self, path: str, *, as_user: str = "", **headers: str) -> Answer:
        """Get a whole answer."""
        return await self.client.request("GET", path, headers=self._headers(as_user, headers))

    def follow(
        self, path: str, *, as_user: str = "", **headers: str
    ) -> AbstractAsyncContextManager[Exchange]:
        """Open the stream of an invocation's events; `path` is its `Location`."""
        return self.client.stream("GET", path + "/events", headers=self._headers(as_user, headers))

    def _headers(self, as_user: str, headers: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return {"authorization": bearer({"sub": as_user} if as_user else None)} | named


@asynccontextmanager
async def serving(
    clock: ManualClock,
    *calls: Sequence[Step],
    catalog: str = "",
    store: str | Path | AbstractAsyncContextManager[Any] = ":memory:",
    store_is_down: bool = False,
    issuer: ScriptedIssuer | None = None,
    settings: Mapping[str, Any] | None = None,
    upstreams: Mapping[str, Model] | None = None,
) -> AsyncIterator[Served]:
    """Run the service on `clock`, its upstreams scripted with `calls`; `catalog` is appended TOML.

    All upstreams of the catalog are one scripted model, but for those that `upstreams` names.

    Two of them with the same file as `store` are two processes of one deployment. Another store than SQLite's
    is given as what opens it.
    """
    model = ScriptedModel(*(calls or [answer("A head", "race carries water.")]))
    drain, lines, issuer = Drain(), Lines(), issuer or ScriptedIssuer()
    stores: list[FaultyStore] = []

    @asynccontextmanager
    async def open_store(_: str, __: ServiceConfig) -> AsyncIterator[Store]:
        async with SqliteStore.open(store) if isinstance(store, str | Path) else store as opened:
            clock.wait_while(lambda: opened.waiting > 0)
            stores.append(FaultyStore(opened))
            stores[0].down = store_is_down
            yield stores[0].as_store

    @asynccontextmanager
    async def open_jwks() -> AsyncIterator[Fetch]:
        yield lambda _: issuer.fetch_jwks()

    @asynccontextmanager
    async def open_agent_loops(runtimes: Sequence[str], _: Any) -> AsyncIterator[Loops]:
        yield dict.fromkeys(runtimes, asyncio.get_running_loop())

    def open_upstreams(opened: Catalog) -> AbstractAsyncContextManager[Mapping[str, Model]]:
        return contextlib.nullcontext(dict.fromkeys(opened.upstreams, model) | dict(upstreams or {}))

    app = create_app(
        Settings(ISSUER, (CLIENT,), "https://keys", "sqlite::memory:", **(settings or {})),
        Catalog.from_document(tomllib.loads(CATALOG + catalog)),
        drain=drain,
        adapters=Adapters(
            open_store=open_store,
            open_upstreams=open_upstreams,
            open_jwks=open_jwks,
            open_agent_loops=open_agent_loops,
            now_s=lambda: clock.now_ms() / 1000,
            monotonic_s=clock.monotonic_s,
            telemetry=lines,  # type: ignore[arg-type]
        ),
    )
    async with lifespan(app) as client:
        yield Served(client, model, stores[0], clock, drain, lines)
