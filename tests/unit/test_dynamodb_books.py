"""The audit of the drill reads DynamoDB's items as it reads SQLite's rows; the items are made by hand."""

import json
from base64 import b64encode
from typing import Any, Final

from tests.e2e.drill.books import Books
from tests.e2e.drill.dynamodb_books import read_dynamodb
from tests.e2e.drill.entries import Entry, Id

COUNTS: Final = {"input_tokens": 10, "output_tokens": 2, "cache_read_tokens": 0, "cache_write_tokens": 0}
LINE: Final = [10, 2, 0, 0, True, True, "m", 1500]
STARTED, SAID, MORE = (Entry(Id(1, seq), b'{"event":{"seq":%d}}' % seq) for seq in (1, 2, 3))


def wire(**attributes: Any) -> dict[str, Any]:
    """Write an item as DynamoDB's API does."""
    return {name: wire_value(value) for name, value in attributes.items()}


def wire_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case bytes():
            return {"B": b64encode(value).decode()}
        case dict():
            return {"M": wire(**value)}
        case None:
            return {"NULL": True}
        case _:
            return {"L": [wire_value(each) for each in value]}


def blob(event_id: str, first_seq: int, *entries: Entry) -> dict[str, Any]:
    joined = b"\n".join(each.event for each in entries)
    return wire(pk="inv_1", sk=event_id, first_seq=first_seq, codec=0, blob=joined)


RECORD: Final = wire(
    pk="inv_1",
    sk="record",
    sub="ann",
    state="running",
    updated_at_ms=2000,
    used=[10, 2, 0, 0],
    attempts=[[1000, "lost", 2], [1500, None, None]],
    ledger={"1.1": LINE},
    holds={"2.1": 40},
)


def read(*items: dict[str, Any]) -> Books:
    return read_dynamodb([], [RECORD, *items], [])


def test_a_record_holds_its_attempts_its_ledger_and_what_is_held() -> None:
    books = read()

    began = {"invocation_id": "inv_1", "number": 1, "started_at_ms": 1000, "ended": "lost", "granted_seq": 2}
    line = {"estimated": True, "charged": True, "model": "m", "settled_at_ms": 1500, **COUNTS}
    row = {"invocation_id": "inv_1", "state": "running", "updated_at_ms": 2000}
    assert books.tables["invocations"] == [row | COUNTS]
    assert books.tables["attempts"] == [
        began,
        began | {"number": 2, "started_at_ms": 1500, "ended": None, "granted_seq": None},
    ]
    assert books.tables["usage_records"] == [
        {"invocation_id": "inv_1", "attempt": 1, "turn": 1, "sub": "ann", **line}
    ]
    assert books.tables["reservations"] == [
        {"invocation_id": "inv_1", "attempt": 2, "turn": 1, "sub": "ann", "tokens": 40}
    ]


def test_what_was_settled_after_its_record_was_gone_is_in_the_ledger_too() -> None:
    books = read_dynamodb([], [wire(pk="inv_0", sk="ledger:1.2", line=LINE)], [])

    line = {"estimated": True, "charged": True, "model": "m", "settled_at_ms": 1500, **COUNTS}
    assert books.tables["usage_records"] == [
        {"invocation_id": "inv_0", "attempt": 1, "turn": 2, "sub": "", **line}
    ]


def test_a_log_has_what_its_attempts_were_granted_once() -> None:
    books = read(
        blob("event:0001:000000002", 1, STARTED, SAID),
        blob("event:0001:000000003", 1, STARTED, SAID, MORE),  # a retry that has grown, with 1.3 too late
        blob("event:0002:000000001", 1, MORE),
        blob("event:0003:000000001", 1, STARTED),  # of an attempt that there has never been
    )

    assert books.logs == {"inv_1": [STARTED, SAID, Entry(Id(2, 1), MORE.event)]}


def test_an_event_that_was_stored_twice_and_differs_is_seen() -> None:
    other = Entry(Id(1, 2), b'{"other":{}}')

    books = read(blob("event:0001:000000002", 1, STARTED, SAID), blob("event:0001:000000003", 2, other, MORE))

    assert books.logs == {"inv_1": [STARTED, SAID, other]}


def test_the_usage_table_has_periods_holds_and_accounts() -> None:
    account = {"user_id": "ann", "period_id": "account", "committed_tokens": 52, "settled_tokens": 12}
    month = {"user_id": "ann", "period_id": "monthly:2026-11", **COUNTS}
    hold = {"user_id": "ann", "period_id": "reservation:inv_2:2:1", "tokens": 40}
    denial = {"user_id": "-denied", "period_id": "sub:ann", "since_ms": 1}

    books = read_dynamodb([wire(**each) for each in (account, month, hold, denial)], [], [])

    held = {"invocation_id": "inv_2", "attempt": 2, "turn": 1, "sub": "ann", "tokens": 40}
    assert (books.tables["accounts"], books.tables["usage"]) == ([account], [month])
    assert books.tables["reservations"] == [held]


def test_what_was_submitted_is_what_the_upstream_was_asked() -> None:
    asked = {"role": "user", "content": [{"text": "canary"}]}
    request = {
        "messages": [asked, {"role": "assistant", "content": []}],
        "requestMetadata": {"headrace:call": "inv_1:1:2"},
    }

    books = read_dynamodb([], [wire(pk="leases", sk="p1", expires_at_ms=9)], [request])

    assert books.inputs == {"inv_1": json.dumps({"messages": [asked]})}
    assert books.tables["leases"] == [{"owner": "p1", "expires_at_ms": 9}]
