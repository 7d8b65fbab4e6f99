"""How a table is measured: what a scenario is, the bed that it measures on, and the rounds over its subjects.

`scenarios` lists the scenarios, `loadings` has what they do on a bed, `__main__` runs them. A bed is an
upstream and one subject in front of it, started for it and stopped after it; a subject first has to answer a
small plan exactly. Runs go round robin over the subjects, so that a noisy minute hurts all of them alike.
Scenarios of one group share the beds of a round: what they measure does not depend on what ran before.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.loads import Load, Result
from bench.processes import Processes, SubjectFailed
from bench.report import Column, Row
from bench.script import Plan
from bench.subjects import Running, Start, SubjectMissing, Upstream, direct, start_upstream

Figures = dict[str, float]

DIRECT = "direct"
WARM_UP = Plan(first_ms=1, deltas=10, interval_us=1000)
_WARM_UP_REQUESTS = 20
_WARM_UP_S = 20.0
_AGAIN_S = 0.5


@dataclass(frozen=True)
class Effort:
    """How long to look: a full run or a quick one."""

    first_bytes: int
    window_s: float
    ramp_s: float
    idle_s: float
    invocations: int
    """Of soak."""


FULL = Effort(first_bytes=60, window_s=3.0, ramp_s=2.5, idle_s=10.0, invocations=100_000)
QUICK = Effort(first_bytes=40, window_s=2.0, ramp_s=2.0, idle_s=3.0, invocations=2_000)


@dataclass(frozen=True)
class Bed:
    """A subject in front of its upstream; for a row without a subject, `running` is the upstream."""

    processes: Processes
    upstream: Upstream
    running: Running
    name: str
    effort: Effort

    def load(self, plan: Plan, *, beside: Plan | None = None, **more: Any) -> Result:
        """Load the subject with a plan; `more` are fields of `Load`.

        Raises:
            SubjectFailed: An answer was wrong, or the client did not end in time.
        """
        watched = {"subject": self.running.pid, "upstream": self.upstream.pid}
        result = self.processes.load(
            Load(
                port=self.running.port,
                asking=self.running.asking(plan),
                beside=self.running.asking(beside) if beside is not None else None,
                watched=watched,
                **more,
            )
        )
        if result.errors:
            raise SubjectFailed(", ".join(f"{count} x {error}" for error, count in result.errors.items()))
        return result

    @property
    def alone(self) -> bool:
        """Whether there is no subject."""
        return self.running.pid == self.upstream.pid

    def warm_up(self) -> None:
        """Ask until the answers are right: some servers listen before they can answer.

        Each caller asks at least once: a token that is seen for the first time is dearer (scenario `token`).

        Raises:
            SubjectFailed: They were still wrong in the end.
        """
        until_s = time.monotonic() + _WARM_UP_S
        times = max(_WARM_UP_REQUESTS, len(self.running.headers))
        while True:
            try:
                self.load(WARM_UP, way="sequential", times=times, limit_s=30.0)
                return
            except SubjectFailed:
                if time.monotonic() > until_s:
                    raise
                time.sleep(_AGAIN_S)


@dataclass(frozen=True)
class Scenario:
    """One table: its subjects, the plans that they must serve, how figures are taken, and which are shown."""

    name: str
    subjects: Mapping[str, Start]
    columns: Sequence[Column]
    plans: Callable[[str, Effort], Sequence[Plan]]
    figures: Callable[[Bed], Figures]
    alone: Sequence[str] = ()
    """Rows of client and upstream without a subject."""
    group: str | None = None
    """Scenarios of one group share beds."""
    tls: bool = False
    once: Sequence[str] = ()
    """Subjects that are measured in the first round only: they set the scale."""
    quick: Sequence[str] | None = None
    """The subjects of a quick run that names no scenarios; None means all."""
    default: bool = True
    """Whether it is measured when none is named."""

    def rows(self, chosen: Sequence[str] | None, *, few: bool) -> list[Row]:
        """Empty rows for the subjects to measure: those chosen, else the few of a quick run, else all."""
        wanted = [*self.alone, *self.subjects] if chosen is None else list(chosen)
        if few and chosen is None and self.quick is not None:
            wanted = list(self.quick)
        return [Row(name) for name in (*self.alone, *self.subjects) if name in wanted]


Say = Callable[[str], None]
Group = Mapping[str, tuple[Scenario, list[Row]]]


def measure(group: Group, run: int, effort: Effort, say: Say) -> None:
    """Measure one round of scenarios that share beds: each subject once, all scenarios on it.

    A subject that fails has a reason instead of figures, and the others go on.
    """
    for name in dict.fromkeys(row.name for _, rows in group.values() for row in rows):
        parts = [
            (scenario, row)
            for scenario, rows in group.values()
            for row in rows
            if row.name == name and not row.given_up and not (run and name in scenario.once)
        ]
        if parts:
            say(f"{', '.join(scenario.name for scenario, _ in parts)}: {name}, run {run + 1}")
            _measure_once(name, parts, effort)


def _measure_once(name: str, parts: Sequence[tuple[Scenario, Row]], effort: Effort) -> None:
    plans = [WARM_UP, *(plan for scenario, _ in parts for plan in scenario.plans(name, effort))]
    first = parts[0][0]
    start = first.subjects.get(name)
    left = [row for _, row in parts]  # those of this round that have neither figures nor a reason
    try:
        with Processes() as processes:
            upstream = start_upstream(processes, tls=first.tls)
            running = start(processes, upstream, plans) if start is not None else direct(upstream)
            bed = Bed(processes, upstream, running, name, effort)
            bed.warm_up()
            for scenario, row in parts:
                left.pop(0)
                try:
                    row.runs.append(scenario.figures(bed))
                except Exception as failure:  # noqa: BLE001 - whatever it was, the others go on
                    row.fail(_told(failure))
    except SubjectMissing as missing:
        for row in left:
            row.reason = str(missing)
    except Exception as failure:  # noqa: BLE001 - as above
        for row in left:
            row.fail(_told(failure))


def _told(failure: Exception) -> str:
    return str(failure) if isinstance(failure, SubjectFailed) else f"{type(failure).__name__}: {failure}"
