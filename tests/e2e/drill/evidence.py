"""What is known at the end of a drill, from every side that keeps an account of its own.

`drill` gathers it; `audit` and `figures` read it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local.account import Call
from tests.e2e.drill.books import Books
from tests.e2e.drill.clients import Wish
from tests.e2e.drill.entries import Entry
from tests.e2e.drill.faults import Deed
from tests.e2e.drill.tools import Noted


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
