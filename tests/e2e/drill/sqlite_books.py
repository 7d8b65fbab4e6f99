"""Reads the books of a deployment on SQLite: the file, with SQL of this module's own. `stores` calls it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.e2e.drill.books import TABLES, Books, entries_of
from tests.e2e.drill.entries import Entry


def read_sqlite(path: Path) -> Books:
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
            entries = entries_of(row["attempt"], row["first_seq"], row["codec"], row["blob"])
            logs[row["invocation_id"]] += [
                entry for entry in entries if until is None or entry.id.seq <= until
            ]
    return Books(tables, logs, {name: _text(body) for name, body in inputs.items()})


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _text(body: bytes | str) -> str:
    return body if isinstance(body, str) else body.decode()
