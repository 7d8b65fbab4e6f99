"""`python -m service`: settings, logging, and a uvicorn server whose SIGTERM starts the drain.

uvicorn closes its listener at the first signal, and waits for open responses; a load balancer would then see
a dead target while its streams go on. So the first signal starts the drain instead, with the listener open:
`/ready` says 503, `/ping` stays 200, readers are told to reconnect. Only when the drain is done (or at the
second signal) the server stops.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api import ABORT
from service.app import Drain, create_app
from service.config import Catalog, ConfigError, Settings
from service.telemetry import configure_logging

logger = logging.getLogger("headrace")

# Must exceed the load balancer's idle timeout, or it sends requests into closing connections (502):
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html
KEEP_ALIVE_S: Final = 120
STOP_S: Final = 5
# The store's thread needs the interpreter lock for every step of SQLite. With CPython's 5 ms a loop that is
# busy all the time made the writes of one invocation last 6.6 s; with 0.5 ms, under 1 s.
SWITCH_INTERVAL_S: Final = 0.0005


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also tells the app how to drop the connection of a stuck peer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions


class _Server(uvicorn.Server):
    """uvicorn's server, draining before it stops."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup()
        logger.info("serving", extra={"host": self.config.host, "port": self.config.port})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain; at the second signal, stop at once."""
        if self._loop is None or self._draining is not None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain_and_stop())

    async def _drain_and_stop(self) -> None:
        try:
            await self._drain()
        except Exception:  # the edge of the drain: the process stops all the same
            logger.exception("drain failed")
        finally:
            self.should_exit = True


def main() -> int:
    """Run the service; returns the exit status: 2 for a configuration that can't be, with all its faults."""
    faults: list[str] = []

    def note(error: ConfigError) -> None:
        faults.extend(error.faults)
        logging.getLogger("uvicorn.error").disabled = True  # it would print the stack of what is said below

    drain = Drain()
    settings = _read(lambda: Settings.from_env(os.environ), note)
    catalog = _read(lambda: Catalog.load(Path(os.environ.get("HEADRACE_CATALOG") or "headrace.toml")), note)
    if settings is not None and catalog is not None:
        configure_logging()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        app = _read(partial(create_app, settings, catalog, drain=drain, on_config_error=note), note)
        if app is not None:
            server = _Server(_server_config(app, settings), drain)
            with suppress(SystemExit):  # uvicorn's way to say that it could not start
                server.run()
            if not faults:
                return 0 if server.started else 1
    for fault in faults:
        print(f"headrace: {fault}", file=sys.stderr)
    return 2


_Read = TypeVar("_Read")


def _read(read: Callable[[], _Read], note: Callable[[ConfigError], None]) -> _Read | None:
    try:
        return read()
    except ConfigError as error:
        note(error)
        return None


def _server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_Protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )


if __name__ == "__main__":
    sys.exit(main())
