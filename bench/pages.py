"""What is published of the figures: the one table, the goals, and RESULTS.md with a section a scenario.

Pure: `results.load` gives the sections, `__main__` prints the summary and writes RESULTS.md, and a test holds
RESULTS.md to results.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import targets
from bench.measuring import DIRECT
from bench.report import as_markdown, cells, reasons
from bench.results import Section
from bench.scenarios import HEADRACE, SCENARIOS

RESULTS = Path(__file__).with_name("RESULTS.md")
_TITLE = """# Results

Made by `python -m bench` from [results.json](results.json), which has every run; [README.md](README.md) says
what the figures mean and what bounds them. They are medians; in brackets the smallest and the largest run.
Only figures of one table can be compared.
"""
_SUMMARY = """## In one table

One process on one core each. In brackets: how many times Headrace's. Headrace verifies a token, keeps quotas
and a durable log, and sends heartbeats; of the others none does any of these, but for heartbeats (`obvious`).
"""
_TARGETS = """## The goals

Of every run; what counts are the ratios of one run.
"""
_MISSED = """What bounds those that did not hold in every run, the largest part first, and
[where the time goes](PROFILE.md):
"""


@dataclass(frozen=True)
class Kept:
    """One column of the summary: a scenario's figure, perhaps what is added to the direct row's."""

    title: str
    scenario: str
    figure: str
    digits: int
    added: bool = False


KEPT = (
    Kept("us CPU a delta, 40,000/s", "saturation", "us", 1),
    Kept("us CPU a delta, backlog", "backlog", "us", 2),
    Kept("ms added to a delta, p50", "delta-latency", "late_p50", 2, added=True),
    Kept("ms added to the first byte, p50", "first-byte", "byte_p50", 2, added=True),
    Kept("ms CPU an invocation", "requests", "ms", 2),
    Kept("invocations/s", "requests", "rate", 0),
    Kept("KB a silent stream", "idle", "kb", 1),
)


def summary(sections: Mapping[str, Section]) -> list[list[str]]:
    """The one table: a row a subject, ratios to Headrace in brackets."""
    kept = [column for column in KEPT if column.scenario in sections]
    rows = [row.name for column in kept for row in sections[column.scenario].rows]
    names = [name for name in dict.fromkeys(rows) if not name.startswith((DIRECT, f"{HEADRACE},"))]
    table = [["subject", *(column.title for column in kept)]]
    return table + [
        [name, *(_kept(sections[column.scenario], column, name) for column in kept)] for name in names
    ]


def _kept(section: Section, column: Kept, name: str) -> str:
    def value(of: str) -> float | None:
        row = section.by_name.get(of)
        median = row.median(column.figure) if row is not None else None
        if median is None or not column.added:
            return median
        base = section.by_name[DIRECT].median(column.figure) if DIRECT in section.by_name else None
        return None if base is None else median - base

    own, ours = value(name), value(HEADRACE)
    if own is None:
        return "-"
    text = f"{own:,.{column.digits}f}"
    if name == HEADRACE or not ours or ours < 0:
        return text
    times = own / ours
    return f"{text} ({times:,.{0 if times >= 10 else 1 if times >= 1 else 2}f}x)"


def results_page(sections: Mapping[str, Section]) -> str:
    """RESULTS.md, whole."""
    parts = [_TITLE, _SUMMARY, as_markdown(summary(sections)) + "\n"]
    parts += [_TARGETS, as_markdown(targets.table(sections)) + "\n"]
    if missed := targets.missed(sections):
        parts += [_MISSED, "\n".join(f"- {line}" for line in missed) + "\n"]
    parts += [_section(name, sections[name]) for name in SCENARIOS if name in sections]
    return "\n".join(parts)


def _section(name: str, section: Section) -> str:
    runs = max((len(row.runs) for row in section.rows), default=0)
    how = "one short run" if section.quick else f"{runs} runs" if runs > 1 else "one run"
    parts = [
        f"## {name}",
        f"`{section.command}`, {how}, {section.date}. {section.where}",
        as_markdown(cells(section.rows, SCENARIOS[name].columns)),
    ]
    notes = reasons(section.rows)
    if once := [row.name for row in section.rows if len(row.runs) == 1 < runs]:
        notes.append(f"{', '.join(once)}: one run")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"
