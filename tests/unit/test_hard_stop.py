"""The process ends within two minutes of its first signal, whatever its loop and its threads do meanwhile."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from service import __main__ as process
from service.config import Catalog, ConfigError, Settings
from service.runner import HAND_OVER_GRACE_S
from tests.listening import answers_ok
from tests.unit.test_main import CATALOG

WAIT_S = 20.0
LONGEST_DRAIN_S = 105.0
KILLED_AFTER_S = 120.0
"""ECS's longest `stopTimeout`."""


@pytest.mark.promise("process-ends-in-time")
def test_the_hard_stop_says_so_and_exits(caplog: pytest.LogCaptureFixture) -> None:
    exits: SimpleQueue[int] = SimpleQueue()
    hard_stop = process.HardStop(0, exit_process=exits.put, last_resort=lambda _: None)
    hard_stop.start()
    before = exits.empty()

    hard_stop.arm()

    assert (before, exits.get(timeout=WAIT_S)) == (True, 70)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("CRITICAL", "the process did not end by itself")
    ]


@pytest.mark.promise("process-ends-in-time")
def test_the_longest_drain_fits_before_the_hard_stop_and_that_before_the_kill() -> None:
    settings = Settings("https://issuer", ("client-1",), "https://keys", "sqlite:x")
    config = process._server_config(answers_ok, settings, 30)
    assert config.timeout_graceful_shutdown is not None

    longest_s = LONGEST_DRAIN_S + HAND_OVER_GRACE_S + config.timeout_graceful_shutdown

    with pytest.raises(ConfigError, match="drain_s"):
        Catalog.from_document({"service": {"drain_s": LONGEST_DRAIN_S + 0.1}})
    assert longest_s < process.HARD_STOP_S < process.HARD_STOP_S + 2 * process.LAST_WORD_S < KILLED_AFTER_S


@pytest.mark.promise("process-ends-in-time")
def test_the_hard_stop_does_not_wait_for_a_log_that_is_stuck() -> None:
    released = threading.Event()

    def stuck(_: logging.LogRecord) -> bool:
        released.wait(WAIT_S)
        return False

    exits: SimpleQueue[int] = SimpleQueue()
    hard_stop = process.HardStop(0, exit_process=exits.put, last_resort=lambda _: None)
    process.logger.addFilter(stuck)
    try:
        hard_stop.start()
        hard_stop.arm()

        assert exits.get(timeout=WAIT_S) == 70
    finally:
        released.set()
        process.logger.removeFilter(stuck)


SERVICE = """
import asyncio, re, signal, sys, threading, time
from service import __main__ as process
from service.config import Catalog, ConfigError, Settings
from service.runner import HAND_OVER_GRACE_S

def block():
    print("blocked", flush=True)
    {blocks}

signal.signal(signal.SIGUSR1, lambda *_: asyncio.get_running_loop().call_soon_threadsafe(block))
{before}
sys.exit(process.main(hard_stop_s={hard_stop_s}))
"""
RUNAWAY = 're.match("(a|a)+$", "a" * 40 + "b")'
STUCK_THREAD = "threading.Thread(target=threading.Event().wait).start()"


@contextmanager
def running(tmp_path: Path, **parts: str) -> Iterator[subprocess.Popen[str]]:
    """Run the real service, from a script, until it serves; it is killed at the end."""
    catalog = tmp_path / "headrace.toml"
    catalog.write_text(CATALOG)
    environ = {
        "HEADRACE_CATALOG": str(catalog),
        "HEADRACE_ISSUER": "http://127.0.0.1:9",
        "HEADRACE_AUDIENCES": "client-1",
        "HEADRACE_STORE": "sqlite::memory:",
        "HEADRACE_PORT": "0",
    }
    script = SERVICE.format(**({"blocks": "pass", "before": "", "hard_stop_s": "0.2"} | parts))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            wait_for(child, '"serving"')
            yield child
        finally:
            child.kill()


def wait_for(child: subprocess.Popen[str], text: str) -> None:
    """Read its stdout up to a line with this text."""
    assert child.stdout is not None
    assert any(text in line for line in child.stdout)


@pytest.mark.promise("process-ends-in-time")
@pytest.mark.parametrize("blocks", ["time.sleep(60)", "while True: pass"])
def test_a_process_whose_loop_is_blocked_ends_all_the_same(tmp_path: Path, blocks: str) -> None:
    with running(tmp_path, blocks=blocks) as child:
        child.send_signal(signal.SIGUSR1)
        wait_for(child, "blocked")
        child.send_signal(signal.SIGTERM)
        stdout, stderr = child.communicate(timeout=WAIT_S)

    assert (child.returncode, stderr) == (70, "")
    assert '"level":"CRITICAL","message":"the process did not end by itself"' in stdout


@pytest.mark.promise("process-ends-in-time")
def test_a_process_whose_interpreter_lock_is_never_given_up_ends_with_its_stacks(tmp_path: Path) -> None:
    with running(tmp_path, blocks=RUNAWAY) as child:
        child.send_signal(signal.SIGUSR1)
        wait_for(child, "blocked")
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=WAIT_S)

    assert child.returncode == 1
    assert "in block\n" in stderr


@pytest.mark.promise("process-ends-in-time")
def test_a_process_with_a_thread_that_never_ends_is_ended(tmp_path: Path) -> None:
    with running(tmp_path, before=STUCK_THREAD) as child:
        child.send_signal(signal.SIGTERM)
        stdout, _ = child.communicate(timeout=WAIT_S)

    assert child.returncode == 70
    assert '"level":"CRITICAL"' in stdout


def test_a_process_that_ends_by_itself_neither_waits_nor_is_stopped(tmp_path: Path) -> None:
    with running(tmp_path, hard_stop_s="60") as child:
        child.send_signal(signal.SIGTERM)
        stdout, stderr = child.communicate(timeout=WAIT_S)

    assert (child.returncode, stderr) == (0, "")
    assert "CRITICAL" not in stdout
