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
        (
            event("1.3", "invocationCancelled", reason="requested", usage=USAGE),
            5,
            (
                "headrace: the invocation was cancelled (requested)\n"
                "  34 input, 120 output tokens were used.\n"
            ),
        ),
        (event("1.3", "invocationCancelled"), 5, "headrace: the invocation was cancelled\n"),
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


@pytest.mark.parametrize(("argv", "stdout"), [((), ""), (("--live",), "Hel\n")])
def test_a_reader_that_was_ended_has_only_what_it_was_shown(
    terminal: CommandLine, argv: tuple[str, ...], stdout: str
) -> None:
    denied = control("streamEnded", problem={"title": "Access was revoked", "code": "denied"})
    with CliServer(stream(STARTED, HEL, denied, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", *argv)

    assert outcome == Outcome(3, stdout, "headrace: this stream may not go on: Access was revoked (denied)\n")


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
        control("heartbeat", phase="paused", turn=1, elapsed_s=40),
        event("1.5", "invocationResumed", attempt=2),
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
        "headrace: paused until 17:00: Over quota\n"
        "paused, turn 1, 40 s\n"
        "headrace: resumed\n"
        "34 input, 120 output, 5 cache read tokens (estimated)\n"
        "completed: 34 input, 120 output tokens\n",
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pause_is_told_in_one_line_also_when_all_else_is_quiet(
    terminal: CommandLine, as_json: bool
) -> None:
    over = {"title": "The token quota is used up", "code": "quota-exceeded", "detail": "Wait."}
    lines = [
        STARTED,
        event("1.2", "invocationPaused", problem=over, resumesAt="2026-11-22T16:50:00Z"),
        event("2.1", "attemptRestarted", attempt=2, rewindTo="1.2"),
        event("2.2", "invocationResumed", attempt=2),
        event("2.3", "invocationPaused", problem=over),
        event("3.1", "attemptRestarted", attempt=3, rewindTo="2.3"),
        event("3.2", "invocationResumed", attempt=3),
        event("3.3", "invocationCompleted", stopReason="end_turn", usage=USAGE),
    ]
    with CliServer(stream(*lines, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", *["--json"] * as_json)

    assert outcome == Outcome(
        0,
        b"\n".join([*lines, b""]).decode() if as_json else "",
        "headrace: paused until 2026-11-22T16:50:00Z: The token quota is used up (quota-exceeded)\n"
        "headrace: resumed\n"
        "headrace: paused: The token quota is used up (quota-exceeded)\n"
        "headrace: resumed\n",
    )


RESTARTED = event("2.1", "attemptRestarted", attempt=2, rewindTo="1.3")
DONE = event("2.3", "invocationCompleted", stopReason="end_turn", usage=USAGE)
COUNTED = [
    STARTED,
    delta("1.2", "One. "),
    event("1.3", "messageStop", stopReason="end_turn"),
    delta("1.4", "Tw"),
]


@pytest.mark.parametrize(
    ("argv", "outcome"),
    [
        ((), Outcome(0, "One. \nTwo.\n", "")),
        (("-v",), Outcome(0, "One. \nTwo.\n", "attempt 2 took over\n")),
        (
            ("--live",),
            Outcome(
                0,
                "One. \nTw\nTwo.\n",
                "headrace: attempt 2 took over: "
                "the last 2 characters above are void; the answer goes on after them\n",
            ),
        ),
        (
            ("--json",),
            Outcome(0, b"\n".join([*COUNTED, RESTARTED, delta("2.2", "Two."), DONE, b""]).decode(), ""),
        ),
    ],
)
def test_void_text_goes_into_no_pipe_and_is_pointed_out_where_it_was_shown(
    terminal: CommandLine, argv: tuple[str, ...], outcome: Outcome
) -> None:
    with CliServer(stream(*COUNTED, location=JOB), stream(RESTARTED, delta("2.2", "Two."), DONE)) as server:
        terminal.use(server)
        got = terminal.run("invoke", "writer", "Count", *argv)

    assert (got.exit_code, got.stdout) == (outcome.exit_code, outcome.stdout)
    assert got.stderr.endswith(outcome.stderr) if "-v" not in argv else outcome.stderr in got.stderr
    assert [cursor for *_, cursor in server.essences] == [None, "1.4"]


def test_what_an_earlier_command_showed_and_is_void_is_pointed_out(terminal: CommandLine) -> None:
    with CliServer(stream(RESTARTED, delta("2.2", "Two."), DONE)) as server:
        terminal.use(server)
        outcome = terminal.run("follow", "writer/inv_1", "--after", "1.4")

    assert outcome == Outcome(
        0,
        "Two.\n",
        "headrace: attempt 2 took over: what was shown before of the events after 1.3 is void\n",
    )


def test_a_takeover_that_voids_nothing_shown_is_progress(terminal: CommandLine) -> None:
    restarted = event("2.1", "attemptRestarted", attempt=2, rewindTo="1.1")
    with CliServer(stream(STARTED, restarted, delta("2.2", "One."), DONE, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Count", "--live", "-v")

    assert outcome == Outcome(
        0,
        "One.\n",
        "writer/inv_1 started\nattempt 2 took over\ncompleted: 34 input, 120 output tokens\n",
    )


def test_half_a_character_does_not_end_the_answer(terminal: CommandLine) -> None:
    with CliServer(stream(STARTED, delta("1.2", "a\ud83d"), COMPLETED, location=JOB)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "a?\n", "")
