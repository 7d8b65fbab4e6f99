"""The audit of the drill is silent about what is right, and finds each thing that can be wrong.

The evidence is made by hand: one job of two turns, whose first attempt was lost while its tool ran.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from local.account import Call
from tests.e2e.drill.audit import audit
from tests.e2e.drill.books import Books
from tests.e2e.drill.clients import Reading, Wish
from tests.e2e.drill.entries import Entry, Id, answer_of, reassemble
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.faults import Deed
from tests.e2e.drill.figures import line, report
from tests.e2e.drill.jobs import Job
from tests.e2e.drill.tools import Noted, result_of

INVOCATION = "inv_1"
JOB = Job(seed=1, number=7, turns=2, wide=False)
KEY = f"{INVOCATION}:1:1"
ARGUMENTS = {"stretch": "canary-x", "takes_s": 0.1}


def entry(event_id: str, kind: str, **value: Any) -> Entry:
    return Entry(Id.of(event_id), json.dumps({kind: value}).encode())


def text(event_id: str, said: str) -> Entry:
    return entry(event_id, "contentBlockDelta", contentBlockIndex=0, delta={"text": said})


ASKED = [
    entry("1.1", "invocationStarted", invocationId=INVOCATION),
    entry("1.2", "messageStart", role="assistant"),
    text("1.3", "canary-1 "),
    entry("1.4", "contentBlockStart", contentBlockIndex=1, start={"toolUse": {"toolUseId": "t1"}}),
    entry("1.5", "contentBlockDelta", delta={"toolUse": {"input": json.dumps(ARGUMENTS)}}),
    entry("1.6", "messageStop", stopReason="tool_use"),
    entry("1.7", "metadata", usage={}),
]
VOID = entry("1.8", "toolStarted", toolUseId="t1")
ANSWERED = [
    entry("2.1", "attemptRestarted", attempt=2, rewindTo="1.7"),
    entry("2.2", "toolStarted", toolUseId="t1"),
    entry("2.3", "toolFinished", toolUseId="t1", status="success"),
    entry("2.4", "messageStart", role="assistant"),
    text("2.5", f"heard t1 success {result_of(KEY, ARGUMENTS)}\n"),
    text("2.6", "canary-2 "),
    entry("2.7", "messageStop", stopReason="end_turn"),
    entry("2.8", "metadata", usage={}),
]
COMPLETED = entry("2.9", "invocationCompleted", usage={"inputTokens": 510, "outputTokens": 2})
LOG = [*ASKED, *ANSWERED, COMPLETED]


ACCOUNT = {"user_id": "ann", "committed_tokens": 512, "settled_tokens": 512, "running": 0}


def usage_record(attempt: int, turn: int, **changed: Any) -> dict[str, Any]:
    row = {
        "invocation_id": INVOCATION,
        "attempt": attempt,
        "turn": turn,
        "sub": "ann",
        "model": "m",
        "input_tokens": 10,
        "output_tokens": 2,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "estimated": 0,
        "charged": 1,
        "settled_at_ms": 1000,
    }
    return row | changed


def call(number: int, key: str, input_tokens: int, output_tokens: int, **changed: Any) -> Call:
    made = Call(number, "m", "r", 2000, input_tokens, output_tokens, reported=True, outcome="finished")
    return replace(made, **{"request_metadata": {"headrace:call": key}, "ended_at_ms": 2500, **changed})


def tables() -> dict[str, list[dict[str, Any]]]:
    counts = {"input_tokens": 510, "output_tokens": 2, "cache_read_tokens": 0, "cache_write_tokens": 0}
    row = {"invocation_id": INVOCATION, "state": "completed", "updated_at_ms": 9000}
    attempts = {"invocation_id": INVOCATION, "granted_seq": 7, "ended": "lost"}
    return {
        "invocations": [row | counts],
        "attempts": [
            attempts | {"number": 1, "started_at_ms": 1000},
            attempts | {"number": 2, "started_at_ms": 5000, "ended": "finished", "granted_seq": 9},
        ],
        "usage": [
            {"user_id": "ann", "period_id": period, **counts}
            for period in ("10min:2026-11-21:16:40", "monthly:2026-11")
        ],
        "usage_records": [
            usage_record(1, 1),
            usage_record(2, 2, input_tokens=500, output_tokens=0, estimated=1, model=""),
        ],
        "reservations": [],
        "leases": [{"owner": "p1", "expires_at_ms": 0}],
        "accounts": [ACCOUNT],
    }


def good() -> Evidence:
    readings = [Reading("sse", [*ASKED, VOID, *ANSWERED, COMPLETED]), Reading("ndjson", list(LOG))]
    wish = Wish(JOB, "user-0", "key", f"/runtimes/surveyor/invocations/{INVOCATION}", readings)
    body = json.dumps({"messages": [{"role": "user", "content": [{"text": JOB.prompt}]}]})
    windows = [{"used": 512, "reserved": 0}, {"used": 512, "reserved": 0}]
    record = {
        "state": "completed",
        "result": {"text": answer_of(LOG).text},
        "terminalEvent": {"id": "2.9", "invocationCompleted": COMPLETED.value},
    }
    return Evidence(
        seed=1,
        wishes=[wish],
        books=Books(tables(), {INVOCATION: LOG}, {INVOCATION: body}),
        served={INVOCATION: LOG},
        records={INVOCATION: record},
        accounts={"ann": {"windows": windows, "runningInvocations": 0}},
        calls=[
            call(1, f"{INVOCATION}:1:1", 10, 2),
            call(2, f"{INVOCATION}:2:2", 20, 0, outcome="refused"),
            call(3, f"{INVOCATION}:2:2", 20, 3, started_at_ms=6000),
        ],
        noted=[Noted(KEY, ARGUMENTS, "t1", 11, 3000), Noted(KEY, ARGUMENTS, "t1", 12, 5500)],
        log_texts={"service-1": '{"level":"WARNING","message":"taken over"}\n', "issuer": ""},
        stopped_at_ms=10_000,
        deeds=[Deed(4000, "service-1: kill, 0.50 s")],
    )


Doctor = Callable[[Evidence], Evidence]


def rows(table: str, *changed: Mapping[str, Any]) -> Doctor:
    """Put these rows in the place of a table's own."""

    def doctored(evidence: Evidence) -> Evidence:
        books = evidence.books
        return replace(evidence, books=replace(books, tables={**books.tables, table: list(changed)}))

    return doctored


