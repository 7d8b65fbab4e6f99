"""Chat completion chunks as ConverseStream frames: ends, usage, the ways of some servers, and nonsense."""

from typing import Any

import pytest

from service.errors import UpstreamError, UpstreamFailed, UpstreamRejected, UpstreamThrottled
from tests.translation import (
    START,
    Translated,
    arguments,
    call,
    choice,
    end,
    stop,
    text,
    tool,
    translated,
    usage,
)

# -- ends


@pytest.mark.parametrize(
    ("reason", "stop_reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "content_filtered"),
    ],
)
def test_a_finish_reason_is_a_stop_reason(reason: str, stop_reason: str) -> None:
    assert translated(choice({"content": "a"}, reason)).frames == [START, text("a"), end(), stop(stop_reason)]


@pytest.mark.promise("truncation-is-failure")
@pytest.mark.parametrize("reason", ["abort", "insufficient_system_resource", "error", "", 1, []])
def test_any_other_reason_is_a_failure(reason: Any) -> None:
    assert translated(choice({"content": "a"}, reason)).outcome == ([START, text("a")], False, UpstreamFailed)


@pytest.mark.promise("truncation-is-failure")
def test_done_without_a_finish_reason_is_a_failure() -> None:
    assert translated(choice({"content": "a"})).outcome == ([START, text("a")], False, UpstreamFailed)


@pytest.mark.promise("truncation-is-failure")
def test_a_finish_reason_without_done_is_not_whole() -> None:
    assert not translated(choice({"content": "a"}, "stop"), done=False).is_whole


def test_what_follows_done_is_not_looked_at() -> None:
    got = translated(choice({}, "stop"), b"[DONE]", b"nonsense", {"error": {}})

    assert got.outcome == ([START, stop("end_turn")], True, None)


def test_an_answer_that_goes_on_after_its_end_is_a_failure() -> None:
    got = translated(choice({"content": "a"}, "stop"), choice({"content": "b"}))

    assert got.outcome == ([START, text("a"), end(), stop("end_turn")], False, UpstreamFailed)


def test_empty_choices_after_the_end_are_no_harm() -> None:
    got = translated(choice({}, "stop"), choice({"content": ""}, "stop") | {"usage": None})

    assert got.outcome == ([START, stop("end_turn")], True, None)


# -- usage


def test_usage_in_the_last_choice_counts_and_is_told_once() -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 2}
    got = translated(choice({}, "stop") | {"usage": counts}, {"choices": [], "usage": counts})

    assert got.frames == [START, stop("end_turn"), usage(5, 2)]


def test_usage_so_far_is_not_told() -> None:
    so_far = choice({"content": "a"}) | {"usage": {"prompt_tokens": 5, "completion_tokens": 1}}

    assert translated(so_far, choice({}, "stop")).frames == [START, text("a"), end(), stop("end_turn")]


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"prompt_tokens": 5},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": "1"},
        {"prompt_tokens": 5, "completion_tokens": 1.5},
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}},
    ],
)
def test_usage_that_makes_no_sense_is_none(counts: Any) -> None:
    got = translated(choice({}, "stop"), {"choices": [], "usage": counts})

    assert got.outcome == ([START, stop("end_turn")], True, None)


# -- what servers do otherwise


def test_what_has_no_choice_begins_nothing() -> None:
    filters = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}

    assert translated(filters, done=False).frames == []


def test_only_the_first_choice_counts() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "b"}}, {"delta": {"content": "a"}}]}

    assert translated(other, done=False).frames == [START, text("a")]


def test_tool_calls_that_end_with_stop_are_a_use_of_tools() -> None:
    one = call(index=0, id="a", function={"name": "add", "arguments": "{}"})

    got = translated(one, choice({}, "stop"))

    assert got.frames == [START, tool("a", "add", 0), arguments("{}", 0), end(), stop("tool_use")]


def test_calls_that_all_have_the_index_0_are_told_apart_by_their_ids() -> None:
    calls = [{"index": 0, "id": each, "function": {"name": "add", "arguments": "{}"}} for each in ("a", "b")]

    got = translated(choice({"tool_calls": calls}), done=False)

    assert got.frames[1:] == [
        *(tool("a", "add", 0), arguments("{}", 0), end(0)),
        *(tool("b", "add", 1), arguments("{}", 1)),
    ]


