"""`headrace` as a process: on a terminal, interrupted, and in a pipe that nobody reads any more."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Final

import pytest

from tests.cli_server import (
    HOLD,
    LIMIT_S,
    CliServer,
    Reply,
    Request,
    control,
    delta,
    document,
    event,
    problem,
    stream,
)
from tests.command_line import write_stack

ROOT: Final = Path(__file__).parents[2]
# A shell that starts its jobs in the background lets them ignore Ctrl-C.
PROGRAM: Final = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from service.cli import main
sys.exit(main())
"""

JOB: Final = "/runtimes/writer/invocations/inv_1"
CONNECTED: Final = control("heartbeat", phase="connected")
HEARTBEAT: Final = control("heartbeat", phase="model", turn=1, elapsed_s=30)
STARTED: Final = event("1.1", "invocationStarted", invocationId="inv_1", runtimeId="writer", attempt=1)
COMPLETED: Final = event("1.9", "invocationCompleted", usage={"inputTokens": 34, "outputTokens": 120})


@contextmanager
def running(
    folder: Path,
    reply: Reply | Callable[[Request], Reply],
    *argv: str,
    stdout: int = PIPE,
    stderr: int = PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command against a server with one reply; it does not outlive the block."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "40"}
    command = [sys.executable, "-c", PROGRAM, *argv]
    with CliServer(reply) as server:
        write_stack(folder, server.url)
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stdout, stderr=stderr, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def read_all(terminal: int) -> str:
    """Read what was shown on a terminal whose other end has been closed."""
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux's way to say end of file here
            piece = b""
        if not piece:
            return shown.decode()
        shown += piece


ANSWER: Final = stream(
    CONNECTED,
    STARTED,
    HEARTBEAT,
    delta("1.2", "Hel\x1b[2J"),
    control("heartbeat", phase="a phase that is longer than the terminal is wide"),
    delta("1.3", "lo"),
    event("1.4", "messageStop", stopReason="end_turn"),
    HEARTBEAT,
    COMPLETED,
    location=JOB,
)


def test_on_a_terminal_the_status_never_wipes_out_the_answer(tmp_path: Path) -> None:
    shown_at, terminal = os.openpty()
    with running(tmp_path, ANSWER, "invoke", "writer", "Hi", stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = read_all(shown_at)
        exit_code = process.wait(LIMIT_S)
    os.close(shown_at)

    clear = "\r\x1b[K"
    assert exit_code == 0
    assert shown == (
        f"{clear}connected{clear}writer/inv_1 started{clear}model, turn 1, 30 s"
        f"{clear}Hel\N{REPLACEMENT CHARACTER}[2Jlo\r\n"
        f"{clear}model, turn 1, 30 s"
        f"{clear}completed: 34 input, 120 output tokens\r\n"
    )


def test_with_the_answer_in_a_pipe_the_status_goes_on(tmp_path: Path) -> None:
    shown_at, terminal = os.openpty()
    with running(tmp_path, ANSWER, "invoke", "writer", "Hi", stderr=terminal) as process:
        os.close(terminal)
        shown = read_all(shown_at)
        answer, _ = process.communicate(timeout=LIMIT_S)
    os.close(shown_at)

    clear = "\r\x1b[K"
    assert answer == "Hel\x1b[2Jlo\n"
    assert shown == (
        f"{clear}connected{clear}writer/inv_1 started{clear}model, turn 1, 30 s"
        f"{clear}a phase that is longer than the termina"
        f"{clear}model, turn 1, 30 s"
        f"{clear}completed: 34 input, 120 output tokens\r\n"
    )


@pytest.mark.parametrize(("argv", "shown", "after"), [((), "", ""), (("--live",), "Hel\n", " --after 1.2")])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, argv: tuple[str, ...], shown: str, after: str) -> None:
    held: Reply = [*stream(STARTED, delta("1.2", "Hel"), HEARTBEAT, ends=False, location=JOB), HOLD]
    with running(tmp_path, held, "invoke", "writer", "Hi", "-v", *argv) as process:
        assert process.stderr is not None
        progress = [process.stderr.readline(), process.stderr.readline()]
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)

    assert progress == ["writer/inv_1 started\n", "model, turn 1, 30 s\n"]
    assert (process.returncode, stdout, stderr) == (
        130,
        shown,
        (
            "headrace: interrupted\n"
            f"  The job goes on: headrace follow writer/inv_1{after}\n"
            "  To end it: headrace cancel writer/inv_1\n"
        ),
    )


@pytest.mark.parametrize(
    ("argv", "stderr"),
    [
        (
            ["invoke", "writer", "Hi", "--idempotency-key", "k-1"],
            (
                "headrace: interrupted\n"
                "  The job may have been started: "
                "give the same command with --idempotency-key k-1 to attach to it\n"
            ),
        ),
        (["usage"], ""),
    ],
)
def test_ctrl_c_before_an_answer_says_what_is_unknown(tmp_path: Path, argv: list[str], stderr: str) -> None:
    arrived = threading.Event()

    def hold(_: Request) -> Reply:
        arrived.set()
        return [HOLD]

    with running(tmp_path, hold, *argv) as process:
        assert arrived.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        outcome = process.communicate(timeout=LIMIT_S)

    assert (process.returncode, *outcome) == (130, "", stderr)


def test_ctrl_c_between_two_tries_of_which_none_was_taken_is_all_that_happened(tmp_path: Path) -> None:
    more = {"retryable": True}
    busy = problem(503, "overloaded", "Too busy", "Try again.", more=more, Retry_After="60")
    with running(tmp_path, busy, "invoke", "writer", "Hi", "-v") as process:
        assert process.stderr is not None
        progress = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        outcome = process.communicate(timeout=LIMIT_S)

    assert progress == "HTTP 503 Too busy; trying again in 60.0 s\n"
    assert (process.returncode, *outcome) == (130, "", "")


def test_ctrl_c_before_the_job_has_a_name_says_how_to_attach(tmp_path: Path) -> None:
    held: Reply = [*stream(HEARTBEAT, ends=False), HOLD]
    with running(tmp_path, held, "invoke", "writer", "Hi", "-v", "--idempotency-key", "k-1") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "model, turn 1, 30 s\n"
        process.send_signal(signal.SIGINT)
        outcome = process.communicate(timeout=LIMIT_S)

    assert (process.returncode, *outcome) == (
        130,
        "",
        (
            "headrace: interrupted\n"
            "  The job may have been started: "
            "give the same command with --idempotency-key k-1 to attach to it\n"
        ),
    )


@pytest.mark.parametrize(
    ("argv", "reply"), [(["invoke", "writer", "Hi"], ANSWER), (["usage"], document({"windows": []}))]
)
def test_a_pipe_that_nobody_reads_ends_it_quietly(
    tmp_path: Path, argv: list[str], reply: list[bytes]
) -> None:
    closed = threading.Event()

    def wait(_: Request) -> Reply:
        assert closed.wait(LIMIT_S)
        return reply

    with running(tmp_path, wait, *argv) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        closed.set()
        stderr = process.stderr.read()
        exit_code = process.wait(LIMIT_S)

    assert (exit_code, stderr) == (141, "")
