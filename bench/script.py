"""What the fake upstream says: a plan read from a model id, and every byte of its answer, encoded once.

`upstream` plays these bytes; `subjects` and `scenarios` name plans. A plan's model id is
`bench-<first_ms>-<deltas>-<interval_us>-<burst>`: the first delta after first_ms, then `burst` deltas in one
write every interval_us. A delta's payload is what Bedrock sends, about 112 bytes with its `p` padding; each
event is an HTTP chunk of its own. The first delta's text says how long the upstream held the answer back, by
its own clock (`held=20123us`), so a client can tell the time that a subject added from the time that the plan
asked for.

Sources: event-stream framing, https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html;
`p` in https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlockDeltaEvent.html's real
answers.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

_MODEL_ID = re.compile(r"bench-(\d{1,7})-(\d{1,9})-(\d{1,9})-(\d{1,5})")
_PADDING = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_STRING = 7
_RING = 16
"""Deltas that differ; an answer repeats them."""

INPUT_TOKENS = 12


@dataclass(frozen=True)
class Plan:
    """One answer: `deltas` in writes of `burst`, one every interval_us, the first after first_ms."""

    first_ms: int
    deltas: int
    interval_us: int
    burst: int = 1

    @property
    def model_id(self) -> str:
        return f"bench-{self.first_ms}-{self.deltas}-{self.interval_us}-{self.burst}"

    @staticmethod
    def parse(model_id: str) -> "Plan | None":
        """Read a model id; None if it is not one of a plan or the plan says nothing."""
        match = _MODEL_ID.fullmatch(model_id)
        if match is None:
            return None
        plan = Plan(*map(int, match.groups()))
        return plan if plan.deltas > 0 and plan.burst > 0 else None


def encode_frame(event_type: str, payload: bytes) -> bytes:
    """Encode one event-stream message with the three headers that Bedrock sends, prelude and message CRC."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", _STRING, len(value)) + value
        for name, value in (
            (b":event-type", event_type.encode()),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    lengths = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = lengths + struct.pack("!I", crc32(lengths)) + headers + payload
    return message + struct.pack("!I", crc32(message))


def encode_sse(event_type: str, payload: bytes) -> bytes:
    """Encode one event as Headrace would without its id, so that a copying subject moves like bytes."""
    name = event_type.encode()
    return b'event: %b\ndata: {"%b":%b}\n\n' % (name, name, payload)


Encode = Callable[[str, bytes], bytes]


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def delta_payload(text: bytes, padding_bytes: int) -> bytes:
    """One contentBlockDelta as Bedrock sends it; `p` hides the length of the text."""
    return b'{"contentBlockIndex":0,"delta":{"text":"%b"},"p":"%b"}' % (text, _PADDING[:padding_bytes])


class Lines:
    """Every byte of an answer in one encoding, made once; only first deltas are encoded while streams run."""

    def __init__(self, content_type: str, encode: Encode) -> None:
        self._encode = encode
        self._ring = [
            _chunk(
                encode("contentBlockDelta", delta_payload(b"the %02d words of a river ..." % i, 12 + 3 * i))
            )
            for i in range(_RING)
        ]
        self.head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n"
            b"x-amzn-RequestId: 00000000-0000-4000-8000-000000000000\r\n\r\n" % content_type.encode()
        ) + _chunk(encode("messageStart", b'{"p":"abcdefgh","role":"assistant"}'))
        self.deltas = lru_cache(maxsize=4096)(self._deltas)

    def first_delta(self, held_us: int) -> bytes:
        """Encode the first delta, whose text is how long the upstream held the answer back."""
        text = b"held=%dus" % held_us
        return _chunk(self._encode("contentBlockDelta", delta_payload(text.ljust(28, b"."), 24)))

    def _deltas(self, at: int, count: int) -> bytes:
        """The chunks of `count` deltas from place `at % 16` of the ring on."""
        return b"".join(self._ring[(at + i) % _RING] for i in range(count))

    @lru_cache(maxsize=64)  # noqa: B019 - two instances, made at import, live as long as the process
    def end(self, deltas: int) -> bytes:
        """What follows the last delta, to the end of the HTTP message."""
        usage = b'{"inputTokens":%d,"outputTokens":%d,"totalTokens":%d}' % (
            INPUT_TOKENS,
            deltas,
            INPUT_TOKENS + deltas,
        )
        events = (
            ("contentBlockStop", b'{"contentBlockIndex":0,"p":"abcdefghijk"}'),
            ("messageStop", b'{"p":"abcdefghijklm","stopReason":"end_turn"}'),
            ("metadata", b'{"metrics":{"latencyMs":1000},"p":"abcde","usage":%b}' % usage),
        )
        return b"".join(_chunk(self._encode(name, payload)) for name, payload in events) + b"0\r\n\r\n"


FRAMES = Lines("application/vnd.amazon.eventstream", encode_frame)
SSE = Lines("text/event-stream", encode_sse)
