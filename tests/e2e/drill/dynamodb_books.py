"""Reads the books of a deployment on DynamoDB: the items of its two tables, as rows. Pure; `stores` calls it.

The items are drawn in `service.stores.dynamodb`; nothing of it is imported here. An ended invocation's record
has no input any more, so what was submitted is known from the upstream: the request of a call has the prompt,
and says whose call it is.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tests.e2e.drill.books import Books, Row, entries_of
from tests.e2e.drill.entries import Entry
from tests.e2e.drill.script import CALL_METADATA

_COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_EVENT: Final = "event:"
_LEDGER: Final = "ledger:"
_RESERVATION: Final = "reservation:"


def read_dynamodb(
    usage: Iterable[Mapping[str, Any]],
    invocations: Iterable[Mapping[str, Any]],
    requests: Iterable[Mapping[str, Any]],
) -> Books:
    """Read all items of both tables, in the words of the wire, and all requests that the upstream got."""
    books = _Books()
    for item in map(_plain, usage):
        books.add_usage(item)
    items = sorted(map(_plain, invocations), key=lambda item: (item["pk"], item["sk"]))
    for item in items:
        books.add_item(item)
    logs = {record["pk"]: _log(record, items_of) for record, items_of in books.logs()}
    return Books(books.tables, logs, _inputs(requests))


class _Books:
    """The tables, as they fill."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Row]] = {
            "invocations": [],
            "attempts": [],
            "usage": [],
            "usage_records": [],
            "reservations": [],
            "leases": [],
            "accounts": [],
        }
        self._records: dict[str, Mapping[str, Any]] = {}
        self._events: dict[str, list[Mapping[str, Any]]] = {}

    def logs(self) -> Iterator[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
        """Return each record with its blocks, in their order."""
        for invocation_id, record in self._records.items():
            yield record, self._events.get(invocation_id, ())

    def add_usage(self, item: Mapping[str, Any]) -> None:
        kind = item["period_id"]
        if kind == "account":
            self.tables["accounts"].append(item)
        elif kind.startswith(_RESERVATION):
            _, invocation_id, attempt, turn = kind.split(":")
            key = {"invocation_id": invocation_id, "attempt": int(attempt), "turn": int(turn)}
            self.tables["reservations"].append(key | {"sub": item["user_id"], "tokens": item["tokens"]})
        elif kind.startswith(("10min:", "monthly:")):
            self.tables["usage"].append(item)

    def add_item(self, item: Mapping[str, Any]) -> None:
        pk, sk = item["pk"], item["sk"]
        if sk == "record":
            self._add_record(pk, item)
        elif pk == "leases":
            self.tables["leases"].append({"owner": sk, "expires_at_ms": item["expires_at_ms"]})
        elif sk.startswith(_EVENT):
            self._events.setdefault(pk, []).append(item)
        elif sk.startswith(_LEDGER):  # settled after its record was gone
            self._add_line(pk, "", sk.removeprefix(_LEDGER), item["line"])

    def _add_record(self, invocation_id: str, item: Mapping[str, Any]) -> None:
        self._records[invocation_id] = item
        row = {"invocation_id": invocation_id, "state": item["state"], "updated_at_ms": item["updated_at_ms"]}
        self.tables["invocations"].append(row | dict(zip(_COUNTS, item["used"], strict=True)))
        for number, (started_at_ms, ended, granted_seq) in enumerate(item["attempts"], 1):
            attempt = {"invocation_id": invocation_id, "number": number, "started_at_ms": started_at_ms}
            self.tables["attempts"].append(attempt | {"ended": ended, "granted_seq": granted_seq})
        for name, line in item["ledger"].items():
            self._add_line(invocation_id, item["sub"], name, line)
        for name, tokens in item["holds"].items():  # with a row each, or lapsed and without one
            attempt, turn = name.split(".")
            held = {"invocation_id": invocation_id, "attempt": int(attempt), "turn": int(turn)}
            self.tables["reservations"].append(held | {"sub": item["sub"], "tokens": tokens})

    def _add_line(self, invocation_id: str, sub: str, name: str, line: Sequence[Any]) -> None:
        *counts, estimated, charged, model, settled_at_ms = line
        attempt, turn = name.split(".")
        self.tables["usage_records"].append(
            {
                "invocation_id": invocation_id,
                "attempt": int(attempt),
                "turn": int(turn),
                "sub": sub,
                "model": model,
                **dict(zip(_COUNTS, counts, strict=True)),
                "estimated": estimated,
                "charged": charged,
                "settled_at_ms": settled_at_ms,
            }
        )


def _log(record: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return what the attempts were granted; an event that a later block repeats as it was counts once."""
    log: list[Entry] = []
    there: set[Entry] = set()
    for item in blocks:
        attempt = int(item["sk"].split(":")[1])
        if attempt > len(record["attempts"]):
            continue
        _, _, granted_seq = record["attempts"][attempt - 1]
        for entry in entries_of(attempt, item["first_seq"], item["codec"], item["blob"]):
            if entry not in there and (granted_seq is None or entry.id.seq <= granted_seq):
                there.add(entry)
                log.append(entry)
    return log


def _inputs(requests: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return what each invocation that made a call was asked for: the first message of a conversation."""
    inputs: dict[str, str] = {}
    for request in requests:
        invocation_id, _, _ = request["requestMetadata"][CALL_METADATA].partition(":")
        inputs[invocation_id] = json.dumps({"messages": request["messages"][:1]})
    return inputs


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in item.items()}


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    match kind:
        case "N":
            return int(content)
        case "B":
            return base64.b64decode(content)
        case "M":
            return _plain(content)
        case "L":
            return [_value(each) for each in content]
        case "NULL":
            return None
        case _:
            return content
