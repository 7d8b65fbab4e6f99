"""Where the time of a delta and an invocation goes: `python -m bench.profile` prints and writes PROFILE.md.

Headrace runs under `sampler`, and beside it `perf record` (where there is perf and it may: as root, or with
kernel.perf_event_paranoid at most 1), in the middle of the loadings that `saturation` and `requests` measure.
The cost of a whole delta or invocation is the kernel's accounting, the parts are shares of samples:

    by thread and layer    perf: the innermost frame's binary; of the kernel, the system call
    by module              sampler: our modules and others' packages in the event loop's thread

What a delta that is late has waited for is `lateness`'s section, at the end.

Linux only, as the bench.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import lateness
from bench.loadings import ONE_DELTA, requests, saturating, window
from bench.measuring import FULL, WARM_UP, Bed, Figures
from bench.processes import Processes, SubjectFailed
from bench.report import as_markdown
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
_EFFORT = replace(FULL, window_s=8.0)
_LOOK_S = 4
_HZ = 499
_TITLE = """# Where the time goes

Made by `python -m bench.profile`: Headrace on SQLite, everything on, in the middle of what `saturation` and
`requests` of the [bench](README.md) measure; *on DynamoDB* is `requests` on the one that answers at once. A
whole is the kernel's accounting (the samplers make it a little dearer than it is in the
[results](RESULTS.md)), the parts are shares of samples. *Module*: whose Python runs, with what it calls of
the standard library, in C and in the kernel; what the event loop does in C (poll, read, write) is its own or
that of the module that it calls next. *Layer*: the binary that runs; of the kernel, the system call.
"""
_WAIT_S = 10.0
_SMALL = 0.01
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
    tls: bool = False
    """To the upstream."""
    start: Start = start_headrace_sampled


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


@dataclass(frozen=True)
class Profile:
    """What was found: the two wholes in us, samples by thread and layer, nanoseconds by module."""

    main_us: float
    threads_us: float
    layers: Mapping[tuple[bool, str], int]
    """(Is it the event loop's thread, the layer)."""
    modules: Mapping[str, int]


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
        running = case.start(processes, upstream, [WARM_UP, case.plan])
        bed = Bed(processes, upstream, running, HEADRACE, _EFFORT)
        bed.warm_up()
        first_s = int(time.monotonic()) + case.after_s
        with _recorded(running.pid, processes.folder / "perf.data", case.after_s) as recording:
            figures = case.figures(bed)
        script = _script(recording)
        samples = _samples(running.pid, processes.folder / SAMPLES)
    main_us, threads_us = case.whole_us(figures)
    return Profile(
        main_us, threads_us, layers(script, running.pid), modules(samples, first_s, first_s + _LOOK_S)
    )


@contextmanager
def _recorded(pid: int, path: Path, after_s: int) -> Iterator[Path]:
    """Let perf look at a process for a while; without perf, or where it may not, there is no file."""
    perf = shutil.which("perf")
    if perf is None:
        yield path
        return
    command = [perf, "record", "-o", str(path), "-e", "cpu-clock", "-F", str(_HZ), "-g"]
    command += ["-D", str(after_s * 1000), "-p", str(pid), "--", "sleep", str(after_s + _LOOK_S)]
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


def _samples(pid: int, path: Path) -> list[tuple[int, str, int]]:
    os.kill(pid, signal.SIGUSR2)
    until_s = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > until_s:
            raise SubjectFailed("the sampler wrote nothing")
        time.sleep(0.05)
    found: list[tuple[int, str, int]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def section(title: str, profile: Profile) -> str:
    """The tables of one profile; what takes less than a hundredth is one line."""
    whole = (
        f"{profile.main_us:,.1f} us of CPU in the event loop's thread, {profile.threads_us:,.1f} in others."
    )
    parts = [f"## {title}", whole, as_markdown(_by_module(profile))]
    if profile.layers:
        parts.append(as_markdown(_by_layer(profile)))
    return "\n\n".join(parts)


def _by_module(profile: Profile) -> list[list[str]]:
    whole = sum(profile.modules.values()) or 1
    rows = [["module, in the event loop's thread", "share", "us"]]
    shares = {module: used / whole for module, used in profile.modules.items()}
    return rows + _rows((module, share, share * profile.main_us) for module, share in shares.items())


def _by_layer(profile: Profile) -> list[list[str]]:
    wholes = {True: profile.main_us, False: profile.threads_us}
    rows = [["layer", "share of its thread's", "us"]]
    for is_loop, said in ((True, ""), (False, "other threads: ")):
        found = {layer: count for (main, layer), count in profile.layers.items() if main is is_loop}
        whole = sum(found.values()) or 1
        rows += _rows(
            (said + layer, count / whole, count / whole * wholes[is_loop]) for layer, count in found.items()
        )
    return rows


def _rows(parts: Iterable[tuple[str, float, float]]) -> list[list[str]]:
    known = sorted(parts, key=lambda part: part[1], reverse=True)
    large = [part for part in known if part[1] >= _SMALL]
    small = known[len(large) :]
    if small:
        large.append((f"{len(small)} more", sum(part[1] for part in small), sum(part[2] for part in small)))
    return [[name, f"{share:.0%}", f"{us:,.2f}"] for name, share, us in large]


def page(profiles: Mapping[str, Profile]) -> str:
    """PROFILE.md, whole."""
    return (
        "\n\n".join([_TITLE.strip(), *(section(title, profile) for title, profile in profiles.items())])
        + "\n"
    )


def main() -> int:
    made = page({case.title: _profile(case) for case in CASES}) + f"\n{lateness.measured()}\n"
    PAGE.write_text(made, encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
