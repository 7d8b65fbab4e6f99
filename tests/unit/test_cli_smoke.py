"""`headrace smoke` as a command: what it prints, what it leaves behind, what it needs to begin."""

import json
from pathlib import Path

import pytest

from tests.cli_server import CliServer, Reply, Request, document, problem
from tests.command_line import CommandLine, Outcome
from tests.smoke_endpoint import ANN, BEN, INVOCATIONS, SmokeEndpoint
from tests.smoke_faults import (
    findings,
    pieces_of,
    replaced,
    smoke,
)

CHECKS = [
    *("no token", "garbage token", "altered token", "paths", "streaming", "usage", "another user"),
    *("idempotency", "respond-async", "resume", "records", "cancel"),
]


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    (tmp_path / "ann").write_text(ANN)
    (tmp_path / "ben").write_text(BEN)
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.mark.promise("smoke-finds-what-is-broken")
def test_a_good_endpoint_passes_and_every_line_says_what_was_seen(terminal: CommandLine) -> None:
    outcome, _ = smoke(terminal, SmokeEndpoint())

    used = "30 input, 6 output, 5 cache read, 2 cache write tokens"
    assert outcome == Outcome(
        0,
        f"""\
ok       no token           401 on GET /usage and on a submission
ok       garbage token      401 on GET /usage and on a submission
ok       altered token      401 with another signature, and with another subject
ok       paths              404 for a path that is not there, and for an invocation that is not
ok       streaming          6 deltas over 1.5 s; the first byte after 0.30 s, the end after 3.6 s
ok       usage              {used} in metadata, terminal event, record, GET /usage (daily)
ok       another user       404 for another user: record, events and cancel
ok       idempotency        the same key attaches to the same events; another body is a 422
ok       respond-async      202 and the record of inv_2
ok       resume             hung up after 1.5, the rest came once and in order up to 1.11
ok       records            completed, with ending and text of its events; listed
ok       cancel             ended 0.0 s later, {used}
noticed  401                from the service, application/problem+json, WWW-Authenticate Bearer
noticed  404 to a stream    404 not-found There is no such path.
noticed  stage              none in the URL
noticed  ARN as runtime     arrives as it was sent
noticed  request id         ours came back: nothing in front of the service sets its own
noticed  first byte         after 0.30 s, headers after 0.00 s
noticed  heartbeats         0; the longest silence was 0.3 s
noticed  usage when cut     {used}: compare with the bill
12 of 12 checks held
""",
        "",
    )


def test_what_was_started_and_not_seen_to_end_is_cancelled(terminal: CommandLine) -> None:
    asked: list[str] = []

    def spoil(request: Request, reply: Reply) -> Reply:
        asked.append(request.line)
        if request.line.endswith("/inv_2/events"):
            return problem(503, "overloaded", "Nope", "Try again.")
        return reply

    found = findings(terminal, spoil)

    assert found.keys() == {"resume", "records"}
    assert asked[-1] == f"POST {INVOCATIONS}/inv_2/cancel"


def test_what_was_started_is_cancelled_though_nothing_came_but_the_headers(terminal: CommandLine) -> None:
    asked: list[str] = []

    def cut(request: Request, reply: Reply) -> Reply:
        asked.append(request.line)
        streams = request.line == f"POST {INVOCATIONS}" and b"text/event-stream" in b"".join(pieces_of(reply))
        return [pieces_of(reply)[0]] if streams else reply

    found = findings(terminal, cut)

    assert (found["streaming"][0], found["cancel"][0]) == ("FAILED", "FAILED")
    assert sorted(asked[-2:]) == [f"POST {INVOCATIONS}/inv_{number}/cancel" for number in (1, 3)]


@pytest.mark.promise("smoke-finds-what-is-broken")
def test_no_line_has_a_part_of_a_token_whatever_the_endpoint_sends(terminal: CommandLine) -> None:
    def echo(request: Request, reply: Reply) -> Reply:
        detail = f"You sent {request.headers.get('authorization')}\x1b[2J"
        return problem(404, "odd", "Nope", detail) if "no-such-path" in request.line else reply

    outcome, _ = smoke(terminal, SmokeEndpoint(echo))

    assert (
        "answered 404 odd You sent Bearer [token].[token].[token]\N{REPLACEMENT CHARACTER}[2J."
        in outcome.stdout
    )
    assert [
        part for part in (*ANN.split("."), *BEN.split(".")) if part in outcome.stdout + outcome.stderr
    ] == []


@pytest.mark.promise("smoke-finds-what-is-broken")
def test_the_line_about_an_endpoint_that_can_not_be_checked_has_no_part_of_a_token(
    terminal: CommandLine,
) -> None:
    def echo(request: Request, _: Reply) -> Reply:
        return problem(503, "odd", "Nope", f"You sent {request.headers.get('authorization')}\x1b[2J")

    outcome, _ = smoke(terminal, SmokeEndpoint(echo))

    assert "answered 503 odd You sent Bearer [token].[token].[token]" in outcome.stderr
    assert [part for part in ANN.split(".") if part in outcome.stdout + outcome.stderr] == []


