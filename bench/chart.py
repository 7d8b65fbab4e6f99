"""The chart of the README, `bench/chart.svg`: what a delta, an invocation and a silent stream cost.

Pure: figures to SVG, with nothing but text. Costs differ by three orders of magnitude, so the axes are
logarithmic, and there are dots instead of bars, whose lengths would lie on such an axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.results import Section

PATH = Path(__file__).with_name("chart.svg")
_SUBJECTS = ("nginx", "copy", "headrace", "smg", "obvious", "portkey", "litellm")
_SAID = {
    "copy": "raw uvloop copy",
    "headrace": "Headrace",
    "obvious": "the obvious loop",
    "portkey": "Portkey",
    "litellm": "LiteLLM",
    "smg": "smg (Rust)",
}
_FEET = """\
One process on one core, medians; less is better; logarithmic axes. Headrace verifies tokens, keeps exact \
quotas and a durable log.
nginx and the copy only pass bytes on, smg relays chat/completions, the others translate Bedrock's frames; \
none does what Headrace does."""
_LABELS, _PANEL, _GAP, _ROW, _TOP, _BOTTOM = 120, 215, 22, 26, 58, 56
_INK, _QUIET, _OURS, _OTHERS = "#1f2328", "#6e7781", "#0969da", "#8c959f"


@dataclass(frozen=True)
class Panel:
    """One figure of all subjects."""

    title: str
    scenario: str
    figure: str
    digits: int


_PANELS = (
    Panel("CPU a delta, us", "saturation", "us", 0),
    Panel("CPU an invocation, ms", "requests", "ms", 2),
    Panel("memory a silent stream, KB", "idle", "kb", 0),
)


def drawn(sections: Mapping[str, Section]) -> str:
    """The chart of what there is; a subject without figures has an empty row."""
    panels = [panel for panel in _PANELS if panel.scenario in sections]
    width = _LABELS + len(panels) * (_PANEL + _GAP)
    height = _TOP + len(_SUBJECTS) * _ROW + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"',
        f'  height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}" role="img"',
        '  aria-label="Cost of a delta, an invocation and a silent stream, by subject">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_label(row, name) for row, name in enumerate(_SUBJECTS)),
    ]
    for place, panel in enumerate(panels):
        left = _LABELS + place * (_PANEL + _GAP)
        section = sections[panel.scenario]
        values = [row.median(panel.figure) if (row := section.by_name.get(n)) else None for n in _SUBJECTS]
        parts += _panel(panel, values, left)
    for line, foot in enumerate(_FEET.splitlines()):
        parts.append(_text(8, height - 26 + 16 * line, foot, f'fill="{_QUIET}" font-size="11"'))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, values: Sequence[float | None], left: int) -> list[str]:
    known = [value for value in values if value is not None and value > 0]
    if not known:
        return [_text(left, 24, panel.title, 'font-weight="600"'), _text(left, _TOP, "not measured")]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known) * 1.8))
    bottom = _TOP + len(values) * _ROW - 6

    def at(value: float) -> float:
        return round(left + (math.log10(value) - low) / (high - low) * _PANEL, 1)

    parts = [_text(left, 24, panel.title, 'font-weight="600"')]
    for power in range(low, high + 1):
        x = at(10.0**power)
        parts.append(f'<line x1="{x}" y1="{_TOP - 14}" x2="{x}" y2="{bottom}" stroke="#d8dee4"/>')
        parts.append(
            _text(x, _TOP - 18, f"{10.0**power:g}", f'text-anchor="middle" fill="{_QUIET}" font-size="10"')
        )
    for row, (name, value) in enumerate(zip(_SUBJECTS, values, strict=True)):
        if value is None or value <= 0:
            continue
        x, y, color = at(value), _TOP + row * _ROW, _OURS if name == "headrace" else _OTHERS
        parts.append(f'<line x1="{left}" y1="{y}" x2="{x}" y2="{y}" stroke="{color}" stroke-opacity="0.35"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{color}"/>')
        parts.append(_text(x + 9, y + 4, f"{value:,.{panel.digits}f}", _weight(name)))
    return parts


def _label(row: int, name: str) -> str:
    return _text(
        _LABELS - 12, _TOP + row * _ROW + 4, _SAID.get(name, name), 'text-anchor="end"', _weight(name)
    )


def _weight(name: str) -> str:
    return f'font-weight="600" fill="{_OURS}"' if name == "headrace" else ""


def _text(x: float, y: float, text: str, *styles: str) -> str:
    attributes = " ".join([f'x="{x}" y="{y}"', *filter(None, styles)])
    return f"<text {attributes}>{escape(text)}</text>"
