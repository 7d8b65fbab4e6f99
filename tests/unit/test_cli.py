"""The commands of `headrace` that do not stream: where they send their requests, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli_server import CliServer, document, event, problem, stream
from tests.command_line import CommandLine, Outcome

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
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


def test_a_detached_job_without_a_name_is_not_taken_for_granted(terminal: CommandLine) -> None:
    with CliServer(document({}, "202 Accepted")) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Hello", "--detach", "--idempotency-key", "k-1")

    assert outcome == Outcome(
        4,
        "",
        "headrace: the service took the job and did not name it\n"
        "  The job may have been started: give the same command with --idempotency-key k-1 to attach to it\n",
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


def test_show_says_what_a_paused_or_cancelled_invocation_waits_for_or_why_it_ended(
    terminal: CommandLine,
) -> None:
    paused = {
        "runtimeId": "writer",
        "invocationId": "inv_1",
        "state": "paused",
        "cancelRequestedAt": "2026-11-21T16:43:00.000Z",
        "pausedAt": "2026-11-21T16:42:00.000Z",
        "resumesAt": "2026-11-22T16:50:00.000Z",
    }
    ended = {"id": "1.2", "invocationCancelled": {"reason": "requested", "usage": USAGE}}
    cancelled = {"runtimeId": "writer", "invocationId": "inv_1", "state": "cancelled", "terminalEvent": ended}
    with CliServer(document(paused), document(cancelled)) as server:
        terminal.use(server)
        outcomes = [terminal.run("show", "writer/inv_1") for _ in range(2)]

    assert outcomes == [
        Outcome(
            0,
            "invocation  writer/inv_1\n"
            "state       paused\n"
            "cancel      2026-11-21T16:43:00.000Z\n"
            "paused      2026-11-21T16:42:00.000Z\n"
            "resumes     2026-11-22T16:50:00.000Z\n"
            "usage       0 input, 0 output tokens\n",
            "",
        ),
        Outcome(
            0,
            "invocation  writer/inv_1\n"
            "state       cancelled (requested)\n"
            "usage       0 input, 0 output tokens\n",
            "",
        ),
    ]


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
        ([b"HTTP/1.1 501 Oops\r\nContent-Length: 4\r\n\r\n"], "headrace: 501 Oops\n"),
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
