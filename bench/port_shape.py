"""The shapes that the `Model` port could have, as small ASGI apps: `python -m bench.port_shape SHAPE`.

The scenario `port-shape` starts one process a shape. Each takes `POST /model/<plan>/converse-stream`, makes
that call upstream, decodes the frames and answers with SSE under uvicorn, uvloop and httptools; decoder,
encoding and client side are the same lines of code. What differs is how a read's decoded batch gets from the
upstream's protocol to `send`:

    callback    the protocol's callback calls a sink, which drives `send` at once: no task wakes
    read-loop   the protocol leaves the batch where a task takes it, through two async generators, and sends
    log-hop     the same, and a log between them: the task appends, a second task follows the log and sends
    log-sink    the same log, but it hands what is appended to its reader's sink, which drives `send`
    aiohttp     aiohttp's client; `StreamReader.readany` feeds the decoder; then like read-loop
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, cast

import aiohttp
import httptools
import uvicorn

from service.models import Frame
from service.models.eventstream import Decoder

Batch = list[Frame]
Send = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Scope = dict[str, Any]
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store, no-transform")],
}


class Upstream(asyncio.Protocol):
    """One call: hands on what each read holds as one batch, and an empty batch at the end of the answer."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, sink: Callable[[Batch], None]) -> None:
        self._request = request
        self._sink = sink
        self._decoder = Decoder()
        self._parser = httptools.HttpResponseParser(self)
        self._batch: Batch = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        batch = self._batch
        if batch:
            self._batch = []
            self._sink(batch)

    def on_body(self, body: bytes) -> None:
        self._batch += self._decoder.feed(body)

    def on_message_complete(self) -> None:
        batch, self._batch = self._batch, []
        self._sink(batch)
        self._sink([])
        self.transport.close()


class Encoder:
    """Events to SSE, one body a batch."""

    def __init__(self) -> None:
        self._seq = 0

    def body(self, batch: Batch) -> dict[str, Any]:
        """The ASGI message of a batch; an empty batch ends the response."""
        pieces = []
        for name, payload in batch:
            self._seq += 1
            pieces.append(b'id: 1.%d\nevent: %b\ndata: {"%b":%b}\n\n' % (self._seq, name, name, payload))
        return {"type": "http.response.body", "body": b"".join(pieces), "more_body": bool(batch)}


class Mailbox:
    """Where a callback leaves batches and one task takes them."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, batch: Batch) -> None:
        self._batches.append(batch)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Batch]:
        """All that is there, waiting while there is none."""
        while not self._batches:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        batches, self._batches = self._batches, []
        return batches


class Sink:
    """Drives `send` from a callback; what a slow reader does not let it finish, a task finishes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._encoder = Encoder()
        self._late: list[Batch] = []
        self._task: asyncio.Task[None] | None = None

    def __call__(self, batch: Batch) -> None:
        if self._task is not None:
            self._late.append(batch)
            return
        sending = self._send(self._encoder.body(batch))
        try:
            blocked_on = sending.send(None)
        except StopIteration:
            return
        blocked_on._asyncio_future_blocking = False  # what a task does with a future that a coroutine yields
        self._task = asyncio.get_running_loop().create_task(self._finish(blocked_on, sending))

    async def _finish(self, blocked_on: asyncio.Future[None], sending: Coroutine[Any, Any, None]) -> None:
        await blocked_on
        with suppress(StopIteration):
            sending.send(None)
        while self._late:
            await self._send(self._encoder.body(self._late.pop(0)))
        self._task = None


class Log:
    """What one task appends and another follows."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._waiter: asyncio.Future[None] | None = None
        self.sink: Callable[[Batch], None] | None = None

    def append(self, batch: Batch) -> None:
        if self.sink is not None:
            self.sink(batch)
            return
        self.batches.append(batch)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def follow(self) -> AsyncIterator[Batch]:
        while True:
            while not self.batches:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            batches, self.batches = self.batches, []
            for batch in batches:
                yield batch


class Shapes:
    """The ASGI apps; each method is one, chosen by name."""

    def __init__(self, upstream_port: int) -> None:
        self._port = upstream_port
        self._session: aiohttp.ClientSession | None = None

    async def _open(self, scope: Scope, sink: Callable[[Batch], None]) -> Upstream:
        request = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}" % scope["raw_path"]
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(request, sink), "127.0.0.1", self._port)
        return upstream

    async def callback(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_START)
        await self._open(scope, Sink(send))
        await _until_gone(receive)

    async def read_loop(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_START)
        encoder = Encoder()
        async with aclosing(_through(self._mailbox(scope))) as batches:
            async for batch in batches:
                await send(encoder.body(batch))

    async def log_hop(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_START)
        log, encoder = Log(), Encoder()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(scope, log))
            async with aclosing(cast(Any, log.follow())) as batches:
                async for batch in batches:
                    await send(encoder.body(batch))
                    if not batch:
                        break

    async def log_sink(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_START)
        log = Log()
        log.sink = Sink(send)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(scope, log))
            await _until_gone(receive)

    async def aiohttp(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_START)
        encoder = Encoder()
        async with aclosing(_through(self._readany(scope))) as batches:
            async for batch in batches:
                await send(encoder.body(batch))

    async def _run(self, scope: Scope, log: Log) -> None:
        async with aclosing(_through(self._mailbox(scope))) as batches:
            async for batch in batches:
                log.append(batch)

    async def _mailbox(self, scope: Scope) -> AsyncIterator[Batch]:
        mailbox = Mailbox()
        await self._open(scope, mailbox.put)
        while True:
            for batch in await mailbox.take():
                yield batch
                if not batch:
                    return

    async def _readany(self, scope: Scope) -> AsyncIterator[Batch]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        decoder = Decoder()
        url = f"http://127.0.0.1:{self._port}{scope['path']}"
        async with self._session.post(url, data=b"{}") as response:
            while body := await response.content.readany():
                if batch := decoder.feed(body):
                    yield batch
        yield []


async def _through(batches: AsyncIterator[Batch]) -> Any:
    """The runtime's generator around the model's."""
    async with aclosing(cast(Any, batches)) as inner:
        async for batch in inner:
            yield batch


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


SHAPES = ("callback", "read-loop", "log-hop", "log-sink", "aiohttp")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.port_shape", description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    chosen = parser.parse_args()
    app = getattr(Shapes(chosen.upstream_port), chosen.shape.replace("-", "_"))

    async def http_only(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    uvicorn.run(
        http_only, port=chosen.port, loop="uvloop", http="httptools", lifespan="off", log_level="warning",
        access_log=False, backlog=4096,
    )  # fmt: skip


if __name__ == "__main__":
    main()
