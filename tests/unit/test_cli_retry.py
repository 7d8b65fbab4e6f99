"""What `headrace` sends again, and what it tells the user instead: submissions, cancels, resumes."""

import json
from pathlib import Path

import pytest

from tests.cli_server import RESET, CliServer, Reply, Request, delta, document, event, problem, stream
from tests.command_line import CommandLine, Outcome

JOB = "/runtimes/writer/invocations/inv_1"
SUBMIT = "POST /runtimes/writer/invocations"
RECORD = {"invocationId": "inv_1", "runtimeId": "writer", "state": "running"}
PASSING = {"retryable": True}

STARTED = event("1.1", "invocationStarted", invocationId="inv_1", runtimeId="writer", attempt=1)
COMPLETED = event("1.3", "invocationCompleted", stopReason="end_turn", usage={})
WHOLE = stream(STARTED, delta("1.2", "Hello"), COMPLETED, location=JOB)
BUSY = problem(503, "overloaded", "Too busy", "Try again.", more=PASSING, Retry_After="3")
BAD_GATEWAY = document({"message": "Internal server error"}, "502 Bad Gateway")


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def test_a_submission_that_broke_is_sent_again_under_its_key(terminal: CommandLine) -> None:
    with CliServer([RESET], [b"HTTP/1.1 2"], WHOLE) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello\n", "")
    assert [request.line for request in server.requests] == [SUBMIT] * 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert [request.body for request in server.requests] == [{"prompt": "Say hello"}] * 3
    assert terminal.waits_s == [0.25, 0.5]


def test_two_submissions_have_two_keys(terminal: CommandLine) -> None:
    with CliServer(WHOLE, WHOLE) as server:
        terminal.use(server)
        for _ in range(2):
            terminal.run("invoke", "writer", "Say hello")

    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


