"""What a store holds at the end of a drill, in a form that is the same for every store.

`sqlite_books` and `dynamodb_books` read it, by table and column and with no code of the service, so that the
audit does not trust what it audits; it is part of the `evidence`.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.e2e.drill.entries import Entry, Id

Row = Mapping[str, Any]

TABLES: Final = ("invocations", "attempts", "usage", "usage_records", "reservations", "leases")
"""What every store has, in whatever form; the names are SQLite's own, as are those of the columns."""
_RAW: Final = 0


@dataclass(frozen=True)
class Books:
    """A store once nobody writes in it.

    Attributes:
        tables: `TABLES` as rows; of DynamoDB also `accounts`, the counters that admission rests on.
        logs: By invocation: what its attempts were granted.
        inputs: By invocation: what was submitted, as JSON.
    """

    tables: Mapping[str, Sequence[Row]]
    logs: Mapping[str, Sequence[Entry]]
    inputs: Mapping[str, str]

    def of(self, table: str, invocation_id: str) -> list[Row]:
        """Return an invocation's rows of a table."""
        return [row for row in self.tables[table] if row["invocation_id"] == invocation_id]


def entries_of(attempt: int, first_seq: int, codec: int, blob: bytes) -> list[Entry]:
    """Return the events of a stored block."""
    events = (blob if codec == _RAW else zlib.decompress(blob)).split(b"\n")
    return [Entry(Id(attempt, seq), event) for seq, event in enumerate(events, first_seq)]
