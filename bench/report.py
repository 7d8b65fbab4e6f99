"""Makes the tables: medians over the runs, differences from the direct row, ratios to the copy; and keeps
RESULTS.md.

`scenarios` fills rows, `__main__` prints the table and writes its section. RESULTS.md has one section a
scenario, each with the machine, the versions, the command and the date of its own run; the sections of other
scenarios stay as they are.
"""

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_TITLE = """# Results

Written by `python -m bench`; [README.md](README.md) says what the figures mean and what bounds them. They are
medians; in brackets the smallest and the largest run. Only figures of one table can be compared.
"""
_PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "aioboto3", "aiohttp")
_HEADINGS = re.compile(r"^## ", re.MULTILINE)


@dataclass(frozen=True)
class Column:
    """One column: a figure's median, perhaps less or divided by another row's, perhaps with its spread."""

    title: str
    figure: str
    digits: int
    minus: str | None = None
    per: str | None = None
    spread: bool = False


@dataclass
class Row:
    """A subject's figures of every run, or the reason why it has none."""

    name: str
    runs: list[dict[str, float]] = field(default_factory=list)
    reason: str | None = None
    failed: bool = False

    def values(self, figure: str) -> list[float]:
        return [run[figure] for run in self.runs if figure in run]


def cells(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """The table as text, its titles first; a figure that a row doesn't have is a dash."""
    by_name = {row.name: row for row in rows}
    table = [["subject", *(column.title for column in columns)]]
    table += [[row.name, *(_cell(row, column, by_name) for column in columns)] for row in rows]
    return table


def _cell(row: Row, column: Column, by_name: dict[str, Row]) -> str:
    values = row.values(column.figure)
    if not values or row.reason is not None:
        return "-"
    value = statistics.median(values)
    reference = column.minus or column.per
    if reference is not None:
        others = by_name[reference].values(column.figure) if reference in by_name else []
        if not others:
            return "-"
        other = statistics.median(others)
        value = value - other if column.minus else value / other
    text = f"{value:,.{column.digits}f}"
    if column.spread and len(values) > 1:
        text += f" ({min(values):,.{column.digits}f}-{max(values):,.{column.digits}f})"
    return text


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Align a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )
    return "\n".join(lines)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown, figures to the right."""
    rule = ["---", *["--:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table[0], rule, *table[1:]))


def reasons(rows: Sequence[Row]) -> list[str]:
    """One sentence for each row without figures, and for each that left streams unfinished."""
    said = [f"{row.name}: {row.reason}" for row in rows if row.reason is not None]
    for row in rows:
        left = max(row.values("unfinished"), default=0)
        if row.reason is None and left:
            said.append(f"{row.name}: up to {left:.0f} streams were late and were cut")
    return said


def write_section(
    name: str, command: str, nginx: str | None, table: list[list[str]], notes: list[str]
) -> None:
    """Replace one scenario's section of RESULTS.md."""
    body = [
        f"## {name}",
        f"`{command}`, {datetime.now(UTC).date().isoformat()}. {_machine(nginx)}",
        as_markdown(table),
    ]
    body += ["\n".join(f"- {note.splitlines()[0]}" for note in notes)] if notes else []
    sections = {name: "\n\n".join(body)}
    if RESULTS.exists():
        for text in _HEADINGS.split(RESULTS.read_text())[1:]:
            kept = text.partition("\n")[0].strip()
            sections.setdefault(kept, f"## {text.strip()}")
    RESULTS.write_text("\n".join([_TITLE, "\n\n".join(sections[key] for key in sorted(sections)), ""]))


def _machine(nginx: str | None) -> str:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = ".".join(platform.release().split(".")[:2])
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    if nginx is not None:
        said = subprocess.run([nginx, "-v"], capture_output=True, text=True, timeout=10, check=False).stderr
        versions.append(f"nginx {said.strip().rpartition('/')[2].partition(' ')[0]}")
    name = cpu[1].strip() if cpu else platform.machine()
    return f"{os.cpu_count()} cores of {name}, Linux {kernel}; {', '.join(versions)}."
