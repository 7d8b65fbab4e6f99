"""Answers of the Bedrock endpoint as data: what is sent, when, and in which pieces.

Tests write scripts (mostly from `answers`) and hand them to `bedrock.BedrockEndpoint` in the same process or
`control.BedrockControl` in another one; `bedrock` plays them. Pure. A script is its steps in order. The
response head leaves with the first frame or at a `Head` step: a `Wait` before it is silence before the
headers, a `Wait` after it is silence after them.

The common ones::

    answer("Hello there.")                                     six events, one delta per word
    answer("...").first(4).then(Raise("throttlingException"))  an exception after four events
    answer("...").insert(3, Wait("go"))                        stops there until the test releases "go"
    answer("...").first(4)                                     ends cleanly, without messageStop
    answer("...").over(Wire(bytes_per_write=1))                one byte per write
    answer("...").over(Wire(cut_after_bytes=100))              TCP reset after 100 bytes of the body
    tool_call("search", {"q": "x"})                            asks for a tool, stopReason tool_use
    refusal("ThrottlingException")                             429 before the stream
    Script((Wait(NEVER),))                                     silence until the peer hangs up
    Script((Head(), Wait(NEVER)))                              the headers, then silence

As JSON, for another process: ``{"steps": [{"step": "emit", "event": "..."}], "wire": {}}``.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self, get_args

from local import eventstream
from local.eventstream import Fault

EVENTS: Final = (
    "messageStart",
    "contentBlockStart",
    "contentBlockDelta",
    "contentBlockStop",
    "messageStop",
    "metadata",
)
"""The events of ConverseStream
(https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html)."""

EXCEPTIONS: Final = (
    "internalServerException",
    "modelStreamErrorException",
    "serviceUnavailableException",
    "throttlingException",
    "validationException",
)
"""The exceptions that can come inside its stream."""

NEVER: Final = "never"
"""A signal that is never released: `Wait(NEVER)` lasts until the peer hangs up."""


@dataclass(frozen=True, slots=True)
class Head:
    """Send the response's status line and headers now, before the first frame."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Send one event; a text `value` is the payload verbatim, `fault` damages the frame."""

    event: str
    value: Mapping[str, Any] | str = field(default_factory=dict)
    fault: Fault | None = None

    def __post_init__(self) -> None:
        if self.event not in EVENTS:
            raise ValueError(f"{self.event!r} is not an event of ConverseStream: {', '.join(EVENTS)}")
        if self.fault is not None and self.fault not in get_args(Fault):
            raise ValueError(f"{self.fault!r} is not a fault: {', '.join(get_args(Fault))}")

    def frame(self) -> bytes:
        return eventstream.event(self.event, self.value, fault=self.fault)


@dataclass(frozen=True, slots=True)
class Raise:
    """Send one of the in-stream exceptions."""

    exception: str
    message: str = "The scripted exception."
    original_status: int | None = None

    def __post_init__(self) -> None:
        if self.exception not in EXCEPTIONS:
            raise ValueError(f"{self.exception!r} is not an in-stream exception: {', '.join(EXCEPTIONS)}")

    def frame(self) -> bytes:
        value: dict[str, Any] = {"message": self.message}
        if self.exception == "modelStreamErrorException":
            value |= {"originalMessage": self.message, "originalStatusCode": self.original_status or 500}
        return eventstream.exception(self.exception, value)


@dataclass(frozen=True, slots=True)
class Raw:
    """Send these bytes as if they were one frame."""

    body_base64: str

    @classmethod
    def of(cls, body: bytes) -> Self:
        return cls(base64.b64encode(body).decode())

    def frame(self) -> bytes:
        return base64.b64decode(self.body_base64, validate=True)


@dataclass(frozen=True, slots=True)
class Delay:
    """Send nothing for this long."""

    seconds_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing until the signal is released; a released signal stays released."""

    signal: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error instead of a stream; the last step."""

    status: int
    error: str
    message: str = "The scripted refusal."
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """Drop the connection here, by a TCP reset or by a close; the last step."""

    reset: bool = True


