"""Where `headrace` sends its requests and with whose token, and which arguments it does not take."""

from pathlib import Path

import pytest

from service.cli import main
from tests.cli_server import CliServer, document, problem
from tests.command_line import CommandLine, Outcome, write_stack

RECORD = {"invocationId": "inv_1", "runtimeId": "writer", "state": "running"}


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


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
        (
            ["invoke", "w", "p", "--idempotency-key", "k" * 256],
            "argument --idempotency-key: a key is one word of at most 255 characters of ASCII",
        ),
    ],
)
def test_a_bad_argument_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], argv: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"headrace {argv[0]}: error: {fault}"
