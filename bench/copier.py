"""The floor: copies bytes between a client and the upstream, and does nothing else: `python -m bench.copier`.

A subject of the bench (`copy`). One upstream connection for each client connection; flow control both ways;
on uvloop. What it costs is what the kernel and the event loop cost; no Python server that reads and writes
can be cheaper.
"""

import argparse
import asyncio
import ssl
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One of two connections; what it reads the other writes."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def join(self, other: "Side") -> None:
        """Make a pair; what a client said before its upstream was there goes first."""
        self.other, other.other = other, self
        if other.transport is not None and self._early:
            other.transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class ClientSide(Side):
    """The side that a client opened; opens the other."""

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._upstream_port = upstream_port
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(Side, "127.0.0.1", self._upstream_port, ssl=self._tls)
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.join(upstream)
        if self.transport is None and upstream.transport is not None:
            upstream.transport.close()


async def serve(port: int, upstream_port: int, trusted: str | None) -> None:
    """Serve until cancelled; with a certificate to trust, speak TLS to the upstream."""
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context(cafile=trusted) if trusted is not None else None
    server = await loop.create_server(lambda: ClientSide(upstream_port, tls), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.copier", description="Copies bytes.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    parser.add_argument("--trusted", help="a PEM file: speak TLS to the upstream")
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.upstream_port, chosen.trusted))


if __name__ == "__main__":
    main()
