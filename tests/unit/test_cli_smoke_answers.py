"""`headrace smoke` finds wrong usage, second jobs, lost events, false records and cancels that do nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli_server import Reply, Request, document, problem
from tests.command_line import CommandLine
from tests.smoke_endpoint import ANN, BEN, INVOCATIONS, USED, SmokeEndpoint, Spoil, chunk, frame
from tests.smoke_faults import (
    Change,
    findings,
    member,
    pieces_of,
    replaced,
    wherever,
)


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    (tmp_path / "ann").write_text(ANN)
    (tmp_path / "ben").write_text(BEN)
    return CommandLine(tmp_path, monkeypatch, capsys)


def windows(**values: Any) -> Change:
    """Change the one window of GET /usage."""

    def change(reply: Reply) -> Reply:
        body = json.loads(b"".join(pieces_of(reply)).partition(b"\r\n\r\n")[2])
        return document(body | {"windows": [body["windows"][0] | values]})

    return change


def after_the_answer(endpoint: SmokeEndpoint, change: Change) -> Spoil:
    def spoil(request: Request, reply: Reply) -> Reply:
        return change(reply) if request.line == "GET /usage" and endpoint.jobs else reply

    return spoil


@pytest.mark.parametrize(
    ("change", "outcome", "said"),
    [
        (
            windows(used=1039),
            "FAILED",
            "the daily window rose by 39, the answer used 38 tokens, 0 stay reserved",
        ),
        (
            windows(reserved=7),
            "FAILED",
            "the daily window rose by 38, the answer used 38 tokens, 7 stay reserved",
        ),
        (member(windows=[]), "FAILED", "GET /usage shows no window"),
        (member(windows=[1]), "FAILED", "an answer has not the form that it must have (AttributeError)"),
        (
            lambda reply: windows(used=1050)(member(runningInvocations=1)(reply)),
            "skipped",
            "the daily window rose by 50, the answer used 38 tokens, and other invocations of this user ran",
        ),
        (
            windows(used=1008, resetsAt="2026-11-22T17:00:00Z"),
            "skipped",
            "the daily window rose by 8, the answer used 38 tokens: older use left the window meanwhile",
        ),
    ],
)
def test_use_that_is_not_what_was_counted_is_found_or_explained(
    terminal: CommandLine, change: Change, outcome: str, said: str
) -> None:
    endpoint = SmokeEndpoint()

    found = findings(terminal, after_the_answer(endpoint, change), endpoint)

    assert found.keys() == {"usage"}
    assert found["usage"][0] == outcome
    assert found["usage"][1].startswith(said)


def test_use_that_metadata_record_and_ending_tell_differently_is_found(terminal: CommandLine) -> None:
    of_record = wherever(b'"usage"', member(usage=USED | {"outputTokens": 7}), line=f"{INVOCATIONS}/inv_1")
    metadata = b'"metadata": {"usage": {"inputTokens": 30'
    of_metadata = wherever(metadata, replaced(metadata, metadata[:-1] + b"1"))

    found = [findings(terminal, spoil) for spoil in (of_record, of_metadata)]

    record = "the record 30 input, 7 output, 5 cache read, 2 cache write tokens"
    assert [each["usage"][1].partition(". ")[0] for each in found] == [
        f"the terminal event has 30 input, 6 output, 5 cache read, 2 cache write tokens, {record}",
        "the turns' metadata sum up to 39 tokens, the terminal event to 38",
    ]


TAKEN = document({"invocationId": "inv_8"}, "202 Accepted")

ACCEPTED = b"Preference-Applied"


def retried(change: Change) -> Spoil:
    """Change the answers to submissions whose key has been sent before."""
    keys: set[str] = set()

    def spoil(request: Request, reply: Reply) -> Reply:
        key = request.headers.get("idempotency-key")
        is_retry = key in keys
        keys.update({key} if key else ())
        return change(reply) if is_retry else reply

    return spoil


@pytest.mark.parametrize(
    ("check", "spoil", "said"),
    [
        (
            "idempotency",
            retried(replaced(b"inv_1", b"inv_9")),
            "the same key started inv_9. A retry would be",
        ),
        ("idempotency", retried(replaced(b"word3", b"word4")), "the same key gave another answer"),
        (
            "idempotency",
            wherever(b"422 Nope", lambda _: TAKEN),
            "the same key with another body answered 202",
        ),
        (
            "respond-async",
            wherever(ACCEPTED, replaced(b"Location: ", b"Location: /dev")),
            f"the record names inv_2, Location /dev{INVOCATIONS}/inv_2",
        ),
        (
            "respond-async",
            wherever(ACCEPTED, replaced(b"Preference-Applied", b"Preference-Lost")),
            "Preference-Applied is None",
        ),
        (
            "respond-async",
            wherever(ACCEPTED, replaced(b"202 Accepted", b"200 OK")),
            "the submission answered 200",
        ),
    ],
)
def test_a_submission_that_is_not_taken_as_it_was_meant_is_found(
    terminal: CommandLine, check: str, spoil: Spoil, said: str
) -> None:
    found = findings(terminal, spoil)

    assert found[check][0] == "FAILED"
    assert found[check][1].startswith(said)


def follows(change: Change, *, after: str | None = None, number: int = 2) -> Spoil:
    """Change what a follower gets: after a cursor, or (None) the second time from the start."""
    seen: list[Request] = []

    def spoil(request: Request, reply: Reply) -> Reply:
        if request.line != f"GET {INVOCATIONS}/inv_{number}/events":
            return reply
        cursor = request.headers.get("last-event-id")
        seen.append(request)
        return change(reply) if cursor == after and (after or len(seen) > 1) else reply

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (follows(replaced(b"id: 1.6", b"id: 1.5"), after="1.5"), "1.5 came again after 1.5"),
        (
            follows(replaced(b"id: 1.6", b"id: 1.7"), after="1.5"),
            "1.7 came after 1.5: what is between them is",
        ),
        (follows(replaced(b"id: 1.6", b"id: 1.1"), after="1.5"), "1.1 came again after 1.5"),
        (
            follows(replaced(b"word2", b"word3")),
            "read from the start it is not what came up to 1.5 and after it",
        ),
        (
            follows(lambda _: problem(503, "store-unavailable", "Nope", "Try again."), after="1.5"),
            f"GET {INVOCATIONS}/inv_2/events answered 503 store-unavailable Try again.",
        ),
    ],
)
def test_a_reader_that_does_not_get_the_rest_once_and_in_order_is_found(
    terminal: CommandLine, spoil: Spoil, said: str
) -> None:
    found = findings(terminal, spoil)

    assert found.keys() == {"resume", "records"}
    assert found["resume"][0] == "FAILED"
    assert found["resume"][1].startswith(said)
    assert found["records"] == ("skipped", "there is no whole log to compare with: see resume")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            wherever(b'"text"', member(result={"text": "w"}), line="inv_2"),
            "the record's text is not the text of",
        ),
        (
            wherever(b"terminalEvent", member(terminalEvent=None), line="inv_2"),
            "the record is completed, and does",
        ),
        (wherever(b'"invocations"', member(invocations=[])), "the list of invocations lacks it"),
    ],
)
def test_a_record_that_is_not_its_log_s_is_found(terminal: CommandLine, spoil: Spoil, said: str) -> None:
    is_record = {"inv_2/events", "/cancel"}

    def of_records(request: Request, reply: Reply) -> Reply:
        return reply if any(part in request.line for part in is_record) else spoil(request, reply)

    found = findings(terminal, of_records)

    assert found.keys() == {"records"}
    assert found["records"][1].startswith(said)


CANCELLED = chunk(frame(6, "invocationCancelled", {"reason": "requested", "usage": USED}))


@pytest.mark.parametrize(
    ("spoil", "outcome", "said"),
    [
        (
            wherever(b"inv_3", lambda _: problem(409, "already-ended", "Nope", "It is."), line="/cancel"),
            "skipped",
            "the answer was over before it could be cancelled",
        ),
        (
            wherever(b"inv_3", lambda _: problem(404, "not-found", "Nope", "It is not."), line="/cancel"),
            "FAILED",
            "the cancel answered 404 not-found It is not.",
        ),
        (
            wherever(
                CANCELLED,
                replaced(CANCELLED, chunk(frame(6, "invocationCompleted", {"usage": USED}))),
                line="/events",
            ),
            "skipped",
            "the answer was over before it was cancelled",
        ),
        (
            wherever(CANCELLED, replaced(b"requested", b"abandoned"), line="/events"),
            "FAILED",
            "it ended with invocationCancelled (abandoned)",
        ),
        (
            wherever(b'"state"', member(state="running"), line="GET /runtimes/writer/invocations/inv_3"),
            "FAILED",
            "its record is running",
        ),
    ],
)
def test_a_cancel_that_ends_nothing_is_found(
    terminal: CommandLine, spoil: Spoil, outcome: str, said: str
) -> None:
    found = findings(terminal, spoil)

    assert found.keys() == {"cancel"}
    assert found["cancel"][0] == outcome
    assert found["cancel"][1].startswith(said)


def test_a_cancel_that_takes_long_is_found(terminal: CommandLine) -> None:
    endpoint = SmokeEndpoint()

    def slow(reply: Reply) -> Reply:
        return [endpoint.clock.skipping(11.0), *reply]

    found = findings(terminal, wherever(CANCELLED, slow, line="/events"), endpoint)

    assert found == {"cancel": ("FAILED", "it took 11.0 s. Look for a tool that ignores its cancellation")}
