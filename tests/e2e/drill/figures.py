"""What a drill says about itself: one line of figures, and the story of an invocation. Pure.

`__main__` prints the line of every seed; of a seed that failed it prints what was found, and the stories of
the invocations that it was found with and of late calls: everything that is known of each, in order of time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from tests.e2e.drill.audit import Finding
from tests.e2e.drill.audit_tokens import call_key, late_calls
from tests.e2e.drill.entries import Entry
from tests.e2e.drill.evidence import Evidence

STORIES: Final = 3
FINDINGS: Final = 30
_SHOWN_CHARACTERS: Final = 1500


def line(evidence: Evidence) -> str:
    """Return the figures of a drill."""
    tables = evidence.books.tables
    ended = Counter(row["ended"] for row in tables["attempts"])
    from_where = Counter(kind for log in evidence.books.logs.values() for kind in _takeovers(log))
    records = tables["usage_records"]
    happened = evidence.happened
    told = {name.partition(": ")[2]: count for name, count in happened.items() if name.startswith("told")}
    completed = sum(row["state"] == "completed" for row in tables["invocations"])
    keys = len({noted.key for noted in evidence.noted})
    parts = [
        f"seed {evidence.seed}: {len(tables['invocations'])} invocations",
        f"{len(tables['attempts'])} attempts ({ended['lost']} lost, {ended['handed-over']} handed over)",
        f"{ended['finished'] - completed} exhausted",
        f"{from_where.total()} takeovers ({_counts(from_where)})",
        f"{len(evidence.calls)} model calls ({len(late_calls(evidence))} late)",
        f"{len(evidence.noted)} tool calls ({len(evidence.noted) - keys} again)",
        f"{sum(row['estimated'] for row in records)} of {len(records)} records estimated",
        f"{happened['reconnects']} reconnects ({_counts(Counter(told))})",
        f"{happened['submissions again']} submissions again",
        f"{happened['hang-ups']} hang-ups",
        f"{evidence.cuts} cuts",
        f"faults: {_counts(Counter(evidence.counts))}",
        f"{evidence.lasted_s:.1f} s",
    ]
    return ", ".join(parts)


def report(evidence: Evidence, findings: Sequence[Finding]) -> str:
    """Return all that is needed to find out why promises were broken."""
    lines = [line(evidence), "", f"{len(findings)} findings:"]
    lines += [
        f"  {found.promise}: {found.invocation_id} {found.text}"[:_SHOWN_CHARACTERS]
        for found in findings[:FINDINGS]
    ]
    late = [key[0] for call in late_calls(evidence) if (key := call_key(call))]
    with_stories = [*(found.invocation_id for found in findings if found.invocation_id), *late]
    for invocation_id in list(dict.fromkeys(with_stories))[:STORIES]:
        lines += ["", f"the story of {invocation_id}:", *story(evidence, invocation_id)]
    lines += ["", "what was done:", *(_at(deed.at_ms, deed.text) for deed in evidence.deeds)]
    return "\n".join(lines)


def story(evidence: Evidence, invocation_id: str) -> list[str]:
    """Return what is known of one invocation, in the order of time, and what its readers received."""
    moments = sorted(_moments(evidence, invocation_id))
    lines = [_at(at_ms, text) for at_ms, text in moments]
    lines.append(f"    stored: {_ids(evidence.books.logs.get(invocation_id, ()))}")
    lines.append(f"    served: {_ids(evidence.served.get(invocation_id, ()))}")
    for wish in evidence.wishes:
        if wish.invocation_id == invocation_id:
            lines += [f"    {reading.encoding}: {_ids(reading.entries)}" for reading in wish.readings]
    return lines


def _moments(evidence: Evidence, invocation_id: str) -> Iterator[tuple[int, str]]:
    books = evidence.books
    began = [row["started_at_ms"] for row in books.of("attempts", invocation_id)]
    ends = [row["updated_at_ms"] for row in books.of("invocations", invocation_id)]
    for row in books.of("attempts", invocation_id):
        granted = f"granted {row['granted_seq']}, {row['ended'] or 'running'}"
        yield row["started_at_ms"], f"attempt {row['number']} begins; at its end: {granted}"
    for row in books.of("invocations", invocation_id):
        yield row["updated_at_ms"], f"last change of its row: {row['state']}"
    for call in evidence.calls:
        key = call_key(call)
        if key is not None and key[0] == invocation_id:
            where = f"model call {call.number}, attempt {key[1]}, turn {key[2]}"
            yield call.started_at_ms, f"{where} begins"
            used = f"{call.input_tokens} + {call.output_tokens} tokens, reported: {call.reported}"
            yield call.ended_at_ms or call.started_at_ms, f"{where} is {call.outcome}: {used}"
    for noted in evidence.noted:
        if noted.key.startswith(f"{invocation_id}:"):
            yield noted.at_ms, f"the tool runs in process {noted.pid}: {noted.key} {dict(noted.arguments)}"
    for row in books.of("usage_records", invocation_id):
        used = f"{row['input_tokens']} + {row['output_tokens']} tokens"
        how = f"estimated: {row['estimated']}, charged: {row['charged']}, model {row['model']!r}"
        yield row["settled_at_ms"], f"attempt {row['attempt']}, turn {row['turn']} is settled: {used}, {how}"
    if began and ends:
        for deed in evidence.deeds:
            if min(began) - 2000 <= deed.at_ms <= max(ends) + 2000:
                yield deed.at_ms, f"  * {deed.text}"


def _takeovers(log: Sequence[Entry]) -> Iterator[str]:
    """Say of each later attempt from where it went on: what stands before its first event."""
    names = {"toolFinished": "after a turn", "metadata": "with its tools again"}
    for before, entry in pairwise(log):
        if entry.kind == "attemptRestarted":
            yield names.get(before.kind, "from the start")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def _ids(entries: Sequence[Entry]) -> str:
    """Write ids as runs, our own events by name: `1.1 .. 1.40, 2.1 attemptRestarted`."""
    shown: list[str] = []
    first = 0
    for index, entry in enumerate(entries):
        following = entries[index + 1].id if index + 1 < len(entries) else None
        if following == (entry.id.attempt, entry.id.seq + 1):
            continue
        shown.append(f"{entries[first].id} {entries[first].kind} .. {entry.id} {entry.kind}")
        first = index + 1
    return ", ".join(shown) or "nothing"


def _at(at_ms: int, text: str) -> str:
    return f"    {datetime.fromtimestamp(at_ms / 1000, UTC):%H:%M:%S.%f}"[:-3] + f" {text}"
