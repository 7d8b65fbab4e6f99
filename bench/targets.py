"""The goals of the service's speed, each computed from the figures of the runs: `pages` prints the table.

What counts are the ratios of one run, so each goal is computed run by run, of rows that were measured in the
same round; it holds if it holds in every run. A goal whose figures are not there says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.loadings import CANNED, DYNAMODB
from bench.measuring import DIRECT
from bench.results import Section
from bench.scenarios import HEADRACE, IN_MEMORY, SOAK

Sections = Mapping[str, Section]
Values = Callable[[Sections], list[float | None]]
"""A value of each run; None where a run failed."""


@dataclass(frozen=True)
class Target:
    """One goal: its values, one a run, and the bound that each must keep."""

    says: str
    values: Values
    bound: float
    digits: int = 2
    at_least: bool = False
    bounded_by: str = ""
    """What it is made of, the largest part first."""

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _of(scenario: str, figure: str, subject: str = HEADRACE) -> Values:
    def values(sections: Sections) -> list[float | None]:
        row = sections[scenario].by_name.get(subject) if scenario in sections else None
        return [run.get(figure) for run in row.runs] if row is not None else []

    return values


def _with(one: Values, other: Values, combine: Callable[[float, float], float]) -> Values:
    def values(sections: Sections) -> list[float | None]:
        pairs = zip(one(sections), other(sections), strict=False)
        return [None if a is None or b is None else combine(a, b) for a, b in pairs]

    return values


def _ratio(one: Values, other: Values) -> Values:
    return _with(one, other, lambda a, b: a / b)


def _added(scenario: str, figure: str, subject: str = HEADRACE) -> Values:
    return _with(_of(scenario, figure, subject), _of(scenario, figure, DIRECT), lambda a, b: a - b)


_DELTA = _of("saturation", "us")
_RATE = _of("requests", "rate")

_A_DELTA = "the kernel's read and write, most of what a copy costs; Python (PROFILE.md, *A delta, 40,000/s*)"
_A_LATE_DELTA = "PROFILE.md, *A delta that is late*"
_LITELLM = "20 times below LiteLLM is, with what it costs here, 1.2 copies"
_AN_INVOCATION = "Python from the request's head to the log line (PROFILE.md, *An invocation*)"
_A_STREAM = (
    "README.md, *idle*: request, response, upstream connection, log, and frames of coroutines that wait"
)

TARGETS = (
    Target(
        "CPU a delta at saturation, times the raw copy",
        _ratio(_DELTA, _of("saturation", "us", "copy")),
        2.0,
        bounded_by=_A_DELTA,
    ),
    Target(
        "CPU a delta at saturation, times below LiteLLM",
        _ratio(_of("saturation", "us", "litellm"), _DELTA),
        20.0,
        1,
        at_least=True,
        bounded_by=f"{_LITELLM}; {_A_DELTA}",
    ),
    Target(
        "CPU a delta over TLS, us",
        _of("tls", "us"),
        30.0,
        1,
        bounded_by="PROFILE.md, *A delta over TLS*: OpenSSL and the kernel, which the copy's row has; Python",
    ),
    Target(
        "1,000 deltas/s: added latency p50, ms",
        _added("delta-latency", "late_p50"),
        0.1,
        3,
        bounded_by=f"{_A_LATE_DELTA}: the deltas read before it, its own with cold caches, a wake-up more",
    ),
    Target(
        "1,000 deltas/s: added latency p99, ms",
        _added("delta-latency", "late_p99"),
        0.6,
        bounded_by=f"{_A_LATE_DELTA}: other processes of the machine, then the deltas read before it",
    ),
    Target(
        "added first byte p50 with the store, ms",
        _added("first-byte", "byte_p50"),
        1.5,
        bounded_by=f"README.md, *first-byte*: the disk 0.65 ms, wake-ups 0.8, and {_AN_INVOCATION}",
    ),
    Target(
        "added first byte p50 in memory, ms",
        _added("first-byte", "byte_p50", IN_MEMORY),
        0.7,
        bounded_by=f"README.md, *first-byte*: two threads' hand-overs, wake-ups, and {_AN_INVOCATION}",
    ),
    Target("one-delta invocations/s", _RATE, 1500, 0, at_least=True, bounded_by=_AN_INVOCATION),
    Target(
        "one-delta invocations/s, times LiteLLM's",
        _ratio(_RATE, _of("requests", "rate", "litellm")),
        20.0,
        1,
        at_least=True,
        bounded_by=_AN_INVOCATION,
    ),
    Target("KB a silent stream, 2,000 of them", _of("idle", "kb"), 24.0, 1, bounded_by=_A_STREAM),
    Target("KB a silent stream, 8,000 of them", _of("idle-8000", "kb"), 24.0, 1, bounded_by=_A_STREAM),
    Target(
        "KB a silent stream over TLS",
        _of("idle-tls", "kb"),
        60.0,
        1,
        bounded_by=f"OpenSSL's state of a connection (the copy's row), then {_A_STREAM}",
    ),
    Target(
        "ms CPU a second for 1,000 silent streams",
        _of("idle", "ms_per_s"),
        2.5,
        bounded_by="100 heartbeats, half of each the kernel's write, and the process's own wake-ups"
        " (PROFILE.md, *A second of silence*)",
    ),
    Target(
        "CPU a delta, answer of 200,000 to answers of 20,000",
        _of("long-answer", "flat"),
        1.2,
        bounded_by="nothing that grows was found: windows of a second on a shared machine"
        " (five more runs gave 0.92 to 0.99, 22 November 2026)",
    ),
    Target(
        "CPU a delta, 4,000 silent streams beside to none",
        _of("many-streams", "flat"),
        1.2,
        bounded_by="heartbeats, and caches that more objects share"
        " (PROFILE.md, *A delta beside silent streams*)",
    ),
    Target(
        "bytes that an invocation leaves in memory",
        _of(SOAK, "bytes"),
        100.0,
        1,
        bounded_by="what is kept for those who reattach, until it expires",
    ),
    Target("first sight of a token, us", _of("token", "first_us"), 60.0, 1, bounded_by="RSA in OpenSSL"),
    Target("a verified token, us", _of("token", "verified_us"), 3.0, bounded_by="a look into a dict"),
    Target(
        "DynamoDB's share of the CPU, 1,000 streams x 20 deltas/s",
        _of("store", "store_share", DYNAMODB),
        0.25,
        bounded_by="a request a stream and second: sign, write, read, parse",
    ),
    Target(
        "DynamoDB's ms CPU an invocation",
        _of("store", "decisions_ms", CANNED),
        0.6,
        bounded_by="README.md, *store*: the Python that makes two transactions, and their way to the kernel"
        " (PROFILE.md, *An invocation on DynamoDB*)",
    ),
)


def missed(sections: Sections, targets: Sequence[Target] = TARGETS) -> list[str]:
    """One line for each goal that did not hold in every run: what bounds it."""
    return [
        f"{target.says}: {target.bounded_by}"
        for target in targets
        if not all(value is not None and target.holds(value) for value in target.values(sections))
    ]


def table(sections: Sections, targets: Sequence[Target] = TARGETS) -> list[list[str]]:
    """One line a goal: what it asks, the worst and the best run, and in how many runs it held."""
    lines = [["goal", "asks for", "worst run", "best run", "holds"]]
    for target in targets:
        runs = target.values(sections)
        values = sorted((value for value in runs if value is not None), reverse=not target.at_least)
        asks = f"{'at least' if target.at_least else 'at most'} {target.bound:,g}"
        if runs:
            held = sum(map(target.holds, values))
            shown = [f"{value:,.{target.digits}f}" for value in (*values[:1], *values[-1:])] or ["-", "-"]
            lines.append([target.says, asks, *shown, f"{held} of {len(runs)}"])
        else:
            lines.append([target.says, asks, "-", "-", "not measured"])
    return lines
