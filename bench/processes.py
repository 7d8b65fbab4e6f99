"""Starts the processes of a measurement, pins them, and stops them whatever happens.

`subjects` and `scenarios` start theirs through a `Processes`, which `scenarios` opens and closes. Every
process leads a session of its own, so Ctrl-C reaches the bench alone, which then stops them; if the bench
itself is killed, Linux ends them with it. Everything listens on loopback.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from bench.loads import Load, Result

SUBJECT_CORE = 0
LOAD_CORE = 1

_ROOT = Path(__file__).resolve().parents[1]
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 10.0
_WRITE_LIMIT_S = 10.0
_PR_SET_PDEATHSIG = 1  # https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
_LIBC = ctypes.CDLL(None)
_OURS = ("HEADRACE_", "AWS_", "PYTHON")
_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | {
    "NO_PROXY": "127.0.0.1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What every process gets: ours without what would change how a subject runs."""

T = TypeVar("T")


class SubjectFailed(Exception):
    """A process did not start, ended early, or answered wrongly."""


def free_port() -> int:
    """A port on loopback that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Processes:
    """All that runs on behalf of one measurement; leaving it stops everything and removes its files."""

    def __enter__(self) -> "Processes":
        self._running: list[subprocess.Popen[bytes]] = []
        self._entered = ExitStack()
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-bench-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            _stop(process)
        self._entered.close()
        self._folder.cleanup()

    def enter(self, server: AbstractContextManager[T], *, core: int) -> T:
        """Enter, on a core, a context manager that starts processes of its own; it is left last."""
        with _on_core(core):
            return self._entered.enter_context(server)

    def start(
        self,
        arguments: Sequence[str],
        *,
        port: int,
        core: int = SUBJECT_CORE,
        environ: Mapping[str, str] | None = None,
        foreign: bool = False,
    ) -> int:
        """Start a server on a core, wait until it listens on `port`, and return its process id.

        One that is `foreign` sees nothing of our environment but where programs are, and has no home.

        Raises:
            SubjectFailed: It ended or did not listen in time; says what it wrote last.
        """
        log = self.folder / f"{len(self._running)}.log"
        with log.open("wb") as written:
            given = {**(self._bare if foreign else _ENVIRON), **(environ or {})}
            process = self._spawn(arguments, core, given, subprocess.DEVNULL, written)
        deadline = time.monotonic() + _START_LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return process.pid
            time.sleep(0.05)
        name = " ".join(Path(argument).name for argument in arguments[:3])
        raise SubjectFailed(f"{name} does not listen; it wrote:\n{log.read_text(errors='replace')[-2000:]}")

    def python(
        self, *arguments: str, port: int, core: int = SUBJECT_CORE, environ: Mapping[str, str] | None = None
    ) -> int:
        """Start `python -m ...` with this interpreter; see `start`."""
        return self.start([sys.executable, "-m", *arguments], port=port, core=core, environ=environ)

    def said(
        self, module: str, *arguments: str, environ: Mapping[str, str] | None = None, limit_s: float = 60.0
    ) -> str:
        """Run a module of ours to its end on the subject's core and return what it printed.

        Raises:
            SubjectFailed: It failed or took longer than its limit.
        """
        command = [sys.executable, "-m", module, *arguments]
        given = {**_ENVIRON, **(environ or {})}
        process = self._spawn(command, SUBJECT_CORE, given, subprocess.PIPE, subprocess.PIPE)
        try:
            written, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as exc:
            raise SubjectFailed(f"{module} did not end in time") from exc
        if process.returncode != 0:
            raise SubjectFailed(f"{module} ended with status {process.returncode}")
        return written.decode()

    def written(self, pid: int, name: str) -> Path:
        """Let a process that records itself write its file in our folder.

        Raises:
            SubjectFailed: It did not.
        """
        path = self.folder / name
        os.kill(pid, signal.SIGUSR2)
        until_s = time.monotonic() + _WRITE_LIMIT_S
        while not path.exists():
            if time.monotonic() > until_s:
                raise SubjectFailed("what was recorded was not written")
            time.sleep(0.05)
        return path

    def load(self, load: Load) -> Result:
        """Run the load client on its core to its end.

        Raises:
            SubjectFailed: It failed or took longer than its limit.
        """
        command = [sys.executable, "-m", "bench.load"]
        process = self._spawn(command, LOAD_CORE, _ENVIRON, subprocess.PIPE, subprocess.PIPE)
        try:
            written, _ = process.communicate(json.dumps(asdict(load)).encode(), timeout=load.limit_s + 10)
        except subprocess.TimeoutExpired as exc:
            raise SubjectFailed("the load client did not end in time") from exc
        if process.returncode != 0:
            raise SubjectFailed(f"the load client did not reach its end within {load.limit_s:g} s")
        return Result(**json.loads(written))

    @property
    def _bare(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), "NO_PROXY": "127.0.0.1"}

    def _spawn(
        self,
        arguments: Sequence[str],
        core: int,
        environ: Mapping[str, str],
        stdin: int,
        stdout: int | IO[bytes],
    ) -> subprocess.Popen[bytes]:
        """Start a process that is on its core from its first instruction: it inherits ours of this moment."""
        with _on_core(core):
            process = subprocess.Popen(
                arguments,
                cwd=_ROOT,
                env=dict(environ),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.STDOUT if stdin == subprocess.DEVNULL else subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - the bench has one thread
            )
            self._running.append(process)
            return process


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Be on one core; what is started meanwhile inherits it and stays there."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group. It is reaped last: until then nobody else can have its id."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while time.monotonic() < deadline and not os.waitid(
        os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
