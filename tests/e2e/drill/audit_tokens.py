"""The promises about tokens: the ledger against the upstream's own account, and what users are charged. Pure.

A part of `audit`, which runs these with the others.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from local.account import Call
from tests.e2e.drill.books import Row
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.script import CALL_METADATA

COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
COUNTED: Final = ("input_tokens", "output_tokens", "cache_write_tokens")

Texts = Iterator[tuple[str, str]]
"""Pairs of what is wrong and the invocation that it is wrong with."""


def the_ledger(evidence: Evidence) -> Texts:
    """The ledger equals the upstream's account, or is a marked estimate that is never below it."""
    records = {
        (row["invocation_id"], row["attempt"], row["turn"]): row
        for row in evidence.books.tables["usage_records"]
    }
    made: defaultdict[tuple[str, int, int], list[Call]] = defaultdict(list)
    for call in evidence.calls:
        if call.outcome == "running":
            yield f"call {call.number} still runs", ""
        key = call_key(call)
        if key is None:
            yield f"call {call.number} does not say which it is: {dict(call.request_metadata)}", ""
        elif call.outcome != "refused":
            made[key].append(call)
    for key, calls in made.items():
        yield from ((text, key[0]) for text in _call_faults(key, calls, records.get(key)))
    for key, row in records.items():
        if key not in made and not row["estimated"] and any(row[name] for name in COUNTS):
            yield f"turn {key[2]} of attempt {key[1]} has tokens that no call generated", key[0]


def _call_faults(key: tuple[str, int, int], calls: Sequence[Call], row: Row | None) -> Iterator[str]:
    where = f"turn {key[2]} of attempt {key[1]}"
    generated = [call for call in calls if call.output_tokens]
    if len(generated) > 1:
        yield f"{where} was called {len(generated)} times"
    if row is None:
        yield f"{where} was called and has no usage record"
        return
    given_tokens = sum(call.input_tokens + call.output_tokens for call in generated)
    noted = _tokens_of(row)
    if row["estimated"] and sum(noted) < given_tokens:
        yield f"{where} is estimated at {noted}, and {given_tokens} tokens were generated"
    if not row["estimated"] and noted != _tokens(generated):
        yield f"{where} is recorded as {noted}, the upstream generated {_tokens(generated)}"


def the_bill(evidence: Evidence) -> Texts:
    """What users are charged is the sum of the charged records: their windows, and each invocation's own."""
    by_sub: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_invocation: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in evidence.books.tables["usage_records"]:
        if row["charged"]:
            for sums in (by_sub[row["sub"]], by_invocation[row["invocation_id"]]):
                sums.update({name: row[name] for name in COUNTS})
    windows: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in evidence.books.tables["usage"]:
        window = windows[row["user_id"], row["period_id"].partition(":")[0]]
        window.update({name: row[name] for name in COUNTS})
    for sub, charged in by_sub.items():
        for name in ("10min", "monthly"):
            if windows[sub, name] != charged:
                yield f"{sub} has {dict(windows[sub, name])} in {name}, was charged {dict(charged)}", ""
        counted = sum(charged[name] for name in COUNTED)
        told = [window["used"] for window in evidence.accounts.get(sub, {}).get("windows", ())]
        if told != [counted, counted]:
            yield f"{sub} is told {told}, was charged {counted} in both windows", ""
    for row in evidence.books.tables["invocations"]:
        charged = by_invocation[row["invocation_id"]]
        own = {name: charged[name] for name in COUNTS}
        if {name: row[name] for name in COUNTS} != own:
            yield f"its row has {_tokens_of(row)}, charged was {own}", row["invocation_id"]
        terminal = evidence.records.get(row["invocation_id"], {}).get("terminalEvent", {})
        usage = terminal.get("invocationCompleted", {}).get("usage")
        if usage and (usage["inputTokens"], usage["outputTokens"]) != _tokens_of(own):
            yield f"its terminal event says {usage}, charged was {own}", row["invocation_id"]


def the_accounts(evidence: Evidence) -> Texts:
    """What admission rests on is what was charged: nothing is held any more, and nothing runs."""
    charged: Counter[str] = Counter()
    for row in evidence.books.tables["usage_records"]:
        charged[row["sub"]] += row["charged"] * sum(row[name] for name in COUNTED)
    if "accounts" not in evidence.books.tables:
        return  # SQLite calculates them from its rows
    accounts = evidence.books.tables["accounts"]
    for sub in charged.keys() - {row["user_id"] for row in accounts}:
        yield f"{sub} has no account", ""
    for row in accounts:
        counters = (row["committed_tokens"], row["settled_tokens"], row["running"])
        owed = charged[row["user_id"]]
        if counters != (owed, owed, 0):
            yield f"the account of {row['user_id']} has {counters}, charged was {owed}", ""


def spending_ends(evidence: Evidence) -> Texts:
    """A process that was fenced out makes no call; one signal can fall between a check and its call."""
    stops = evidence.counts.get("freeze", 0)
    late = late_calls(evidence)
    if len(late) > stops:
        yield f"{len(late)} calls began after another attempt had: {[call.number for call in late]}", ""


def call_key(call: Call) -> tuple[str, int, int] | None:
    """Return which invocation, attempt and turn the upstream was told that this call is for."""
    match call.request_metadata.get(CALL_METADATA, "").split(":"):
        case [invocation_id, attempt, turn] if attempt.isdigit() and turn.isdigit():
            return invocation_id, int(attempt), int(turn)
    return None


def late_calls(evidence: Evidence) -> list[Call]:
    """Return the calls of attempts after which another had begun when they were made."""
    began = {
        (row["invocation_id"], row["number"]): row["started_at_ms"]
        for row in evidence.books.tables["attempts"]
    }
    late = []
    for call in evidence.calls:
        key = call_key(call)
        next_ms = None if key is None else began.get((key[0], key[1] + 1))
        if next_ms is not None and call.started_at_ms > next_ms:
            late.append(call)
    return late


def _tokens_of(row: Row) -> tuple[int, int]:
    return row["input_tokens"], row["output_tokens"]


def _tokens(calls: Sequence[Call]) -> tuple[int, int]:
    return sum(call.input_tokens for call in calls), sum(call.output_tokens for call in calls)