def everywhere(*log: Entry) -> Doctor:
    """Let store, API and readers agree on another log."""

    def doctored(evidence: Evidence) -> Evidence:
        (wish,) = evidence.wishes
        return replace(
            evidence,
            books=replace(evidence.books, logs={INVOCATION: log}),
            served={INVOCATION: list(log)},
            wishes=[replace(wish, readings=[Reading("sse", list(log))])],
            records={
                INVOCATION: {
                    **evidence.records[INVOCATION],
                    "result": {"text": answer_of(reassemble(log)).text},
                }
            },
        )

    return doctored


def received(*entries: Entry) -> Doctor:
    """Let a reader have received these events."""
    return lambda evidence: replace(
        evidence, wishes=[replace(evidence.wishes[0], readings=[Reading("ndjson", list(entries))])]
    )


def changed(**members: Any) -> Doctor:
    return lambda evidence: replace(evidence, **members)


def also_submitted(prompt: str) -> Doctor:
    body = json.dumps({"messages": [{"role": "user", "content": [{"text": prompt}]}]})
    return lambda evidence: replace(
        evidence, books=replace(evidence.books, inputs={**evidence.books.inputs, "inv_2": body})
    )


def failed(code: str) -> Entry:
    return entry("2.9", "invocationFailed", problem={"code": code})


def told(*used: int, running: int = 0) -> Doctor:
    windows = [{"used": tokens, "reserved": 0} for tokens in used]
    return changed(accounts={"ann": {"windows": windows, "runningInvocations": running}})


def logged(name: str, said: str) -> Doctor:
    return changed(log_texts={name: said})


