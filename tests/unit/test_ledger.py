import base64
import json

import pytest

from service.invocations import Usage
from service.ledger import (
    DOCUMENT_CEILING_TOKENS,
    IMAGE_CEILING_TOKENS,
    MESSAGE_OVERHEAD_TOKENS,
    REQUEST_OVERHEAD_TOKENS,
    TOOLS_OVERHEAD_TOKENS,
    estimated_usage,
    input_bound_tokens,
    reported_usage,
)


def test_text_is_bounded_by_its_bytes() -> None:
    messages = [{"role": "user", "content": [{"text": "naïve"}, {"text": "日本"}]}]

    bound = input_bound_tokens("Be brief.", messages, ())

    assert bound == REQUEST_OVERHEAD_TOKENS + 9 + MESSAGE_OVERHEAD_TOKENS + 6 + 6


def test_media_have_fixed_ceilings() -> None:
    source = {"bytes": base64.b64encode(b"x" * 9_000_000).decode()}
    content = [
        {"image": {"format": "png", "source": source}},
        {"document": {"format": "pdf", "name": "a", "source": source}},
    ]

    bound = input_bound_tokens("", [{"role": "user", "content": content}], ())

    assert bound == (
        REQUEST_OVERHEAD_TOKENS + MESSAGE_OVERHEAD_TOKENS + IMAGE_CEILING_TOKENS + DOCUMENT_CEILING_TOKENS
    )


def test_tools_and_their_results_count() -> None:
    spec = {"name": "search", "inputSchema": {"json": {"type": "object"}}}
    result = {"toolResult": {"toolUseId": "1", "content": [{"text": "found"}], "status": "success"}}

    bound = input_bound_tokens("", [{"role": "user", "content": [result]}], [spec])

    assert bound == (
        REQUEST_OVERHEAD_TOKENS
        + TOOLS_OVERHEAD_TOKENS
        + len(json.dumps(spec))
        + MESSAGE_OVERHEAD_TOKENS
        + len(json.dumps(result))
    )


def test_reported_usage_is_read_from_metadata() -> None:
    metadata = (
        b'{"usage":{"inputTokens":7,"outputTokens":3,"totalTokens":10,"cacheReadInputTokens":5},"metrics":{}}'
    )

    assert reported_usage(metadata) == Usage(7, 3, 5, 0)


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[]",
        b"{}",
        b'{"usage":7}',
        b'{"usage":{"inputTokens":"7"}}',
        b'{"usage":{"outputTokens":-1}}',
        b'{"usage":{"outputTokens":1000000000001}}',
        b'{"usage":{"outputTokens":1e9}}',
        b"\xff",
    ],
)
def test_usage_that_makes_no_sense_is_none(metadata: bytes) -> None:
    assert reported_usage(metadata) is None


@pytest.mark.parametrize(("output_bytes", "output_tokens"), [(0, 0), (40, 40), (4000, 100)])
def test_an_estimate_covers_what_was_generated_and_never_exceeds_the_hold(
    output_bytes: int, output_tokens: int
) -> None:
    estimate = estimated_usage(input_bound=50, max_output=100, output_bytes=output_bytes)

    assert estimate == Usage(50, output_tokens, estimated=True)
