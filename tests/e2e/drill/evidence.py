"""What is known at the end of a drill, from every side that keeps an account of its own.

`drill` gathers it; `audit` and `figures` read it. The store's file is read with SQL of this module's own, by
table and column, so that the audit does not trust the code that it audits.
"""

import sqlite3
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from local.account import Call
from tests.e2e.drill.clients import Wish
from tests.e2e.drill.entries import Entry, Id
from tests.e2e.drill.faults import Deed
from tests.e2e.drill.tools import Noted

Row = Mapping[str, Any]

TABLES: Final = ("invocations", "attempts", "usage", "usage_records", "reservations", "leases")
_RAW: Final = 0


@dataclass(frozen=True)
class Books:
    """The store's file once nobody writes in it: its tables as rows, its logs, and who was asked for what."""

    tables: Mapping[str, Sequence[Row]]
    logs: Mapping[str, Sequence[Entry]]
    inputs: Mapping[str, str]

    def of(self, table: str, invocation_id: str) -> list[Row]:
        """Return an invocation's rows of a table."""
        return [row for row in self.tables[table] if row["invocation_id"] == invocation_id]


@dataclass(frozen=True)
class Evidence:
    """Everything that an audit compares.

    Attributes:
        served: Each invocation's log, as the API gives it from the start once all is over.
        records: Each invocation's record, as the API gives it.
        accounts: By `sub`: what `GET /usage` says.
        calls: The upstream's own account.
        noted: The tools' journal.
        log_texts: What each process has printed, by its name.
        incidents: What went wrong with the drill itself: a process that died unasked, a client that gave up.
        stopped_at_ms: When all services had ended.
    """

    seed: int
    wishes: Sequence[Wish]
    books: Books
    served: Mapping[str, Sequence[Entry]]
    records: Mapping[str, Mapping[str, Any]]
    accounts: Mapping[str, Mapping[str, Any]]
    calls: Sequence[Call]
    noted: Sequence[Noted]
    log_texts: Mapping[str, str]
    stopped_at_ms: int
    incidents: Sequence[str] = ()
    deeds: Sequence[Deed] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    cuts: int = 0
    lasted_s: float = 0.0


def read_books(path: Path) -> Books:
    """Read the store's file."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = _as_dict
        tables = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}  # noqa: S608
        inputs = {row["invocation_id"]: row["body"] for row in db.execute("SELECT * FROM inputs")}
        logs: dict[str, list[Entry]] = {row["invocation_id"]: [] for row in tables["invocations"]}
        granted = {(row["invocation_id"], row["number"]): row["granted_seq"] for row in tables["attempts"]}
        rows = db.execute("SELECT * FROM events ORDER BY invocation_id, attempt, first_seq")
        for row in rows:
            until = granted[row["invocation_id"], row["attempt"]]
            logs[row["invocation_id"]] += [
                entry for entry in _entries(row) if until is None or entry.id.seq <= until
            ]
    return Books(tables, logs, {name: _text(body) for name, body in inputs.items()})


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _entries(row: Row) -> list[Entry]:
    blob = row["blob"] if row["codec"] == _RAW else zlib.decompress(row["blob"])
    return [
        Entry(Id(row["attempt"], seq), event) for seq, event in enumerate(blob.split(b"\n"), row["first_seq"])
    ]


def _text(body: bytes | str) -> str:
    return body if isinstance(body, str) else body.decode()
