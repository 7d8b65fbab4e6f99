"""The commands of `headrace` that do not stream: where they send their requests, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from tests.cli_server import CliServer, document, event, problem, stream
from tests.command_line import CommandLine, Outcome, write_stack

INVOCATIONS = "/runtimes/writer/invocations"
NOT_FOUND = problem(404, "not-found", "Not found", "No invocation with this id is yours.")
USAGE = {"inputTokens": 34, "outputTokens": 120, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 7}
RECORD = {
    "invocationId": "inv_1",
    "runtimeId": "writer",
    "sessionId": None,
    "state": "completed",
    "attempts": [{"attempt": 1, "lastEventId": "1.5"}],
    "createdAt": "2026-11-21T16:40:00.000Z",
    "finishedAt": "2026-11-21T16:41:00.000Z",
    "deadlineAt": "2026-11-21T17:40:00.000Z",
    "usage": USAGE,
    "events": "/runtimes/writer/invocations/inv_1/events",
    "terminalEvent": {"id": "1.5", "invocationCompleted": {"stopReason": "end_turn", "usage": USAGE}},
}


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def test_token_prints_a_token_of_the_local_issuer(terminal: CommandLine) -> None:
    with CliServer() as server:
        terminal.use(server)
        outcomes = [
            terminal.run("token"),
            terminal.run("token", "--access", "--user", "ann", "--group", "staff", "--group", "eu"),
        ]

    assert outcomes == [Outcome(0, "token-1\n", ""), Outcome(0, "access-2\n", "")]
    assert server.token_requests == [
        {"user": "demo", "groups": [], "token_use": "id"},
        {"user": "ann", "groups": ["staff", "eu"], "token_use": "access"},
    ]


def test_detach_prints_the_id_and_leaves(terminal: CommandLine) -> None:
    accepted = document(RECORD, "202 Accepted", Location=f"{INVOCATIONS}/inv_1")
    with CliServer(accepted, accepted) as server:
        terminal.use(server)
        outcomes = [
            terminal.run("invoke", "writer", "-", "--detach", stdin="Füße".encode()),
            terminal.run("invoke", "writer", "Hello", "--detach", "--json"),
        ]

    assert outcomes == [Outcome(0, "inv_1\n", ""), Outcome(0, json.dumps(RECORD, indent=2) + "\n", "")]
    assert [request.body for request in server.requests] == [{"prompt": "Füße"}, {"prompt": "Hello"}]
    assert {request.headers["prefer"] for request in server.requests} == {"respond-async"}


def test_a_detached_job_without_a_name_is_not_taken_for_granted(terminal: CommandLine) -> None:
    with CliServer(document({}, "202 Accepted")) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Hello", "--detach")

    assert outcome == Outcome(
        4,
        "",
        "headrace: the service took the job and did not name it\n"
        "  The job may have been started. Look for it, and submit it again only if it isn't there: "
        "headrace list writer\n",
    )


def test_show_prints_the_record_and_the_text(terminal: CommandLine) -> None:
    with CliServer(
        document(RECORD | {"result": {"text": "Hello,\nworld", "truncated": True}}),
        document(RECORD | {"result": {"text": ""}}),
    ) as server:
        terminal.use(server)
        outcome = terminal.run("show", "writer/inv_1")
        as_json = terminal.run("show", "writer/inv_1", "--json")

    assert outcome == Outcome(
        0,
        "invocation  writer/inv_1\n"
        "state       completed (end_turn)\n"
        "attempts    1\n"
        "created     2026-11-21T16:40:00.000Z\n"
        "finished    2026-11-21T16:41:00.000Z\n"
        "deadline    2026-11-21T17:40:00.000Z\n"
        "usage       34 input, 120 output, 7 cache write tokens\n"
        "\n"
        "Hello,\nworld\n",
        "headrace: the text is longer than a record shows: `headrace follow` prints all of it\n",
    )
    assert as_json == Outcome(0, json.dumps(RECORD | {"result": {"text": ""}}, indent=2) + "\n", "")
    assert server.essences == [(f"GET {INVOCATIONS}/inv_1", f"token-{n}", None) for n in (1, 2)]


def test_show_of_a_failure_says_why(terminal: CommandLine) -> None:
    why = {"title": "The model\x1b[2J failed.", "code": "upstream-failed", "detail": "Try it later."}
    record = {
        "runtimeId": "writer",
        "invocationId": "inv_1",
        "state": "failed",
        "terminalEvent": {"id": "1.2", "invocationFailed": {"problem": why}},
    }
    with CliServer(document(record)) as server:
        terminal.use(server)
        outcome = terminal.run("show", "writer/inv_1")

    assert outcome == Outcome(
        0,
        "invocation  writer/inv_1\n"
        "state       failed (upstream-failed)\n"
        "problem     The model\N{REPLACEMENT CHARACTER}[2J failed. Try it later.\n"
        "usage       0 input, 0 output tokens\n",
        "",
    )


def test_usage_prints_every_window(terminal: CommandLine) -> None:
    usage = {
        "windows": [
            {"name": "daily", "windowSeconds": 86400, "limit": 200000, "used": 34, "reserved": 0}
            | {"remaining": 199966, "resetsAt": "2026-11-22T16:50:00.000Z"},
            {"name": "monthly", "limit": 2000000},
        ],
        "runningInvocations": 0,
        "concurrentInvocations": 8,
    }
    with CliServer(document(usage), document({}), document(usage)) as server:
        terminal.use(server)
        outcomes = [terminal.run("usage"), terminal.run("usage"), terminal.run("usage", "--json")]

    head = "LIMIT    USED  RESERVED  REMAINING  RESETS\n"
    assert outcomes == [
        Outcome(
            0,
            f"WINDOW   {head}"
            "daily    200000   34    0         199966     2026-11-22T16:50:00.000Z\n"
            "monthly  2000000  -     -         -          -\n"
            "\n"
            "runningInvocations     0\n"
            "concurrentInvocations  8\n",
            "",
        ),
        Outcome(0, "WINDOW  LIMIT  USED  RESERVED  REMAINING  RESETS\n", ""),
        Outcome(0, json.dumps(usage, indent=2) + "\n", ""),
    ]


def test_list_prints_a_page(terminal: CommandLine) -> None:
    page = {"invocations": [RECORD], "next": f"{INVOCATIONS}?limit=1&before=inv_1"}
    last: dict[str, Any] = {"invocations": []}
    with CliServer(document(page), document(last), document(last)) as server:
        terminal.use(server)
        outcomes = [
            terminal.run("list", "writer", "--limit", "1"),
            terminal.run("list", "arn:aws:x/writer", "--before", "inv_1"),
            terminal.run("list", "writer", "--json"),
        ]

    assert outcomes == [
        Outcome(
            0,
            "INVOCATION  STATE      CREATED                   USAGE\n"
            "inv_1       completed  2026-11-21T16:40:00.000Z  34 input, 120 output, 7 cache write tokens\n",
            "headrace: there are more: headrace list writer --before inv_1\n",
        ),
        Outcome(0, "INVOCATION  STATE  CREATED  USAGE\n", ""),
        Outcome(0, '{\n  "invocations": []\n}\n', ""),
    ]
    assert [line for line, *_ in server.essences] == [
        f"GET {INVOCATIONS}?limit=1",
        "GET /runtimes/arn%3Aaws%3Ax%2Fwriter/invocations?limit=20&before=inv_1",
        f"GET {INVOCATIONS}?limit=20",
    ]


def test_a_bare_id_is_looked_for_in_every_runtime(terminal: CommandLine) -> None:
    runtimes = document({"runtimes": [{"runtimeId": "coder"}, {"runtimeId": "writer"}]})
    completed = event("1.1", "invocationCompleted", stopReason="end_turn", usage=USAGE)
    with CliServer(runtimes, NOT_FOUND, document(RECORD), stream(completed)) as server:
        terminal.use(server)
        found = terminal.run("follow", "inv_1")
    with CliServer(runtimes, NOT_FOUND, NOT_FOUND) as other:
        terminal.use(other)
        missing = terminal.run("show", "inv_1")

    with CliServer(runtimes, problem(503, "overloaded", "Too busy", "Try again.")) as busy:
        terminal.use(busy)
        unknown = terminal.run("show", "inv_1")

    assert found == Outcome(0, "", "")
    assert [line for line, *_ in server.essences] == [
        "GET /runtimes",
        "GET /runtimes/coder/invocations/inv_1",
        "GET /runtimes/writer/invocations/inv_1",
        "GET /runtimes/writer/invocations/inv_1/events",
    ]
    assert unknown == Outcome(3, "", "headrace: 503 Too busy (overloaded)\n  Try again.\n")
    assert missing == Outcome(
        3,
        "",
        "headrace: no runtime of yours has inv_1: it may be older than records are kept, or another user's\n",
    )


def test_an_invocation_can_be_named_by_its_url_or_with_its_runtime(terminal: CommandLine) -> None:
    with CliServer(document(RECORD), document(RECORD)) as server:
        terminal.use(server)
        terminal.run("show", f"{server.url}/prod/runtimes/a%2Fb/invocations/inv_1/events")
        terminal.run("show", "inv_1", "--runtime", "a/b", "--url", f"{server.url}/prod/")

    assert [line for line, *_ in server.essences] == ["GET /prod/runtimes/a%2Fb/invocations/inv_1"] * 2


def test_the_token_comes_from_stdin_and_is_the_only_one(terminal: CommandLine) -> None:
    with CliServer(problem(401, "unauthenticated", "Who are you?", "Send a token.")) as server:
        outcome = terminal.run("usage", "--url", server.url, "--token-stdin", stdin=b" secret\n")

    assert outcome == Outcome(3, "", "headrace: 401 Who are you? (unauthenticated)\n  Send a token.\n")
    assert server.essences == [("GET /usage", "secret", None)]


@pytest.mark.parametrize(
    ("reply", "stderr"),
    [
        (
            problem(
                429, "quota-exceeded", "Quota exceeded", "Your daily quota is used up.", Retry_After="90"
            ),
            (
                "headrace: 429 Quota exceeded (quota-exceeded)\n"
                "  Your daily quota is used up. Try again in 90 s.\n"
            ),
        ),
        (document({"message": "Forbidden"}, "403 Forbidden"), "headrace: 403 Forbidden\n  Forbidden\n"),
        ([b"HTTP/1.1 404 \r\nContent-Length: 4\r\n\r\noops"], "headrace: 404 no reason given\n"),
        ([b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\n"], "headrace: 500 Oops\n"),
    ],
)
def test_a_refused_submission_is_told_in_two_lines(
    terminal: CommandLine, reply: list[bytes], stderr: str
) -> None:
    with CliServer(reply) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Hello")

    assert outcome == Outcome(3, "", stderr)


@pytest.mark.parametrize(("body", "value"), [(b"[]", "[]"), (b"<html>", "html")])
def test_a_service_that_is_not_headrace_is_named(terminal: CommandLine, body: bytes, value: str) -> None:
    with CliServer([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)]) as server:
        terminal.use(server)
        outcome = terminal.run("usage")

    assert outcome == Outcome(
        3,
        "",
        f"headrace: {server.url}/usage answered with something that is not a JSON object: check --url\n",
    )


def test_nothing_that_answers_is_told_with_what_to_do(terminal: CommandLine) -> None:
    with CliServer() as server:
        terminal.use(server)
    outcomes = [terminal.run(*argv) for argv in (("invoke", "writer", "Hi"), ("follow", "writer/inv_1"))]

    assert (
        outcomes
        == [
            Outcome(
                3,
                "",
                f"headrace: nothing answers at {server.url} (Connection refused)\n"
                "  Start the local stack with `make run`, or check --url.\n",
            )
        ]
        * 2
    )


def test_an_issuer_that_refuses_is_told(terminal: CommandLine) -> None:
    with CliServer(document({}, "400 Bad Request"), document({"id_token": "two words"})) as server:
        write_stack(terminal.folder, server.url, "/elsewhere")
        outcomes = [terminal.run("usage"), terminal.run("usage")]

    assert outcomes == [
        Outcome(3, "", "headrace: 400 Bad Request\n"),
        Outcome(2, "", f"headrace: {server.url}/elsewhere holds no token: a token is one word\n"),
    ]


@pytest.mark.parametrize(
    ("argv", "stderr"),
    [
        (["token"], "there is no .local/stack.json here or above: start the local stack with `make run`"),
        (["usage"], "no local stack runs here: start one with `make run`, or give --url and --token-file"),
        (["usage", "--url", "https://h"], "a token is needed: give --token-file FILE or --token-stdin"),
        (["usage", "--url", "h:80"], "h:80 is not the URL of a service: give one like https://HOST/STAGE"),
        (
            ["usage", "--url", "http://[h"],
            "http://[h is not the URL of a service: give one like https://HOST/STAGE",
        ),
        (
            ["usage", "--url", "http://h?a"],
            "http://h?a is not the URL of a service: give one like https://HOST/STAGE",
        ),
        (["usage", "--token-file", "none"], "none can't be read: No such file or directory"),
        (["usage", "--token-file", "empty"], "empty holds no token: a token is one word"),
        (["usage", "--token-file", "latin-1"], "latin-1 is not UTF-8"),
        (["usage", "--token-stdin"], "stdin is not UTF-8"),
        (
            ["invoke", "writer", "-", "--token-stdin"],
            "stdin can't be both the prompt and the token: use --token-file",
        ),
        (
            ["show", "writer/inv_1", "--runtime", "coder"],
            "the invocation names its service or runtime already: leave --url or --runtime out",
        ),
    ],
)
def test_a_command_that_can_not_work_sends_nothing(
    terminal: CommandLine, argv: list[str], stderr: str
) -> None:
    (terminal.folder / "empty").write_text("\n")
    (terminal.folder / "latin-1").write_bytes(b"\xfc")
    outcome = terminal.run(*argv, stdin=b"\xfc")

    assert outcome == Outcome(2, "", f"headrace: {stderr}\n")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_stack_file_is_named(terminal: CommandLine, text: str) -> None:
    write_stack(terminal.folder, "")
    path = terminal.folder / ".local" / "stack.json"
    path.write_text(text)
    outcome = terminal.run("usage")

    what = "is not what `make run` writes: stop the local stack and start it again"
    assert outcome == Outcome(2, "", f"headrace: {path} {what}\n")


def test_a_token_that_would_travel_in_the_clear_is_warned_about(terminal: CommandLine) -> None:
    outcome = terminal.run("usage", "--url", "http://headrace.internal", "--token-stdin")

    assert outcome == Outcome(
        2,
        "",
        "headrace: warning: the token travels unencrypted to headrace.internal\n"
        "headrace: stdin holds no token: a token is one word\n",
    )


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (
            ["follow", "inv-1"],
            "argument invocation: an invocation is inv_..., RUNTIME/inv_... or the URL of its record",
        ),
        (
            ["follow", "inv_1", "--after", "7"],
            "argument --after: an event id is <attempt>.<seq>, such as 1.42",
        ),
        (["follow", "inv_1", "--retry-for", "x"], "argument --retry-for: 'x' is not a number of seconds"),
        (
            ["invoke", "w", "p", "--max-tokens", "0"],
            "argument --max-tokens: '0' is not a whole number from 1",
        ),
        (["invoke", "w", "p", "--session", "a b"], "argument --session: an id is one word of ASCII"),
    ],
)
def test_a_bad_argument_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], argv: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"headrace {argv[0]}: error: {fault}"
