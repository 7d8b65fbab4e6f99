"""What the tests of `headrace smoke` share: how an endpoint is checked, and how its answers are spoilt."""

import json
from collections.abc import Callable
from typing import Any

from tests.cli_server import CliServer, Reply, Request, document
from tests.command_line import CommandLine, Outcome
from tests.smoke_endpoint import ANN, INVOCATIONS, USED, SmokeEndpoint, Spoil, chunk, frame

SUBMISSION = f"POST {INVOCATIONS}"

Change = Callable[[Reply], Reply]


def smoke(terminal: CommandLine, endpoint: SmokeEndpoint, *argv: str) -> tuple[Outcome, str]:
    """Check an endpoint; return what the command left and the endpoint's URL."""
    terminal.look = endpoint.clock.now
    with CliServer(always=endpoint.answer) as server:
        files = ("--token-file", "ann", "--other-token-file", "ben")
        return terminal.run("smoke", server.url, *files, *argv), server.url


def findings(
    terminal: CommandLine, spoil: Spoil, endpoint: SmokeEndpoint | None = None
) -> dict[str, tuple[str, str]]:
    """Check a spoilt endpoint; return the outcome and the words of each check that did not hold."""
    endpoint = endpoint or SmokeEndpoint()
    endpoint.spoil = spoil
    outcome, _ = smoke(terminal, endpoint, "--json")
    report = json.loads(outcome.stdout)
    assert (outcome.exit_code, outcome.stderr, report["held"]) == (1, "", False)
    return {
        each["check"]: (each["outcome"], each["said"]) for each in report["checks"] if each["outcome"] != "ok"
    }


def pieces_of(reply: Reply) -> list[bytes]:
    return [step for step in reply if isinstance(step, bytes)]


def wherever(marker: bytes, change: Change, *, line: str = "") -> Spoil:
    """Change the answers to the caller's requests that hold these bytes."""

    def spoil(request: Request, reply: Reply) -> Reply:
        is_callers = request.headers.get("authorization") == f"Bearer {ANN}"
        is_meant = line in request.line and any(marker in piece for piece in pieces_of(reply))
        return change(reply) if is_callers and is_meant else reply

    return spoil


def replaced(old: bytes, new: bytes) -> Change:
    """Return what changes bytes of a reply, a step at a time; they must be there."""

    def change(reply: Reply) -> Reply:
        changed = [step.replace(old, new) if isinstance(step, bytes) else step for step in reply]
        assert changed != [*reply]
        return changed

    return change


def member(**values: Any) -> Change:
    """Return what changes members of a JSON document."""

    def change(reply: Reply) -> Reply:
        head, _, body = b"".join(pieces_of(reply)).partition(b"\r\n\r\n")
        return document(json.loads(body) | values, head.splitlines()[0].decode().partition(" ")[2])

    return change


def last(kind: str, **value: Any) -> bytes:
    """Return the piece that the eleventh event is."""
    return chunk(frame(11, kind, value))


DONE = last("invocationCompleted", stopReason="end_turn", usage=USED)
