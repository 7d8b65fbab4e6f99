"""The process's server with its listener open, in a test's loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from service import __main__ as process
from service.app import Drain
from service.protocol import Protocol
from tests.clock import ManualClock


async def answers_ok(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any request with `ok`."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def harmless_stop() -> process.HardStop:
    """Return one whose thread is not started and that ends nothing."""
    return process.HardStop(last_resort=lambda _: None)


class Server(process._Server):
    """The process's server with its listener open, without the loop that only watches `should_exit`."""

    @classmethod
    @asynccontextmanager
    async def listening(
        cls,
        clock: ManualClock,
        drain: Drain,
        hard_stop: process.HardStop | None = None,
        *,
        app: Any = answers_ok,
    ) -> AsyncIterator["Server"]:
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        server = cls(config, drain, hard_stop or harmless_stop())
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        yield server
        closing = asyncio.ensure_future(server.shutdown())
        await clock.advance(1)
        await closing

    def relieve_collector(self) -> None:
        """Leave the collector of the tests as it is."""

    async def ask(self, path: str) -> bytes:
        """Make a request on a connection of its own; gives all that comes back."""
        address: Any = self.servers[0].sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address[:2])
        writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
