"""`python -m service`: settings, logging, and a uvicorn server whose SIGTERM starts the drain.

uvicorn closes its listener at the first signal, and waits for open responses; a load balancer would then see
a dead target while its streams go on. So the first signal starts the drain instead, with the listener open:
`/ready` says 503, `/ping` stays 200, readers are told to reconnect. Only when the drain is done (or at the
second signal) the server stops.

    signal ── drain_s, at most 105 s ──> hand-over, 5 s ──> open responses, 5 s ──> exit 0
       └───── HARD_STOP_S, 118 s ──> exit 70, whatever the loop and the store's thread do meanwhile
"""

import _thread
import asyncio
import faulthandler
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final, TypeVar

import uvicorn
from starlette.types import ASGIApp

from service.app import Drain, create_app
from service.beat import BEAT_S, until_beat_s
from service.config import Catalog, ConfigError, Settings
from service.protocol import Protocol
from service.telemetry import configure_logging

logger = logging.getLogger("headrace")

# Must exceed the load balancer's idle timeout, or it sends requests into closing connections (502):
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html
KEEP_ALIVE_S: Final = 120
STOP_S: Final = 5
# ECS kills 120 s after the first SIGTERM, and without a word:
# https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html
HARD_STOP_S: Final = 118.0
LAST_WORD_S: Final = 0.5
HARD_STOP_STATUS: Final = 70  # EX_SOFTWARE of sysexits.h
# The store's thread needs the interpreter lock for every step of SQLite. With CPython's 5 ms a loop that is
# busy all the time made the writes of one invocation last 6.6 s; with 0.5 ms, under 1 s.
SWITCH_INTERVAL_S: Final = 0.0005
GC_THRESHOLDS: Final = (10_000, 10, 10)


def _exit_later(after_s: float) -> None:
    """Let faulthandler's watchdog exit, status 1, all stacks on stderr; it needs no interpreter lock."""
    faulthandler.dump_traceback_later(after_s, exit=True, file=2)  # a number has nothing to flush


class HardStop:
    """Ends the process `after_s` after the first signal, unless it has ended by itself.

    The loop may be blocked, and the store's thread too, so it is a thread of its own, a daemon: it delays no
    normal end, and outlasts the loop, since the interpreter waits for other threads. What it does takes no
    lock that a stuck thread may hold. Should even the interpreter lock be held (by a regular expression that
    runs away, say), `last_resort` ends the process.
    """

    def __init__(
        self,
        after_s: float = HARD_STOP_S,
        *,
        exit_process: Callable[[int], object] = os._exit,
        last_resort: Callable[[float], object] = _exit_later,
    ) -> None:
        self._after_s = after_s
        self._exit_process = exit_process
        self._last_resort = last_resort
        self._armed = False
        self._signals: SimpleQueue[None] = SimpleQueue()  # its `put` may interrupt itself

    def start(self) -> None:
        """Start the thread, which waits for `arm`."""
        threading.Thread(target=self._run, name="hard-stop", daemon=True).start()

    def arm(self) -> None:
        """Begin to count, at the first call; it may come from a signal's frame."""
        if not self._armed:
            self._armed = True
            self._signals.put(None)
            self._last_resort(self._after_s + 2 * LAST_WORD_S)

    def _run(self) -> None:
        self._signals.get()
        time.sleep(self._after_s)
        said: SimpleQueue[None] = SimpleQueue()
        _thread.start_new_thread(self._say, (said,))  # not `Thread`, and not here: both may wait for a lock
        with suppress(Empty):
            said.get(timeout=LAST_WORD_S)
        self._exit_process(HARD_STOP_STATUS)

    def _say(self, said: SimpleQueue[None]) -> None:
        logger.critical("the process did not end by itself", extra={"after_s": self._after_s})
        said.put(None)


class _Server(uvicorn.Server):
    """uvicorn's server, draining before it stops."""

    def __init__(self, config: uvicorn.Config, drain: Drain, hard_stop: HardStop) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        super().__init__(config)
        self._drain = drain
        self._hard_stop = hard_stop
        self._draining: asyncio.Task[None] | None = None

    @property
    def should_exit(self) -> bool:
        """Whether the server is to stop: uvicorn looks at it, and sets it as we do."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        if value and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)  # perhaps from a signal's frame

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup()
        self.relieve_collector()
        logger.info("serving", extra={"host": self.config.host, "port": self.config.port})

    def relieve_collector(self) -> None:
        """Keep the garbage collector from what stays: 300,000 objects, most of them botocore's models of AWS.

        It need not look as often either at what comes and goes with a request.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def main_loop(self) -> None:
        """Keep the `Date` header right until the server is to stop: uvicorn's wakes up ten times a second."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(until_beat_s(BEAT_S, asyncio.get_running_loop().time())):
                    await self._stopping.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain; at the second signal, stop at once."""
        self._hard_stop.arm()
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


def main(hard_stop_s: float = HARD_STOP_S) -> int:
    """Run the service; returns the exit status: 2 for a configuration that can't be, with all its faults.

    The process ends at the latest `hard_stop_s` after the first signal: whoever calls this is about to exit.
    """
    faults: list[str] = []

    def note(error: ConfigError) -> None:
        faults.extend(error.faults)
        logging.getLogger("uvicorn.error").disabled = True  # it would print the stack of what is said below

    drain = Drain()
    settings = _read(lambda: Settings.from_env(os.environ), note)
    path = Path(os.environ.get("HEADRACE_CATALOG") or "headrace.toml")
    catalog = _read(lambda: Catalog.load(path, os.environ), note)
    if settings is not None and catalog is not None:
        configure_logging()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        app = _read(partial(create_app, settings, catalog, drain=drain, on_config_error=note), note)
        if app is not None:
            hard_stop = HardStop(hard_stop_s)
            hard_stop.start()
            server_config = _server_config(app, settings, catalog.service.write_timeout_s)
            server = _Server(server_config, drain, hard_stop)
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


def _server_config(app: ASGIApp, settings: Settings, write_timeout_s: float) -> uvicorn.Config:
    unacknowledged = {"unacknowledged_ms": int(write_timeout_s * 1000)}
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("Protocol", (Protocol,), unacknowledged),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing here asks who the peer is
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )


if __name__ == "__main__":
    sys.exit(main())
