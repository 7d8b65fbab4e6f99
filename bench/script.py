"""What the fake upstream says: a plan read from a model id, and every byte of its answer, encoded once.

`upstream` plays these bytes; `subjects` and `scenarios` name plans. A plan's model id is
`bench-<first_ms>-<deltas>-<interval_us>-<burst>`: the first delta after first_ms, then `burst` deltas in one
write every interval_us. A delta's payload is what Bedrock sends, about 112 bytes with its `p` padding; each
event is an HTTP chunk of its own. Every delta's text begins with `DELTA_MARK`'s tilde, and no other text
does, so whoever counts deltas needs no parser, whatever a gateway has made of the event around it.

Two texts tell the time of the machine's monotonic clock, which all processes share:

    ~held=20123us     the first delta: how long the upstream held the answer back
    ~at=123456789us   each later delta of a plan that is `stamped`: when it was written

Sources: event-stream framing, https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html;
`p` in https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlockDeltaEvent.html's real
answers; https://platform.openai.com/docs/api-reference/chat-streaming.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

DELTA_MARK = '"~'
"""Begins the text of each delta in every subject's answer, and is nowhere else in it."""

_MODEL_ID = re.compile(r"bench-(\d{1,7})-(\d{1,9})-(\d{1,9})-(\d{1,6})(-stamped)?")
_PADDING = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_STRING = 7
_RING = 16
"""Deltas that differ; an answer repeats them."""
_TEXT_BYTES = 28

INPUT_TOKENS = 12


@dataclass(frozen=True)
class Plan:
    """One answer: `deltas` in writes of `burst`, one every interval_us, the first after first_ms."""

    first_ms: int
    deltas: int
    interval_us: int
    burst: int = 1
    stamped: bool = False

    @property
    def model_id(self) -> str:
        plain = f"bench-{self.first_ms}-{self.deltas}-{self.interval_us}-{self.burst}"
        return f"{plain}-stamped" if self.stamped else plain

    @staticmethod
    def parse(model_id: str) -> "Plan | None":
        """Read a model id; None if it is not one of a plan or the plan says nothing."""
        match = _MODEL_ID.fullmatch(model_id)
        if match is None:
            return None
        first_ms, deltas, interval_us, burst = map(int, match.groups()[:4])
        plan = Plan(first_ms, deltas, interval_us, burst, stamped=match[5] is not None)
        return plan if plan.deltas > 0 and plan.burst > 0 else None


@dataclass(frozen=True)
class Dialect:
    """How one API writes an answer: its type, what comes before the first delta, a delta, what comes last."""

    content_type: str
    start: bytes
    delta: Callable[[bytes, int], bytes]
    end: Callable[[int], list[bytes]]


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


def delta_payload(text: bytes, padding_bytes: int) -> bytes:
    """One contentBlockDelta as Bedrock sends it; `p` hides the length of the text."""
    return b'{"contentBlockIndex":0,"delta":{"text":"%b"},"p":"%b"}' % (text, _PADDING[:padding_bytes])


def converse(content_type: str, encode: Callable[[str, bytes], bytes]) -> Dialect:
    """ConverseStream's events, each encoded in one way."""

    def end(deltas: int) -> list[bytes]:
        usage = b'{"inputTokens":%d,"outputTokens":%d,"totalTokens":%d}' % (
            INPUT_TOKENS,
            deltas,
            INPUT_TOKENS + deltas,
        )
        return [
            encode("contentBlockStop", b'{"contentBlockIndex":0,"p":"abcdefghijk"}'),
            encode("messageStop", b'{"p":"abcdefghijklm","stopReason":"end_turn"}'),
            encode("metadata", b'{"metrics":{"latencyMs":1000},"p":"abcde","usage":%b}' % usage),
        ]

    return Dialect(
        content_type,
        start=encode("messageStart", b'{"p":"abcdefgh","role":"assistant"}'),
        delta=lambda text, padding: encode("contentBlockDelta", delta_payload(text, padding)),
        end=end,
    )


def chat_completions() -> Dialect:
    """OpenAI's chat/completions over SSE; it has no padding."""

    def piece(choices: bytes, more: bytes = b"") -> bytes:
        return (
            b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,'
            b'"model":"bench","choices":[%b]%b}\n\n' % (choices, more)
        )

    def choice(delta: bytes, reason: bytes = b"null") -> bytes:
        return b'{"index":0,"delta":%b,"finish_reason":%b}' % (delta, reason)

    def end(deltas: int) -> list[bytes]:
        usage = b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
            INPUT_TOKENS,
            deltas,
            INPUT_TOKENS + deltas,
        )
        return [piece(choice(b"{}", b'"stop"')), piece(b"", usage), b"data: [DONE]\n\n"]

    return Dialect(
        "text/event-stream",
        start=piece(choice(b'{"role":"assistant","content":""}')),
        delta=lambda text, _padding: piece(choice(b'{"content":"%b"}' % text)),
        end=end,
    )


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


class Lines:
    """Every byte of an answer in one dialect, made once; only what tells the time is encoded later."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._ring = [
            _chunk(dialect.delta(b"~the %02d words of a river .." % number, 12 + 3 * number))
            for number in range(_RING)
        ]
        self.head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n"
            b"x-amzn-RequestId: 00000000-0000-4000-8000-000000000000\r\n\r\n" % dialect.content_type.encode()
        ) + _chunk(dialect.start)
        self.deltas = lru_cache(maxsize=4096)(self._deltas)
        self.end = lru_cache(maxsize=64)(self._end)

    def held(self, held_us: int) -> bytes:
        """Encode the first delta, whose text is how long the upstream held the answer back."""
        return self._telling(b"~held=%dus" % held_us)

    def stamped(self, at_us: int) -> bytes:
        """Encode a delta whose text is the moment of its writing."""
        return self._telling(b"~at=%dus" % at_us)

    def _telling(self, text: bytes) -> bytes:
        return _chunk(self._dialect.delta(text.ljust(_TEXT_BYTES, b"."), 24))

    def _deltas(self, at: int, count: int) -> bytes:
        """The chunks of `count` deltas from place `at % 16` of the ring on."""
        return b"".join(self._ring[(at + i) % _RING] for i in range(count))

    def _end(self, deltas: int) -> bytes:
        """What follows the last delta, to the end of the HTTP message."""
        return b"".join(map(_chunk, self._dialect.end(deltas))) + b"0\r\n\r\n"


FRAMES = Lines(converse("application/vnd.amazon.eventstream", encode_frame))
SSE = Lines(converse("text/event-stream", encode_sse))
CHAT = Lines(chat_completions())
