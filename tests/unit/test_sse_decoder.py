"""The decoder of an upstream's server-sent events: the same events for every cut, and none without an end."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.sse import MAX_EVENT_BYTES, Decoder, Event, EventTooLarge

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors/sse/wpt_eventsource_format.json").read_text()
)["vectors"]


def fed(*pieces: bytes) -> tuple[list[Event], bool]:
    """Feed the pieces; return all events, and whether one was too large."""
    decoder = Decoder()
    events: list[Event] = []
    for piece in pieces:
        try:
            events += decoder.feed(piece)
        except EventTooLarge as end:
            return events + list(end.events), True
    return events, False


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.parametrize("size", [1, 7, 10**9])
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_events_are_those_that_a_browser_dispatches(vector: dict[str, Any], size: int) -> None:
    events, _ = fed(*in_pieces(bytes.fromhex(vector["stream_hex"]), size))

    assert [(kind.decode() or "message", line.decode(errors="replace")) for kind, line in events] == [
        (event["type"], event["data"]) for event in vector["events"]
    ]


lines = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"event: error", b": comment", b"id: 1", b"odd", b""]
)
streams = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=12)


@given(streams, st.lists(st.integers(0, 100), max_size=6))
def test_any_cut_gives_the_same_events(written: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in written)
    at = sorted(min(cut, len(stream)) for cut in cuts)
    pieces = [stream[start:end] for start, end in zip([0, *at], [*at, len(stream)], strict=True)]

    assert fed(*pieces) == fed(stream)


def test_an_event_without_its_empty_line_does_not_come_out() -> None:
    assert fed(b"data: 1\n\ndata: [DONE]\n") == ([(b"", b"1")], False)


@pytest.mark.parametrize("size", [4096, 100_003, 10**9])
@pytest.mark.parametrize(
    "large",
    [
        b"data: " + b"x" * MAX_EVENT_BYTES,
        b": " + b"x" * MAX_EVENT_BYTES + b"\n\n",
        b"data: x\ndata: " + b"x" * (MAX_EVENT_BYTES // 2) + b"\ndata: " + b"x" * (MAX_EVENT_BYTES // 2),
        (b"data: " + b"x" * 1023 + b"\n") * 1025,
    ],
    ids=["a line without an end", "a comment", "two lines", "many lines"],
)
def test_what_is_too_large_is_refused_after_the_events_before_it(large: bytes, size: int) -> None:
    events, too_large = fed(*in_pieces(b"data: 1\n\n" + large + b"\n\ndata: 2\n\n", size))

    assert (events, too_large) == ([(b"", b"1")], True)


def test_an_event_of_the_largest_size_comes_out() -> None:
    value = b"x" * (MAX_EVENT_BYTES - len(b"data: "))

    assert fed(*in_pieces(b"data: " + value + b"\n\n", 65_536)) == ([(b"", value)], False)