def terminal_usage(tokens: int) -> Doctor:
    completed = {"usage": {"inputTokens": tokens, "outputTokens": 2}}
    return changed(records={INVOCATION: {"terminalEvent": {"invocationCompleted": completed}}})


ROW, ATTEMPTS, RECORDS = tables()["invocations"][0], tables()["attempts"], tables()["usage_records"]
HELD = {"invocation_id": INVOCATION, "turn": 2, "tokens": 40}
AGAIN = [Noted(KEY, ARGUMENTS, "t1", 1, 1), Noted(KEY, {}, "t1", 1, 2)]
FIRST = f"{INVOCATION}:1:1"
TWO_TEXTS = [*ASKED, *ANSWERED, entry("2.9", "messageStart"), COMPLETED._replace(id=Id(2, 10))]
MISHEARD = [*ASKED, *ANSWERED[:4], text("2.5", "heard t1 success ?\n"), *ANSWERED[5:], COMPLETED]
ERROR_LINE = '{"level":"ERROR","message":"runtime failed"}'
STACK_LINE = '{"level":"INFO","message":"x","exception":"Traceback"}'
BROKEN: Sequence[tuple[str, str, Doctor]] = [
    ("the drill itself", "service-2 ended by itself", changed(incidents=["service-2 ended by itself"])),
    ("one job once", "is ['inv_1', 'inv_2']", also_submitted(JOB.prompt)),
    ("one job once", "nobody wanted this", also_submitted("canary another")),
    ("one job once", "is None", lambda it: replace(it, books=replace(it.books, inputs={}))),
    ("one ending", "terminal events [], and ends", everywhere(*LOG[:-1])),
    ("one ending", "its log has the terminal events", everywhere(*LOG, COMPLETED._replace(id=Id(2, 10)))),
    ("one ending", "had some left", everywhere(*LOG[:-1], failed("attempts-exhausted"))),
    ("one ending", "it ended with", everywhere(*LOG[:-1], failed("interrupted"))),
    ("one ending", "its row running", rows("invocations", ROW | {"state": "running"})),
    ("one ending", "the API None", changed(records={})),
    ("one ending", "reader saw the terminal events []", received(*LOG[:-1])),
    ("one log", "the API's log", changed(served={INVOCATION: LOG[1:]})),
    ("one log", "the store's ids fall back: ['1.3, 1.3']", everywhere(*LOG[:3], *LOG[2:])),
    ("one log", "reader's ids fall back: ['1.7, 1.3']", received(*ASKED, *LOG[2:])),
    ("one log", "15 and 16 events, first apart", received(*LOG[:4], *LOG[5:])),
    ("one log", "16 and 16 events, first apart", received(*LOG[:2], text("1.3", "other "), *LOG[3:])),
    ("one log", "reader's log is not the store's", received(*LOG, entry("3.1", "toolStarted"))),
    ("one log", "its answer has 3 of 2 turns", everywhere(*TWO_TEXTS)),
    ("one log", "text of its record", changed(records={INVOCATION: {"state": "completed"}})),
    ("the ledger", "the upstream generated (11, 2)", changed(calls=[call(1, FIRST, 11, 2)])),
    ("the ledger", "is estimated at (500, 0)", changed(calls=[call(1, f"{INVOCATION}:2:2", 500, 1)])),
    ("the ledger", "has no usage record", rows("usage_records", RECORDS[1])),
    ("the ledger", "was called 2 times", changed(calls=[call(n, FIRST, 5, 1) for n in (1, 2)])),
    ("the ledger", "that no call generated", changed(calls=[])),
    ("the ledger", "still runs", changed(calls=[call(1, FIRST, 10, 2, outcome="running")])),
    ("the ledger", "does not say which", changed(calls=[call(1, "", 10, 2)])),
    ("the bill", "is told [512, 513]", told(512, 513)),
    ("the bill", "in monthly", rows("usage", tables()["usage"][0])),
    ("the bill", "ann has", rows("usage_records", RECORDS[0], RECORDS[1] | {"charged": 0})),
    ("the bill", "its row has (511, 2)", rows("invocations", ROW | {"input_tokens": 511})),
    ("the bill", "its terminal event says", terminal_usage(511)),
    ("the accounts", "has (513, 512, 0)", rows("accounts", ACCOUNT | {"committed_tokens": 513})),
    ("the accounts", "has (512, 512, 1)", rows("accounts", ACCOUNT | {"running": 1})),
    ("the accounts", "ann has no account", rows("accounts")),
    ("the accounts", "charged was 12", rows("usage_records", RECORDS[0])),
    ("nothing is held", "40 tokens of turn 2", rows("reservations", HELD)),
    ("nothing is held", "ann runs 1", told(512, 512, running=1)),
    ("nothing is held", "outlives its process", rows("leases", {"owner": "p1", "expires_at_ms": 10_001})),
    ("one call of a tool", "has other arguments", changed(noted=AGAIN)),
    ("one call of a tool", "was not run", changed(noted=[])),
    ("one call of a tool", "turn 2 heard ['heard t1 success ?']", everywhere(*MISHEARD)),
    ("one call of a tool", "turn 2 heard []", everywhere(*ASKED, *ANSWERED[:4], *ANSWERED[5:], COMPLETED)),
    ("spending ends", "1 calls began after", changed(calls=[call(1, FIRST, 10, 2, started_at_ms=5001)])),
    ("clean logs", "has logged content", logged("issuer", "asked: canary {}")),
    ("clean logs", "ERROR 'runtime failed'", logged("service-1", ERROR_LINE)),
    ("clean logs", "a line that is no JSON", logged("service-1", "Fatal Python error")),
    ("clean logs", "a stack", logged("service-1", STACK_LINE)),
    ("clean logs", "a fault", logged("bedrock", "2026-11-21 ERROR request failed")),
]


