"""Encodes messages of ``application/vnd.amazon.eventstream``, the framing of a ConverseStream body.

``scripts`` and ``bedrock`` call it for every frame they send. Pure: values in, bytes out. There is no
decoder here on purpose: the service's decoder is checked against this encoder, and this encoder against
botocore's decoder.

One message, all integers big-endian::

    +----------------+----------------+-------------+---------+---------+-------------+
    | total length   | headers length | prelude CRC | headers | payload | message CRC |
    | 4 bytes        | 4 bytes        | 4 bytes     | n bytes | m bytes | 4 bytes     |
    +----------------+----------------+-------------+---------+---------+-------------+
     total length = 16 + n + m
     prelude CRC  = CRC-32 of the first 8 bytes
     message CRC  = CRC-32 of everything before it, the prelude CRC included

One header of type string (7), the only type that ConverseStream uses::

    | name length, 1 byte | name | 7, 1 byte | value length, 2 bytes | value |

An event of ConverseStream is a message with the headers ``:event-type``, ``:content-type`` and
``:message-type: event`` and one member of the ConverseStream union as JSON; an exception has
``:exception-type`` and ``:message-type: exception``.

Sources: https://smithy.io/2.0/aws/amazon-eventstream.html,
https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html and
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal
from zlib import crc32

MAX_PAYLOAD_BYTES: Final = 24 * 1024 * 1024
"""The largest payload that AWS's own SDK accepts (botocore/eventstream.py, ``_MAX_PAYLOAD_LENGTH``)."""

Fault = Literal["message-crc", "prelude-crc", "oversized"]
"""How `encode` damages a message: a wrong message CRC, a wrong prelude CRC, a length beyond what is
allowed."""

_STRING: Final = 7
# The padding that hides the length of a token from who watches the encrypted stream: a prefix of this, as in
# https://github.com/aws/aws-sdk-js-v3/issues/6919.
_PADDING: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def encode(headers: Mapping[str, str], payload: bytes, *, fault: Fault | None = None) -> bytes:
    """Return one message; with `fault`, one that a correct receiver must refuse.

    An ``oversized`` message announces twice the largest payload under a correct prelude CRC and carries no
    more bytes than it would have had: a receiver that waits for the rest waits forever.
    """
    block = b"".join(_header(name, value) for name, value in headers.items())
    total_bytes = 16 + len(block) + len(payload)
    if fault == "oversized":
        total_bytes = 2 * MAX_PAYLOAD_BYTES
    prelude = total_bytes.to_bytes(4, "big") + len(block).to_bytes(4, "big")
    message = prelude + _checksum(prelude, wrong=fault == "prelude-crc") + block + payload
    return message + _checksum(message, wrong=fault == "message-crc")


def event(event_type: str, value: Mapping[str, Any] | str, *, fault: Fault | None = None) -> bytes:
    """Return one event as Bedrock writes it: compact JSON, keys in order, padded with a member `p`.

    A `value` that is text is the payload, byte for byte. The padding depends on the value alone, so that
    two runs of a script give the same bytes; a value that has a `p` keeps it.
    """
    if isinstance(value, str):
        payload = value.encode()
    else:
        length = 3 + crc32(_compact(value)) % (len(_PADDING) - 2)
        payload = _compact({"p": _PADDING[:length], **value})
    headers = {":event-type": event_type, ":content-type": "application/json", ":message-type": "event"}
    return encode(headers, payload, fault=fault)


def exception(exception_type: str, value: Mapping[str, Any]) -> bytes:
    """Return one modeled exception, which ends the stream that it is in."""
    headers = {
        ":exception-type": exception_type,
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return encode(headers, _compact(value))


def _compact(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _header(name: str, value: str) -> bytes:
    raw_name, raw_value = name.encode(), value.encode()
    length = len(raw_name).to_bytes(1, "big")
    return length + raw_name + bytes([_STRING]) + len(raw_value).to_bytes(2, "big") + raw_value


def _checksum(body: bytes, *, wrong: bool) -> bytes:
    return (crc32(body) ^ (0xFFFFFFFF if wrong else 0)).to_bytes(4, "big")
