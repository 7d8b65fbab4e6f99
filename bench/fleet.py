"""The fleet of docs/performance.md: `python -m bench.fleet` prints its tables and writes them there.

They stand between two marks; a test holds them to what this makes of the committed figures. Calls
`fleet_model`. All but `write` is pure.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from bench import results
from bench.fleet_model import TASK_GB, TASK_STREAMS, UTILISATION, Fleet, Measured, cell_tasks
from bench.report import as_markdown
from bench.results import Section

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_WIDTH = 110
SIZES = (1_000, 100_000, 10_000_000)
_MARKS = re.compile(r"(<!-- made by bench\.fleet -->\n).*?(<!-- end -->)", re.DOTALL)


def page(sections: Mapping[str, Section]) -> str | None:
    """The made part of docs/performance.md; None if the figures that it needs were not measured."""
    measured = Measured.of(sections)
    if measured is None:
        return None
    fleets = [Fleet(size, measured) for size in SIZES]
    parts = [_figures(sections, measured, fleets[0]), _sizes(fleets), _dollars(fleets), _breaks(fleets)]
    return "\n\n".join([*parts, _cells(measured), ""])


def _figures(sections: Mapping[str, Section], measured: Measured, fleet: Fleet) -> str:
    sorts = {"a short run" if sections[name].quick else "full runs" for name in ("tls", "store", "idle-tls")}
    rows = [
        ["measured", "figure", "from"],
        [
            "CPU a delta, us",
            f"{measured.delta_us:.1f}",
            "`tls`, with DynamoDB's share (`store`) in place of SQLite's",
        ],
        ["CPU an invocation, ms", f"{measured.invocation_ms:.2f}", "`store`, DynamoDB"],
        ["memory a stream, KB", f"{measured.stream_kb:.0f}", "`idle-tls`"],
        ["CPU a second, 1,000 silent streams, ms", f"{measured.heartbeats_ms:.1f}", "`idle`"],
        ["**streams that a task has CPU for**", f"**{fleet.by_cpu:,}**", f"1 vCPU at {UTILISATION:.0%}"],
        ["streams that it has memory for", f"{fleet.by_memory:,}", f"{TASK_GB} GB at {UTILISATION:.0%}"],
        ["streams that the stack gives it", f"{TASK_STREAMS:,}", "`streams_per_task`"],
    ]
    where = sections["tls"].where
    said = f"From [results.json](../bench/results.json), {' and '.join(sorted(sorts))}: {where}"
    return fill(said, _WIDTH, break_long_words=False) + "\n\n" + as_markdown(rows, words=1)


def _sizes(fleets: list[Fleet]) -> str:
    rows = [
        ["streams at once", *(f"{fleet.streams:,}" for fleet in fleets)],
        ["answers a second", *(f"{fleet.answers_per_s:,.0f}" for fleet in fleets)],
        ["tasks", *(f"{fleet.tasks:,}" for fleet in fleets)],
        ["cells", *(f"{fleet.cells:,}" for fleet in fleets)],
        ["write units a second", *(f"{fleet.writes_per_s:,.0f}" for fleet in fleets)],
        ["read units a second", *(f"{fleet.reads_per_s:,.0f}" for fleet in fleets)],
        ["Bedrock tokens a minute, millions", *(f"{fleet.tokens_per_min / 1e6:,.0f}" for fleet in fleets)],
        ["out, Gbit/s", *(f"{fleet.bytes_out_per_s * 8 / 1e9:,.2f}" for fleet in fleets)],
    ]
    return "### What it takes\n\n" + as_markdown(rows)


def _dollars(fleets: list[Fleet]) -> str:
    costs = [fleet.dollars_an_hour() for fleet in fleets]
    rows = [["dollars an hour", *(f"{fleet.streams:,}" for fleet in fleets)]]
    rows += [[name, *(_money(cost[name]) for cost in costs)] for name in costs[0]]
    totals = [sum(cost.values()) for cost in costs]
    rows.append(["**in all**", *(f"**{_money(total)}**" for total in totals)])
    answers = [
        total / (fleet.answers_per_s * 3600 / 1e6) for total, fleet in zip(totals, fleets, strict=True)
    ]
    rows.append(["a million answers", *(_money(each) for each in answers)])
    return "### What it costs\n\n" + as_markdown(rows)


def _breaks(fleets: list[Fleet]) -> str:
    parts = ["### What breaks first"]
    for fleet in fleets:
        rows = [["load", "at this size", "quota", "times", "what to do"]]
        over = [(quota, load) for quota, load in fleet.loads() if load > quota.default]
        near = [(quota, load) for quota, load in fleet.loads() if quota.default * 0.5 < load <= quota.default]
        rows += [
            [
                quota.name,
                f"{load:,.0f}",
                f"[{quota.default:,g}]({quota.source})",
                f"{load / quota.default:,.1f}",
                quota.do,
            ]
            for quota, load in [*over, *near]
        ]
        said = f"**{fleet.streams:,} streams.** "
        said += f"{len(over)} quotas are exceeded" if over else "No default quota is exceeded"
        said += ", the worst first." if over else "."
        parts.append(f"{said}\n\n{as_markdown(rows, words=1)}" if len(rows) > 1 else said)
    return "\n\n".join(parts)


def _cells(measured: Measured) -> str:
    tasks, last = cell_tasks(), Fleet(SIZES[-1], measured)
    streams = tasks * last.streams_per_task
    said = (
        f"One deployment (tables, load balancer, service) carries **{streams:,}** streams on "
        f"{tasks:,} tasks before its processes read the leases with more than a partition gives. "
        f"{SIZES[-1]:,} streams are **{last.cells} cells** of that size, in as many accounts as the other "
        f"quotas ask for; a user belongs to one cell, so quotas stay exact. The units and dollars above are "
        f"those of such cells."
    )
    return "### Cells\n\n" + fill(said, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _money(dollars: float) -> str:
    return f"{dollars:,.2f}" if dollars < 10 else f"{dollars:,.0f}"


def write(sections: Mapping[str, Section], path: Path = PAGE) -> bool:
    """Replace the made part of the document; False, and nothing changes, if figures are missing."""
    made = page(sections)
    if made is None:
        return False
    text = path.read_text(encoding="utf-8")
    path.write_text(_MARKS.sub(lambda marks: f"{marks[1]}{made}{marks[2]}", text), encoding="utf-8")
    return True


def main() -> int:
    sections = results.load()
    made = page(sections)
    if made is None or not write(sections):
        print("figures are missing: `python -m bench tls idle idle-tls store` measures them", file=sys.stderr)
        return 1
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
