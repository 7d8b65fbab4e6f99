import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidCursor
from service.events import (
    START,
    Block,
    EventId,
    answer_text,
    encode,
    event_type,
    event_value,
    from_frames,
    is_terminal,
    join,
    split,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.",
        ".1",
        "0.1",
        "1.0",
        "1.01",
        "-1.1",
        "1.1 ",
        "1.1.1",
        "x",
        "1.1\n",
        "１.１",
        "1.9999999999",
    ],
)
def test_a_cursor_that_is_no_event_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor) as refused:
        EventId.parse(text)

    assert refused.value.code == "invalid-cursor"


def test_a_cursor_reads_back_what_an_id_shows() -> None:
    assert EventId.parse("12.340") == EventId(12, 340)
    assert str(EventId(12, 340)) == "12.340"


def test_ids_order_as_pairs_of_numbers() -> None:
    assert START < EventId(1, 2) < EventId(1, 10) < EventId(2, 1)


@pytest.mark.promise("bytes-pass-through")
def test_a_payload_passes_through_untouched() -> None:
    payload = b'{ "delta" : {"text":"\\u00e9\xc3\xa9"} ,"p":"abcdefgh"}'

    assert from_frames([(b"contentBlockDelta", payload)]) == (b'{"contentBlockDelta":' + payload + b"}",)


@pytest.mark.parametrize("space", [b"\n", b"\r", b"\r\n"])
def test_a_payload_with_a_line_break_is_encoded_again(space: bytes) -> None:
    payload = b'{"delta":' + space + b'{"text":"\xc3\xa9\\n"}}'

    assert from_frames([(b"contentBlockDelta", payload)]) == (
        b'{"contentBlockDelta":{"delta":{"text":"\xc3\xa9\\n"}}}',
    )


@given(st.lists(st.text(), min_size=1), st.integers(0, 12))
def test_what_follows_a_cursor_is_exactly_the_rest(texts: list[str], cut: int) -> None:
    events = tuple(encode("delta", {"text": text}) for text in texts)
    block = Block(1, 5, events)

    rest = block.after(EventId(1, 4 + cut))

    assert rest.events == events[cut:]
    assert rest.first_seq == 5 + min(cut, len(events)) or not rest.events


@pytest.mark.parametrize("cursor", [START, EventId(1, 99), EventId(2, 6)])
def test_a_block_after_an_older_cursor_is_whole(cursor: EventId) -> None:
    block = Block(2, 7, (b'{"a":1}', b'{"b":2}'))

    assert block.after(cursor) == block


def test_a_block_before_a_later_attempts_cursor_is_void() -> None:
    assert Block(1, 7, (b'{"a":1}',)).after(EventId(2, 1)).events == ()


@given(st.lists(st.text(), min_size=1))
def test_joined_events_split_into_the_same(texts: list[str]) -> None:
    events = tuple(encode("delta", {"text": text}) for text in texts)

    assert split(join(events)) == events


def test_type_and_value_are_read_from_the_bytes() -> None:
    event = encode("invocationFailed", {"problem": {"code": "x"}})

    assert event_type(event) == b"invocationFailed"
    assert event_value(event) == {"problem": {"code": "x"}}
    assert is_terminal(event)
    assert not is_terminal(b'{"messageStop":{}}')


def test_what_only_an_upstream_out_of_its_mind_says_is_encoded_all_the_same() -> None:
    said = {"stopReason": "\ud800", "usage": {"outputTokens": 2**70}}

    event = encode("invocationCompleted", said)

    assert event_value(event) == said
    assert is_terminal(event)


def test_the_answer_is_the_text_of_its_deltas() -> None:
    events = [
        b'{"messageStart":{"role":"assistant"}}',
        b'{"contentBlockDelta":{"delta":{"text":"Hel"},"p":"abc"}}',
        b'{"contentBlockDelta":{"delta":{"toolUse":{"input":"{}"}}}}',
        b'{"contentBlockDelta":{"delta":{"text":"lo"}}}',
    ]

    assert answer_text(events) == "Hello"
