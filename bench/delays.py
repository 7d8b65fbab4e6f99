"""The service with a clock at every callback: `python -m bench.delays`.

`lateness` starts it instead of `python -m service`, which knows nothing of it. Each callback of the event
loop is a span: when it ran, how much of that it was on the processor and how long it waited for one, and
whose code it was. So is each collection of garbage, and each transaction of the store's thread, beside those.
SIGUSR2 writes all spans to the file that the environment's `DELAYS` names.

Source: the second field of /proc/PID/task/TID/schedstat is how long a thread has waited for a processor, in
ns, https://docs.kernel.org/scheduler/sched-stats.html.
"""

import asyncio
import functools
import gc
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import uvloop

from service.models.connection import Connection
from service.protocol import Protocol
from service.stores.sqlite_thread import StoreThread

DELAYS: Final = "BENCH_DELAYS"
COLLECTION: Final = "garbage collection"
STORE: Final = "the store's thread"
READ: Final = "a read from the upstream"
BESIDE: Final = (COLLECTION, STORE)
"""What runs inside of callbacks or at the same time."""
_AT: Final = re.compile(rb"~at=(\d+)us")


class Clocks(NamedTuple):
    """A moment, and what the thread had used and waited for by then, in ns."""

    at_ns: int
    used_ns: int
    queued_ns: int


class Span(NamedTuple):
    """What ran from one moment to another; `written_ns` is when the delta that it read was written, or 0."""

    whose: str
    begin: Clocks
    end: Clocks
    written_ns: int = 0


class Recorder:
    """Gathers the spans of the thread that makes it; as numbers in one array, nothing for the collector."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, int] = {}
        self._numbers = array("q")
        self._schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def now(self) -> Clocks:
        queued_ns = int(os.pread(self._schedstat, 64, 0).split()[1])
        return Clocks(time.monotonic_ns(), time.thread_time_ns(), queued_ns)

    def note(self, whose: str, begin: Clocks, end: Clocks, written_ns: int = 0) -> None:
        number = self._names.setdefault(whose, len(self._names))
        self._numbers.extend((number, *begin, *end, written_ns))

    def write(self, _signal: int, _frame: FrameType | None) -> None:
        """Write the file in one step."""
        numbers = self._numbers.tolist()  # first: the store's thread goes on, and may add a name
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps([list(self._names), numbers]), encoding="utf-8")
        new.replace(self._path)


def read_spans(path: Path) -> list[Span]:
    """Read what `Recorder.write` wrote."""
    names, numbers = json.loads(path.read_text(encoding="utf-8"))
    rows = zip(*[iter(numbers)] * 8, strict=True)
    return [Span(names[number], Clocks(*row[:3]), Clocks(*row[3:6]), row[6]) for number, *row in rows]


def whose(callback: Any) -> str:
    """The module of a callback; of a task, that of the innermost of our coroutines or of others' packages."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return str(getattr(callback, "__module__", None) or type(owner).__module__)
    found = "asyncio"
    inner: Any = owner.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        name = str(frame.f_globals.get("__name__", "")) if frame is not None else ""
        if name and name.partition(".")[0] not in sys.stdlib_module_names:
            found = name
        inner = getattr(inner, "cr_await", None)
    return found


def timed_loop(recorder: Recorder) -> type[uvloop.Loop]:
    """A loop that notes each callback that it is given; reads are noted by their protocols."""

    def timed(callback: Callable[..., object], *args: object) -> None:
        of, begin = whose(callback), recorder.now()
        callback(*args)
        recorder.note(of, begin, recorder.now())

    class TimedLoop(uvloop.Loop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_soon(timed, callback, *args, context=context)

        def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_soon_threadsafe(timed, callback, *args, context=context)

        def call_later(self, delay: Any, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_later(delay, timed, callback, *args, context=context)

        def call_at(self, when: Any, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            return super().call_at(when, timed, callback, *args, context=context)

    return TimedLoop


def watch(recorder: Recorder) -> None:
    """Put clocks around what reads, around collections and around the store's transactions."""
    get_buffer, buffer_updated = Connection.get_buffer, Connection.buffer_updated
    data_received, transact = Protocol.data_received, StoreThread._transact
    begin = recorder.now()
    collecting_ns = 0

    def timed_get_buffer(self: Connection, sizehint: int) -> memoryview:
        nonlocal begin
        begin = recorder.now()
        return get_buffer(self, sizehint)

    def timed_buffer_updated(self: Connection, nbytes: int) -> None:
        stamped = _AT.search(self._buffer[:nbytes])
        buffer_updated(self, nbytes)
        recorder.note(READ, begin, recorder.now(), int(stamped[1]) * 1000 if stamped else 0)

    def timed_data_received(self: Protocol, data: bytes) -> None:
        begin = recorder.now()
        data_received(self, data)
        recorder.note("uvicorn", begin, recorder.now())

    def timed_transact(self: StoreThread, *args: Any) -> Any:
        begin_ns = time.monotonic_ns()
        try:
            return transact(self, *args)
        finally:
            recorder.note(STORE, Clocks(begin_ns, 0, 0), Clocks(time.monotonic_ns(), 0, 0))

    def collected(phase: str, _found: dict[str, int]) -> None:
        nonlocal collecting_ns
        now_ns = time.monotonic_ns()
        if phase == "stop":
            recorder.note(COLLECTION, Clocks(collecting_ns, 0, 0), Clocks(now_ns, 0, 0))
        collecting_ns = now_ns

    Connection.get_buffer = timed_get_buffer  # type: ignore[method-assign]
    Connection.buffer_updated = timed_buffer_updated  # type: ignore[method-assign]
    Protocol.data_received = timed_data_received  # type: ignore[method-assign]
    StoreThread._transact = timed_transact  # type: ignore[assignment, method-assign]
    gc.callbacks.append(collected)


def main() -> None:
    recorder = Recorder(Path(os.environ[DELAYS]))
    watch(recorder)
    uvloop.new_event_loop = timed_loop(recorder)
    signal.signal(signal.SIGUSR2, recorder.write)
    sys.argv = ["service"]
    runpy.run_module("service", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
