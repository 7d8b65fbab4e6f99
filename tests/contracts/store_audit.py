"""What a store really has, read from its tables, and whether that is what the model's books say.

`test_store_model` audits after answers that were lost and at the end of each example. The port shows neither
reservations nor the ledger, so both stores' tables are read here, and for DynamoDB, which carries sums along,
it is checked that they add up.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.invocations import Invocation, Usage
from service.stores import Turn
from service.stores import sqlite_attempts as attempts
from service.stores import sqlite_records as records
from service.stores.dynamodb_client import Item
from service.stores.dynamodb_items import RECORD, Record, read_turn
from service.stores.packing import expand
from service.stores.windows import KEEP_BUCKETS_S, bucket_id, month_id
from tests.contracts.store_books import Books, bucket_ms
from tests.contracts.store_jobs import Call, Line

Period = tuple[str, str]
Counters = tuple[int, ...]
COUNTERS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


@dataclass(frozen=True)
class Audit:
    """All that a store counts.

    Attributes:
        holds: By model call: tokens, and when they lapse.
        periods: By principal and period: what was counted in it.
        running: By principal, where the store carries it along.
        faults: What in the store contradicts itself.
    """

    records: Mapping[str, Invocation]
    turns: Mapping[str, tuple[Turn, ...]]
    ledger: Mapping[Call, Line]
    holds: Mapping[Call, tuple[int, int]]
    periods: Mapping[Period, Counters]
    running: Mapping[str, int]
    faults: Sequence[str] = ()

    def shown(self, books: Books, latest_ms: int) -> dict[str, object]:
        """Return what is compared with `expected`: what no window counts any more need not be there."""
        return {
            "records": {name: _record(record) for name, record in self.records.items()},
            "turns": dict(self.turns),
            "ledger": dict(self.ledger),
            "holds": {
                call: tokens for call, (tokens, until_ms) in self.holds.items() if until_ms > latest_ms
            },
            "lapsed": {call for call, (_, until_ms) in self.holds.items() if until_ms <= latest_ms}
            - books.holds(0).keys(),
            "periods": _kept(self.periods, latest_ms),
            "running": {
                sub: running for sub, running in self.running.items() if books.running(sub) != running
            },
            "faults": list(self.faults),
        }


def expected(books: Books, latest_ms: int) -> dict[str, object]:
    """Return what the books say of a store."""
    periods: dict[Period, Usage] = defaultdict(Usage)
    for sub, at_ms, usage in books.counted:
        for period in (bucket_id(at_ms), month_id(at_ms)):
            periods[sub, period] = periods[sub, period].plus(usage)
    return {
        "records": {job.name: job.record() for job in books.jobs.values()},
        "turns": {job.name: job.left() for job in books.jobs.values()},
        "ledger": books.ledger(),
        "holds": books.holds(latest_ms),
        "lapsed": set(),
        "periods": _kept({period: tuple(usage[:4]) for period, usage in periods.items()}, latest_ms),
        "running": {},
        "faults": [],
    }


def differences(audit: Audit, books: Books, latest_ms: int) -> str:
    """Say where a store and the books disagree; '' if they don't."""
    shown, wanted = audit.shown(books, latest_ms), expected(books, latest_ms)
    return "\n".join(
        f"{name}: the store has {shown[name]}\n    and the books {wanted[name]}"
        for name in wanted
        if shown[name] != wanted[name]
    )


def _record(record: Invocation) -> tuple[object, ...]:
    times = (record.created_at_ms, record.deadline_at_ms, record.finished_at_ms)
    waits = (record.cancel_requested_at_ms, record.paused_at_ms, record.resumes_at_ms)
    return record.sub, record.state, record.attempts, record.usage, *times, *waits


def _kept(periods: Mapping[Period, Counters], latest_ms: int) -> dict[Period, Counters]:
    oldest = bucket_id(bucket_ms(latest_ms) - KEEP_BUCKETS_S * 1000)
    return {
        (sub, period): counters
        for (sub, period), counters in periods.items()
        if any(counters) and (period.startswith("monthly:") or period > oldest)
    }


# ---------------------------------------------------------------- SQLite


def audit_sqlite(db: sqlite3.Connection) -> Audit:
    """Read it all, in one transaction."""
    names = [name for (name,) in db.execute("SELECT invocation_id FROM invocations")]
    loaded = {name: records.load(db, name) for name in names}
    counters = ", ".join(COUNTERS)
    lines = db.execute(
        f"SELECT invocation_id, attempt, turn, charged, model, {counters}, estimated FROM usage_records"  # noqa: S608
    )
    holds = db.execute("SELECT invocation_id, attempt, turn, tokens, expires_at_ms FROM reservations")
    periods = db.execute(f"SELECT user_id, period_id, {counters} FROM usage")  # noqa: S608
    return Audit(
        {name: record for name, record in loaded.items() if record is not None},
        {name: attempts.turns(db, name) for name in names},
        {
            (name, attempt, turn): Line(Usage._make((*counts, bool(estimated))), bool(charged), model)
            for name, attempt, turn, charged, model, *counts, estimated in lines
        },
        {(name, attempt, turn): (tokens, until_ms) for name, attempt, turn, tokens, until_ms in holds},
        {(sub, period): tuple(counts) for sub, period, *counts in periods},
        {},
    )


