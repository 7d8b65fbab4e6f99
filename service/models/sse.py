"""Decodes `text/event-stream`, the framing of a chat completion's stream; pure, no I/O.

`models.openai_compat` feeds it what arrived in one read, cut anywhere, and takes the events that it returns.

Invariants: the events and the ending are the same for every cut of the same bytes; an event that is too large
is refused before it is there; one without the empty line at its end never comes out.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from collections.abc import Sequence
from typing import Final

# No delta comes near it; a whole tool call in one event may hold a document.
MAX_EVENT_BYTES: Final = 1024 * 1024

Event = tuple[bytes, bytes]
"""(type, data); the type is empty where none was sent."""

_LF, _CR = b"\n\r"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """Nothing more can be decoded; `events` are those that the same `feed` had decoded before it."""

    events: Sequence[Event] = ()


class Decoder:
    """Turns the bytes of one stream into events, incrementally; `id`, `retry` and comments are dropped."""

    __slots__ = ("_after_cr", "_begun", "_lines", "_rest", "_size_bytes", "_type")

    def __init__(self) -> None:
        self._rest = bytearray()  # a line that has no end yet
        self._lines: list[bytes] = []
        self._size_bytes = 0
        self._type = b""
        self._begun = False
        self._after_cr = False

    def feed(self, read: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete, in order.

        Raises:
            EventTooLarge: An event has more than `MAX_EVENT_BYTES`.
        """
        if _CR in read or self._after_cr:
            read = self._with_newlines(read)
        events: list[Event] = []
        try:
            if _LF not in read:
                self._rest += read
            else:
                if self._rest:
                    read = bytes(self._rest) + read
                    self._rest.clear()
                *lines, rest = read.split(b"\n")
                self._rest += rest
                for line in lines:
                    self._take(line, events)
            self._limit(len(self._rest))
        except EventTooLarge as end:
            end.events = events
            raise
        return events

    def _with_newlines(self, read: bytes) -> bytes:
        """Make every line end in LF; a CR at the end of a read may have its LF in the next."""
        if self._after_cr and read.startswith(b"\n"):
            read = read[1:]
            self._after_cr = False
        if read:
            self._after_cr = read.endswith(b"\r")
        return read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            if self._lines:
                events.append((self._type, b"\n".join(self._lines)))
            self._lines, self._type, self._size_bytes = [], b"", 0
            return
        self._limit(len(line))
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._lines.append(value)
            self._size_bytes += len(value) + 1
        elif field == b"event":
            self._type = value

    def _limit(self, more_bytes: int) -> None:
        if self._size_bytes + more_bytes > MAX_EVENT_BYTES:
            raise EventTooLarge