@pytest.mark.parametrize(
    ("reply", "wait_s"),
    [
        (BUSY, 3),
        (problem(503, "draining", "Going away", "Try again.", more=PASSING, Retry_After="1"), 1),
        (problem(503, "store-unavailable", "No store", "Try again.", more=PASSING), 0.25),
        (BAD_GATEWAY, 0.25),
        (document({"message": "Endpoint request timed out"}, "504 Gateway Timeout"), 0.25),
        (document({"message": "Too Many Requests"}, "429 Too Many Requests"), 0.25),
        ([b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"], 0.25),
    ],
)
def test_a_service_that_can_not_take_a_job_now_is_asked_again(
    terminal: CommandLine, reply: Reply, wait_s: float
) -> None:
    with CliServer(reply, WHOLE) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello\n", "")
    assert terminal.waits_s == [wait_s]


@pytest.mark.parametrize(
    "reply",
    [
        problem(429, "quota-exceeded", "Nope", "Wait.", more=PASSING, Retry_After="90"),
        problem(429, "concurrency-exceeded", "Nope", "Wait.", more=PASSING, Retry_After="1"),
        problem(422, "idempotency-mismatch", "Nope", "Take a new key."),
        problem(500, "internal-error", "Nope", "It is logged."),
        problem(503, "upstream-throttled", "Nope", "Later.", more=PASSING | {"invocationId": "inv_1"}),
        document({"message": "Forbidden"}, "403 Forbidden"),
    ],
)
def test_what_the_user_has_to_know_is_told_at_once(terminal: CommandLine, reply: Reply) -> None:
    with CliServer(reply) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert (outcome.exit_code, outcome.stdout, terminal.waits_s) == (3, "", [])
    assert "may have been started" not in outcome.stderr


def test_a_service_that_stays_busy_has_started_nothing(terminal: CommandLine) -> None:
    with CliServer(BUSY, BUSY, BUSY) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--retry-for", "5", "-v")

    assert outcome == Outcome(
        3,
        "",
        "HTTP 503 Too busy; trying again in 3.0 s\n"
        "HTTP 503 Too busy; trying again in 2.0 s\n"
        "headrace: 503 Too busy (overloaded)\n  Try again. Try again in 3 s.\n",
    )


@pytest.mark.parametrize("first", [[RESET], BAD_GATEWAY])
def test_a_try_without_an_answer_of_the_service_may_have_started_the_job(
    terminal: CommandLine, first: Reply
) -> None:
    with CliServer(first, BUSY) as server:
        terminal.use(server)
        outcome = terminal.run(
            "invoke", "writer", "Say hello", "--retry-for", "0.25", "--idempotency-key", "k-1"
        )

    assert outcome == Outcome(
        4,
        "",
        "headrace: gave up after 0.25 s without anything new: HTTP 503 Too busy\n"
        "  The job may have been started: give the same command with --idempotency-key k-1 to attach to it\n",
    )
    assert [request.headers["idempotency-key"] for request in server.requests] == ["k-1", "k-1"]


def test_a_refusal_after_a_try_without_an_answer_says_both(terminal: CommandLine) -> None:
    refusal = problem(404, "not-found", "Not found", "No such runtime.")
    with CliServer([RESET], refusal) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--idempotency-key", "k-1")

    assert outcome == Outcome(
        3,
        "",
        "headrace: 404 Not found (not-found)\n"
        "  No such runtime.\n"
        "  The job may have been started: give the same command with --idempotency-key k-1 to attach to it\n",
    )


def test_a_token_that_expired_meanwhile_is_replaced(terminal: CommandLine) -> None:
    refusal = problem(401, "unauthenticated", "Who are you?", "Send a token.")
    with CliServer(BUSY, refusal, WHOLE) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello")

    assert outcome == Outcome(0, "Hello\n", "")
    assert server.essences == [(SUBMIT, f"token-{number}", None) for number in (1, 1, 2)]


def test_a_service_that_went_away_between_two_tries_is_waited_for(terminal: CommandLine) -> None:
    def go_away(_: Request) -> Reply:
        server.go_away()
        return BUSY

    with CliServer(go_away) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Say hello", "--retry-for", "5")

    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert outcome.stderr.startswith(f"headrace: nothing answers at {server.url} (")
    assert terminal.waits_s == [3, 0.5, 1.0, 0.5]


def test_a_detached_submission_is_read_to_its_end_or_sent_again(terminal: CommandLine) -> None:
    accepted = document(RECORD, "202 Accepted", Location=JOB)
    cut = [accepted[0][:-5]]
    with CliServer(cut, accepted) as server:
        terminal.use(server)
        outcome = terminal.run("invoke", "writer", "Hello", "--detach", "--json")

    assert outcome == Outcome(0, json.dumps(RECORD, indent=2) + "\n", "")
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("verb", "status", "said"),
    [
        ("cancel", "202 Accepted", "will be cancelled"),
        ("cancel", "200 OK", "is cancelled"),
        ("resume", "202 Accepted", "goes on"),
    ],
)
def test_an_invocation_is_cancelled_or_resumed(
    terminal: CommandLine, verb: str, status: str, said: str
) -> None:
    reply = document(RECORD, status)
    with CliServer([RESET], BUSY, reply, reply) as server:
        terminal.use(server)
        told = terminal.run(verb, "writer/inv_1")
        as_json = terminal.run(verb, "inv_1", "--runtime", "writer", "--json")

    assert told == Outcome(0, f"writer/inv_1 {said}\n", "")
    assert as_json == Outcome(0, json.dumps(RECORD, indent=2) + "\n", "")
    assert [request.line for request in server.requests] == [f"POST {JOB}/{verb}"] * 4
    assert {(request.headers["content-length"], request.body) for request in server.requests} == {("0", None)}
    assert all("idempotency-key" not in request.headers for request in server.requests)
    assert terminal.waits_s == [0.25, 3]


@pytest.mark.parametrize(
    ("verb", "reply", "stderr"),
    [
        (
            "cancel",
            problem(409, "already-ended", "It has ended", "It is completed.", more={"state": "completed"}),
            "headrace: 409 It has ended (already-ended)\n  It is completed.\n",
        ),
        (
            "resume",
            problem(429, "quota-exceeded", "Quota exceeded", "No room.", more=PASSING, Retry_After="60"),
            "headrace: 429 Quota exceeded (quota-exceeded)\n  No room. Try again in 60 s.\n",
        ),
    ],
)
def test_what_can_not_be_cancelled_or_resumed_is_told(
    terminal: CommandLine, verb: str, reply: Reply, stderr: str
) -> None:
    with CliServer(reply) as server:
        terminal.use(server)
        outcome = terminal.run(verb, "writer/inv_1")

    assert outcome == Outcome(3, "", stderr)
    assert terminal.waits_s == []


def test_a_cancel_that_is_never_answered_is_given_up(terminal: CommandLine) -> None:
    with CliServer([RESET], [RESET]) as server:
        terminal.use(server)
        outcome = terminal.run("cancel", "writer/inv_1", "--retry-for", "0.1")

    assert (outcome.exit_code, outcome.stdout) == (4, "")
    assert outcome.stderr.startswith(
        "headrace: gave up after 0.1 s without anything new: the connection broke"
    )
