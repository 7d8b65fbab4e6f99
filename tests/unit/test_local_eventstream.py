"""Frames of the local endpoint, read by botocore's own decoder."""

import json
from typing import Any

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer, InvalidPayloadLength

from local.eventstream import encode, event, exception


def decoded(raw: bytes) -> list[tuple[dict[str, Any], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(raw)
    return [(message.headers, message.payload) for message in buffer]


def test_a_message_has_the_layout_of_the_specification() -> None:
    message = encode({"a": "b"}, b"xyz")

    assert message == bytes.fromhex(
        "00000019"  # 25 bytes in all
        "00000006"  # 6 bytes of headers
        "e1b18faf"  # CRC-32 of these eight
        "0161"  # a name of one byte: a
        "07000162"  # a string of one byte: b
        "78797a"
        "3975962f"  # CRC-32 of all before
    )


def test_an_empty_message_is_the_sixteen_bytes_that_every_implementation_tests() -> None:
    # "empty_message" of the vectors that AWS's SDKs share:
    # https://github.com/awslabs/aws-c-event-stream/tree/main/tests
    assert encode({}, b"").hex() == "000000100000000005c248eb7d98c8ff"


def test_botocore_reads_an_event_and_an_exception() -> None:
    raw = event("messageStart", {"role": "assistant", "p": "ab"}) + exception(
        "throttlingException", {"message": "é"}
    )

    assert decoded(raw) == [
        (
            {":event-type": "messageStart", ":content-type": "application/json", ":message-type": "event"},
            b'{"p":"ab","role":"assistant"}',
        ),
        (
            {
                ":exception-type": "throttlingException",
                ":content-type": "application/json",
                ":message-type": "exception",
            },
            '{"message":"é"}'.encode(),
        ),
    ]


def test_padding_hides_the_length_and_is_the_same_in_every_run() -> None:
    payloads = [
        json.loads(decoded(event("contentBlockDelta", {"delta": {"text": text}}))[0][1])
        for text in "abcdefgh"
    ]

    lengths = [len(payload["p"]) for payload in payloads]
    assert all(3 <= length <= 62 for length in lengths)
    assert len(set(lengths)) > 4
    assert event("messageStop", {"stopReason": "end_turn"}) == event(
        "messageStop", {"stopReason": "end_turn"}
    )


def test_a_text_is_the_payload_byte_for_byte() -> None:
    raw = event("metadata", '{\r\n "usage": {} }')

    assert decoded(raw)[0][1] == b'{\r\n "usage": {} }'


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("message-crc", ChecksumMismatch),
        ("prelude-crc", ChecksumMismatch),
        ("oversized", InvalidPayloadLength),
    ],
)
def test_a_fault_is_one_that_botocore_refuses(fault: Any, error: type[Exception]) -> None:
    raw = encode({"a": "b"}, b"xyz", fault=fault)

    with pytest.raises(error):
        decoded(raw)
