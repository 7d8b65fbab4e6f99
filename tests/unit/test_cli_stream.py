"""`headrace invoke` and `headrace follow` print the whole answer once, whatever their connections do."""

import json
import uuid
from pathlib import Path

import pytest

from tests.cli_server import (
    HOLD,
    RESET,
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
from tests.command_line import CommandLine, Outcome

JOB = "/runtimes/writer/invocations/inv_1"
SUBMIT = ("POST /runtimes/writer/invocations", "token-1", None)
USAGE = {"inputTokens": 34, "outputTokens": 120, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}

PROBLEM = {"title": "The model failed", "code": "upstream-failed", "detail": "Try it later."}

CONNECTED = control("heartbeat", phase="connected")
STARTED = event("1.1", "invocationStarted", invocationId="inv_1", runtimeId="writer", attempt=1)
HEL, LO = delta("1.2", "Hel"), delta("1.3", "lo, wörld")
STOP = event("1.4", "messageStop", stopReason="end_turn")
COMPLETED = event("1.5", "invocationCompleted", stopReason="end_turn", usage=USAGE)
LOG = [STARTED, HEL, LO, STOP, COMPLETED]
WHOLE = stream(CONNECTED, *LOG, location=JOB)


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def rest(request: Request) -> Reply:
    """Answer like the service: what follows the cursor."""
    cursor = request.headers.get("last-event-id", "1.0")
    return stream(CONNECTED, *LOG[int(cursor.partition(".")[2]) :])


def after(cursor: str, token: str = SUBMIT[1]) -> tuple[str, str, str]:
    return f"GET {JOB}/events", token, cursor


def test_the_answer_is_all_of_stdout(terminal: CommandLine) -> None:
    with CliServer(WHOLE) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--max-tokens", "64", "--session", "s-1")

    (request,) = server.requests
    key = request.headers.pop("idempotency-key")
    assert uuid.UUID(key).version == 4
    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert server.token_requests == [{"user": "demo", "groups": [], "token_use": "id"}]
    assert request == Request(
        "POST /runtimes/writer/invocations",
        {
            "host": server.url.removeprefix("http://"),
            "accept-encoding": "identity",
            "user-agent": "headrace-cli",
            "authorization": "Bearer token-1",
            "content-type": "application/json",
            "content-length": str(len(json.dumps(request.body))),
            "accept": "application/x-ndjson",
            "x-amzn-bedrock-agentcore-runtime-session-id": "s-1",
        },
        {"prompt": "Say hello", "maxTokens": 64},
    )


def test_a_cut_at_any_byte_changes_nothing_of_the_answer(terminal: CommandLine) -> None:
    whole = b"".join(WHOLE)
    body_at = whole.index(b"\r\n\r\n") + 4
    outcomes = set()
    for cut in range(body_at, whole.index(b"0\r\n\r\n") - 2):
        with CliServer([whole[:cut]], rest) as server:
            terminal.use(server)
            outcomes.add(terminal.run("invoke", "writer", "Say hello"))
            assert [line for line, *_ in server.essences] == [SUBMIT[0], f"GET {JOB}/events"]

    assert outcomes == {Outcome(0, "Hello, wörld\n", "")}


def test_follow_prints_what_comes_after_its_cursor_over_a_reset_connection(terminal: CommandLine) -> None:
    with CliServer([RESET], rest) as server:
        terminal.use(server)
        outcome = terminal.run("follow", "writer/inv_1", "--after", "1.2")

    assert outcome == Outcome(0, "lo, wörld\n", "")
    assert server.essences == [after("1.2"), after("1.2")]


def test_follow_from_the_last_event_tells_how_it_ended(terminal: CommandLine) -> None:
    record = document(
        {"state": "failed", "terminalEvent": {"id": "1.5", "invocationFailed": {"problem": PROBLEM}}}
    )
    with CliServer(stream(CONNECTED), record) as server:
        terminal.use(server)
        outcome = terminal.run("follow", "writer/inv_1", "--after", "1.5", "--json")

    assert outcome == Outcome(
        1, "", "headrace: the invocation failed: The model failed (upstream-failed)\n  Try it later.\n"
    )
    assert server.essences == [after("1.5"), (f"GET {JOB}", "token-1", None)]


def test_a_token_file_is_read_again(terminal: CommandLine, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("old\n")
    refusal = problem(401, "unauthenticated", "Who are you?", "Send a token.")

    def expire(_: Request) -> Reply:
        token_file.write_text("new\n")
        return stream(STARTED, HEL, control("reconnect", reason="token-expired"))

    with CliServer(expire, stream(LO), refusal) as server:
        terminal.use(server)
        outcome = terminal.run("follow", "writer/inv_1", "--token-file", str(token_file), "--live")

    assert outcome == Outcome(
        3,
        "Hello, wörld\n",
        "headrace: 401 Who are you? (unauthenticated)\n"
        "  Send a token.\n"
        f"  The job goes on: headrace follow writer/inv_1 --after 1.3 --token-file {token_file}\n",
    )
    assert server.essences == [
        (f"GET {JOB}/events", "old", None),
        after("1.2", "new"),
        after("1.3", "new"),
    ]


def test_reconnect_leads_to_the_next_segment(terminal: CommandLine) -> None:
    first = stream(STARTED, HEL, control("reconnect", after="1.2", reason="segment-end"), location=JOB)
    with CliServer(first, rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert server.essences == [SUBMIT, after("1.2")]
    assert terminal.waits_s == [0.25]


def test_an_expired_token_is_replaced(terminal: CommandLine) -> None:
    first = stream(STARTED, HEL, control("reconnect", after="1.2", reason="token-expired"), location=JOB)
    refusal = problem(401, "unauthenticated", "Who are you?", "Send a token.")
    with CliServer(first, refusal, rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert server.essences == [SUBMIT, after("1.2", "token-2"), after("1.2", "token-3")]


def test_silence_is_a_drop(terminal: CommandLine) -> None:
    with CliServer([*stream(STARTED, HEL, ends=False, location=JOB), HOLD], rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "-v", idle_timeout_s=0.2)

    assert outcome == Outcome(
        0,
        "Hello, wörld\n",
        "writer/inv_1 started\n"
        "the connection broke (timed out); reattaching in 0.2 s\n"
        "connected\n"
        "completed: 34 input, 120 output tokens\n",
    )
    assert server.essences == [SUBMIT, after("1.2")]


@pytest.mark.parametrize(
    "garbage",
    [b"<html>", b"[]", b'{"id":"1.x","a":{}}', b'{"id":7,"a":{}}', b'{"a":{},"b":{}}', b'{"a":3}', b"\xff"],
)
def test_a_garbled_line_is_asked_for_again(terminal: CommandLine, garbage: bytes) -> None:
    with CliServer(stream(STARTED, HEL, garbage, LO, location=JOB), rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert server.essences == [SUBMIT, after("1.2")]


def test_an_event_that_comes_twice_is_printed_once(terminal: CommandLine) -> None:
    with CliServer(stream(STARTED, HEL, location=JOB), stream(*LOG)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")


def test_a_service_that_is_busy_is_asked_again_when_it_says(terminal: CommandLine) -> None:
    busy = problem(503, "draining", "Going away", "Follow again.", Retry_After="7")
    bad_gateway = document({"message": "Internal server error"}, "502 Bad Gateway")
    with CliServer(stream(STARTED, HEL, location=JOB), busy, bad_gateway, rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert terminal.waits_s == [0.25, 7, 1.0]


@pytest.mark.parametrize(("argv", "stdout", "after"), [((), "", ""), (("--live",), "Hel\n", " --after 1.2")])
def test_it_gives_up_after_a_while_without_anything_new(
    terminal: CommandLine, argv: tuple[str, ...], stdout: str, after: str
) -> None:
    heartbeat_only = stream(CONNECTED)
    first = stream(STARTED, HEL, location=JOB)
    record = document({"state": "running"})
    with CliServer(first, *[heartbeat_only, record] * 7) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Hi", "--retry-for", "20", "--user", "bo b", *argv)

    assert outcome == Outcome(
        4,
        stdout,
        "headrace: gave up after 20 s without anything new: the stream ended before the answer did\n"
        f"  The job goes on: headrace follow writer/inv_1{after} --user 'bo b'\n",
    )
    assert terminal.waits_s == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 4.25]


def test_to_be_asked_to_reconnect_is_no_trouble_that_uses_up_patience(terminal: CommandLine) -> None:
    first = stream(STARTED, HEL, control("reconnect", after="1.2", reason="drain"), location=JOB)
    second = stream(LO, control("reconnect", after="1.3", reason="drain"))
    nothing_new = stream(CONNECTED, control("reconnect", after="1.3", reason="drain"))
    with CliServer(first, second, nothing_new) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--retry-for", "0")

    assert (outcome.exit_code, terminal.waits_s) == (4, [0.25, 0.25])
    assert "gave up after 0 s without anything new" in outcome.stderr


def test_what_a_later_command_prints_belongs_right_after_what_was_shown(terminal: CommandLine) -> None:
    """Nothing was shown of what came after the cursor, so the cursor that is named has not moved."""
    gone = problem(401, "unauthenticated", "Who are you?", "Send a token.")
    with CliServer(stream(LO), gone, gone) as server:
        terminal.use(server)
        outcome = terminal.run("follow", "writer/inv_1", "--after", "1.2")

    assert outcome == Outcome(
        3,
        "",
        "headrace: 401 Who are you? (unauthenticated)\n"
        "  Send a token.\n"
        "  The job goes on: headrace follow writer/inv_1 --after 1.2\n",
    )


def test_a_heartbeat_of_the_job_is_something_new(terminal: CommandLine) -> None:
    beating = stream(CONNECTED, control("heartbeat", phase="model", turn=1, elapsed_s=30), location=JOB)
    with CliServer(beating, *[beating] * 3, stream(*LOG)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert terminal.waits_s == [0.25, 0.25, 0.25, 0.25]


def test_a_stream_that_names_no_invocation_can_not_be_followed_on(terminal: CommandLine) -> None:
    with CliServer(stream(CONNECTED)) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--idempotency-key", "k-1")

    assert outcome == Outcome(
        4,
        "",
        "headrace: the stream ended before the answer did\n"
        "  The job may have been started: give the same command with --idempotency-key k-1 to attach to it\n",
    )


def test_without_a_location_the_first_event_names_the_invocation(terminal: CommandLine) -> None:
    with CliServer(stream(STARTED), rest) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello, wörld\n", "")
    assert server.essences == [SUBMIT, after("1.1")]


def test_a_refusal_while_following_ends_it(terminal: CommandLine) -> None:
    gone = problem(404, "not-found", "Not found", "It may be older than records are kept.")
    with CliServer(stream(STARTED, HEL, location=JOB), gone) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--live")

    assert outcome == Outcome(
        3,
        "Hel\n",
        "headrace: 404 Not found (not-found)\n  It may be older than records are kept.\n",
    )


def test_something_that_is_no_stream_is_not_followed(terminal: CommandLine) -> None:
    with CliServer(document({"hello": "world"}, Content_Type="text/html")) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(
        3, "", f"headrace: {server.url} answered with something that is not a stream: check --url\n"
    )
