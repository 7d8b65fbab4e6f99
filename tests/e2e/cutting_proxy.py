"""A TCP proxy on loopback that cuts every connection some time after it was made, wherever it is by then.

It stands in front of one or several services and takes one after the other, a connection each::

    async with CuttingProxy([service.url for service in stack.services], cut_after_s=0.4) as proxy:
        ... requests to proxy.url ...
    assert proxy.cuts > 10

What a cut leaves unsent is lost with `by_reset` (a TCP reset, on both sides); without it the connection is
closed in order, in the middle of what was being said.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

_READ_BYTES: Final = 16 * 1024
Ends = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class CuttingProxy:
    """An async context manager: listens at `url` inside it; every connection is gone when it is left."""

    def __init__(self, urls: Sequence[str], *, cut_after_s: float, by_reset: bool = True) -> None:
        self.url = ""
        self.connections = 0
        self.cuts = 0
        self._cut_after_s = cut_after_s
        self._by_reset = by_reset
        self._services = cycle([urlsplit(url) for url in urls])
        self._open: dict[asyncio.Task[None], Ends | None] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for ends in self._open.values():
            for end in ends or ():
                end.transport.abort()
        await asyncio.gather(*self._open)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        self._open[task] = None
        address = next(self._services)
        try:
            there = await asyncio.open_connection(address.hostname, address.port)
            self._open[task] = (writer, there[1])
            await self._pass_on((reader, writer), there)
        except OSError:
            writer.transport.abort()  # no service, or none any more
        finally:
            del self._open[task]

    async def _pass_on(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Pass bytes both ways until one side has ended or the time is up; then end both."""
        ways = [asyncio.create_task(_pump(here[0], there[1])), asyncio.create_task(_pump(there[0], here[1]))]
        ended, _ = await asyncio.wait(ways, timeout=self._cut_after_s, return_when=asyncio.FIRST_COMPLETED)
        self.cuts += not ended
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        ends = (here[1], there[1])
        for end in ends:
            if self._by_reset and not ended:
                _reset(end)
            end.close()
        await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_READ_BYTES):
        writer.write(piece)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Drop a connection by a reset; what is unsent is lost."""
    with suppress(OSError), socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as same:
        # A zero linger time turns close into a reset: https://man7.org/linux/man-pages/man7/socket.7.html
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
