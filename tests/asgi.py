"""An in-process HTTP client that streams: it drives an ASGI app piece by piece, as a server would.

Starlette's `TestClient` and httpx's `ASGITransport` collect whole responses; this one hands over each body
piece as the app sends it, can hang up in the middle, and can stop accepting bytes: like uvicorn, `send` then
waits *before* it writes, and after a hang-up it returns without writing.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request and the response that is coming in."""

    def __init__(self, pieces: Iterable[bytes | asyncio.Event]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.writes: list[bytes] = []
        self.aborted = False
        self.complete = False
        self._request = list(pieces) or [b""]
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._fault: Exception | None = None
        self.task: asyncio.Future[Any]

    async def receive(self) -> Message:
        if self._request:
            body = self._request.pop(0)
            if isinstance(body, asyncio.Event):
                await body.wait()
                body = b""
            return {"type": "http.request", "body": body, "more_body": bool(self._request)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self._writable.is_set() and not self._gone.is_set():
            await self._writable.wait()
        if self._gone.is_set():
            return
        if self._fault is not None:
            raise self._fault
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.writes.append(message.get("body", b""))
            self.body += self.writes[-1]
            if not message.get("more_body", False):
                self.complete = True
                self._gone.set()
        self._changed.set()

    def hang_up(self) -> None:
        """Leave: the app sees `http.disconnect`."""
        self._gone.set()
        self._writable.set()
        self._changed.set()

    def abort(self) -> None:
        """Be cut off by the app, as `transport.abort()` does."""
        self.aborted = True
        self.hang_up()

    def fail(self, fault: Exception) -> None:
        """Raise from every `send` from now on, as a server does that has a fault."""
        self._fault = fault

    def block(self) -> None:
        """Accept no more bytes, as a peer does whose window is full."""
        self._writable.clear()

    def unblock(self) -> None:
        """Accept bytes again."""
        self._writable.set()

    async def until(self, *needles: bytes) -> bytes:
        """Return the body as soon as it contains all needles."""
        while not all(needle in self.body for needle in needles):
            if self.complete or self.task.done():
                raise AssertionError(f"the response ended without {needles}: {self.status} {self.body!r}")
            await self._next_change()
        return self.body

    async def whole(self) -> Answer:
        """Wait for the end of the response."""
        while not self.complete:
            if self.task.done():
                self.task.result()
                raise AssertionError(f"the app ended the exchange without completing it: {self.body!r}")
            await self._next_change()
        await self.task
        return Answer(self.status, self.headers, self.body)

    async def _next_change(self) -> None:
        self._changed.clear()
        waiting: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


@dataclass(slots=True)
class AsgiClient:
    """Requests to one app, between its lifespan's start and end."""

    app: ASGIApp
    headers: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes | asyncio.Event] = b"",
        json_body: Any = None,
    ) -> AsyncIterator[Exchange]:
        """Start a request; on leaving the block the client hangs up and the app's task has ended.

        An event among the pieces of the body holds back what follows it.
        """
        if json_body is not None:
            body = json.dumps(json_body).encode()
        exchange = Exchange([body] if isinstance(body, bytes) else body)
        given = {"host": "testserver", **self.headers, **(headers or {})}
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "extensions": {"headrace.abort": exchange.abort},
            "state": dict(self.state),
        }
        exchange.task = asyncio.ensure_future(self.app(scope, exchange.receive, exchange.send))
        try:
            yield exchange
        finally:
            exchange.hang_up()
            await asyncio.wait([exchange.task])

    async def request(self, method: str, path: str, **given: Any) -> Answer:
        """Make a request and return the whole response."""
        async with self.stream(method, path, **given) as exchange:
            return await exchange.whole()


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[AsgiClient]:
    """Run the app's lifespan around a client."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    client = AsgiClient(app)
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": client.state}
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    await _expect(from_app, task, "lifespan.startup.complete")
    try:
        yield client
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        await _expect(from_app, task, "lifespan.shutdown.complete")
        await task


async def _expect(from_app: "asyncio.Queue[Message]", task: "asyncio.Future[Any]", kind: str) -> None:
    getting: asyncio.Future[Message] = asyncio.ensure_future(from_app.get())
    await asyncio.wait([getting, task], return_when=asyncio.FIRST_COMPLETED)
    if not getting.done():
        getting.cancel()
        task.result()
    message = getting.result()
    if message["type"] != kind:
        raise AssertionError(message)
