"""`headrace smoke` finds an endpoint that lets somebody see or do what they must not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli_server import Reply, Request, document, problem
from tests.command_line import CommandLine
from tests.smoke_endpoint import ANN, BEN, INVOCATIONS, Spoil
from tests.smoke_faults import SUBMISSION, findings


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    (tmp_path / "ann").write_text(ANN)
    (tmp_path / "ben").write_text(BEN)
    return CommandLine(tmp_path, monkeypatch, capsys)


def accept(line: str, is_good: Callable[[str], bool], answer: Reply) -> Spoil:
    """Let tokens in that must not be."""

    def spoil(request: Request, reply: Reply) -> Reply:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        return answer if request.line == line and token not in (ANN, BEN) and is_good(token) else reply

    return spoil


USAGE: Reply = document({"windows": []})

SAME_CLAIMS = ANN.rpartition(".")[0]

SAME_SIGNATURE = ANN.rpartition(".")[2]


@pytest.mark.parametrize(
    ("spoil", "check", "said"),
    [
        (accept("GET /usage", lambda token: not token, USAGE), "no token", "GET /usage answered 200 without"),
        (
            accept(SUBMISSION, lambda token: not token, problem(400, "invalid-request", "Bad", "No prompt.")),
            "no token",
            f"{SUBMISSION} answered 400 invalid-request No prompt.",
        ),
        (
            accept(
                "GET /usage",
                lambda token: not token,
                document({"message": "Unauthorized"}, "401 Unauthorized"),
            ),
            "no token",
            "GET /usage answered 401 Unauthorized. It must be a 401 with the problem document",
        ),
        (
            accept("GET /usage", lambda token: "garbage" in token, USAGE),
            "garbage token",
            "GET /usage answered 200",
        ),
        (
            accept("GET /usage", lambda token: token.startswith(SAME_CLAIMS), USAGE),
            "altered token",
            "GET /usage answered 200",
        ),
        (
            accept("GET /usage", lambda token: token.endswith(SAME_SIGNATURE), USAGE),
            "altered token",
            "GET /usage answered 200",
        ),
    ],
)
def test_a_token_that_must_not_count_and_does_is_found(
    terminal: CommandLine, spoil: Spoil, check: str, said: str
) -> None:
    found = findings(terminal, spoil)

    assert {name: outcome for name, (outcome, _) in found.items()} == {check: "FAILED"}
    assert found[check][1].startswith(said)


def unknown(request: Request) -> bool:
    return "/no-such-path" in request.line


def made_up(request: Request) -> bool:
    return len(request.line) > 50 and request.line.startswith(f"GET {INVOCATIONS}/inv_")


@pytest.mark.parametrize("is_meant", [unknown, made_up])
def test_what_is_not_there_and_is_no_404_is_found(
    terminal: CommandLine, is_meant: Callable[[Request], bool]
) -> None:
    forbidden = document({"message": "Missing Authentication Token"}, "403 Forbidden")

    found = findings(terminal, lambda request, reply: forbidden if is_meant(request) else reply)

    ((check, (outcome, said)),) = found.items()
    assert (check, outcome) == ("paths", "FAILED")
    assert "answered 403 Missing Authentication Token. It must be a 404" in said


@pytest.mark.parametrize("ending", ["", "/events"])
def test_an_invocation_that_another_user_sees_is_found(terminal: CommandLine, ending: str) -> None:
    def spoil(request: Request, reply: Reply) -> Reply:
        is_bens = request.headers.get("authorization") == f"Bearer {BEN}"
        return document({}) if is_bens and request.line == f"GET {INVOCATIONS}/inv_1{ending}" else reply

    found = findings(terminal, spoil)

    ((check, (outcome, said)),) = found.items()
    assert (check, outcome) == ("another user", "FAILED")
    assert "One user sees what is another's" in said
