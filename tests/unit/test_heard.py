import json
from typing import Any

import pytest

from service.invocations import Usage
from service.models import Frame
from service.runtimes.heard import Heard, ToolUse
from tests.fakes import frame, start, stop, text, tool_call


def hear(*batches: Any, keep: bool = True) -> tuple[Heard, list[Frame]]:
    """Feed batches to a `Heard`; return it with what it passed on."""
    passed: list[Frame] = []
    heard = Heard(passed.extend, input_bound=50, max_output=100, keep=keep)
    for batch in batches:
        heard(batch)
    return heard, passed


def reasoning(**delta: str) -> list[Frame]:
    return [frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": delta}})]


def test_batches_pass_through_as_they_came() -> None:
    batches = [start(), text("Hel", "lo"), stop()]

    _, passed = hear(*batches)

    assert passed == [frame for batch in batches for frame in batch]


def test_usage_and_stop_reason_are_the_upstreams() -> None:
    heard, _ = hear(start(), text("Hi"), stop("max_tokens", input_tokens=7, output_tokens=2), keep=False)

    assert heard.usage == Usage(7, 2)
    assert heard.stop_reason == "max_tokens"
    assert heard.generated


def test_without_metadata_the_usage_is_an_estimate() -> None:
    delta = text("Hi")

    heard, _ = hear(start(), delta, keep=False)

    assert heard.usage == Usage(50, len(delta[0][1]), estimated=True)
    assert heard.stop_reason == "unknown"


def test_nothing_heard_is_nothing_generated() -> None:
    assert not hear(start())[0].generated


@pytest.mark.parametrize("beside", [rb'"\ud83d"', b"NaN"])
def test_what_only_a_lenient_parser_reads_is_read(beside: bytes) -> None:
    end = (b"messageStop", b'{"stopReason":"tool_use","more":%b}' % beside)
    used = (b"metadata", b'{"usage":{"inputTokens":1,"outputTokens":2},"more":%b}' % beside)

    heard, _ = hear([end, used])

    assert (heard.stop_reason, heard.usage) == ("tool_use", Usage(1, 2))


def test_a_stop_reason_that_makes_no_sense_is_unknown() -> None:
    assert hear([(b"messageStop", b'{"stopReason":7}')])[0].stop_reason == "unknown"


def test_the_next_turn_gets_text_and_tool_use() -> None:
    heard, _ = hear(*tool_call("search", '{"query":"headrace"}', said="Let me look."))

    assert heard.assistant_message() == {
        "role": "assistant",
        "content": [
            {"text": "Let me look."},
            {"toolUse": {"toolUseId": "tool-1", "name": "search", "input": {"query": "headrace"}}},
        ],
    }
    assert heard.tool_uses() == [ToolUse("tool-1", "search", b'{"query":"headrace"}')]


def test_tool_input_that_is_no_object_is_kept_raw_for_the_tool_and_empty_for_the_model() -> None:
    heard, _ = hear(*tool_call("search", '{"query":'))

    assert heard.tool_uses() == [ToolUse("tool-1", "search", b'{"query":')]
    assert json.dumps(heard.assistant_message()["content"]) == json.dumps(
        [{"toolUse": {"toolUseId": "tool-1", "name": "search", "input": {}}}]
    )


def test_tool_use_without_input_is_an_empty_object() -> None:
    heard, _ = hear(*tool_call("now", ""))

    assert heard.tool_uses() == [ToolUse("tool-1", "now", b"{}")]


def test_reasoning_is_given_back_with_its_signature() -> None:
    heard, _ = hear(reasoning(text="First "), reasoning(text="think."), reasoning(signature="c2ln"))

    assert heard.assistant_message()["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "First think.", "signature": "c2ln"}}}
    ]


def test_redacted_reasoning_is_given_back_as_it_came() -> None:
    heard, _ = hear(reasoning(redactedContent="cmVk"))

    assert heard.assistant_message()["content"] == [{"reasoningContent": {"redactedContent": "cmVk"}}]


def test_a_block_that_says_nothing_is_left_out() -> None:
    heard, _ = hear(text(" ", "\n"))

    assert heard.assistant_message() == {"role": "assistant", "content": []}
