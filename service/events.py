"""Events: the entries of an invocation's log, as the bytes that they stay from upstream to client.

An event is one JSON object with one key, its type: `b'{"messageStop":{"stopReason":"end_turn"}}'`. These
bytes are what the log holds, the store keeps and `wire` frames; the value of a model event is the upstream's
payload untouched. No event contains a raw CR or LF, so a newline separates events in the store and ends a
`data:` line.

    model (Bedrock ConverseStream's union)     ours
    {"messageStart":{"role":"assistant"}}      {"invocationStarted":{"invocationId","runtimeId",...}}
    {"contentBlockStart":{...}}                {"attemptRestarted":{"attempt":2,"rewindTo":"1.40"}}
    {"contentBlockDelta":{...}}                {"toolStarted":{"toolUseId","name"}}
    {"contentBlockStop":{...}}                 {"toolFinished":{"toolUseId","name","status"}}
    {"messageStop":{"stopReason":...}}         {"invocationCompleted":{"stopReason","usage"}}      terminal
    {"metadata":{"usage":{...},...}}           {"invocationFailed":{"problem":{...}}}              terminal
                                               {"invocationCancelled":{...}}                       terminal

An event's id is `<attempt>.<seq>`; ids of one invocation are ordered as pairs of integers and never issued
twice. Source of the model events:
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamOutput.html
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from service.config import ModelName
from service.errors import InvalidCursor

MODEL_EVENT_TYPES: Final = frozenset(
    {
        b"messageStart",
        b"contentBlockStart",
        b"contentBlockDelta",
        b"contentBlockStop",
        b"messageStop",
        b"metadata",
    }
)
TERMINAL_EVENT_TYPES: Final = frozenset({b"invocationCompleted", b"invocationFailed", b"invocationCancelled"})

# A cursor is at most 9 digits a part: `Last-Event-ID` is the caller's text, and must not become a huge
# integer.
_CURSOR: Final = re.compile(r"([1-9][0-9]{0,8})\.([1-9][0-9]{0,8})", re.ASCII)


_LF, _CR = b"\n\r"  # integers: to look for one costs a quarter of what it costs to look for a `bytes`


class EventId(NamedTuple):
    """`<attempt>.<seq>`, both from 1; compares in the order in which a reader receives events."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Read a cursor.

        Raises:
            InvalidCursor: It has not the form of an event id.
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise InvalidCursor(
                "A cursor is the id of an event, such as 1.42: send the last id that you received."
            )
        return cls(int(match[1]), int(match[2]))


START: Final = EventId(0, 0)
"""The cursor of a reader that has nothing yet: before every id that is ever issued."""


class Block(NamedTuple):
    """Consecutive events of one attempt: what one read of the upstream gave, or one item of the store."""

    attempt: int
    first_seq: int
    events: tuple[bytes, ...]

    @property
    def last(self) -> EventId:
        return EventId(self.attempt, self.first_seq + len(self.events) - 1)

    @property
    def size_bytes(self) -> int:
        events = self.events
        return len(events[0]) if len(events) == 1 else sum(map(len, events))

    def after(self, cursor: EventId) -> "Block":
        """Return the part of this block that follows `cursor` (maybe empty)."""
        if cursor < (self.attempt, self.first_seq):
            return self
        done = cursor.seq - self.first_seq + 1 if cursor.attempt == self.attempt else len(self.events)
        return Block(self.attempt, self.first_seq + done, self.events[done:])


def encode(event_type: str, value: Mapping[str, Any]) -> bytes:
    """Encode one of our own events."""
    try:
        # A copy: orjson writes into a buffer of 1 KB, whose rest is lost as long as the event is kept.
        return bytes(memoryview(orjson.dumps({event_type: value})))
    except orjson.JSONEncodeError:  # half a character of an upstream's, or a number of more than 64 bits
        return json.dumps({event_type: value}, separators=(",", ":")).encode()


def started(invocation_id: str, runtime_id: str, models: Sequence[str] = ()) -> bytes:
    """Return the first event of every log, `1.1`: the same bytes, whoever writes it from the same record.

    Args:
        models: What may be asked, in this order, as its record has it.
    """
    value: dict[str, Any] = {"invocationId": invocation_id, "runtimeId": runtime_id, "attempt": 1}
    if models:
        value["models"] = [ModelName.of(model).shown for model in models]
    return encode("invocationStarted", value)


def from_frames(frames: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, ...]:
    """Wrap an upstream's payloads, each with its event type, as events; their bytes pass through untouched.

    A payload with a raw CR or LF (legal JSON white space, fatal to SSE) is parsed and encoded again.
    """
    events = []
    for kind, payload in frames:
        if _LF in payload or _CR in payload:
            payload = json.dumps(json.loads(payload), separators=(",", ":"), ensure_ascii=False).encode()
        events.append(b'{"%b":%b}' % (kind, payload))
    return tuple(events)


def event_type(event: bytes) -> bytes:
    """Return the type of an event without parsing it: its text up to the second quote."""
    return event[2 : event.index(b'"', 2)]


def is_terminal(event: bytes) -> bool:
    """Tell whether this event ends its log."""
    return event_type(event) in TERMINAL_EVENT_TYPES


def event_value(event: bytes) -> Any:
    """Parse an event and return its value."""
    (value,) = json.loads(event).values()
    return value


def join(events: Sequence[bytes]) -> bytes:
    """Pack events into one blob for a store."""
    return b"\n".join(events)


def split(blob: bytes) -> tuple[bytes, ...]:
    """Unpack what `join` packed."""
    return tuple(blob.split(b"\n"))


def whole(text: str) -> str:
    """Make the halves of a character that came in two deltas one; a half that is alone is replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def answer_text(events: Iterable[bytes]) -> str:
    """Concatenate the text deltas of events, in order: the record's `result`, parsed only when asked for."""
    parts: list[str] = []
    for event in events:
        if event.startswith(b'{"contentBlockDelta":'):
            text = event_value(event).get("delta", {}).get("text")
            if isinstance(text, str):
                parts.append(text)
    return "".join(parts)
