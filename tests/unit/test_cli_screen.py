"""What `headrace` shows of a stream: the answer, its progress, its ending."""

from pathlib import Path

import pytest

from tests.cli_server import CliServer, control, delta, event, stream
from tests.command_line import CommandLine, Outcome

JOB = "/runtimes/writer/invocations/inv_1"
USAGE = {"inputTokens": 34, "outputTokens": 120, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}
PROBLEM = {"title": "The model failed", "code": "upstream-failed", "detail": "Try it later."}

CONNECTED = control("heartbeat", phase="connected")
STARTED = event("1.1", "invocationStarted", invocationId="inv_1", runtimeId="writer", attempt=1)
HEL = delta("1.2", "Hel")
COMPLETED = event("1.9", "invocationCompleted", stopReason="end_turn", usage=USAGE)


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("last", "exit_code", "stderr"),
    [
        (
            event("1.3", "invocationFailed", problem=PROBLEM),
            1,
            "headrace: the invocation failed: The model failed (upstream-failed)\n  Try it later.\n",
        ),
        (event("1.3", "invocationCancelled"), 1, "headrace: the invocation was cancelled\n"),
        (
            control("streamEnded", problem={"title": "Access was revoked", "code": "denied"}),
            3,
            "headrace: this stream may not go on: Access was revoked (denied)\n",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_other_ending_has_its_exit_code(
    terminal: CommandLine, last: bytes, exit_code: int, stderr: str, as_json: bool
) -> None:
    with CliServer(stream(STARTED, HEL, last, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", *["--json"] * as_json)

    stdout = b"\n".join([STARTED, HEL, last, b""]).decode() if as_json else "Hel\n"
    assert outcome == Outcome(exit_code, stdout, stderr)


def test_json_is_the_log_as_it_came(terminal: CommandLine) -> None:
    heartbeat = control("heartbeat", phase="model", turn=1, elapsed_s=10)
    first = stream(CONNECTED, STARTED, heartbeat, HEL, control("reconnect", reason="drain"), location=JOB)
    with CliServer(first, stream(CONNECTED, COMPLETED)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--json")

    assert outcome == Outcome(0, b"\n".join([STARTED, HEL, COMPLETED, b""]).decode(), "")


def test_verbose_tells_the_progress_in_lines(terminal: CommandLine) -> None:
    lines = [
        CONNECTED,
        STARTED,
        control("heartbeat", phase="model", turn=1, elapsed_s=30),
        event("1.2", "toolStarted", toolUseId="t", name="search"),
        event("1.3", "toolFinished", toolUseId="t", name="search", status="success"),
        event("1.4", "invocationPaused", problem={"title": "Over quota"}, resumesAt="17:00"),
        event("1.5", "invocationResumed"),
        delta("1.6", "Hi"),
        event("1.7", "contentBlockDelta", delta={"toolUse": {"input": "{}"}}),
        event("1.8", "metadata", usage=USAGE | {"cacheReadInputTokens": 5, "estimated": True}),
        event("1.9", "invocationCompleted", stopReason="end_turn", usage=USAGE),
    ]
    with CliServer(stream(*lines, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--verbose")

    assert outcome == Outcome(
        0,
        "Hi\n",
        "connected\n"
        "writer/inv_1 started\n"
        "model, turn 1, 30 s\n"
        "tool search runs\n"
        "tool search: success\n"
        "paused until 17:00: Over quota\n"
        "resumed\n"
        "34 input, 120 output, 5 cache read tokens (estimated)\n"
        "completed: 34 input, 120 output tokens\n",
    )


def test_half_a_character_does_not_end_the_answer(terminal: CommandLine) -> None:
    with CliServer(stream(STARTED, delta("1.2", "a\ud83d"), COMPLETED, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "a?\n", "")
