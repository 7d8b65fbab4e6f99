"""What a delta that is late has waited for: a section of PROFILE.md, which `profile` writes.

Headrace runs under `delays` in the loading that `delta-latency` measures. From when the upstream has written
a delta to when it is handed to its reader's transport, the event loop's thread was in callbacks or between
them, on the processor or not; each part of that time has a cause, and those of all late deltas are added up.

    written ──── callbacks before it, by module ──── between callbacks ──── its own read ──> handed on
                 └ of each: on the processor │ waiting for one │ neither

The rows of those who have none of this say how much of it the machine and the bench's own processes are.
"""

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from bench.delays import BESIDE, COLLECTION, DELAYS, READ, STORE, Clocks, Span, read_spans
from bench.loadings import LOW_RATE, percentile, window
from bench.measuring import DIRECT, FULL, WARM_UP, Bed, Figures
from bench.processes import Processes
from bench.report import as_markdown
from bench.scenarios import HEADRACE
from bench.subjects import Start, direct, start_copy, start_headrace_delayed, start_upstream

LATE_MS = (0.5, 1.0)
OWN = "its own read, and the way to its reader's transport"
OTHERS = "deltas that were read before it"
BETWEEN = "the event loop between callbacks: poll"
QUEUED = "another process had the processor"
LOCKED = "the interpreter's lock or the file, while the store's thread was in a transaction"
ASLEEP = "the upstream's write and the wake-up of the loop"
_TITLE = "A delta that is late, 1,000/s"
_EFFORT = replace(FULL, window_s=8.0)
_BEHIND_NS = 50_000
_SMALL = 0.01


def causes(spans: Sequence[Span], late_ms: float) -> list[Counter[str]]:
    """For each delta that was handed on so late: the ns that it had waited, by cause."""
    beside = {name: [span for span in spans if span.whose == name] for name in BESIDE}
    loop = [span for span in spans if span.whose not in BESIDE]
    return [
        _causes(loop, place, beside)
        for place, span in enumerate(loop)
        if span.written_ns and span.end.at_ns - span.written_ns > late_ms * 1e6
    ]


def _causes(loop: Sequence[Span], place: int, beside: Mapping[str, Sequence[Span]]) -> Counter[str]:
    found: Counter[str] = Counter()
    since_ns = loop[place].written_ns
    for name, begin, end in _pieces(loop, place):
        begin_ns = max(begin.at_ns, since_ns)
        left_ns = end.at_ns - begin_ns
        collected_ns = _overlap_ns(beside[COLLECTION], begin_ns, end.at_ns)
        for cause, ns in (
            (COLLECTION, collected_ns),
            (name, end.used_ns - begin.used_ns - collected_ns),
            (QUEUED, end.queued_ns - begin.queued_ns),
            (LOCKED, _overlap_ns(beside[STORE], begin_ns, end.at_ns)),
            (ASLEEP, left_ns),
        ):
            part_ns = max(0, min(ns, left_ns))
            found[cause] += part_ns
            left_ns -= part_ns
        if begin.at_ns <= since_ns:
            break
    return found


def _pieces(loop: Sequence[Span], place: int) -> Iterator[tuple[str, Clocks, Clocks]]:
    """Go back in time from a delta's own read: callbacks, and what is between them."""
    yield OWN, loop[place].begin, loop[place].end
    for at in range(place - 1, -1, -1):
        span = loop[at]
        yield BETWEEN, span.end, loop[at + 1].begin
        yield OTHERS if span.whose == READ else span.whose, span.begin, span.end


def _overlap_ns(spans: Sequence[Span], begin_ns: int, end_ns: int) -> int:
    """How much of a time these spans cover, which follow each other."""
    covered_ns = 0
    last = bisect_right(spans, end_ns, key=lambda span: span.begin.at_ns)
    for span in reversed(spans[:last]):
        if span.end.at_ns <= begin_ns:
            break
        covered_ns += min(span.end.at_ns, end_ns) - max(span.begin.at_ns, begin_ns)
    return covered_ns


