"""The service under a sampler of its Python frames: `python -m bench.sampler`.

`profile` starts it instead of `python -m service`, which knows nothing of it. A timer of CPU time interrupts
the event loop's thread; each sample is charged with the CPU that this thread has used since the last one, to
the module whose code runs, whatever of the standard library or in C it has called. A signal is handled at the
next line of Python, so some of what the loop does in C is charged to whom it calls next. SIGUSR2 writes all
samples to the file that the environment's `SAMPLES` names.

That timer ticks with the kernel, every 4 ms of CPU: too rarely for a service that hardly runs. Where `CALLS`
names the file instead, all calls between two SIGUSR1 are timed, each charged to its module with what it does
in C; what this thread has used beside them is the event loop's.
"""

import cProfile
import json
import os
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, FrameType

SAMPLES = "BENCH_SAMPLES"
CALLS = "BENCH_CALLS"
LOOP = "the event loop"
STANDARD = "the standard library"
_EVERY_S = 0.004
_GENERATED = "namedtuple_"
_LOOP_OF = ("uvloop", "bench", "__main__", "runpy")
_RUNS_IT = ("uvicorn._compat", "uvicorn.server")


def charged(frame: FrameType | None) -> str:
    """The module of ours, or the package of others, whose code runs; the loop's, if there is none."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        package = name.partition(".")[0]
        if package in _LOOP_OF or name in _RUNS_IT:
            break
        if package not in sys.stdlib_module_names and not package.startswith(_GENERATED):
            return name if package == "service" else package
        frame = frame.f_back
    return LOOP


class Sampler:
    """Gathers nanoseconds by second and module."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used_ns: Counter[tuple[int, str]] = Counter()
        self._last_ns = time.thread_time_ns()

    def sample(self, _signal: int, frame: FrameType | None) -> None:
        now_ns = time.thread_time_ns()
        self._used_ns[int(time.monotonic()), charged(frame)] += now_ns - self._last_ns
        self._last_ns = now_ns

    def write(self, _signal: int, _frame: FrameType | None) -> None:
        """Write the file in one step."""
        samples = list(self._used_ns.items())  # in one step too: the next sample may interrupt this
        _write(self._path, ([second, module, used_ns] for (second, module), used_ns in samples))


class CallTimer:
    """Times the calls between two signals, and says that all of it was used in the second of the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile = cProfile.Profile(builtins=False)
        self._began_s: int | None = None
        self._used_ns = 0

    def toggle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._began_s is None:
            self._began_s, self._used_ns = int(time.monotonic()), -time.thread_time_ns()
            self._profile.enable()
        else:
            self._profile.disable()
            self._used_ns += time.thread_time_ns()

    def write(self, _signal: int, _frame: FrameType | None) -> None:
        """Write the file in one step."""
        modules = {str(module.__file__): name for name, module in sys.modules.items() if _has_file(module)}
        found = by_module(((entry.code, entry.inlinetime) for entry in self._profile.getstats()), modules)
        found[LOOP] += max(0, self._used_ns - found.total())
        _write(self._path, ([self._began_s or 0, module, used_ns] for module, used_ns in found.items()))


def by_module(calls: Iterable[tuple[CodeType | str, float]], modules: Mapping[str, str]) -> Counter[str]:
    """Add up the seconds of calls, as nanoseconds, by our modules and others' packages.

    Args:
        calls: The code that ran, and for how long without what it called in Python.
        modules: The names of modules by their files.
    """
    found: Counter[str] = Counter()
    for code, used_s in calls:
        name = modules.get(code.co_filename, "") if isinstance(code, CodeType) else ""
        package = name.partition(".")[0]
        if package not in _LOOP_OF:
            is_standard = not package or package in sys.stdlib_module_names
            found[STANDARD if is_standard else name if package == "service" else package] += int(used_s * 1e9)
    return found


def _has_file(module: object) -> bool:
    return getattr(module, "__file__", None) is not None


def _write(path: Path, found: Iterable[list[int | str]]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(list(found)), encoding="utf-8")
    new.replace(path)


def main() -> None:
    if CALLS in os.environ:
        timer = CallTimer(Path(os.environ[CALLS]))
        signal.signal(signal.SIGUSR1, timer.toggle)
        signal.signal(signal.SIGUSR2, timer.write)
    else:
        sampler = Sampler(Path(os.environ[SAMPLES]))
        signal.signal(signal.SIGPROF, sampler.sample)
        signal.signal(signal.SIGUSR2, sampler.write)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)
    sys.argv = ["service"]
    runpy.run_module("service", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
