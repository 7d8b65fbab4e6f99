"""A parser of event streams, to the letter of the HTML standard: what a browser's `EventSource` would
dispatch.

Its own correctness is held by the vectors in `tests/vectors/sse` (`tests/unit/test_sse.py`).
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import codecs
import json
from typing import Any, NamedTuple


class Dispatched(NamedTuple):
    """One event as a client sees it."""

    type: str
    data: str
    last_event_id: str


class SseParser:
    """Parses a stream in any pieces."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""
        self._after_cr = False
        self._type = ""
        self._data: list[str] = []
        self._id = ""
        self.comments: list[str] = []

    def feed(self, piece: bytes) -> list[Dispatched]:
        """Take bytes; return the events that they completed."""
        events: list[Dispatched] = []
        for character in self._decode.decode(piece):
            if character == "\n" and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = character == "\r"
            if character in "\r\n":
                line, self._line = self._line, ""
                events += self._interpret(line)
            else:
                self._line += character
        return events

    def _interpret(self, line: str) -> list[Dispatched]:
        if not line:
            data, self._data = self._data, []
            kind, self._type = self._type or "message", ""
            return [Dispatched(kind, "\n".join(data), self._id)] if data else []
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return []


def parse(stream: bytes) -> list[Dispatched]:
    """Parse a whole stream."""
    return SseParser().feed(stream)


def events_of(stream: bytes) -> list[tuple[str, Any]]:
    """Return the ids and the parsed data of all events of a stream, in order."""
    return [(event.last_event_id, json.loads(event.data)) for event in parse(stream)]


def kinds_of(stream: bytes) -> list[str]:
    """Return the types of all events of a stream, in order."""
    return [event.type for event in parse(stream)]
