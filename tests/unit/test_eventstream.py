"""The event-stream decoder: the same frames for every cut, nothing damaged, botocore's opinion of both."""

from typing import Any
from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from service.models import Frame
from service.models.eventstream import (
    MAX_HEADERS_BYTES,
    MAX_PAYLOAD_BYTES,
    AlreadyEnded,
    ChecksumMismatch,
    Decoder,
    ExceptionFrame,
    LimitExceeded,
    MalformedHeaders,
    StreamEnded,
)
from tests.scripted_http import event, exception, message, message_of_block

START: Frame = (b"messageStart", b'{"role":"assistant"}')
DELTA: Frame = (b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"Hel"},"p":"abcd"}')
STOP: Frame = (b"messageStop", b'{"stopReason":"end_turn"}')

event_types = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
frames = st.lists(st.tuples(event_types.map(str.encode), st.binary(max_size=300)), max_size=6)


def encoded(*expected: Frame) -> bytes:
    return b"".join(event(event_type.decode(), payload) for event_type, payload in expected)


def string_header(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + b"\x07" + len(value).to_bytes(2, "big") + value


EVENT_HEADERS = string_header(b":message-type", b"event") + string_header(b":event-type", b"ping")


def fed(*pieces: bytes) -> tuple[list[Frame], StreamEnded | None, bool]:
    """Feed the pieces; return all frames, what ended the stream, and whether it may end here."""
    decoder = Decoder()
    got: list[Frame] = []
    for piece in pieces:
        try:
            got += decoder.feed(piece)
        except StreamEnded as end:
            return got + list(end.frames), end, decoder.at_boundary
    return got, None, decoder.at_boundary


def by_bytes(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


@given(frames)
def test_what_was_encoded_comes_out_whole_and_byte_by_byte(expected: list[Frame]) -> None:
    stream = encoded(*expected)

    assert fed(stream) == fed(*by_bytes(stream)) == (expected, None, True)


@given(frames, st.data())
def test_any_three_pieces_give_what_the_whole_gives(expected: list[Frame], data: st.DataObject) -> None:
    stream = encoded(*expected)
    first, second = sorted(data.draw(st.tuples(*[st.integers(0, len(stream))] * 2), label="cuts"))

    assert fed(stream[:first], stream[first:second], stream[second:]) == (expected, None, True)


def test_every_cut_gives_the_same_frames() -> None:
    stream = encoded(START, DELTA, DELTA, STOP)

    outcomes = [fed(stream[:cut], stream[cut:]) for cut in range(len(stream) + 1)]

    assert outcomes == [([START, DELTA, DELTA, STOP], None, True)] * (len(stream) + 1)


@given(frames)
def test_botocore_reads_the_same_events_from_the_same_bytes(expected: list[Frame]) -> None:
    stream = encoded(*expected)
    botocore: Any = EventStreamBuffer()
    botocore.add_data(stream)

    theirs = [(each.headers[":event-type"].encode(), each.payload) for each in botocore]

    assert fed(stream)[0] == theirs


@pytest.mark.parametrize("size", range(len(encoded(DELTA))))
def test_a_stream_that_ends_within_a_frame_is_seen(size: int) -> None:
    assert fed(encoded(START) + encoded(DELTA)[:size]) == ([START], None, size == 0)


@pytest.mark.promise("truncation-is-failure")
def test_every_flipped_bit_is_detected() -> None:
    stream = encoded(DELTA)
    flipped = [
        stream[: bit // 8] + bytes([stream[bit // 8] ^ (1 << bit % 8)]) + stream[bit // 8 + 1 :]
        for bit in range(8 * len(stream))
    ]

    outcomes = [fed(encoded(START), each, encoded(STOP)) for each in flipped]

    assert [got for got, _, _ in outcomes] == [[START]] * len(flipped)
    assert {type(end) for _, end, _ in outcomes} == {ChecksumMismatch}


def test_frames_before_the_damage_come_out_whatever_the_cut() -> None:
    stream = encoded(START, DELTA) + encoded(STOP)[:-1] + b"\x00"

    outcomes = [fed(stream[:cut], stream[cut:]) for cut in range(len(stream))]

    assert [(got, type(end)) for got, end, _ in outcomes] == [([START, DELTA], ChecksumMismatch)] * len(
        stream
    )


@pytest.mark.parametrize("kind", ["exception", "error"])
def test_an_exception_ends_the_stream_after_the_frames_before_it(kind: str) -> None:
    name = {"exception": ":exception-type", "error": ":error-code"}[kind]
    ending = message({":message-type": kind, name: "throttlingException"}, b'{"message":"slow down"}')
    stream = encoded(START, DELTA) + ending + encoded(STOP)

    for outcome in (fed(stream), fed(*by_bytes(stream))):
        got, end, _ = outcome

        assert got == [START, DELTA]
        assert isinstance(end, ExceptionFrame)
        assert (end.kind, end.type, end.payload) == (kind, "throttlingException", b'{"message":"slow down"}')


def test_a_decoder_that_has_ended_takes_nothing_more() -> None:
    decoder = Decoder()
    with pytest.raises(ExceptionFrame):
        decoder.feed(exception("modelStreamErrorException", {}))

    with pytest.raises(AlreadyEnded) as caught:
        decoder.feed(encoded(START))

    assert caught.value.frames == ()


def prelude(total_bytes: int, headers_bytes: int) -> bytes:
    """Return a prelude whose checksum is right."""
    lengths = total_bytes.to_bytes(4, "big") + headers_bytes.to_bytes(4, "big")
    return lengths + crc32(lengths).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("total_bytes", "headers_bytes"),
    [
        (16 + MAX_PAYLOAD_BYTES + 1, 0),
        (16 + MAX_HEADERS_BYTES + 1, MAX_HEADERS_BYTES + 1),
        (2**32 - 1, 0),
        (16, 1),
        (15, 0),
        (0, 0),
    ],
)
def test_a_length_that_no_frame_has_is_refused_before_its_bytes_come(
    total_bytes: int, headers_bytes: int
) -> None:
    got, end, _ = fed(encoded(START) + prelude(total_bytes, headers_bytes))

    assert (got, type(end)) == ([START], LimitExceeded)


def test_the_largest_frame_is_taken() -> None:
    largest = (b"blob", bytes(MAX_PAYLOAD_BYTES))
    stream = encoded(largest)

    pieces = [stream[at : at + 2**20] for at in range(0, len(stream), 2**20)]

    assert fed(*pieces) == ([largest], None, True)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"", id="no headers"),
        pytest.param(string_header(b":event-type", b"ping"), id="no message type"),
        pytest.param(string_header(b":message-type", b"event"), id="no event type"),
        pytest.param(
            string_header(b":message-type", b"evnt") + EVENT_HEADERS[-17:], id="unknown message type"
        ),
        pytest.param(EVENT_HEADERS + string_header(b":event-type", b"pong"), id="twice"),
        pytest.param(EVENT_HEADERS + string_header(b"", b"x"), id="no name"),
        pytest.param(EVENT_HEADERS + b"\x01a\x0a", id="unknown value type"),
        pytest.param(EVENT_HEADERS + b"\x05abc", id="ends in a name"),
        pytest.param(EVENT_HEADERS + b"\x03abc", id="ends before the value type"),
        pytest.param(EVENT_HEADERS + b"\x01a\x07\x00", id="ends in a length"),
        pytest.param(EVENT_HEADERS + b"\x01a\x07\x00\x02x", id="ends in a string"),
        pytest.param(EVENT_HEADERS + b"\x01a\x05\x00\x00", id="ends in a number"),
        pytest.param(
            string_header(b":message-type", b"event") + string_header(b":event-type", b'a":1,"b\r\n'),
            id="an event type that would break out of JSON",
        ),
    ],
)
def test_headers_that_do_not_say_what_the_frame_is_are_refused(block: bytes) -> None:
    got, end, _ = fed(encoded(START) + message_of_block(block, b"{}"))

    assert (got, type(end)) == ([START], MalformedHeaders)


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        (0, b""),
        (1, b""),
        (2, b"x"),
        (3, b"xx"),
        (4, b"xxxx"),
        (5, b"x" * 8),
        (6, b"\x00\x02xx"),
        (8, b"x" * 8),
    ],
)
def test_headers_of_every_type_are_skipped(value_type: int, value: bytes) -> None:
    other = b"\x05other" + bytes([value_type]) + value
    uuid = b"\x02id\x09" + b"u" * 16

    assert fed(message_of_block(other + EVENT_HEADERS + uuid, b"{}")) == ([(b"ping", b"{}")], None, True)


def test_headers_in_another_order_mean_the_same() -> None:
    swapped = string_header(b":event-type", b"ping") + string_header(b":message-type", b"event")

    assert [fed(message_of_block(block, b"1"))[0] for block in (EVENT_HEADERS, swapped)] == [
        [(b"ping", b"1")]
    ] * 2


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_noise_never_makes_a_frame(pieces: list[bytes]) -> None:
    got, end, _ = fed(*pieces)

    assert got == []
    assert end is None or isinstance(end, ChecksumMismatch | LimitExceeded)
