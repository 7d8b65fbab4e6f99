"""The parts of the drill that can be wrong in silence: what it reads, and what its seed decides."""

import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from local.converse import parse as parse_request
from local.scripts import Emit, Refuse
from service.stores.sqlite_schema import open_database
from tests.e2e.crash import points_of
from tests.e2e.drill.entries import Entry, Id, ToolUse, answer_of, parse, reassemble
from tests.e2e.drill.faults import CONNECTIONS, STORE, schedule
from tests.e2e.drill.jobs import Job
from tests.e2e.drill.script import Upstream
from tests.e2e.drill.sqlite_books import read_sqlite
from tests.e2e.drill.stores import StoreName

JOB = Job(seed=1, number=7, turns=2, wide=False)


def entry(event_id: str, kind: str, **value: Any) -> Entry:
    return Entry(Id.of(event_id), json.dumps({kind: value}).encode())


LOG = [
    entry("1.1", "invocationStarted", invocationId="inv_1"),
    entry("1.2", "messageStart", role="assistant"),
    entry("1.3", "contentBlockDelta", contentBlockIndex=0, delta={"text": "One "}),
]


def test_both_encodings_give_the_same_events_in_any_pieces() -> None:
    sse = b"".join(
        b": heartbeat phase=model turn=1 elapsed_s=1\nid: %s\nevent: %s\ndata: %s\n\n"
        % (str(each.id).encode(), each.kind.encode(), each.event)
        for each in LOG
    )
    ndjson = b'{"heartbeat":{"phase":"connected"}}\n' + b"".join(
        b'{"id":"%s",%s\n' % (str(each.id).encode(), each.event[1:]) for each in LOG
    )
    cut = sse.index(b"One ")

    assert parse(sse + b'event: reconnect\ndata: {"reconnect":{}}\n\n', "sse") == LOG
    assert parse(ndjson + b'{"reconnect":{"after":"1.3"}}\n', "ndjson") == LOG
    assert parse(sse[:cut], "sse") == LOG[:2]


def test_what_came_after_rewind_to_is_discarded() -> None:
    again = entry("2.1", "attemptRestarted", attempt=2, rewindTo="1.2")
    from_the_start = entry("3.1", "attemptRestarted", attempt=3, rewindTo="1.0")

    assert reassemble([*LOG, again]) == [*LOG[:2], again]
    assert reassemble([*LOG, again, from_the_start]) == [from_the_start]


def test_an_answer_is_read_turn_by_turn() -> None:
    started = entry("1.4", "contentBlockStart", start={"toolUse": {"toolUseId": "t1"}})
    pieces = [
        entry("1.5", "contentBlockDelta", delta={"toolUse": {"input": piece}}) for piece in ('{"a"', ":1}")
    ]

    answer = answer_of([*LOG, started, *pieces, started, LOG[1], LOG[2]])

    assert answer.texts == ["One ", "One "]
    assert answer.tool_uses == [ToolUse(1, 1, "t1", {"a": 1}), ToolUse(1, 2, "t1", "")]


def test_a_seed_decides_the_faults_and_no_service_has_two_at_once() -> None:
    faults = schedule(1, services=3, seconds_s=40.0)

    assert faults == schedule(1, services=3, seconds_s=40.0) != schedule(2, services=3, seconds_s=40.0)
    assert {fault.lane for fault in faults} == {0, 1, 2, STORE, CONNECTIONS}
    for lane in (0, 1, 2):
        mine = [fault for fault in faults if fault.lane == lane]
        assert all(first.at_s + first.lasts_s < second.at_s for first, second in pairwise(mine))


def test_each_store_has_its_own_faults_and_the_services_the_same() -> None:
    schedules = {
        store: schedule(1, services=3, seconds_s=400.0, store=store) for store in get_args(StoreName)
    }

    kinds = {
        store: {each.kind for each in faults if each.lane == STORE} for store, faults in schedules.items()
    }
    others = [[each for each in faults if each.lane != STORE] for faults in schedules.values()]
    assert kinds == {"sqlite": {"stall", "outage"}, "dynamodb": {"stall", "blip", "outage"}}
    assert others[0] == others[1]


def test_two_attempts_at_a_turn_get_different_answers_and_one_call_always_the_same() -> None:
    def answer(call_id: str) -> list[Emit]:
        body = {
            "messages": [{"role": "user", "content": [{"text": JOB.prompt}]}],
            "toolConfig": {"tools": [{"toolSpec": {"name": "survey", "inputSchema": {"json": {}}}}]},
            "requestMetadata": {"headrace:call": call_id},
        }
        upstream, request = Upstream(), parse_request("m", json.dumps(body).encode())
        script = upstream(request)
        if isinstance(script.steps[0], Refuse):  # throttled, once
            script = upstream(request)
        return [step for step in script.steps if isinstance(step, Emit)]

    assert answer("inv_1:1:1") == answer("inv_1:1:1") != answer("inv_1:2:1")
    assert answer("inv_1:1:1")[-2].value == {"stopReason": "tool_use"}


def test_the_books_hold_what_attempts_were_granted(tmp_path: Path) -> None:
    db = open_database(str(tmp_path / "headrace.db"), busy_timeout_s=1)
    db.execute(
        "INSERT INTO invocations (invocation_id, runtime_id, sub, state, owner, attempt, created_at_ms,"
        " updated_at_ms, deadline_at_ms) VALUES ('inv_1', 'r', 'ann', 'running', 'p1', 2, 0, 0, 0)"
    )
    db.execute("INSERT INTO inputs (invocation_id, body) VALUES ('inv_1', ?)", (b"{}",))
    db.executemany(
        "INSERT INTO attempts (invocation_id, number, granted_seq) VALUES ('inv_1', ?, ?)",
        [(1, 2), (2, None)],
    )
    db.executemany(
        "INSERT INTO events (invocation_id, attempt, first_seq, last_seq, codec, blob)"
        " VALUES ('inv_1', ?, ?, ?, ?, ?)",
        [(2, 1, 1, 1, zlib.compress(LOG[2].event)), (1, 1, 3, 0, b"\n".join(each.event for each in LOG))],
    )
    db.close()

    books = read_sqlite(tmp_path / "headrace.db")

    assert books.logs == {"inv_1": [*LOG[:2], Entry(Id(2, 1), LOG[2].event)]}
    assert books.inputs == {"inv_1": "{}"}


def test_a_failpoint_lies_before_each_step_and_after_each_that_changes_something() -> None:
    wire_steps = ["settle:GetItem:1", "settle:TransactWriteItems:1", "append_events:BatchWriteItem:2"]

    assert [point.name for point in points_of(wire_steps)] == [
        "settle:GetItem:1:before",
        "settle:TransactWriteItems:1:before",
        "settle:TransactWriteItems:1:after",
    ]
    assert [point.name for point in points_of(["settle:1", "settle:1"])] == [
        "settle:1:before",
        "settle:1:after",
    ]
