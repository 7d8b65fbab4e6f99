"""A profile adds up: samples by thread, layer and module, and the tables that are made of them."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from bench.profile import Profile, layer_of, layers, modules, section
from bench.sampler import LOOP, Sampler, charged

READ = [
    "ffffffff81b04f59 tcp_recvmsg ([kernel.kallsyms])",
    "ffffffff8170fed2 ksys_read ([kernel.kallsyms])",
    "ffffffff821ed511 do_syscall_64 ([kernel.kallsyms])",
    "fed0a __read (/usr/lib/libc.so.6)",
]
EVALUATED = ["ff02c _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)"]


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        (READ, "kernel: read"),
        (
            ["ffff _raw_spin_unlock ([kernel.kallsyms])", "ffff __x64_sys_writev ([kernel.kallsyms])"],
            "kernel: writev",
        ),
        (
            ["ffff do_fault ([kernel.kallsyms])", "ffff asm_exc_page_fault ([kernel.kallsyms])"],
            "kernel: page faults",
        ),
        (["ffff sysvec_apic_timer ([kernel.kallsyms])"], "kernel: the rest"),
        (EVALUATED, "interpreter"),
        (["1 uv__io_poll (/x/uvloop/loop.cpython-311-x86_64-linux-gnu.so)"], "uvloop"),
        (["1 sqlite3VdbeExec (/usr/lib/libsqlite3.so.0.8.6)"], "SQLite"),
        (["1 crc32_z (/usr/lib/libz.so.1.2.13)"], "zlib: checksums, compression"),
        (["1 [unknown] (/x/cryptography/hazmat/bindings/_rust.abi3.so)"], "cryptography, TLS"),
        (["1 [unknown] ([unknown])"], "other modules in C"),
    ],
)
def test_a_sample_is_of_the_layer_that_runs(stack: list[str], layer: str) -> None:
    assert layer_of(stack) == layer


def test_samples_are_counted_by_thread_and_layer() -> None:
    script = "\n\n".join("\n\t".join(lines) for lines in (["7 ", *READ], ["7 ", *EVALUATED], ["9 ", *READ]))

    assert layers(script + "\n\n", 7) == {
        (True, "kernel: read"): 1,
        (True, "interpreter"): 1,
        (False, "kernel: read"): 1,
    }
    assert layers("", 7) == {}


def test_what_was_sampled_before_and_after_is_left_out() -> None:
    samples = [(9, "uvicorn", 1), (10, "uvicorn", 2), (11, "uvicorn", 4), (11, LOOP, 8), (12, LOOP, 16)]

    assert modules(samples, 10, 12) == {"uvicorn": 6, LOOP: 8}


def test_the_parts_add_up_to_the_whole() -> None:
    found = {"service.wire": 750, "uvicorn": 245, "small": 4, "tiny": 1}

    made = section("A delta", Profile(20.0, 2.0, {(True, "uvloop"): 3, (False, "SQLite"): 1}, found))

    assert "20.0 us of CPU in the event loop's thread, 2.0 in others." in made
    assert "| service.wire | 75% | 15.00 |" in made
    assert "| 2 more | 0% | 0.10 |" in made
    assert "| uvloop | 100% | 20.00 |\n| other threads: SQLite | 100% | 2.00 |" in made


def test_without_perf_there_are_modules_and_no_layers() -> None:
    assert "layer" not in section("A delta", Profile(20.0, 2.0, {}, {"uvicorn": 1}))


def frame_in(*names: str) -> FrameType:
    """A frame of the last module, called by one of each module before it."""
    inner: Callable[[], FrameType] = sys._getframe
    for name in reversed(names):
        scope = {"__name__": name, "inner": inner}
        exec("def call(): return inner()", scope)  # noqa: S102
        called = scope["call"]
        assert callable(called)
        inner = called
    return inner()


@pytest.mark.parametrize(
    ("names", "charge"),
    [
        (("uvloop", "service.runner", "service.wire"), "service.wire"),
        (("service.wire", "json.decoder"), "service.wire"),
        (("service.events", "namedtuple_EventId"), "service.events"),
        (("service.api", "uvicorn.protocols.http"), "uvicorn"),
        (("uvloop", "asyncio.runners"), LOOP),
        (("service", "uvicorn.server", "uvicorn._compat", "asyncio.runners"), LOOP),
    ],
)
def test_a_sample_is_charged_to_whose_code_runs(names: tuple[str, ...], charge: str) -> None:
    assert charged(frame_in(*names)) == charge
    assert charged(None) == LOOP


def test_a_sampler_writes_what_its_thread_has_used(tmp_path: Path) -> None:
    sampler, path = Sampler(tmp_path / "samples"), tmp_path / "samples"
    began_s = int(time.monotonic())

    sampler.sample(signal.SIGPROF, frame_in("uvloop", "service.wire"))
    sampler.write(signal.SIGUSR2, None)

    ((second, module, used_ns),) = json.loads(path.read_text(encoding="utf-8"))
    assert (module, second >= began_s, used_ns > 0) == ("service.wire", True, True)
