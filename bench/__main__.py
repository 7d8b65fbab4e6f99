"""The command line, `python -m bench [SCENARIO ...]`: measures, prints tables, keeps RESULTS.md.

Calls `scenarios` and `report`. A full run over all subjects replaces its section of RESULTS.md; `--quick` and
`--subjects` only print. Everything it starts is stopped when it ends, however it ends.
"""

import argparse
import os
import resource
import shlex
import signal
import sys

from bench.processes import LOAD_CORE, SUBJECT_CORE
from bench.report import as_text, cells, reasons, write_section
from bench.scenarios import FULL, QUICK, SCENARIOS, measure
from bench.subjects import nginx_path

_OPEN_FILES = 8192
_DEFAULT = ("first-byte", "saturation")
"""What is measured again and again; port-shape was measured for a decision, and is there to revisit it."""


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Headrace beside its peers.")
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="scenario",
        help=f"of {', '.join(SCENARIOS)}; without any: {', '.join(_DEFAULT)}",
    )
    parser.add_argument("--runs", type=int, default=3, help="the table has their medians (3)")
    parser.add_argument("--quick", action="store_true", help="one short run, printed only")
    parser.add_argument("--subjects", nargs="+", metavar="SUBJECT", help="only these, printed only")
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.scenarios) - SCENARIOS.keys():
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}")
    named = [SCENARIOS[name] for name in chosen.scenarios or _DEFAULT]
    known = {subject for scenario in named for subject in scenario.subjects}
    if unknown := set(chosen.subjects or ()) - known:
        parser.error(f"unknown subject: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if chosen.runs < 1:
        parser.error("--runs must be at least 1")
    return chosen


def _prepare() -> str | None:
    """Raise the limit of open files, make SIGTERM an exit; say why the bench can't run here, or None."""
    if sys.platform != "linux":
        return "the bench reads Linux's accounting of CPU time and pins processes: run it on Linux"
    if not {SUBJECT_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        return f"the bench needs cores {SUBJECT_CORE} and {LOAD_CORE}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        return f"the bench needs {_OPEN_FILES} open files, the limit is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), hard))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    chosen = _arguments(argv)
    if refusal := _prepare():
        _say(refusal)
        return 2
    runs, effort = (1, QUICK) if chosen.quick else (chosen.runs, FULL)
    failed = False
    for name in chosen.scenarios or _DEFAULT:
        scenario = SCENARIOS[name]
        subjects = [
            subject for subject in scenario.subjects if subject in (chosen.subjects or scenario.subjects)
        ]
        if not subjects:
            continue
        rows = measure(scenario, subjects, runs, effort, _say)
        table, notes = cells(rows, scenario.columns), reasons(rows)
        print(f"\n{name}, {'one short run' if chosen.quick else f'medians of {runs}'}\n")
        print(as_text(table), *notes, "", sep="\n", flush=True)
        if not chosen.quick and not chosen.subjects:
            command = shlex.join(["python", "-m", "bench", name, "--runs", str(runs)])
            write_section(name, command, nginx_path() if "nginx" in subjects else None, table, notes)
        failed = failed or any(row.failed for row in rows)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
