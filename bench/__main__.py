"""The command line, `python -m bench [SCENARIO ...]`: measures, prints tables, keeps what is published.

Calls `measuring`, and writes results.json, RESULTS.md and chart.svg after each round over the subjects of a
group of scenarios, so that what was measured stays whatever comes then. `--quick` and `--subjects` only
print, unless `--keep` says otherwise; `--pages` measures nothing and makes the pages again. Everything it
starts is stopped when it ends, however it ends.
"""

import argparse
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from bench import chart, fleet, pages, results, targets
from bench.measuring import FULL, QUICK, measure
from bench.peers import PEERS
from bench.processes import LOAD_CORE, SUBJECT_CORE
from bench.report import Row, as_text, cells, reasons
from bench.scenarios import SCENARIOS, SOAK

_OPEN_FILES = 17_000
"""8,000 silent streams are 16,000 connections of the subject."""


def _arguments(argv: list[str]) -> argparse.Namespace:
    default = [name for name, scenario in SCENARIOS.items() if scenario.default]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Headrace beside its peers.")
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="scenario",
        help=f"of {', '.join(SCENARIOS)}; without any: {', '.join(default)}",
    )
    parser.add_argument("--runs", type=int, default=3, help="the tables have their medians (3)")
    parser.add_argument("--quick", action="store_true", help="one short run of the main ones, printed only")
    parser.add_argument("--subjects", nargs="+", metavar="SUBJECT", help="only these, printed only")
    parser.add_argument(
        "--count", type=int, default=FULL.invocations, help="the invocations of soak (100,000)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the figures of --quick too")
    parser.add_argument("--pages", action="store_true", help="make the pages of results.json again")
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.scenarios) - SCENARIOS.keys():
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}")
    chosen.few = chosen.quick and not chosen.scenarios  # who names a scenario wants all of it
    chosen.scenarios = [name for name in SCENARIOS if name in (chosen.scenarios or default)]
    known = {row.name for name in chosen.scenarios for row in SCENARIOS[name].rows(None, few=False)}
    if unknown := set(chosen.subjects or ()) - known:
        parser.error(f"unknown subject: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if min(chosen.runs, chosen.count) < 1:
        parser.error("--runs and --count must be at least 1")
    if chosen.keep and chosen.subjects:
        parser.error("a part of the subjects is never kept")
    return chosen


def _prepare() -> str | None:
    """Raise the limit of open files, make SIGTERM an exit; say why the bench can't run here, or None."""
    if sys.platform != "linux":
        return "the bench reads Linux's accounting of CPU time and pins processes: run it on Linux"
    if not {SUBJECT_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        return f"the bench needs cores {SUBJECT_CORE} and {LOAD_CORE}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        return f"the bench needs {_OPEN_FILES} open files, the limit is {hard} (`ulimit -Hn`)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), hard))
    os.environ["NO_PROXY"] = "127.0.0.1"
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _groups(names: list[str]) -> list[list[str]]:
    """Scenarios that share beds, together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(SCENARIOS[name].group or name, []).append(name)
    return list(groups.values())


def _publish(sections: Mapping[str, results.Section]) -> None:
    pages.RESULTS.write_text(pages.results_page(sections), encoding="utf-8")
    chart.PATH.write_text(chart.drawn(sections), encoding="utf-8")
    fleet.write(sections)


class _Run:
    """One run of the bench: measures group by group, and keeps what is published after each round."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._rounds = 1 if chosen.quick else chosen.runs
        self._effort = QUICK if chosen.quick else replace(FULL, invocations=chosen.count)
        self._keeps = chosen.keep or not (chosen.quick or chosen.subjects)
        self._began_s = time.monotonic()
        self.sections: dict[str, results.Section] = {}

    def measure(self, names: list[str]) -> None:
        """Measure one group, round by round, and print its tables."""
        chosen = self._chosen
        all_rows = {name: SCENARIOS[name].rows(chosen.subjects, few=chosen.few) for name in names}
        group = {name: (SCENARIOS[name], rows) for name, rows in all_rows.items() if rows}
        for run in range(self._rounds):
            measure(group, run, self._effort, self._say)
            self._keep({name: rows for name, (_, rows) in group.items()})
        for name, (scenario, rows) in group.items():
            print(f"\n{name}\n{as_text(cells(rows, scenario.columns))}")
            print("\n".join(f"- {note}" for note in reasons(rows)), flush=True)

    def _keep(self, measured: Mapping[str, list[Row]]) -> None:
        chosen = self._chosen
        for name, rows in measured.items():
            given = ["--quick"] if chosen.quick else ["--runs", str(chosen.runs)]
            given += ["--count", str(chosen.count)] if name == SOAK else []
            command = shlex.join(["python", "-m", "bench", name, *given])
            self.sections[name] = results.new_section(command, rows, quick=chosen.quick)
        if self._keeps and measured:
            known = results.load() | self.sections
            kept = {name: known[name] for name in SCENARIOS if name in known}
            results.save(kept)
            _publish(kept)

    def _say(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began_s), 60)
        _say(f"{minutes:02}:{seconds:02}  {line}")


def main(argv: list[str]) -> int:
    chosen = _arguments(argv)
    if chosen.pages:
        _publish(results.load())
        return 0
    if refusal := _prepare():
        _say(refusal)
        return 2
    run = _Run(chosen)
    for group in _groups(chosen.scenarios):
        run.measure(group)
    if len(run.sections) > 1:
        print("\nin one table; in brackets: how many times Headrace's\n")
        print(as_text(pages.summary(run.sections)))
        print("\nthe goals\n")
        print(as_text(targets.table(run.sections)), flush=True)
    failed = [row.name for section in run.sections.values() for row in section.rows if row.failed]
    return 1 if set(failed) - PEERS.keys() else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
