"""What processes poll the SQLite store for is found in a sparse index: cheap while there is nothing."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from service.events import Block
from service.invocations import State
from service.stores import sqlite_leases as leases
from service.stores import sqlite_pauses as pauses
from service.stores import sqlite_records as records
from service.stores import sqlite_signals as signals
from service.stores.sqlite_schema import open_database
from tests.contracts.store_cases import COMPLETED, HOUR_MS, NOW, new, pausing

Poll = Callable[[sqlite3.Connection], object]

POLLS: dict[str, tuple[Poll, set[str]]] = {
    "cancel_requests": (
        lambda db: signals.cancel_requests(db, "owner-1"),
        {"SEARCH invocations INDEX invocations_to_cancel"},
    ),
    "unread": (
        lambda db: signals.unread(db, "owner-1", NOW),
        {"SEARCH invocations INDEX invocations_read"},
    ),
    "list_paused": (
        lambda db: pauses.list_due(db, NOW, 16, ["writer"]),  # in the order of the index: nothing is sorted
        {"SEARCH invocations INDEX invocations_paused", "SCAN json_each"},
    ),
    "owned": (
        lambda db: leases.owned(db, "owner-1"),
        {"SEARCH invocations INDEX invocations_owned"},
    ),
    "claim_expired": (
        lambda db: leases.some_expired(db, "owner-1", NOW, ["inv_1"], ["writer"]),
        {
            "SEARCH invocations INDEX invocations_owned",
            "SCAN owners",
            "SEARCH i INDEX invocations_owned",
            "SEARCH l PRIMARY KEY",
            "SCAN json_each",
            "SEARCH a PRIMARY KEY",
        },
    ),
}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(open_database(":memory:", busy_timeout_s=5.0)) as opened:
        yield opened


def plan(db: sqlite3.Connection, poll: Poll) -> set[str]:
    """Return what SQLite would read for a poll and how, without what differs among its versions."""
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    poll(db)
    db.set_trace_callback(None)
    steps = [
        detail for statement in statements for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    wanted = re.compile(r"(SCAN|SEARCH) (\w+)(?: USING(?: COVERING)? (INDEX \w+|PRIMARY KEY))?|(USE TEMP.*)")
    return {
        " ".join(part for part in found.groups() if part)
        for found in map(wanted.match, steps)
        if found and "CONSTANT" not in found[0]
    }


def effort(db: sqlite3.Connection, poll: Poll) -> int:
    """Return how many instructions SQLite's machine needs for a poll: the same for the same work."""
    count = 0

    def note() -> int:
        nonlocal count
        count += 1
        return 0

    db.set_progress_handler(note, 1)
    poll(db)
    db.set_progress_handler(None, 1)
    return count


@pytest.mark.parametrize("name", POLLS)
def test_a_poll_reads_an_index_of_what_it_looks_for(db: sqlite3.Connection, name: str) -> None:
    poll, expected = POLLS[name]

    assert plan(db, poll) == expected


@pytest.mark.parametrize("name", POLLS)
def test_a_poll_that_finds_nothing_costs_the_same_however_much_there_is(
    db: sqlite3.Connection, name: str
) -> None:
    poll, _ = POLLS[name]
    for owner in ("owner-2", "owner-3"):
        leases.renew(db, owner, NOW + HOUR_MS)
    fill(db, range(3))
    little = effort(db, poll)

    fill(db, range(3, 300))

    assert effort(db, poll) == little


def fill(db: sqlite3.Connection, numbers: range) -> None:
    """Let others run invocations, read and to be cancelled, some end and some wait."""
    for number in numbers[::3]:
        running, ended, waiting = (f"inv_{number + n}" for n in range(3))
        for invocation_id, owner in ((running, "owner-2"), (ended, "owner-1"), (waiting, "owner-3")):
            begun = replace(new(owner=owner), invocation_id=invocation_id)
            records.insert(db, begun, NOW)
        signals.request_cancel(db, running, NOW)
        signals.note_read(db, [running], NOW)
        records.end(db, ended, State.COMPLETED, Block(1, 1, (COMPLETED,)), NOW)
        pauses.pause(db, pausing(number + 2), NOW)
