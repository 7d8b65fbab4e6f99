import json
from typing import Any

import pytest

from service.runtimes.python_output import MAX_EVENT_BYTES, TEXT_PIECE, BadOutput, Output, parse

OTHER_KEY = (
    "it yielded a dict whose key is none of contentBlockDelta, contentBlockStart, contentBlockStop,"
    " messageStart, messageStop, metadata"
)
START = {"messageStart": {"role": "assistant"}}
STOP = {"messageStop": {"stopReason": "end_turn"}}


def delta(text: str, index: int = 0) -> dict[str, Any]:
    return {"contentBlockDelta": {"contentBlockIndex": index, "delta": {"text": text}}}


def ended(index: int = 0) -> dict[str, Any]:
    return {"contentBlockStop": {"contentBlockIndex": index}}


def written(*pieces: object) -> list[dict[str, Any]]:
    """Return the events of an agent that yields these pieces and ends."""
    output = Output()
    frames = [frame for piece in pieces for frame in output.frames(piece)] + output.end()
    return [{kind.decode(): json.loads(payload)} for kind, payload in frames]


def fault(*pieces: object) -> str:
    with pytest.raises(BadOutput) as caught:
        written(*pieces)
    return str(caught.value)


@pytest.mark.promise("agent-output-whole")
def test_text_alone_becomes_one_whole_message() -> None:
    assert written("A head", "", "race.") == [START, delta("A head"), delta("race."), ended(), STOP]


@pytest.mark.promise("agent-output-whole")
def test_deltas_alone_become_one_whole_message() -> None:
    assert written(delta("a"), delta("b")) == [START, delta("a"), delta("b"), ended(), STOP]


def test_whole_messages_pass_as_they_are_whatever_they_hold() -> None:
    metadata = {"metadata": {"usage": {"inputTokens": 1, "outputTokens": 2}}}
    begun = {
        "contentBlockStart": {
            "contentBlockIndex": 1,
            "start": {"toolUse": {"toolUseId": "t", "name": "n"}},
        }
    }
    asked = {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": "{}"}}}}
    message = [START, delta("a"), ended(), begun, asked, ended(1), STOP, metadata]

    assert written(*message, *message) == [*message, *message]


def test_text_goes_on_in_the_text_block_that_is_open() -> None:
    assert written(START, delta("a"), "b", delta("c")) == [
        START,
        delta("a"),
        delta("b"),
        delta("c"),
        ended(),
        STOP,
    ]


def test_text_after_a_block_or_a_message_begins_another() -> None:
    events = written(START, delta("a"), ended(), "b", STOP, "c")

    first = [START, delta("a"), ended(), delta("b", 1), ended(1), STOP]
    assert events == [*first, START, delta("c"), ended(), STOP]


def test_the_stop_reason_is_that_of_the_last_message() -> None:
    output = Output()
    output.frames({"messageStop": {"stopReason": "max_tokens"}})
    first = output.stop_reason
    output.frames("more")
    output.end()

    assert (first, output.stop_reason) == ("max_tokens", "end_turn")


def test_an_agent_that_says_nothing_writes_nothing() -> None:
    assert written() == []


def test_long_text_is_cut_into_deltas() -> None:
    events = written("x" * (TEXT_PIECE + 1))

    assert events == [START, delta("x" * TEXT_PIECE), delta("x"), ended(), STOP]


def test_half_a_character_passes_and_joins_the_other_half() -> None:
    frames = Output().frames("\ud83d")

    assert frames[-1][1] == b'{"contentBlockIndex":0,"delta":{"text":"\\ud83d"}}'
    assert list(parse(frames[-1:])) == [delta("\ud83d")]


class Foreign:
    """A type that an author has made."""


@pytest.mark.promise("agent-output-refused")
@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([7], "it yielded a value of type int, which is neither text nor an event"),
        ([None], "it yielded a value of type NoneType, which is neither text nor an event"),
        ([b"text"], "it yielded a value of type bytes, which is neither text nor an event"),
        ([Foreign()], "it yielded an object, which is neither text nor an event"),
        ([{}], "it yielded a dict with 0 keys; an event has one, its type"),
        ([{"messageStart": {}, "x": {}}], "it yielded a dict with 2 keys; an event has one, its type"),
        ([{"secret": {}}], OTHER_KEY),
        ([{7: {}}], OTHER_KEY),
        ([{"metadata": []}], "the value of its metadata is a value of type list, not a dict"),
        ([{"metadata": {"usage": object()}}], "its metadata can't be written as JSON"),
        ([{"metadata": {"x": "y" * MAX_EVENT_BYTES}}], "its metadata is larger than 262144 bytes"),
        ([{"messageStart": {"role": "user"}}], 'the role of its messageStart is not "assistant"'),
        ([START, START], "it yielded messageStart inside a message: end that with messageStop first"),
        (["x", START], "it yielded messageStart inside a message: end that with messageStop first"),
        ([{"messageStop": {}}], "its messageStop has no stopReason"),
        ([{"contentBlockDelta": {"delta": {}}}], "its contentBlockDelta has no contentBlockIndex"),
        (
            [{"contentBlockDelta": {"contentBlockIndex": True, "delta": {}}}],
            "its contentBlockDelta has no contentBlockIndex",
        ),
        ([{"contentBlockDelta": {"contentBlockIndex": 0}}], "its contentBlockDelta has no delta"),
        ([ended()], "it yielded contentBlockStop of a block that has not begun"),
        ([delta("a"), ended(), delta("b")], "it yielded contentBlockDelta of a block that has ended"),
        (
            [delta("a"), {"contentBlockStart": {"contentBlockIndex": 0, "start": {}}}],
            "it yielded contentBlockStart of a block that has begun",
        ),
        (
            [{"contentBlockStart": {"contentBlockIndex": 0, "start": {}}}, "x"],
            "it yielded text inside a block that is no text: end the block first",
        ),
    ],
)
def test_anything_else_is_refused_and_the_reason_says_nothing_of_it(
    pieces: list[object], reason: str
) -> None:
    assert fault(*pieces) == reason
