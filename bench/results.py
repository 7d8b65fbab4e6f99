"""The figures that were measured, as `bench/results.json` keeps them: one section a scenario.

`__main__` replaces the sections that it has measured; `pages`, `chart`, `targets` and `fleet` read them. All
that is published (RESULTS.md, chart.svg, docs/performance.md) is made from this file, and a test holds them
to it. A section has the rows with the figures of every run, the command, the day, and the machine with the
versions of what ran.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.report import Row
from bench.subjects import nginx_path

PATH = Path(__file__).with_name("results.json")
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "aioboto3", "aiohttp")
_PYTHON_PEERS = ("litellm", "smg")
_PORTKEY = ("portkey", "node_modules", "@portkey-ai", "gateway", "package.json")
_SIGNIFICANT = 6


@dataclass(frozen=True)
class Section:
    """What one scenario has measured: `rows` of every subject, and where, when and how."""

    command: str
    date: str
    machine: str
    versions: str
    quick: bool
    rows: list[Row]

    @property
    def by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    @property
    def where(self) -> str:
        """The machine and the versions in a sentence."""
        return f"{self.machine}; {self.versions}."


def new_section(command: str, rows: list[Row], *, quick: bool) -> Section:
    """Put a name to what was measured here and now."""
    for row in rows:
        row.runs = [{name: _rounded(value) for name, value in run.items()} for run in row.runs]
    today = datetime.now(UTC).date().isoformat()
    names = [row.name for row in rows if row.reason is None]
    return Section(command, today, _machine(), ", ".join(_versions(names)), quick, rows)


def load(path: Path = PATH) -> dict[str, Section]:
    """Read all sections; none if there is no file."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Section(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})
        for name, fields in found.items()
    }


def save(sections: Mapping[str, Section], path: Path = PATH) -> None:
    """Write all sections, each run on a line of its own."""
    text = json.dumps({name: asdict(section) for name, section in sections.items()}, indent=1)
    lines = re.sub(r"\{[^{}\[\]]*\}", lambda run: re.sub(r"\s*\n\s*", " ", run[0]), text)
    path.write_text(lines + "\n", encoding="utf-8")


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT}g}")


def _machine() -> str:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = ".".join(platform.release().split(".")[:2])
    name = cpu[1].strip() if cpu else platform.machine()
    return f"{os.cpu_count()} cores of {name}, Linux {kernel}"


def _versions(subjects: Iterable[str]) -> list[str]:
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    for subject in subjects:
        if subject == "nginx":
            said = subprocess.run(
                [str(nginx_path()), "-v"], capture_output=True, text=True, check=False
            ).stderr
            versions.append(f"nginx {said.strip().rpartition('/')[2].partition(' ')[0]}")
        elif subject in _PYTHON_PEERS:
            versions.append(f"{subject} {_pinned(subject)}")
        elif subject == "portkey":
            package = json.loads(_ROOT.joinpath(".bench", *_PORTKEY).read_text(encoding="utf-8"))
            versions.append(f"portkey {package['version']}")
    return versions


def _pinned(peer: str) -> str:
    found = sorted(_ROOT.glob(f".bench/{peer}/lib/python*/site-packages/{peer}-*.dist-info"))
    return found[-1].name.removeprefix(f"{peer}-").removesuffix(".dist-info") if found else "unknown"