def section(figures: Mapping[str, Figures], spans: Sequence[Span]) -> str:
    """The tables: how late each subject was, and what the late deltas had waited for."""
    handed_on_ms = [(span.end.at_ns - span.written_ns) / 1e6 for span in spans if span.written_ns]
    rows = [["late by, ms", "p50", "p99"]]
    rows += [
        [f"{name}, at the client", *_shown(row["late_p50"], row["late_p99"])] for name, row in figures.items()
    ]
    halves = (percentile(handed_on_ms, 50), percentile(handed_on_ms, 99))
    rows.append(["headrace, handed to the reader's transport", *_shown(*halves)])
    late = {late_ms: causes(spans, late_ms) for late_ms in LATE_MS}
    counts = " and ".join(f"{len(found):,} more than {late_ms:g} ms late" for late_ms, found in late.items())
    return "\n\n".join(
        [
            f"## {_TITLE}",
            as_markdown(rows),
            f"Of {len(handed_on_ms):,} deltas {counts}. {_of_reads(spans)}",
            as_markdown(_by_cause(late)),
        ]
    )


def _of_reads(spans: Sequence[Span]) -> str:
    """Say what a read costs that the process has waited for, and one right behind it."""
    loop = [span for span in spans if span.whose not in BESIDE]
    waited, behind = list[int](), list[int]()
    for before, span in pairwise(loop):
        if span.written_ns:
            follows = span.begin.at_ns - before.end.at_ns < _BEHIND_NS
            (behind if follows else waited).append(span.end.used_ns - span.begin.used_ns)
    waited_us, behind_us = (
        statistics.median(used_ns) / 1e3 if used_ns else 0.0 for used_ns in (waited, behind)
    )
    return (
        f"The read of a delta that wakes the process takes {waited_us:.0f} us of CPU (median, with what the "
        f"clocks take), one right behind another {behind_us:.0f} us."
    )


def _shown(*values_ms: float) -> list[str]:
    return [f"{value_ms:.2f}" for value_ms in values_ms]


def _by_cause(late: Mapping[float, Sequence[Counter[str]]]) -> list[list[str]]:
    """The shares of time, and of how many deltas a cause was the largest."""
    rows = [["what they waited for"]]
    shares: dict[str, list[float]] = {}
    for place, (late_ms, found) in enumerate(late.items()):
        rows[0] += [f"over {late_ms:g} ms: share of the time", "the most in"]
        whole = sum((one.total() for one in found), 0) or 1
        mostly = Counter(one.most_common(1)[0][0] for one in found)
        for one in found:
            for cause, ns in one.items():
                row = shares.setdefault(cause, [0.0] * 2 * len(late))
                row[2 * place] += ns / whole
                row[2 * place + 1] = mostly[cause] / len(found)
    for cause, row in sorted(shares.items(), key=lambda item: item[1], reverse=True):
        if max(row) >= _SMALL:
            rows.append([cause, *(f"{share:.0%}" for share in row)])
    return rows


def measured() -> str:
    """Measure, and return the section."""
    figures = {"direct": _figures(DIRECT, None)[0], "copy": _figures("copy", start_copy)[0]}
    figures["headrace"], spans = _figures(HEADRACE, start_headrace_delayed)
    return section(figures, spans)


def _figures(name: str, start: Start | None) -> tuple[Figures, list[Span]]:
    plan = LOW_RATE.plan(_EFFORT)
    with Processes() as processes:
        upstream = start_upstream(processes)
        running = direct(upstream) if start is None else start(processes, upstream, [WARM_UP, plan])
        bed = Bed(processes, upstream, running, name, _EFFORT)
        bed.warm_up()
        figures = window(bed, LOW_RATE)
        is_recorded = start is start_headrace_delayed
        return figures, read_spans(processes.written(running.pid, DELAYS)) if is_recorded else []