def test_an_api_gateway_in_front_is_noticed(terminal: CommandLine) -> None:
    ids = b"x-amzn-RequestId: 4f6d\r\nX-Request-Id: 4f6d\r\n"
    unauthorized = problem(401, "unauthenticated", "Nope", "", x_amzn_Remapped_WWW_Authenticate="Bearer")
    refusal = replaced(b', "detail": ""', b"              ")(unauthorized)

    def edge(request: Request, reply: Reply) -> Reply:
        if request.line != "GET /usage":
            return reply
        served = [piece.replace(b"X-Request-Id", b"X-Was") for piece in pieces_of(reply)]
        return replaced(b"Content-Length", ids + b"Content-Length")(
            refusal if b" 401 " in served[0] else served
        )

    outcome, _ = smoke(terminal, SmokeEndpoint(edge))

    noticed = [line for line in outcome.stdout.splitlines() if line.startswith("noticed")]
    assert noticed[0] == (
        "noticed  401                from API Gateway, application/problem+json, WWW-Authenticate as "
        "x-amzn-remapped: Bearer"
    )
    assert noticed[4] == (
        "noticed  request id         API Gateway's: the same in its access log, the service's and the answer"
    )


def test_without_another_user_s_token_that_check_is_said_to_be_left_out(terminal: CommandLine) -> None:
    endpoint = SmokeEndpoint()
    terminal.look = endpoint.clock.now
    with CliServer(always=endpoint.answer) as server:
        outcome = terminal.run("smoke", f"{server.url}/", "--token-file", "ann", "--json")

    report = json.loads(outcome.stdout)
    assert (outcome.exit_code, report["held"], report["url"], report["runtimeId"]) == (
        0,
        True,
        server.url,
        "writer",
    )
    assert [each["check"] for each in report["checks"]] == [name for name in CHECKS if name != "another user"]
    assert report["noticed"]["another user"] == "was not asked for: give --other-token-file"


@pytest.mark.parametrize(
    ("reply", "stderr"),
    [
        (
            document({"message": "Forbidden"}, "403 Forbidden"),
            "GET /runtimes answered 403 Forbidden Forbidden. Is the stage missing in the URL, as in https://HOST/dev?",
        ),
        (
            document({"message": "Unauthorized"}, "401 Unauthorized"),
            (
                "GET /runtimes answered 401 Unauthorized Unauthorized. The token says token_use=id, "
                "exp=1795280400: it must be an ID token (id) of one of the deployment's clients that has not "
                "expired"
            ),
        ),
        (
            problem(503, "issuer-unavailable", "Nope", "Try again."),
            "GET /runtimes answered 503 issuer-unavailable Try again.",
        ),
        (
            document({"runtimes": []}),
            "this user may call no runtime: put it into a group that headrace.toml names",
        ),
        (
            document({"runtimes": [{"runtimeId": "coder"}]}),
            "this user may call no runtime writer, but coder",
        ),
        (
            document({"hello": "world"}),
            "URL/runtimes did not list runtimes: is that the URL of a Headrace?",
        ),
    ],
)
def test_what_can_not_be_checked_at_all_is_one_clear_line(
    terminal: CommandLine, reply: Reply, stderr: str
) -> None:
    with CliServer(reply) as server:
        outcome = terminal.run("smoke", server.url, "--token-file", "ann", "--runtime", "writer")

    assert outcome == Outcome(3, "", f"headrace: {stderr.replace('URL/', f'{server.url}/')}\n")


@pytest.mark.parametrize(
    ("argv", "stderr"),
    [
        (
            ["ftp://example.com"],
            "ftp://example.com is not the URL of a service: give one like https://HOST/STAGE",
        ),
        (["http://127.0.0.1:1"], "a token is needed: give --token-file FILE or --token-stdin"),
        (
            ["http://127.0.0.1:1", "--token-file", "word"],
            "that is no ID token: one has three parts with a dot in between",
        ),
    ],
)
def test_a_wrong_url_or_token_is_told_before_anything_is_sent(
    terminal: CommandLine, argv: list[str], stderr: str
) -> None:
    (terminal.folder / "word").write_text("secret")

    outcome = terminal.run("smoke", *argv)

    assert outcome == Outcome(2, "", f"headrace: {stderr}\n")


def test_a_host_that_does_not_answer_is_named(terminal: CommandLine) -> None:
    with CliServer() as server:
        pass
    outcome = terminal.run("smoke", server.url, "--token-file", "ann")

    assert outcome.exit_code == 3
    assert outcome.stderr.startswith(f"headrace: nothing answers at {server.url} (")
