"""What is measured of each subject: three scenarios, each a loading, the figures taken from it, and its
table.

`__main__` runs them. A measurement starts its own upstream and its own subject, checks that the subject
answers exactly, takes its figures and stops both; runs go round robin over the subjects, so that a noisy
minute hurts all of them alike. The figure of a cell is the median over the runs. README.md says what each
figure means.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load import Load, Result
from bench.processes import Processes, SubjectFailed
from bench.report import Column, Row
from bench.script import Plan
from bench.subjects import (
    DELTA_MARK,
    SHAPE_SUBJECTS,
    SUBJECTS,
    Running,
    Start,
    SubjectMissing,
    start_upstream,
)

Figures = dict[str, float]

_WARM_UP = Plan(first_ms=1, deltas=10, interval_us=1000)
_WARM_UP_REQUESTS = 20
_FIRST_BYTE = Plan(first_ms=20, deltas=10, interval_us=1000)
_STREAMS = 800
_FEWER_STREAMS = {"obvious": 400}
"""Subjects that saturate far below 40,000 deltas/s: more streams would only wait in their buffers."""
_PACE_US = 20_000
_SETTLE_S = 1.0
_SPARE_S = 2.0
_DIRECT = "direct"
_BEYOND = "direct, 3x the rate"


@dataclass(frozen=True)
class Effort:
    """How long to look: a full run or a quick one."""

    requests: int
    window_s: float


FULL = Effort(requests=300, window_s=6.0)
QUICK = Effort(requests=60, window_s=3.0)


@dataclass(frozen=True)
class Offer:
    """What a window offers: streams opened over ramp_s, the pace of each, how many deltas come at a time."""

    streams: int
    interval_us: int
    burst: int = 1
    ramp_s: float = 4.0

    def plan(self, effort: Effort) -> Plan:
        """A stream lasts from the first moment of the ramp to a second after the window."""
        open_s = self.ramp_s + _SETTLE_S + effort.window_s + 1
        writes = int(open_s * 1e6 / self.interval_us)
        return Plan(first_ms=20, deltas=writes * self.burst, interval_us=self.interval_us, burst=self.burst)


_SHAPE_OFFERS = {
    "": Offer(_STREAMS, _PACE_US, ramp_s=2.0),
    "burst_": Offer(_STREAMS, 4 * _PACE_US, 4, ramp_s=2.0),
    "low_": Offer(50, 50_000, ramp_s=2.0),
}


@dataclass(frozen=True)
class Bed:
    """A measurement under way: a subject in front of its upstream; `running is upstream` without one."""

    processes: Processes
    upstream: Running
    running: Running
    name: str
    effort: Effort

    def load(self, plan: Plan, **more: Any) -> Result:
        """Load the subject with a plan; `more` are fields of `Load`.

        Raises:
            SubjectFailed: An answer was wrong, or the client did not end in time.
        """
        result = self.processes.load(
            Load(
                port=self.running.port,
                request=self.running.request(plan),
                delta_mark=DELTA_MARK,
                end_mark=self.running.end_mark,
                deltas=plan.deltas,
                **more,
            )
        )
        if result.errors:
            raise SubjectFailed(", ".join(f"{count} x {error}" for error, count in result.errors.items()))
        return result

    def window(self, offer: Offer) -> Figures:
        """Offer deltas and look at a window of it.

        Raises:
            SubjectFailed: A stream ended wrongly, or nothing arrived.
        """
        result = self.load(
            offer.plan(self.effort),
            streams=offer.streams,
            ramp_s=offer.ramp_s,
            settle_s=_SETTLE_S,
            window_s=self.effort.window_s,
            grace_s=offer.ramp_s + _SPARE_S,
            limit_s=60.0 + self.effort.window_s,
            watched={"subject": self.running.pid, "upstream": self.upstream.pid},
        )
        if not result.deltas:
            raise SubjectFailed("no delta arrived in the window")
        figures: Figures = {
            "served": result.deltas / result.window_s,
            "offered": offer.streams * offer.burst / offer.interval_us * 1e6,
            "client_use": result.cpu_s["client"] / result.window_s,
            "upstream_use": result.cpu_s["upstream"] / result.window_s,
            "unfinished": result.unfinished,
        }
        if self.running is not self.upstream:
            figures["use"] = result.cpu_s["subject"] / result.window_s
            figures["us"] = result.cpu_s["subject"] / result.deltas * 1e6
        return figures


@dataclass(frozen=True)
class Scenario:
    """One table: its subjects, the plans that they must serve, how figures are taken, and which are shown."""

    name: str
    subjects: Mapping[str, Start]
    columns: Sequence[Column]
    plans: Callable[[str, Effort], list[Plan]]
    figures: Callable[[Bed], Figures]
    alone: Sequence[str] = ()
    """Rows of client and upstream without a subject."""


def _first_byte(bed: Bed) -> Figures:
    result = bed.load(_FIRST_BYTE, requests=bed.effort.requests, limit_s=120.0)
    return {
        "byte_p50": statistics.median(result.first_byte_ms),
        "byte_p99": _percentile(result.first_byte_ms, 99),
        "delta_p50": statistics.median(result.first_delta_ms),
        "delta_p99": _percentile(result.first_delta_ms, 99),
    }


def _saturating(name: str) -> Offer:
    pace_us = _PACE_US // 3 if name == _BEYOND else _PACE_US
    return Offer(_FEWER_STREAMS.get(name, _STREAMS), pace_us)


def _port_shape(bed: Bed) -> Figures:
    figures: Figures = {}
    for prefix, offer in _SHAPE_OFFERS.items():
        figures |= {prefix + figure: value for figure, value in bed.window(offer).items()}
    return figures


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="first-byte",
            subjects=SUBJECTS,
            columns=(
                Column("first byte p50 ms", "byte_p50", 2),
                Column("added p50 ms", "byte_p50", 2, minus=_DIRECT),
                Column("p99 ms", "byte_p99", 2),
                Column("first delta p50 ms", "delta_p50", 2),
                Column("added p50 ms", "delta_p50", 2, minus=_DIRECT),
                Column("p99 ms", "delta_p99", 2),
            ),
            plans=lambda _name, _effort: [_FIRST_BYTE],
            figures=_first_byte,
            alone=(_DIRECT,),
        ),
        Scenario(
            name="saturation",
            subjects=SUBJECTS,
            columns=(
                Column("deltas/s offered", "offered", 0),
                Column("served", "served", 0),
                Column("core used", "use", 2),
                Column("us CPU per delta", "us", 1, spread=True),
                Column("x copy", "us", 2, per="copy"),
                Column("client core", "client_use", 2),
                Column("upstream core", "upstream_use", 2),
            ),
            plans=lambda name, effort: [_saturating(name).plan(effort)],
            figures=lambda bed: bed.window(_saturating(bed.name)),
            alone=(_DIRECT, _BEYOND),
        ),
        Scenario(
            name="port-shape",
            subjects=SHAPE_SUBJECTS,
            columns=(
                Column("us per delta, 40k/s", "us", 1, spread=True),
                Column("x copy", "us", 2, per="copy"),
                Column("core used", "use", 2),
                Column("40k/s in fours", "burst_us", 1, spread=True),
                Column("1k/s", "low_us", 1, spread=True),
                Column("x copy", "low_us", 2, per="copy"),
            ),
            plans=lambda _name, effort: [offer.plan(effort) for offer in _SHAPE_OFFERS.values()],
            figures=_port_shape,
        ),
    )
}


def measure(
    scenario: Scenario, chosen: Sequence[str], runs: int, effort: Effort, say: Callable[[str], None]
) -> list[Row]:
    """Measure the chosen subjects `runs` times, round robin; a subject that fails has a reason instead."""
    rows = {name: Row(name) for name in (*scenario.alone, *chosen)}
    for run in range(runs):
        for row in rows.values():
            if row.reason is not None:
                continue
            say(f"{scenario.name}: {row.name}, run {run + 1} of {runs}")
            try:
                row.runs.append(_measure_once(scenario, row.name, effort))
            except SubjectMissing as missing:
                row.reason = str(missing)
            except SubjectFailed as failure:
                row.reason, row.failed = f"failed: {failure}", True
    return list(rows.values())


def _measure_once(scenario: Scenario, name: str, effort: Effort) -> Figures:
    with Processes() as processes:
        upstream = start_upstream(processes)
        start = scenario.subjects.get(name)
        plans = [_WARM_UP, *scenario.plans(name, effort)]
        running = start(processes, upstream.port, plans) if start is not None else upstream
        bed = Bed(processes, upstream, running, name, effort)
        bed.load(_WARM_UP, requests=_WARM_UP_REQUESTS, limit_s=30.0)
        return scenario.figures(bed)
