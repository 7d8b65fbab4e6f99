"""What the `headrace` command shows: the answer on stdout, everything about it on stderr.

Called by `cli`; calls `cli_text`.

- stdout gets the answer's text and nothing else; each message of the model ends its line. With `--json` it
  gets the log's events as they came, one a line, without heartbeats and `reconnect`s.
- Progress is one that overwrites itself if stderr is a terminal; plain lines with `--verbose`; or nothing.
- Text can't be unsent: what `attemptRestarted` makes void stays, its line is ended, and a note says how much
  it is. What was kept is not printed again; a later `headrace follow` prints only what counts.
- On a terminal, control characters of the answer are replaced: a model must not move the cursor.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any, Final

from service.cli_text import Row, printable, problem_lines, progress, token_counts
from service.client_stream import EventId, Line

_CLEAR_LINE: Final = "\r\x1b[K"

COMPLETED: Final = 0
NOT_COMPLETED: Final = 1
REFUSED: Final = 3


class Screen:
    """The two outputs of one command."""

    def __init__(self, *, verbose: bool, as_json: bool) -> None:
        self._verbose = verbose
        self._as_json = as_json
        self._answer_on_terminal = sys.stdout.isatty()
        self._notes_on_terminal = sys.stderr.isatty()
        self._has_status = False
        self._mid_line = False
        self._shown: list[tuple[EventId, int]] = []

    def show(self, line: Line) -> int | None:
        """Show one line of a stream; return the exit code once it is the last one."""
        if self._as_json and (line.event_id or line.type == "streamEnded"):
            self._clear_status()
            sys.stdout.buffer.write(line.raw + b"\n")
            sys.stdout.buffer.flush()
        if not self._as_json and line.type == "contentBlockDelta":
            self._show_text(line)
        match line.type:
            case "messageStop":
                self._end_line()
            case "attemptRestarted":
                self._void_after(line.value)
            case "invocationCompleted":
                return self._end(COMPLETED, f"completed: {token_counts(line.value.get('usage'))}")
            case "invocationFailed":
                return self._end(NOT_COMPLETED, *problem_lines("the invocation failed", line.value))
            case "invocationCancelled":
                return self._end(NOT_COMPLETED, *problem_lines("the invocation was cancelled", line.value))
            case "streamEnded":
                return self._end(REFUSED, *problem_lines("this stream may not go on", line.value))
            case _:
                self.status(progress(line))
        return None

    def status(self, text: str) -> None:
        """Say what is going on; the next status, text or note takes its place on a terminal."""
        if not text:
            return
        if self._verbose:
            self.note(text)
        # In the middle of a line of the answer, on the same terminal, the status would wipe it out.
        elif self._notes_on_terminal and not (self._answer_on_terminal and self._mid_line):
            # A wrapped line could not be wiped out whole.
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"{_CLEAR_LINE}{printable(text)[:width]}")
            sys.stderr.flush()
            self._has_status = True

    def note(self, *lines: str) -> None:
        """Write lines to stderr that stay."""
        self._clear_status()
        if self._answer_on_terminal and self._notes_on_terminal:
            self._end_line()
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()

    def table(self, rows: Iterable[Row]) -> None:
        """Write rows to stdout as columns."""
        cells = [tuple(printable(cell) for cell in row) for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write("  ".join(padded).rstrip() + "\n")

    def text(self, text: str) -> None:
        """Write a piece of the answer to stdout."""
        self._clear_status()
        sys.stdout.write(printable(text) if self._answer_on_terminal else text)
        sys.stdout.flush()
        self._mid_line = not text.endswith("\n")

    def document(self, document: Any) -> None:
        """Write JSON to stdout, to be read by people and programs."""
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """End the answer's line and take the status away; for every way out."""
        self._clear_status()
        self._end_line()
        sys.stdout.flush()

    def _show_text(self, line: Line) -> None:
        text = (line.value.get("delta") or {}).get("text")
        if isinstance(text, str) and text and line.event_id:
            self.text(text)
            self._shown.append((line.event_id, len(text)))

    def _void_after(self, value: dict[str, Any]) -> None:
        kept = EventId.parse(value["rewindTo"]) if value.get("rewindTo") else EventId(0, 0)
        void_chars = 0
        while self._shown and self._shown[-1][0] > kept:
            void_chars += self._shown.pop()[1]
        self._end_line()
        what = f"the last {void_chars} characters above are void; the answer goes on after them"
        restarted = f"another process took over (attempt {value.get('attempt')})"
        if void_chars:
            self.note(f"headrace: {restarted}: {what}")
        else:
            self.status(restarted)

    def _end(self, exit_code: int, *lines: str) -> int:
        self._end_line()
        if exit_code != COMPLETED or self._verbose or self._notes_on_terminal:
            self.note(*lines)
        return exit_code

    def _end_line(self) -> None:
        if self._mid_line:
            self.text("\n")

    def _clear_status(self) -> None:
        if self._has_status:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
            self._has_status = False
