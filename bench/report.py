"""Makes tables of rows: medians over the runs, differences from another row, ratios to it.

`measuring` fills rows, `scenarios` says which columns a table has, `pages` puts tables together. Pure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


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
    """A subject's figures of every run; a run that failed has none, and the row says why."""

    name: str
    runs: list[dict[str, float]] = field(default_factory=list)
    reason: str | None = None
    failed: bool = False

    def fail(self, why: str) -> None:
        """A run has no figures; those of the others stay."""
        self.runs.append({})
        self.reason, self.failed = f"failed: {why}", True

    @property
    def given_up(self) -> bool:
        """Whether there is no sense in another run: nobody to measure, or failed twice."""
        return self.reason is not None and (not self.failed or self.failures > 1)

    @property
    def failures(self) -> int:
        return sum(not run for run in self.runs)

    def median(self, figure: str) -> float | None:
        """The median of a figure over the runs; None without a run that has it."""
        values = self.values(figure)
        return statistics.median(values) if values else None

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
    if not values:
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


def as_markdown(table: Sequence[Sequence[str]], *, words: int = 0) -> str:
    """Write a table as Markdown, figures to the right; the last columns may be `words`, to the left."""
    rule = ["---", *["--:"] * (len(table[0]) - 1 - words), *["---"] * words]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table[0], rule, *table[1:]))


def reasons(rows: Sequence[Row]) -> list[str]:
    """One line for each row that has no figures, or not those of all its runs."""
    return [
        f"{row.name}: {row.reason.splitlines()[0]}"
        + (f" ({row.failures} of {len(row.runs)} runs)" if row.runs else "")
        for row in rows
        if row.reason is not None
    ]
