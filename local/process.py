"""One child process of the local stack: its address, its log file, its signals, its end.

`stack` makes them; e2e tests stop, kill and start them again. A process is started through `tether`, in a
session of its own (Ctrl-C in a terminal reaches the supervisor only, which stops its children in order),
and ends when this process does. It keeps its address and its log file from one start to the next.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp

ROOT: Final = Path(__file__).resolve().parents[1]
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 15


class ProcessDied(Exception):
    """A process ended that nobody had asked to; the text has its exit status and the end of its log."""


class Process:
    """A child that runs ``python -m module`` and answers ``GET {url}/ready`` with 200 once it is ready."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        url: str,
        environ: Mapping[str, str],
        log_path: Path,
        python: Path | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.log_path = log_path
        interpreter = sys.executable if python is None else str(python.absolute())  # a link, and stays one
        self._command = [interpreter, "-m", "local.tether", module, *arguments]
        paths = [str(ROOT), environ.get("PYTHONPATH", "")]
        self._environ = {
            **environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
        }
        self._child: asyncio.subprocess.Process | None = None
        self._tether: int | None = None

    @property
    def pid(self) -> int:
        """The pid of the latest start."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it was started and its end has not been seen."""
        return self._child is not None and self._child.returncode is None

    async def start(self, *, timeout_s: float = 30.0) -> None:
        """Start it, again or for the first time, and wait until it is ready.

        Raises:
            ProcessDied: It ended instead.
            TimeoutError: It is not ready in time; it goes on, or tries to.
        """
        await self.launch()
        await self.ready(timeout_s=timeout_s)

    async def launch(self) -> None:
        """Start it and return at once."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self._release()
        inherited, self._tether = os.pipe()
        try:
            with self.log_path.open("ab") as log:
                self._child = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=inherited,
                    stdout=log,
                    stderr=log,
                    env=self._environ,
                    start_new_session=True,
                )
        finally:
            os.close(inherited)

    async def ready(self, *, timeout_s: float = 30.0) -> None:
        """Wait until it is ready; see `start`."""
        try:
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as session:
                while not await self._is_ready(session):
                    if not self.running:
                        raise self.death()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise TimeoutError(f"{self.name} is not ready after {timeout_s:g} s\n{self._log_end()}") from None

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): its connections stay, nothing moves."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self.send(signal.SIGCONT)

    async def ended(self, *, timeout_s: float | None = 30.0) -> int:
        """Wait until it has ended and return its exit status, negative for a signal.

        Raises:
            TimeoutError: It still runs.
        """
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        try:
            async with asyncio.timeout(timeout_s):
                status = await self._child.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.name} still runs after {timeout_s:g} s") from None
        self._release()
        return status

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does."""
        if self.running:
            self.send(signal.SIGKILL)
            await self.ended(timeout_s=None)

    async def stop(self, *, timeout_s: float) -> None:
        """Ask it to end (SIGTERM); kill it if it does not within `timeout_s`."""
        if not self.running:
            self._release()
            return
        self.resume()
        self.send(signal.SIGTERM)
        try:
            await self.ended(timeout_s=timeout_s)
        except TimeoutError:
            await self.kill()

    def log(self) -> str:
        """Return all that it has written so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def death(self) -> ProcessDied:
        """Return the error that says how it ended."""
        status = self._child.returncode if self._child is not None else None
        return ProcessDied(f"{self.name} ended with status {status}\n{self._log_end()}")

    def _log_end(self) -> str:
        lines = self.log().splitlines()[-_TAIL_LINES:]
        return "\n".join([f"the end of {self.log_path}:", *(f"    {line}" for line in lines)])

    def _release(self) -> None:
        if self._tether is not None:
            os.close(self._tether)
            self._tether = None
