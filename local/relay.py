"""Passes bytes between what connects to a listening socket and a port on loopback; knows no protocol.

`dynamodb` runs it as ``python -m local.relay FD PORT``: the socket is inherited, so it belongs to the network
in which it was made; the port is one of the network in which this process runs. It holds no state: killed,
it cuts all connections; stopped, it stalls them.
"""

import asyncio
import socket
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Final

_BACKLOG: Final = 256
_READ_BYTES: Final = 64 * 1024


async def relay(listener: socket.socket, port: int) -> None:
    """Relay until cancelled. A caller loses its connection when the port does, or if nobody listens there."""

    async def accept(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            answers, asked = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
        else:
            await asyncio.gather(_pass_on(reader, asked), _pass_on(answers, writer))

    server = await asyncio.start_server(accept, sock=listener, backlog=_BACKLOG)
    await server.serve_forever()


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    """Pass on what comes until one of the two ends; then both end, each after what it has still to write."""
    with suppress(OSError):
        while passed := await reader.read(_READ_BYTES):
            writer.write(passed)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
