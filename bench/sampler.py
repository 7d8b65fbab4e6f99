"""The service under a sampler of its Python frames: `python -m bench.sampler`.

`profile` starts it instead of `python -m service`, which knows nothing of it. A timer of CPU time interrupts
the event loop's thread; each sample is charged with the CPU that this thread has used since the last one, to
the module whose code runs, whatever of the standard library or in C it has called. A signal is handled at the
next line of Python, so some of what the loop does in C is charged to whom it calls next. SIGUSR2 writes all
samples to the file that the environment's `SAMPLES` names.
"""

import json
import os
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

SAMPLES = "BENCH_SAMPLES"
LOOP = "the event loop"
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
        found = [[second, module, used_ns] for (second, module), used_ns in samples]
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(found), encoding="utf-8")
        new.replace(self._path)


def main() -> None:
    sampler = Sampler(Path(os.environ[SAMPLES]))
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR2, sampler.write)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)
    sys.argv = ["service"]
    runpy.run_module("service", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
