"""`headrace smoke` finds an answer that does not come as it is made, whole and unchanged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli_server import Reply, Request, problem
from tests.command_line import CommandLine
from tests.smoke_endpoint import ANN, BEN, SmokeEndpoint, StepClock, chunk, frame
from tests.smoke_faults import DONE, SUBMISSION, Change, findings, last, pieces_of, replaced


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    (tmp_path / "ann").write_text(ANN)
    (tmp_path / "ben").write_text(BEN)
    return CommandLine(tmp_path, monkeypatch, capsys)


def buffered(clock: StepClock) -> Change:
    """Keep the answer back until it is whole."""
    return lambda reply: [clock.begin, clock.skipping(3.6), *pieces_of(reply)]


def buffered_behind_its_opening(clock: StepClock) -> Change:
    """Let the first bytes through, and keep the rest back."""

    def change(reply: Reply) -> Reply:
        head, opening, *rest = pieces_of(reply)
        return [clock.begin, head, clock.passing(0.1), opening, clock.passing(3.0), *rest]

    return change


def too_quick(clock: StepClock) -> Change:
    """Answer within a moment."""
    return lambda reply: [clock.begin, *pieces_of(reply)]


def stalled(seconds: float) -> Callable[[StepClock], Change]:
    """Let time pass before the last event."""

    def of(clock: StepClock) -> Change:
        def change(reply: Reply) -> Reply:
            *before, _, ending, passing, end = reply
            return [*before, clock.passing(seconds), ending, passing, end]

        return change

    return of


def simply(change: Change) -> Callable[[StepClock], Change]:
    return lambda _: change


def without(step: bytes) -> Change:
    return lambda reply: [each for each in reply if each != step]


NOT_WHOLE = {"usage", "another user", "idempotency"}
"""The checks that have nothing to look at without a whole answer."""


@pytest.mark.promise("smoke-finds-what-is-broken")
@pytest.mark.parametrize(
    ("spoilt", "outcome", "said", "others"),
    [
        (
            buffered,
            "FAILED",
            "6 deltas over 0.0 s; the first byte after 3.60 s, the end after 3.6 s. Some",
            set(),
        ),
        (
            buffered_behind_its_opening,
            "FAILED",
            "6 deltas over 0.0 s; the first byte after 0.10 s, the",
            set(),
        ),
        (
            too_quick,
            "skipped",
            "6 deltas over 0.0 s; the first byte after 0.00 s, the end after 0.0 s: too",
            set(),
        ),
        (stalled(40.0), "FAILED", "nothing came for 40 s, not even a heartbeat", set()),
        (stalled(130.0), "FAILED", "the answer was not over after 120 s", NOT_WHOLE),
        (simply(replaced(b": connected", b": connekted")), "FAILED", "the stream does not begin with", set()),
        (simply(replaced(b", no-transform", b"")), "FAILED", "Cache-Control is 'no-store'", set()),
        (
            simply(replaced(b"\r\nLoc", b"\r\nContent-Encoding: gzip\r\nLoc")),
            "FAILED",
            "Content-Encoding is gzip",
            set(),
        ),
        (
            simply(replaced(b"text/event-stream", b"text/html")),
            "FAILED",
            f"{SUBMISSION} answered 200",
            NOT_WHOLE,
        ),
        (simply(replaced(b"data:", b"date:")), "FAILED", "a line of the stream is not one of an", NOT_WHOLE),
        (
            simply(replaced(b"id: 1.4", b"id: 1-4")),
            "FAILED",
            "an event's id is not <attempt>.<seq>",
            NOT_WHOLE,
        ),
        (simply(replaced(b"id: 1.4", b"id: 1.3")), "FAILED", "1.3 came again after 1.3", NOT_WHOLE),
        (
            simply(replaced(b"id: 1.4", b"id: 1.5")),
            "FAILED",
            "1.5 came after 1.3: what is between",
            NOT_WHOLE,
        ),
        (
            simply(replaced(b"id: 1.4", b"id: 2.1")),
            "FAILED",
            "2.1 came after 1.3: what is between",
            NOT_WHOLE,
        ),
        (
            simply(replaced(DONE, chunk(b": heartbeat\n"))),
            "FAILED",
            "there are 0 terminal events instead of one",
            NOT_WHOLE,
        ),
        (
            simply(replaced(DONE, DONE + chunk(frame(12, "invocationFailed", {})))),
            "FAILED",
            "there are 2 terminal events instead of one",
            NOT_WHOLE,
        ),
        (
            simply(replaced(DONE, DONE + chunk(frame(12, "messageStart", {})))),
            "FAILED",
            "messageStart came after the terminal event",
            NOT_WHOLE,
        ),
        (simply(without(b"0\r\n\r\n")), "FAILED", "the connection broke (IncompleteRead)", NOT_WHOLE),
        (
            simply(replaced(DONE, chunk(b'event: reconnect\ndata: {"reconnect":{"reason":"drain"}}\n\n'))),
            "FAILED",
            "the response ended with reconnect (drain)",
            NOT_WHOLE,
        ),
        (
            simply(
                replaced(DONE, last("invocationFailed", problem={"code": "upstream-failed", "title": "Cut"}))
            ),
            "FAILED",
            "it ended with invocationFailed upstream-failed: Cut",
            {"usage", "idempotency"},
        ),
        (
            simply(lambda _: problem(502, "upstream-misconfigured", "Nope", "Its operator must look.")),
            "FAILED",
            f"{SUBMISSION} answered 502 upstream-misconfigured Its operator must look.",
            NOT_WHOLE,
        ),
        (
            simply(replaced(b"Location: /", b"Location: /dev/")),
            "FAILED",
            "the first event names inv_1, Loc",
            NOT_WHOLE,
        ),
    ],
)
def test_an_answer_that_does_not_stream_as_it_must_is_found(
    terminal: CommandLine,
    spoilt: Callable[[StepClock], Change],
    outcome: str,
    said: str,
    others: set[str],
) -> None:
    endpoint = SmokeEndpoint()
    change = spoilt(endpoint.clock)

    def streams_badly(request: Request, reply: Reply) -> Reply:
        is_first = request.line == SUBMISSION and endpoint.jobs and len(endpoint.jobs) == 1
        is_streamed = is_first and any(callable(step) for step in reply)
        return change(reply) if is_streamed else reply

    found = findings(terminal, streams_badly, endpoint)

    assert found["streaming"][0] == outcome
    assert found["streaming"][1].startswith(said)
    assert found.keys() - {"streaming"} == others
