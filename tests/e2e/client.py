"""A client of a running service, as an application would write one: aiohttp, SSE, nothing of ours.

Every wait has a limit (`WAIT_S`); what a test asks for it gets as an event in the stream, never after a
sleep.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from local.process import Process
from local.stack import Stack
from tests.sse import Dispatched, SseParser

WAIT_S = 20.0

CATALOG = """
[service]
heartbeat_s = 0.5
drain_s = 20
upstream_silence_s = 60
lease_s = 1.5

[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/writer-model"
max_output_tokens = 1000

[runtimes.pair]
kind = "converse"
model = ["bedrock/first-model", "bedrock/second-model"]
first_event_s = 0.5
max_output_tokens = 1000

[runtimes.reckoner]
kind = "converse"
model = "bedrock/reckoner-model"
tools = ["tests.unit.test_converse:multiply"]

[limits.default]
daily_tokens = 1_000_000
concurrent_invocations = 50
"""


@dataclass
class Stream:
    """A response that is being read."""

    response: aiohttp.ClientResponse
    body: bytes = b""

    @property
    def location(self) -> str:
        return self.response.headers["Location"]

    async def until(self, needle: bytes) -> bytes:
        """Read until the body contains `needle`."""
        async with asyncio.timeout(WAIT_S):
            while needle not in self.body:
                piece = await self.response.content.readany()
                if not piece:
                    raise AssertionError(f"the response ended without {needle!r}: {self.body!r}")
                self.body += piece
        return self.body

    async def whole(self) -> bytes:
        """Read to the end."""
        async with asyncio.timeout(WAIT_S):
            self.body += await self.response.content.read()
        return self.body

    async def to_its_end(self) -> bool:
        """Read until the response ends, and say whether it was cut off."""
        async with asyncio.timeout(WAIT_S):
            try:
                while piece := await self.response.content.readany():
                    self.body += piece
            except aiohttp.ClientPayloadError:
                return True
        return False

    @property
    def events(self) -> list[Dispatched]:
        return SseParser().feed(self.body)


@dataclass
class Caller:
    """A principal with its token, at the gateway of a stack or at one service."""

    session: aiohttp.ClientSession
    url: str
    token: str

    @asynccontextmanager
    async def submit(
        self, prompt: str = "Tell me.", runtime: str = "writer", **headers: str
    ) -> AsyncIterator[Stream]:
        """Open the stream of a new invocation."""
        path = f"/runtimes/{runtime}/invocations"
        async with self._request("POST", path, headers, {"prompt": prompt}) as response:
            yield Stream(response)

    @asynccontextmanager
    async def follow(self, location: str, after: str = "") -> AsyncIterator[Stream]:
        """Open the stream of an invocation's events."""
        headers = {"Last-Event-ID": after} if after else {}
        async with self._request("GET", location + "/events", headers) as response:
            yield Stream(response)

    async def events(self, location: str, after: str = "") -> bytes:
        """Return the events to the end."""
        async with self.follow(location, after) as stream:
            return await stream.whole()

    async def get(self, path: str) -> tuple[int, Any]:
        """Return status and document."""
        async with self._request("GET", path, {}) as response:
            return response.status, await response.json(content_type=None)

    async def post(self, path: str) -> tuple[int, Any]:
        """Post nothing; return status and document."""
        async with self._request("POST", path, {}) as response:
            return response.status, await response.json(content_type=None)

    def at(self, url: str) -> "Caller":
        """Return the same principal at another service."""
        return Caller(self.session, url, self.token)

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Any:
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
        data = None if body is None else json.dumps(body)
        return self.session.request(method, self.url + path, headers=given, data=data)


@asynccontextmanager
async def calling(stack: Stack, user: str = "ann", *, at: Process | None = None) -> AsyncIterator[Caller]:
    """Be a principal at the gateway of a stack, or right at one of its services."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S, sock_read=WAIT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield Caller(session, at.url if at else stack.url, await stack.token(user))


async def ended(caller: Caller, location: str) -> dict[str, Any]:
    """Wait until an invocation has ended and return its record."""
    await caller.events(location)
    status, record = await caller.get(location)
    assert status == 200
    document: dict[str, Any] = record
    return document