# ---------------------------------------------------------------- DynamoDB


def audit_dynamodb(usage: Sequence[Item], invocations: Sequence[Item]) -> Audit:
    """Read it all from what scans of the tables have found."""
    found = [Record.read(item) for item in invocations if item["sk"] == RECORD]
    turns: dict[str, list[Turn]] = {record.shown.invocation_id: [] for record in found}
    for item in sorted(invocations, key=lambda item: str(item["sk"])):
        if item["sk"].startswith("turn:"):
            turns[item["pk"]].append(read_turn(item, expand(item["codec"], item["blob"])))
    lines: dict[Call, Line] = {}
    for record in found:
        for name, (*counts, estimated, charged, model, _) in record.item["ledger"].items():
            call = _call(record.shown.invocation_id, name)
            lines[call] = Line(Usage._make((*counts, estimated)), charged, model)
    reservations = {
        _reserved(item["period_id"]): (
            item["tokens"],
            item["expires_at_ms"],
        )
        for item in usage
        if item["period_id"].startswith("reservation:")
    }
    return Audit(
        {record.shown.invocation_id: record.shown for record in found},
        {name: tuple(some) for name, some in turns.items()},
        lines,
        reservations,
        {(item["user_id"], item["period_id"]): _counters(item) for item in usage if COUNTERS[0] in item},
        {item["user_id"]: item["running"] for item in usage if item["period_id"] == "account"},
        [
            *_wrong_records(found, invocations, reservations),
            *_wrong_accounts(usage, found, reservations),
        ],
    )


def _call(name: str, place: str) -> Call:
    attempt, turn = place.split(".")
    return name, int(attempt), int(turn)


def _reserved(period_id: str) -> Call:
    _, name, attempt, turn = period_id.split(":")
    return name, int(attempt), int(turn)


def _counters(item: Item) -> Counters:
    return tuple(item[name] for name in COUNTERS)


def _wrong_records(
    found: Sequence[Record], invocations: Sequence[Item], reservations: Mapping[Call, tuple[int, int]]
) -> list[str]:
    """Say where a record contradicts its reservations, its turns, its sums or its owner's signals."""
    wrong = []
    held = {call: tokens for call, (tokens, _) in reservations.items()}
    noted = {
        _call(record.shown.invocation_id, name): tokens
        for record in found
        for name, tokens in record.holds.items()
        if tokens > 0
    }
    noted = {call: tokens for call, tokens in noted.items() if tokens}
    if {call: tokens for call, tokens in held.items() if tokens} != noted:
        wrong.append(f"records hold {noted}, reservations are {held}")
    told = {(item["pk"], item["sk"]) for item in invocations if item["pk"].startswith("signals:")}
    asked = set()
    for record in found:
        shown = record.shown
        committed = shown.usage.counted_tokens + sum(map(abs, record.holds.values()))
        if record.committed_tokens != committed:
            wrong.append(f"{shown.invocation_id}: committed {record.committed_tokens}, not {committed}")
        if shown.state.is_terminal and record.holds:
            wrong.append(f"{shown.invocation_id} has ended and holds {record.holds}")
        if record.fence is not None and shown.cancel_requested_at_ms is not None:
            asked.add((f"signals:{record.holder}", shown.invocation_id))
    if told != asked:
        wrong.append(f"signals are {told}, asked for is {asked}")
    leases = {item["sk"] for item in invocations if item["pk"] == "leases"}
    wrong += [
        f"{record.shown.invocation_id}: {record.holder} has no lease"
        for record in found
        if record.fence is not None and record.holder not in leases
    ]
    return wrong


def _wrong_accounts(
    usage: Sequence[Item], found: Sequence[Record], reservations: Mapping[Call, tuple[int, int]]
) -> list[str]:
    """Say where what an account carries along is not the sum of what it stands for."""
    subs = {record.shown.invocation_id: record.shown.sub for record in found}
    charges = [
        (record.shown.sub, at_ms, Usage(*counts).counted_tokens)
        for record in found
        for *counts, _, charged, _, at_ms in record.item["ledger"].values()
        if charged
    ]
    wrong = []
    for account in (item for item in usage if item["period_id"] == "account"):
        sub = account["user_id"]
        spent = [(at_ms, tokens) for owner, at_ms, tokens in charges if owner == sub]
        settled = sum(tokens for _, tokens in spent)
        held = sum(tokens for call, (tokens, _) in reservations.items() if subs[call[0]] == sub)
        exact = {"settled_tokens": settled, "committed_tokens": settled + held}
        # What a slower clock settled in the month before may be missing until it would refuse somebody.
        most = {
            "aged_tokens": sum(
                tokens for at_ms, tokens in spent if bucket_id(at_ms) < account["aged_before"]
            ),
            "before_month_tokens": sum(
                tokens for at_ms, tokens in spent if month_id(at_ms) < account["month"]
            ),
        }
        if any(account[name] != tokens for name, tokens in exact.items()) or any(
            account[name] > tokens for name, tokens in most.items()
        ):
            wrong.append(f"{account}, and it is {exact}, at most {most}")
    return wrong
