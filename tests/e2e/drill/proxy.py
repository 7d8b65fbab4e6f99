"""A load balancer on loopback: health checks, round robin per connection, and connections that it cuts.

`drill` opens it before the services, clients speak to it alone, `faults` lets it cut. It passes bytes and
reads none of them. What is cut gets a TCP reset on both sides, wherever in a response that is. A peer that
hangs up is passed on at once.
"""

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp

CHECK_EVERY_S: Final = 0.3
CHECK_TIMEOUT_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 1.0
CUT_SHARE: Final = 0.15
CUT_WITHIN_BYTES: Final = 8_000
_READ_BYTES: Final = 16 * 1024


class Proxy:
    """Passes connections on to `urls` (``http://host:port``); see `listening`."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self._urls = urls
        self._rng = rng
        self._healthy = set(urls)
        self._next = 0
        self._open: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._calm = False
        self.url = ""
        self.connections = 0
        self.cuts = 0

    @property
    def open_connections(self) -> int:
        """How many are being passed on."""
        return len(self._open)

    def cut(self, share: float) -> None:
        """Reset this share of the open connections."""
        for task in [task for task in self._open if self._rng.random() < share]:
            self._reset(task)

    def calm(self) -> None:
        """Cut no connection from now on."""
        self._calm = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        try:
            there = await self._connect()
            if there is None:
                _abort(writer)
                return
            self._open[task] = (writer, there[1])
            async with asyncio.TaskGroup() as passing:
                asking = passing.create_task(self._ask(reader, there[1]))
                await self._answer(there[0], writer)
                asking.cancel()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one side is gone, and so is the other below
        finally:
            for end in self._open.pop(task, (writer,)):
                end.transport.abort()

    async def check(self) -> None:
        """Look after the services' health until cancelled, as a load balancer does."""
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                answers = await asyncio.gather(*(_is_ready(session, url) for url in self._urls))
                self._healthy = {url for url, ready in zip(self._urls, answers, strict=True) if ready}
                await asyncio.sleep(CHECK_EVERY_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to the next healthy service that takes it; with none healthy, to any."""
        first, self._next = self._next, self._next + 1
        order = [self._urls[(first + index) % len(self._urls)] for index in range(len(self._urls))]
        order.sort(key=lambda url: url not in self._healthy)
        for url in order:
            host, _, port = url.removeprefix("http://").partition(":")
            with suppress(OSError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(host, int(port))
        return None

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_READ_BYTES):
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError  # a client of HTTP does not half-close: it is gone

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        cut_after = self._rng.randint(1, CUT_WITHIN_BYTES) if self._rng.random() < CUT_SHARE else None
        passed = 0
        while piece := await reader.read(_READ_BYTES):
            if cut_after is not None and passed + len(piece) >= cut_after and not self._calm:
                writer.write(piece[: cut_after - passed])
                self._reset(task)
                return
            passed += len(piece)
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _reset(self, task: asyncio.Task[None]) -> None:
        self.cuts += 1
        for end in self._open.get(task, ()):
            _abort(end)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Drop a connection by a reset; what is unsent is lost."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as same:
        # A zero linger time turns close into a reset: https://man7.org/linux/man-pages/man7/socket.7.html
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


@asynccontextmanager
async def listening(urls: Sequence[str], rng: random.Random) -> AsyncIterator[Proxy]:
    """Serve on 127.0.0.1 and yield the proxy, whose `url` is known; at the end drop all connections."""
    proxy = Proxy(urls, rng)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    checking = asyncio.create_task(proxy.check())
    try:
        host, port = server.sockets[0].getsockname()[:2]
        proxy.url = f"http://{host}:{port}"
        yield proxy
    finally:
        checking.cancel()
        server.close()
        proxy.cut(1.0)
        await asyncio.gather(checking, return_exceptions=True)
        await server.wait_closed()
