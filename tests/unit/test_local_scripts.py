"""Scripts are plain values: they bend, they survive JSON, and a wrong one is refused when it is made."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.answers import answer, delta, metadata, refusal, tool_call
from local.scripts import (
    NEVER,
    Cut,
    Delay,
    Emit,
    Head,
    Raise,
    Raw,
    Refuse,
    Script,
    Wait,
    Wire,
)


def test_an_answer_has_one_delta_per_word_and_one_token_per_delta() -> None:
    script = answer("One  two.\n", delay_s=0.5, input_tokens=3)

    assert script == Script(
        (
            Emit("messageStart", {"role": "assistant"}),
            Delay(0.5),
            delta({"text": "One  "}),
            Delay(0.5),
            delta({"text": "two.\n"}),
            Emit("contentBlockStop", {"contentBlockIndex": 0}),
            Emit("messageStop", {"stopReason": "end_turn"}),
            metadata(3, 2),
        )
    )


def test_a_script_is_cut_prolonged_and_filled() -> None:
    script = answer("a b").first(3).insert(1, Wait("go")).then(Raise("throttlingException"))

    assert script.steps == (
        Emit("messageStart", {"role": "assistant"}),
        Wait("go"),
        delta({"text": "a "}),
        delta({"text": "b"}),
        Raise("throttlingException"),
    )


@pytest.mark.parametrize(
    "script",
    [
        answer("Hello there.", usage={"cacheReadInputTokens": 4}),
        tool_call("search", {"q": "é"}, text="Wait."),
        refusal("ThrottlingException", retry_after="1"),
        Script((Head(), Wait(NEVER), Raw.of(b"\x00\xff"), Cut(reset=False))),
        Script((Raise("modelStreamErrorException", "m", 503), Emit("metadata", "{\n}", "message-crc"))),
        answer("x").over(Wire(3, 5, (1, 2), 9, cut_by_reset=False, keep_alive=False)),
    ],
)
def test_a_script_survives_json(script: Script) -> None:
    assert Script.from_json(json.loads(json.dumps(script.to_json()))) == script


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "not a script: 'steps'"),
        ({"steps": [{"step": "dance"}]}, "'dance' is not a step"),
        ({"steps": [{"step": "emit", "event": "hello"}]}, "'hello' is not an event"),
        ({"steps": [{"step": "raise", "exception": "oops"}]}, "'oops' is not an in-stream exception"),
        ({"steps": [{"step": "delay", "minutes": 1}]}, "not a script: "),
        ({"steps": [], "wire": {"frames_per_write": 0}}, "a write has at least"),
        ({"steps": [{"step": "emit", "event": "metadata", "fault": "odd"}]}, "'odd' is not a fault"),
    ],
)
def test_what_is_no_script_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Script.from_json(document)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Script((Cut(), Head())),
        lambda: Script((Refuse(429, "ThrottlingException"), Head())),
        lambda: Script((Head(), Refuse(429, "ThrottlingException"))),
        lambda: Wire(bytes_per_write=0),
        lambda: Wire(cut_after_bytes=-1),
    ],
)
def test_an_impossible_script_can_not_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


@given(
    wire=st.builds(
        Wire,
        bytes_per_write=st.none() | st.integers(1, 40),
        split_at=st.lists(st.integers(0, 60), max_size=5).map(tuple),
        cut_after_bytes=st.none() | st.integers(0, 60),
    ),
    offset=st.integers(0, 30),
    body=st.binary(max_size=40),
)
def test_pieces_are_the_body_split_where_the_wire_says(wire: Wire, offset: int, body: bytes) -> None:
    pieces = list(wire.pieces(offset, body))

    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else offset) + len(piece))
    assert b"".join(pieces) == body
    assert all(pieces)
    assert all(len(piece) <= (wire.bytes_per_write or 40) for piece in pieces)
    inside = {at for at in (*wire.split_at, wire.cut_after_bytes) if at and offset < at < offset + len(body)}
    assert inside <= set(ends)
