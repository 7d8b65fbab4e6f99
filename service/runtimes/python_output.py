"""What an agent yields -> frames of whole messages, as the log promises them; or what is wrong with it.

`runtimes.python` feeds it in the agent's thread. Pure. An agent may yield text, or the six events of
ConverseStream as `dict`s with one key, as boto3's `response["stream"]` has them:

    yield "Hel"          messageStart, if no message is open; contentBlockDelta of the open text block, or of
    yield "lo"           a new one
    yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "..."}}}
                         the same; messageStart goes before it if no message is open
    yield {"messageStop": {"stopReason": "end_turn"}}
                         contentBlockStop for each block that is still open goes before it
    the generator ends   contentBlockStop and messageStop (`end_turn`), if a message is open

So what is missing around an answer is added, and what can't be true fails: another type, another key, a
`messageStart` inside a message, a block that begins or ends twice. Messages follow one another, as turns do.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamOutput.html
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson

from service.events import MODEL_EVENT_TYPES
from service.models import Frame

MAX_EVENT_BYTES: Final = 256 * 1024
"""One event as JSON; text is cut into deltas, so this is for events alone."""
TEXT_PIECE: Final = 16 * 1024  # characters of one delta
END_TURN: Final = "end_turn"

_TYPES: Final = {each.decode(): each for each in MODEL_EVENT_TYPES}
_MESSAGE_START: Final[Frame] = (b"messageStart", b'{"role":"assistant"}')


class BadOutput(Exception):
    """The agent yielded what it may not; the text says what, in our words and without its content."""


class Output:
    """The messages of one agent, so far.

    Attributes:
        stop_reason: Of the last message that ended.
    """

    __slots__ = ("_ended", "_in_message", "_open", "_text", "stop_reason")

    def __init__(self) -> None:
        self.stop_reason = END_TURN
        self._in_message = False
        self._open: list[int] = []  # blocks, in the order in which they began
        self._ended: set[int] = set()
        self._text: int | None = None  # the open block that text goes to

    def frames(self, piece: object) -> list[Frame]:
        """Return the frames of what the agent yielded, with those that must go before them.

        Raises:
            BadOutput: It may not be yielded, or not here.
        """
        if isinstance(piece, str):
            return self._said(piece)
        if not isinstance(piece, dict):
            raise BadOutput(f"it yielded {_a(piece)}, which is neither text nor an event")
        if len(piece) != 1:
            raise BadOutput(f"it yielded a dict with {len(piece)} keys; an event has one, its type")
        ((name, value),) = piece.items()
        kind = _TYPES.get(name) if isinstance(name, str) else None
        if kind is None:
            raise BadOutput(f"it yielded a dict whose key is none of {', '.join(sorted(_TYPES))}")
        if not isinstance(value, dict):
            raise BadOutput(f"the value of its {name} is {_a(value)}, not a dict")
        payload = _encode(name, value)
        before = self._before(name, value)
        return [*before, (kind, payload)] if before else [(kind, payload)]

    def end(self) -> list[Frame]:
        """Return what ends the message that is still open; nothing if none is."""
        if not self._in_message:
            return []
        self.stop_reason = END_TURN
        return [*self._end_message(), (b"messageStop", b'{"stopReason":"end_turn"}')]

    def _said(self, text: str) -> list[Frame]:
        if not text:
            return []
        frames = self._begin_message()
        if self._text is None:
            if self._open:
                raise BadOutput("it yielded text inside a block that is no text: end the block first")
            self._text = max(self._ended, default=-1) + 1
            self._open.append(self._text)
        for at in range(0, len(text), TEXT_PIECE):
            said = _encode("contentBlockDelta", text[at : at + TEXT_PIECE])
            payload = b'{"contentBlockIndex":%d,"delta":{"text":%b}}' % (self._text, said)
            frames.append((b"contentBlockDelta", payload))
        return frames

    def _before(self, name: str, value: dict[str, Any]) -> list[Frame]:
        """Note an event, and return what must go before it."""
        if name == "metadata":
            return []
        if name == "messageStart":
            if self._in_message:
                raise BadOutput("it yielded messageStart inside a message: end that with messageStop first")
            if value.get("role") != "assistant":
                raise BadOutput('the role of its messageStart is not "assistant"')
            self._in_message = True
            return []
        before = self._begin_message()
        if name == "messageStop":
            reason = value.get("stopReason")
            if not isinstance(reason, str):
                raise BadOutput("its messageStop has no stopReason")
            self.stop_reason = reason
            return before + self._end_message()
        self._note_block(name, value)
        return before

    def _note_block(self, name: str, value: dict[str, Any]) -> None:
        index = value.get("contentBlockIndex")
        if type(index) is not int or index < 0:
            raise BadOutput(f"its {name} has no contentBlockIndex")
        if index in self._ended:
            raise BadOutput(f"it yielded {name} of a block that has ended")
        if name == "contentBlockStop":
            if index not in self._open:
                raise BadOutput("it yielded contentBlockStop of a block that has not begun")
            self._end_block(index)
        elif index not in self._open:
            self._open.append(index)
        elif name == "contentBlockStart":
            raise BadOutput("it yielded contentBlockStart of a block that has begun")
        if name == "contentBlockDelta":
            delta = value.get("delta")
            if not isinstance(delta, dict):
                raise BadOutput("its contentBlockDelta has no delta")
            if isinstance(delta.get("text"), str):
                self._text = index

    def _begin_message(self) -> list[Frame]:
        if self._in_message:
            return []
        self._in_message = True
        return [_MESSAGE_START]

    def _end_message(self) -> list[Frame]:
        """Note the end of the message, and return the ends of its blocks."""
        ends = [(b"contentBlockStop", b'{"contentBlockIndex":%d}' % index) for index in self._open]
        self._in_message = False
        self._open.clear()
        self._ended.clear()
        self._text = None
        return ends

    def _end_block(self, index: int) -> None:
        self._open.remove(index)
        self._ended.add(index)
        if self._text == index:
            self._text = None


def parse(frames: list[Frame]) -> Iterator[dict[str, Any]]:
    """Return the events of a model call as its agent gets them."""
    for kind, payload in frames:
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError:  # half a character, escaped: half of one that comes in two deltas
            value = json.loads(payload)
        yield {kind.decode(): value}


def _encode(name: str, value: object) -> bytes:
    try:
        payload = orjson.dumps(value)
    except orjson.JSONEncodeError:
        try:
            # The same for such halves; what is no JSON fails here too.
            payload = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadOutput(f"its {name} can't be written as JSON") from error
    if len(payload) > MAX_EVENT_BYTES:
        raise BadOutput(f"its {name} is larger than {MAX_EVENT_BYTES} bytes")
    return payload


def _a(value: object) -> str:
    """Name a value's type, if it is one that everybody has; others' names say what is not ours to say."""
    kind = type(value)
    return f"a value of type {kind.__name__}" if kind.__module__ == "builtins" else "an object"