Step = Head | Emit | Raise | Raw | Delay | Wait | Refuse | Cut
_STEPS: Final[dict[str, type[Step]]] = {step.__name__.lower(): step for step in get_args(Step)}


@dataclass(frozen=True, slots=True)
class Wire:
    """In which pieces the body reaches the peer; by default one write, and one HTTP chunk, per frame.

    Offsets and lengths count bytes of the body before chunked encoding.
    """

    frames_per_write: int = 1
    bytes_per_write: int | None = None
    split_at: tuple[int, ...] = ()
    cut_after_bytes: int | None = None
    cut_by_reset: bool = True
    keep_alive: bool = True

    def __post_init__(self) -> None:
        if self.frames_per_write < 1 or (self.bytes_per_write is not None and self.bytes_per_write < 1):
            raise ValueError("a write has at least one frame and one byte")
        if self.cut_after_bytes is not None and self.cut_after_bytes < 0:
            raise ValueError("cut_after_bytes counts from 0")

    def pieces(self, offset: int, body: bytes) -> Iterator[bytes]:
        """Split `body`, whose first byte is at `offset`, into writes; a piece ends where the cut is."""
        end = offset + len(body)
        ends = {*self.split_at, end}
        if self.cut_after_bytes is not None:
            ends.add(self.cut_after_bytes)
        if self.bytes_per_write is not None:
            ends.update(range(offset + self.bytes_per_write, end, self.bytes_per_write))
        start = offset
        for stop in sorted(at for at in ends if offset < at <= end):
            yield body[start - offset : stop - offset]
            start = stop


@dataclass(frozen=True, slots=True)
class Script:
    """One answer: its steps, and the wire that they go over."""

    steps: tuple[Step, ...] = ()
    wire: Wire = Wire()

    def __post_init__(self) -> None:
        for step in self.steps[:-1]:
            if isinstance(step, Refuse | Cut):
                raise ValueError(f"nothing can follow {type(step).__name__}")  # noqa: TRY004 - a wrong order
        streamed = any(not isinstance(step, Delay | Wait) for step in self.steps[:-1])
        if streamed and isinstance(self.steps[-1], Refuse):
            raise ValueError("a stream that has begun can't be refused")

    def first(self, count: int) -> Self:
        """Return the script that ends, cleanly, after its first `count` steps."""
        return replace(self, steps=self.steps[:count])

    def then(self, *steps: Step) -> Self:
        """Return the script with these steps after its own."""
        return replace(self, steps=(*self.steps, *steps))

    def insert(self, at: int, *steps: Step) -> Self:
        """Return the script with these steps before the one at index `at`."""
        return replace(self, steps=(*self.steps[:at], *steps, *self.steps[at:]))

    def over(self, wire: Wire) -> Self:
        """Return the script as sent over this wire."""
        return replace(self, wire=wire)

    def body(self) -> bytes:
        """Return all frames of the script, one after the other: what an unharmed peer receives."""
        return b"".join(step.frame() for step in self.steps if isinstance(step, Emit | Raise | Raw))

    def to_json(self) -> dict[str, Any]:
        """Return the script as JSON values; `from_json` reads it."""
        steps = [{"step": type(step).__name__.lower(), **asdict(step)} for step in self.steps]
        return {"steps": steps, "wire": asdict(self.wire)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not a script; the message says which part.
        """
        try:
            steps = tuple(_step(dict(fields)) for fields in document["steps"])
            wire = dict(document.get("wire", {}))
            wire["split_at"] = tuple(wire.get("split_at", ()))
            return cls(steps, Wire(**wire))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a script: {error}") from error


def _step(fields: dict[str, Any]) -> Step:
    name = fields.pop("step")
    if name not in _STEPS:
        raise ValueError(f"{name!r} is not a step: {', '.join(_STEPS)}")
    return _STEPS[name](**fields)
