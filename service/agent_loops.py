"""Threads with an event loop each, in which the authors' code of `python` runtimes runs: one a runtime.

`app` opens them and gives each `PythonRuntime` its loop. A loop that is blocked delays the agents of its
runtime; the service's own loop, with every stream, heartbeat and lease on it, goes on. `watchdog` looks after
all of them, and says who blocks.

A thread can't be ended from outside: one whose loop is still blocked at the end is left to the exit of the
process, which waits for no daemon.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from service.errors import log_fields_of
from service.watchdog import Watchdog, Watched

logger = logging.getLogger(__name__)

SERVICE: Final = "the service"
"""What the watchdog calls the service's own loop; no runtime has such a name."""
CLOSE_S: Final = 2.0


class AgentLoop:
    """One thread and its loop."""

    def __init__(self, name: str, *, close_s: float = CLOSE_S) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._on_fault)
        self._close_s = close_s
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"agents-{name}", daemon=True)

    @property
    def thread_id(self) -> int:
        return self._thread.ident or 0

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closing:
            try:
                self.loop.run_forever()
            except BaseException as error:  # noqa: BLE001  a task's SystemExit ends nobody else's agents
                fields = {"runtime_id": self.name, **log_fields_of(error)}
                logger.error("an agent's task tried to end its thread", extra=fields)  # noqa: TRY400
        self.loop.run_until_complete(self._end_tasks())
        self.loop.close()

    def _on_fault(self, _: asyncio.AbstractEventLoop, fault: dict[str, Any]) -> None:
        """Log what a task of an author's left behind; asyncio would quote what its exception says."""
        error = fault.get("exception")
        fields = {} if error is None else log_fields_of(error)
        logger.error(
            "an agent's task failed", extra={"runtime_id": self.name, "fault": fault["message"], **fields}
        )

    async def aclose(self) -> None:
        """End what runs in it, and the thread, as far as it lets itself be ended."""
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join, self._close_s)
        if self._thread.is_alive():
            logger.error("the agents' loop can't be ended", extra={"runtime_id": self.name})

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._close_s / 2)
        await self.loop.shutdown_asyncgens()


@asynccontextmanager
async def open_agent_loops(
    runtimes: Sequence[str], on_blocked: Callable[[Mapping[str, Any]], None]
) -> AsyncIterator[Mapping[str, asyncio.AbstractEventLoop]]:
    """Run a loop for each of these runtimes, and watch them and the one that calls this.

    Args:
        on_blocked: Told the fields of a loop that is blocked, and again when it is not, in another thread.
    """
    loops = {name: AgentLoop(name) for name in runtimes}
    async with AsyncExitStack() as stack:
        for each in loops.values():
            each.start()
            stack.push_async_callback(each.aclose)
        own = Watched(SERVICE, asyncio.get_running_loop(), threading.get_ident())
        watched = [Watched(name, each.loop, each.thread_id) for name, each in loops.items()]
        watchdog = Watchdog([own, *watched], on_blocked)
        watchdog.start()
        stack.callback(watchdog.stop)
        yield {name: each.loop for name, each in loops.items()}
