"""What the `headrace` command shows: the answer on stdout, everything about it on stderr.

Called by `cli`; calls `cli_text`.

- stdout gets the answer's text and nothing else; each message of the model ends its line. With `--json` it
  gets the log's events as they came, one a line, without heartbeats and `reconnect`s.
- On a terminal, and with `--live`, text shows as it comes. Shown text can't be taken back: what
  `attemptRestarted` makes void stays, its line is ended, and a note says how much it is.
- Into a pipe or a file the text goes when the invocation has ended, and not if that was not seen: before, a
  takeover may void any of it, what takes its place may differ, and a program could not tell. So what such a
  stdout holds is the answer, once, whatever happened on the way; until then nothing of it is lost, since
  `headrace follow` prints it.
- Progress is one line that overwrites itself if stderr is a terminal; plain lines with `--verbose`; or
  nothing. That an invocation waits for quota is always said.
- On a terminal, control characters of the answer are replaced: a model must not move the cursor.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any, Final

from service.cli_exits import Exit
from service.cli_text import (
    Row,
    cancellation_lines,
    pause_line,
    printable,
    problem_lines,
    progress,
    token_counts,
)
from service.client_stream import EventId, Line

_CLEAR_LINE: Final = "\r\x1b[K"


class Screen:
    """The two outputs of one command.

    Args:
        after: The event that the command goes on after: an earlier one has shown what came before.
    """

    def __init__(
        self, *, verbose: bool, as_json: bool, live: bool = False, after: EventId | None = None
    ) -> None:
        self._verbose = verbose
        self._as_json = as_json
        self._answer_on_terminal = sys.stdout.isatty()
        self._notes_on_terminal = sys.stderr.isatty()
        self._has_status = False
        self._mid_line = False
        self._after = after
        self._is_live = live or self._answer_on_terminal
        self._pieces: list[tuple[EventId, str]] = []  # "" is where a message ends

    @property
    def shows_at_once(self) -> bool:
        """Whether stdout has all that came, and not only what is final."""
        return self._as_json or self._is_live

    def show(self, line: Line) -> Exit | None:
        """Show one line of a stream; return the exit code once it is the last one."""
        if self._as_json and (line.event_id or line.type == "streamEnded"):
            self._clear_status()
            sys.stdout.buffer.write(line.raw + b"\n")
            sys.stdout.buffer.flush()
        match line.type:
            case "contentBlockDelta":
                self._add(line, (line.value.get("delta") or {}).get("text"))
            case "messageStop":
                self._add(line, "")
            case "attemptRestarted":
                self._void_after(line.value)
            case "invocationPaused":
                self.note(pause_line(line.value))
            case "invocationResumed":
                self.note("headrace: resumed")
            case "invocationCompleted":
                return self._end(Exit.DONE, f"completed: {token_counts(line.value.get('usage'))}")
            case "invocationFailed":
                return self._end(Exit.FAILED, *problem_lines("the invocation failed", line.value))
            case "invocationCancelled":
                return self._end(Exit.CANCELLED, *cancellation_lines(line.value))
            case "streamEnded":
                return self._end(Exit.REFUSED, *problem_lines("this stream may not go on", line.value))
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

    def _add(self, line: Line, text: Any) -> None:
        if self._as_json or not isinstance(text, str) or line.event_id is None:
            return
        self._pieces.append((line.event_id, text))
        if self._is_live:
            self._write(text)

    def _write(self, text: str) -> None:
        if text:
            self.text(text)
        else:
            self._end_line()

    def _void_after(self, value: dict[str, Any]) -> None:
        kept = EventId.parse(value["rewindTo"]) if value.get("rewindTo") else EventId(0, 0)
        void_chars = 0
        while self._pieces and self._pieces[-1][0] > kept:
            void_chars += len(self._pieces.pop()[1])
        took_over = f"attempt {value.get('attempt')} took over"
        if self._is_live:
            self._end_line()
        if self._is_live and void_chars:
            what = f"the last {void_chars} characters above are void; the answer goes on after them"
            self.note(f"headrace: {took_over}: {what}")
        elif self._after and self._after > kept:
            self.note(f"headrace: {took_over}: what was shown before of the events after {kept} is void")
        else:
            self.status(took_over)

    def _end(self, exit_code: Exit, *lines: str) -> Exit:
        if not self._is_live and exit_code is not Exit.REFUSED:  # refused is this stream, and the job goes on
            for _, text in self._pieces:
                self._write(text)
        self._end_line()
        if exit_code is not Exit.DONE or self._verbose or self._notes_on_terminal:
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