@pytest.mark.parametrize("again", [{"id": "a"}, {"id": ""}, {"id": None}, {}])
def test_a_name_that_is_repeated_with_each_piece_begins_no_other_call(again: dict[str, Any]) -> None:
    got = translated(
        call(index=0, id="a", function={"name": "add", "arguments": "{"}),
        call(index=0, **again, function={"name": "add", "arguments": "}"}),
        done=False,
    )

    assert got.frames[1:] == [tool("a", "add", 0), arguments("{", 0), arguments("}", 0)]


@pytest.mark.parametrize(("first", "second"), [("add", "sub"), ("add", "add")])
def test_calls_without_index_and_id_are_told_apart_by_name_or_by_an_input_that_is_whole(
    first: str, second: str
) -> None:
    got = translated(
        call(function={"name": first, "arguments": '{"a":'}),
        call(function={"name": first, "arguments": "1}"}),
        call(function={"name": first, "arguments": ""}),
        call(function={"name": second, "arguments": "{}"}),
        done=False,
    )

    assert got.frames[1:] == [
        *(tool("made-up", first, 0), arguments('{"a":', 0), arguments("1}", 0), end(0)),
        *(tool("made-up", second, 1), arguments("{}", 1)),
    ]


def test_a_piece_whose_id_changes_belongs_to_its_index() -> None:
    got = translated(
        call(index=0, id="a", function={"name": "add"}),
        call(index=0, id="b", function={"arguments": "{}"}),
        done=False,
    )

    assert got.frames[1:] == [tool("a", "add", 0), arguments("{}", 0)]


@pytest.mark.parametrize("given", [{}, {"id": ""}, {"id": "functions.add:0"}, {"id": "x" * 65}, {"id": 1}])
def test_a_call_without_an_id_that_bedrock_takes_gets_one(given: dict[str, Any]) -> None:
    got = translated(call(**given, function={"name": "add"}), done=False)

    assert got.frames[1:] == [tool("made-up", "add", 0)]


def test_a_piece_of_a_call_that_is_over_is_a_failure() -> None:
    got = translated(
        call(index=0, id="a", function={"name": "add"}),
        call(index=1, id="b", function={"name": "add"}),
        call(index=0, function={"arguments": "{}"}),
    )

    assert got.outcome == ([START, tool("a", "add", 0), end(), tool("b", "add", 1)], False, UpstreamFailed)


def test_text_around_a_call_is_a_block_of_its_own() -> None:
    got = translated(
        choice({"content": "a"}),
        call(index=0, id="a", function={"name": "add"}),
        choice({"content": "b"}, "tool_calls"),
    )

    assert got.frames == [
        *(START, text("a"), end(0), tool("a", "add", 1), end(1), text("b", 2), end(2)),
        stop("tool_use"),
    ]


# -- what is no chat completion


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"message": "m", "code": 400}}, UpstreamRejected),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, UpstreamThrottled),
        ({"error": {"message": "m", "type": "exceed_context_size_error"}}, UpstreamRejected),
        ({"error": {}}, UpstreamFailed),
        ({"error": "m"}, UpstreamFailed),
        ({"object": "error", "message": "m", "code": 400}, UpstreamRejected),
    ],
)
def test_an_error_in_the_stream_goes_by_its_code(error: Any, kind: type[UpstreamError]) -> None:
    assert translated(choice({"content": "a"}), error).outcome == ([START, text("a")], False, kind)


def test_an_event_that_is_named_error_is_one() -> None:
    got = Translated([b'event: error\ndata: {"message":"m"}\n\n'])

    assert got.outcome == ([], False, UpstreamFailed)


@pytest.mark.parametrize(
    "chunk",
    [
        b"nonsense",
        b'{"choices":[',
        b"[1]",
        b"1",
        b'"text"',
        b"[" * 100_000,
        {"choices": 1},
        {"choices": [1]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": ["text"]}}]},
        {"choices": [{"delta": {"reasoning": {"text": 1}}}]},
        {"choices": [{"delta": {"tool_calls": ["call"]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": "add"}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": ["add"]}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]},
    ],
    ids=str,
)
def test_what_is_no_chat_completion_is_a_failure(chunk: Any) -> None:
    got = translated(choice({"content": "a"}), chunk)

    assert (got.frames[:2], got.is_whole, type(got.error)) == ([START, text("a")], False, UpstreamFailed)


def test_arguments_that_are_no_text_are_a_failure() -> None:
    got = translated(call(index=0, id="a", function={"name": "add", "arguments": {"a": 1}}))

    assert got.outcome == ([START, tool("a", "add", 0)], False, UpstreamFailed)
