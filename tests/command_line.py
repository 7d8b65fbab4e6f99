"""Runs `headrace` commands in this process, in a folder of their own, on time that only waiting moves."""

import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from service.cli import main
from service.client import Pacing
from tests.cli_server import LIMIT_S, CliServer
from tests.clock import ManualClock


class Outcome(NamedTuple):
    """All that a command leaves."""

    exit_code: int
    stdout: str
    stderr: str


class CommandLine:
    """A terminal in an empty folder. `waits_s` are the pauses that commands made, `look` tells the time."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(folder)
        self.folder = folder
        self.waits_s: list[float] = []
        self._monkeypatch = monkeypatch
        self._capture = capture
        self._clock = ManualClock()
        self.look = self._clock.monotonic_s

    def use(self, server: CliServer) -> None:
        """Make the server the local stack."""
        write_stack(self.folder, server.url)

    def run(self, *argv: str, stdin: bytes = b"", idle_timeout_s: float = LIMIT_S) -> Outcome:
        """Run one command to its end; each pause is as long as it may be."""
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        pacing = Pacing(self.look, self._sleep, lambda: 1.0, idle_timeout_s)
        exit_code = main(argv, pacing=pacing)
        return Outcome(exit_code, *self._capture.readouterr())

    def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self._clock.pass_time(seconds)


def write_stack(folder: Path, url: str, issuer_path: str = "/token") -> None:
    """Write what `make run` leaves in its folder."""
    path = folder / ".local" / "stack.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"url": url, "token_url": url + issuer_path}))
