"""Where the time of Headrace goes: `python -m bench.profile` prints and writes PROFILE.md.

Headrace runs under `sampler`, and beside it `perf record` (where there is perf and it may: as root, or with
kernel.perf_event_paranoid at most 1), in the middle of loadings that the bench measures. The cost of a whole
delta, invocation or second is the kernel's accounting, the parts are shares of samples:

    by thread and layer    perf: the innermost frame's binary; of the kernel, the system call
    by module              sampler: our modules and others' packages in the event loop's thread

A `Case` is one loading; a `Comparison` is some of them, side by side. `profile_tables` makes the page. What a
delta that is late has waited for is `lateness`'s section, at the end. Linux only, as the bench.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import lateness
from bench.loadings import BUSY, MANY, ONE_DELTA, SILENT, requests, saturating, silent, window
from bench.measuring import FULL, WARM_UP, Bed, Figures
from bench.processes import Processes
from bench.profile_tables import Profile, section, side_by_side
from bench.sampler import SAMPLES
from bench.scenarios import HEADRACE, TLS_STREAMS
from bench.script import Plan
from bench.subjects import (
    Start,
    start_headrace_on_canned_sampled,
    start_headrace_sampled,
    start_upstream,
)

PAGE = Path(__file__).with_name("PROFILE.md")
_EFFORT = replace(FULL, window_s=8.0, idle_s=14.0)
_LOOK_S = 4
_HZ = 499
_QUIET_HZ = 2_999
_TITLE = """# Where the time goes

Made by `python -m bench.profile`: Headrace on SQLite, everything on, in the middle of what `saturation`,
`requests`, `idle` and `many-streams` of the [bench](README.md) measure; *on DynamoDB* is `requests` on the
one that answers at once. A whole is the kernel's accounting (the samplers make it a little dearer than it is
in the [results](RESULTS.md)), the parts are shares of samples. *Module*: whose Python runs, with what it
calls of the standard library, in C and in the kernel; what the event loop does in C (poll, read, write) is
its own or that of the module that it calls next. *Layer*: the binary that runs; of the kernel, the system
call.
"""
_SYSTEM_CALL = re.compile(r" (?:__x64_sys|__arm64_sys|__sys|ksys)_(\w+)")
_LAYERS = (
    ("interpreter", r"libpython|^python3?"),
    ("uvloop", r"^loop\."),
    ("SQLite", r"sqlite"),
    ("cryptography, TLS", r"^_rust\.|libcrypto|libssl|^_ssl\.|^_hashlib\."),
    ("HTTP parser", r"^parser\."),
    ("zlib: checksums, compression", r"^libz\.|^zlib\."),
    ("C library", r"^libc\.|^ld-linux|^\[vdso\]|^libpthread|^libm\."),
)
_OTHER = "other modules in C"


@dataclass(frozen=True)
class Case:
    """What is profiled: a loading, when in it to look, and which figure is the whole."""

    title: str
    plan: Plan
    figures: Callable[[Bed], Figures]
    after_s: int
    whole_us: Callable[[Figures], tuple[float, float]]
    """Of the event loop's thread and of the others."""
    plans: Sequence[Plan] = ()
    """What else is asked for."""
    look_s: int = _LOOK_S
    is_quiet: bool = False
    """There is too little to sample: the sampler times each call, and perf looks more often."""
    tls: bool = False
    """To the upstream."""
    start: Start = start_headrace_sampled


@dataclass(frozen=True)
class Comparison:
    """Cases to be looked at side by side, each a column of that title."""

    title: str
    says: str
    cases: Sequence[Case]


CASES = (
    Case(
        "A delta, 40,000/s offered",
        saturating(HEADRACE).plan(_EFFORT),
        lambda bed: window(bed, saturating(HEADRACE)),
        after_s=6,
        whole_us=lambda found: (found["us_main"], found["us_threads"]),
    ),
    Case(
        "A delta over TLS, 30,000/s offered",
        saturating(HEADRACE, TLS_STREAMS).plan(_EFFORT),
        lambda bed: window(bed, saturating(HEADRACE, TLS_STREAMS)),
        after_s=6,
        whole_us=lambda found: (found["us_main"], found["us_threads"]),
        tls=True,
    ),
    Case(
        "An invocation of one delta",
        ONE_DELTA,
        requests,
        after_s=3,
        whole_us=lambda found: (found["ms_main"] * 1e3, (found["ms"] - found["ms_main"]) * 1e3),
    ),
    Case(
        "An invocation on DynamoDB",
        ONE_DELTA,
        requests,
        after_s=3,
        whole_us=lambda found: (found["ms_main"] * 1e3, (found["ms"] - found["ms_main"]) * 1e3),
        start=start_headrace_on_canned_sampled,
    ),
)


def _second(title: str, streams: int) -> Case:
    """A second with so many silent streams; the look has a heartbeat of each."""
    return Case(
        title,
        SILENT,
        lambda bed: silent(bed, streams),
        after_s=5 if streams else 2,
        whole_us=lambda found: (found["ms_main"] * 1e3, (found["ms"] - found["ms_main"]) * 1e3),
        look_s=10,
        is_quiet=True,
        start=partial(start_headrace_sampled, calls=True),
    )