def test_good_evidence_has_no_findings() -> None:
    assert audit(good()) == []


@pytest.mark.parametrize(("promise", "words", "doctor"), BROKEN, ids=[words for _, words, _ in BROKEN])
def test_a_broken_promise_is_found(promise: str, words: str, doctor: Doctor) -> None:
    evidence = doctor(good())

    findings = audit(evidence)

    assert any(found.promise == promise and words in found.text for found in findings)
    assert words in report(evidence, findings)


def test_a_job_that_lost_three_attempts_ended_honestly_but_many_are_too_many() -> None:
    lost = [ATTEMPTS[0] | {"number": number, "started_at_ms": 8000 + number} for number in (1, 2, 3)]
    evidence = everywhere(*LOG[:-1], failed("attempts-exhausted"))(good())
    evidence = rows("attempts", *lost, ATTEMPTS[1] | {"number": 4})(evidence)
    evidence = rows("invocations", ROW | {"state": "failed"})(evidence)
    record = {**evidence.records[INVOCATION], "state": "failed", "terminalEvent": {}}
    evidence = replace(evidence, records={INVOCATION: record})

    many = rows("invocations", *[ROW | {"state": "failed"}] * 5)(evidence)

    assert audit(evidence) == []
    assert [(found.promise, found.text) for found in audit(many)] == [
        ("one ending", "5 of 1 jobs ran out of attempts")
    ]


def test_a_store_without_accounts_has_none_that_could_be_wrong() -> None:
    books = good().books
    tables = {name: rows for name, rows in books.tables.items() if name != "accounts"}

    assert audit(replace(good(), books=replace(books, tables=tables))) == []


def test_a_late_call_is_forgiven_once_a_freeze() -> None:
    late = [call(1, f"{INVOCATION}:1:1", 10, 2, started_at_ms=5001), *good().calls[1:]]

    assert audit(replace(good(), calls=late, counts={"freeze": 1})) == []


def test_the_line_of_a_seed_has_its_figures() -> None:
    assert line(good()).startswith(
        "seed 1: 1 invocations, 2 attempts (1 lost, 0 handed over), 0 exhausted,"
        " 1 takeovers (1 with its tools again), 3 model calls (0 late), 2 tool calls (1 again),"
        " 1 of 2 records estimated,"
    )
