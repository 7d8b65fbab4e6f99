"""The local gateway between a client and a service that a test writes, in one loop, on whatever time it has.

::

    async with edge(answers) as edge:
        response = await edge.ask("GET", "/usage")
    edge.asked          what the service was asked for
    edge.lines          what the gateway has logged

The service answers with the coroutine that it is given, and publishes the keys of its issuer.
"""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web
from yarl import URL

from local.gateway import serving
from local.gateway_api import EXTRACT
from local.issuer import AUDIENCE, POOL, Issuer

Answers = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
SUBMISSION: Final = ("POST", "/runtimes/{runtimeId}/invocations")


def extract() -> dict[str, Any]:
    """Return a fresh copy of what the template says of the API."""
    checked_in: dict[str, Any] = json.loads(EXTRACT.read_text(encoding="utf-8"))
    return checked_in


def method_of(api: Mapping[str, Any], method: str, path: str) -> dict[str, Any]:
    """Return a method of an extract, to be changed."""
    found: dict[str, Any]
    (found,) = [each for each in api["methods"] if (each["method"], each["path"]) == (method, path)]
    return found


@dataclass
class Asked:
    """A request as the service got it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Edge:
    """What a test has of the gateway and of both its sides."""

    url: str
    issuer: Issuer
    session: aiohttp.ClientSession
    asked: list[Asked]
    lines: list[Mapping[str, Any]] = field(default_factory=list)

    async def ask(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        """Ask with an ID token, unless headers say otherwise; `path` is sent as it is."""
        headers = {"Authorization": f"Bearer {self.issuer.id_token()}", **options.pop("headers", {})}
        url = URL(self.url + path, encoded=True)
        return await self.session.request(method, url, headers=headers, **options)

    async def status_and_document(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Ask, and read all of the answer."""
        async with await self.ask(method, path, **options) as response:
            return response.status, await response.json(content_type=None)


async def fine(_: web.BaseRequest) -> web.StreamResponse:
    """Answer that all is well."""
    return web.json_response({"fine": True})


@asynccontextmanager
async def edge(
    answers: Answers = fine,
    *,
    api: Mapping[str, Any] | None = None,
    now: Callable[[], float] = time.time,
    **options: Any,
) -> AsyncIterator[Edge]:
    """Open a gateway in front of a service; `options` are those of `serving`."""
    asked: list[Asked] = []
    lines: list[Mapping[str, Any]] = []
    async with AsyncExitStack() as stack:
        issuers: list[Issuer] = []

        async def respond(request: web.BaseRequest) -> web.StreamResponse:
            if request.raw_path == f"/{POOL}/.well-known/jwks.json":
                return web.json_response(issuers[0].jwks())
            asked.append(Asked(request.method, request.raw_path, request.headers, await request.read()))
            return await answers(request)

        origin = await stack.enter_async_context(listening(respond))
        issuers.append(Issuer(f"{origin}/{POOL}", now=now))
        given = {"services": [origin], "issuer": issuers[0].url, "client_ids": [AUDIENCE], "watches": False}
        gateway = serving(api or extract(), **{**given, **options}, log=lines.append, now=now)
        url = await stack.enter_async_context(gateway)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()))
        yield Edge(url, issuers[0], session, asked, lines)


@asynccontextmanager
async def listening(respond: Answers) -> AsyncIterator[str]:
    """Serve on a free port, and yield the URL; what is being answered in the end is dropped."""
    server = web.Server(respond, handler_cancellation=True, access_log=None, max_field_size=65536)
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