def _beside(title: str, silent: int) -> Case:
    return Case(
        title,
        BUSY.plan(_EFFORT),
        lambda bed: window(bed, BUSY, stalled=silent, beside=SILENT),
        after_s=10 if silent else 4,
        whole_us=lambda found: (found["us_main"], found["us_threads"]),
        plans=[SILENT],
    )


COMPARISONS = (
    Comparison(
        "A second of silence",
        "us of CPU a second: of a process with no stream at all, and with 2,000 silent ones, which have 200"
        " heartbeats. Modules: calls are timed instead of sampled, which makes short ones dearer.",
        [_second("no stream", 0), _second("2,000 silent streams", 2_000)],
    ),
    Comparison(
        "A delta beside silent streams",
        "us a delta, of 200 streams of 50 deltas/s; all that the process does is divided by them.",
        [_beside("alone", MANY[0]), _beside(f"{MANY[-1]:,} silent streams beside", MANY[-1])],
    ),
)


def layer_of(stack: list[str]) -> str:
    """The layer of one sample of `perf script -F ip,sym,dso`, whose innermost frame is first."""
    _, _, binary = stack[0].rpartition("(")
    binary = Path(binary.rstrip(")")).name if not binary.startswith("[") else binary.rstrip(")")
    if binary.startswith("[") and binary not in ("[vdso]", "[unknown]"):
        calls = (found[1] for frame in stack if (found := _SYSTEM_CALL.search(frame)))
        fault = any("exc_page_fault" in frame for frame in stack)
        return f"kernel: {next(calls, 'page faults' if fault else 'the rest')}"
    return next((layer for layer, pattern in _LAYERS if re.search(pattern, binary)), _OTHER)


def layers(script: str, pid: int) -> Counter[tuple[bool, str]]:
    """Count the samples of `perf script -F tid,ip,sym,dso` by thread (is it the first?) and layer."""
    found: Counter[tuple[bool, str]] = Counter()
    for sample in script.split("\n\n"):
        thread, *stack = sample.strip().splitlines() or [""]
        if stack:
            found[int(thread) == pid, layer_of(stack)] += 1
    return found


def modules(samples: Iterable[tuple[int, str, int]], first_s: int, last_s: int) -> Counter[str]:
    """Add up the nanoseconds of a sampler's file from one second to another."""
    found: Counter[str] = Counter()
    for second, module, used_ns in samples:
        if first_s <= second < last_s:
            found[module] += used_ns
    return found


def _profile(case: Case) -> Profile:
    with Processes() as processes:
        upstream = start_upstream(processes, tls=case.tls)
        running = case.start(processes, upstream, [WARM_UP, case.plan, *case.plans])
        bed = Bed(processes, upstream, running, HEADRACE, _EFFORT)
        bed.warm_up()
        first_s = int(time.monotonic()) + case.after_s
        with (
            _recorded(running.pid, processes.folder / "perf.data", case) as recording,
            _timed(running.pid, case),
        ):
            figures = case.figures(bed)
        script = _script(recording)
        samples = json.loads(processes.written(running.pid, SAMPLES).read_text(encoding="utf-8"))
    main_us, threads_us = case.whole_us(figures)
    found = modules(samples, first_s, first_s + case.look_s)
    return Profile(main_us, threads_us, layers(script, running.pid), found)


@contextmanager
def _timed(pid: int, case: Case) -> Iterator[None]:
    """Tell the sampler of a quiet case when the look begins and ends."""
    edges_s = (case.after_s, case.after_s + case.look_s) if case.is_quiet else ()
    timers = [threading.Timer(edge_s, os.kill, (pid, signal.SIGUSR1)) for edge_s in edges_s]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


@contextmanager
def _recorded(pid: int, path: Path, case: Case) -> Iterator[Path]:
    """Let perf look at a process for a while; without perf, or where it may not, there is no file."""
    perf = shutil.which("perf")
    if perf is None:
        yield path
        return
    hz = _QUIET_HZ if case.is_quiet else _HZ
    command = [perf, "record", "-o", str(path), "-e", "cpu-clock", "-F", str(hz), "-g"]
    command += [
        "-D",
        str(case.after_s * 1000),
        "-p",
        str(pid),
        "--",
        "sleep",
        str(case.after_s + case.look_s),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as recording:
        try:
            yield path
        except BaseException:
            recording.terminate()
            raise


def _script(path: Path) -> str:
    if not path.exists():
        return ""
    command = ["perf", "script", "-i", str(path), "-F", "tid,ip,sym,dso"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def main() -> int:
    sections = [section(case.title, _profile(case)) for case in CASES]
    sections += [
        side_by_side(each.title, each.says, {case.title: _profile(case) for case in each.cases})
        for each in COMPARISONS
    ]
    made = "\n\n".join([_TITLE.strip(), *sections, lateness.measured()]) + "\n"
    PAGE.write_text(made, encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
