"""Decodes `application/vnd.amazon.eventstream`, the framing of a ConverseStream body; pure, no I/O.

`models.bedrock` feeds it what arrived in one read, cut anywhere, and passes on the frames it returns.
Payloads are neither parsed nor changed.

    | total length 4 | headers length 4 | prelude CRC 4 | headers | payload | message CRC 4 |   all big-endian
                                         header: | name length 1 | name | value type 1 | value |

Invariants: checksums and limits are checked before anything of a frame is believed or waited for; the frames
and the ending are the same for every cut of the same bytes; after an ending (a fault, an exception frame)
nothing more comes out.

Sources: https://smithy.io/2.0/aws/amazon-eventstream.html and
https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Final, Literal
from zlib import crc32

from service.models import Frame

# What AWS's own decoder accepts: https://github.com/boto/botocore/blob/1.40.61/botocore/eventstream.py
MAX_HEADERS_BYTES: Final = 128 * 1024
MAX_PAYLOAD_BYTES: Final = 24 * 1024 * 1024

_PRELUDE: Final = Struct(">III")
_CHECKSUM: Final = Struct(">I")
_PRELUDE_BYTES: Final = _PRELUDE.size
_CHECKSUM_BYTES: Final = _CHECKSUM.size
_OVERHEAD_BYTES: Final = _PRELUDE_BYTES + _CHECKSUM_BYTES

# Sizes of the values by type; byte array (6) and string (7) carry their own.
_FIXED_VALUE_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTE_ARRAY: Final = 6
_STRING: Final = 7

# Event types become JSON keys and SSE fields downstream, so nothing that could end either is let in.
_EVENT_TYPE: Final = re.compile(rb"[A-Za-z0-9_-]+")

Kind = Literal["event", "exception", "error"]


class StreamEnded(Exception):
    """Nothing more can be decoded; `frames` are those that the same `feed` had decoded before it."""

    frames: Sequence[Frame] = ()


class ChecksumMismatch(StreamEnded):
    """The prelude or the message is not what was sent."""


class LimitExceeded(StreamEnded):
    """A length that no frame has."""


class MalformedHeaders(StreamEnded):
    """The headers can't be read, or lack what says what the frame is."""


class AlreadyEnded(StreamEnded):
    """The decoder was fed after it had raised."""


class ExceptionFrame(StreamEnded):
    """The upstream ended the stream with an exception (modelled) or an error (not modelled).

    Attributes:
        kind: Which of the two.
        type: `:exception-type`, such as `throttlingException`, or `:error-code`.
        payload: Foreign text: never for callers or logs.
    """

    def __init__(self, kind: Kind, type_: str, payload: bytes) -> None:
        super().__init__(f"{kind} {type_}")
        self.kind = kind
        self.type = type_
        self.payload = payload


class Decoder:
    """Turns the bytes of one stream into frames, incrementally."""

    __slots__ = ("_ended", "_needed_bytes", "_rest")

    def __init__(self) -> None:
        self._rest: bytearray | None = None  # made by a frame that is cut: most reads end with one
        self._needed_bytes = 0
        self._ended = False

    @property
    def at_boundary(self) -> bool:
        """True where a stream may end: no part of a frame is pending."""
        return self._rest is None

    def feed(self, stream: bytes) -> list[Frame]:
        """Take the next bytes and return the events that they complete, in order.

        Raises:
            StreamEnded: One of its subclasses; its `frames` come before it.
        """
        if self._ended:
            raise AlreadyEnded
        if self._rest is not None:
            self._rest += stream
            if len(self._rest) < self._needed_bytes:
                return []
            stream = bytes(self._rest)
            self._rest = None
        frames: list[Frame] = []
        start, size = 0, len(stream)
        try:
            while start < size:
                head_end = start + _PRELUDE_BYTES
                if head_end > size:
                    self._keep(stream[start:], _PRELUDE_BYTES)
                    break
                total_bytes, payload_at, checksum = _lengths(stream[start:head_end])
                next_start = start + total_bytes
                if next_start > size:
                    self._keep(stream[start:], total_bytes)
                    break
                end = next_start - _CHECKSUM_BYTES
                if crc32(stream[head_end:end], checksum) != _CHECKSUM.unpack_from(stream, end)[0]:
                    raise ChecksumMismatch("the checksum of a message does not match")
                payload_start = start + payload_at
                kind, type_ = _meaning(stream[head_end:payload_start])
                if kind != "event":
                    raise ExceptionFrame(kind, type_.decode("utf-8", "replace"), stream[payload_start:end])
                frames.append((type_, stream[payload_start:end]))
                start = next_start
        except StreamEnded as end_of_all:
            self._ended = True
            end_of_all.frames = frames
            raise
        return frames

    def _keep(self, rest: bytes, needed_bytes: int) -> None:
        self._rest, self._needed_bytes = bytearray(rest), needed_bytes


@lru_cache(maxsize=1024)  # deltas of all streams have the same few hundred lengths
def _lengths(prelude: bytes) -> tuple[int, int, int]:
    """Check a prelude; returns the bytes of its frame, where in it the payload begins, and its checksum."""
    total_bytes, headers_bytes, prelude_checksum = _PRELUDE.unpack(prelude)
    if crc32(prelude[:8]) != prelude_checksum:
        raise ChecksumMismatch("the checksum of a prelude does not match")
    payload_bytes = total_bytes - headers_bytes - _OVERHEAD_BYTES
    if headers_bytes > MAX_HEADERS_BYTES or not 0 <= payload_bytes <= MAX_PAYLOAD_BYTES:
        raise LimitExceeded(f"a frame of {total_bytes} bytes with {headers_bytes} bytes of headers")
    return total_bytes, _PRELUDE_BYTES + headers_bytes, crc32(prelude)


@lru_cache(maxsize=64)  # all deltas of all streams carry the same few header blocks
def _meaning(block: bytes) -> tuple[Kind, bytes]:
    headers = _parse_headers(block)
    match headers.get(b":message-type"):
        case b"event":
            event_type = headers.get(b":event-type", b"")
            if not _EVENT_TYPE.fullmatch(event_type):
                raise MalformedHeaders("an event without a proper :event-type")
            return "event", event_type
        case b"exception":
            return "exception", headers.get(b":exception-type", b"")
        case b"error":
            return "error", headers.get(b":error-code", b"")
        case _:
            raise MalformedHeaders("a message without a known :message-type")


def _parse_headers(block: bytes) -> dict[bytes, bytes]:
    """Return the headers of type string; the others are only checked and skipped."""
    strings: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    at, size = 0, len(block)
    while at < size:
        type_at = at + 1 + block[at]
        if type_at >= size:
            raise MalformedHeaders("a header that ends within its name")
        name, value_type = block[at + 1 : type_at], block[type_at]
        if not name or name in seen:
            raise MalformedHeaders("a header without a name, or twice")
        seen.add(name)
        value_at = type_at + 1
        if value_type in (_BYTE_ARRAY, _STRING):
            value_at += 2
            at = value_at + int.from_bytes(block[value_at - 2 : value_at], "big")
        elif value_type in _FIXED_VALUE_BYTES:
            at = value_at + _FIXED_VALUE_BYTES[value_type]
        else:
            raise MalformedHeaders("a header of an unknown type")
        if value_at > size or at > size:
            raise MalformedHeaders("a header that ends within its value")
        if value_type == _STRING:
            strings[name] = block[value_at:at]
    return strings
