import json

import pytest

from service.events import Block, encode
from service.wire import NDJSON, SSE, Heartbeat
from tests.sse import Dispatched, SseParser

DELTA = b'{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"Hel"},"p":"abcd"}}'
STOP = b'{"messageStop":{"stopReason":"end_turn"}}'
BEAT = Heartbeat("model", 1, 30)


def test_sse_frames_one_event_with_id_type_and_data() -> None:
    framed = SSE.block(1, 3, (DELTA,))

    assert framed == b"id: 1.3\nevent: contentBlockDelta\ndata: " + DELTA + b"\n\n"


def test_sse_numbers_the_events_of_a_block_in_order() -> None:
    framed = SSE.block(2, 9, (DELTA, STOP))

    assert framed == (
        b"id: 2.9\nevent: contentBlockDelta\ndata: " + DELTA + b"\n\n"
        b"id: 2.10\nevent: messageStop\ndata: " + STOP + b"\n\n"
    )


def test_ndjson_puts_the_id_first_in_each_line() -> None:
    framed = NDJSON.block(1, 3, (DELTA, STOP))

    assert framed == (
        b'{"id":"1.3","contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"Hel"},"p":"abcd"}}\n'
        b'{"id":"1.4","messageStop":{"stopReason":"end_turn"}}\n'
    )


@pytest.mark.promise("any-client-parses")
def test_heartbeats_and_control_frames_never_make_an_empty_event() -> None:
    stream = (
        SSE.connected
        + SSE.heartbeat(BEAT)
        + SSE.block(1, 1, (DELTA,))
        + SSE.heartbeat(BEAT)
        + SSE.heartbeat(BEAT)
        + SSE.control("reconnect", {"after": "1.1", "reason": "drain"})
    )
    parser = SseParser()

    dispatched = [event for byte in stream for event in parser.feed(bytes([byte]))]

    assert dispatched == [
        Dispatched("contentBlockDelta", DELTA.decode(), "1.1"),
        Dispatched("reconnect", '{"reconnect":{"after":"1.1","reason":"drain"}}', "1.1"),
    ]
    assert parser.comments == ["connected", *["heartbeat phase=model turn=1 elapsed_s=30"] * 3]


@pytest.mark.promise("two-encodings-one-log")
def test_both_formats_carry_the_same_events_with_the_same_ids() -> None:
    block = Block(1, 41, (DELTA, STOP, encode("toolStarted", {"name": "search", "toolUseId": "é\u2028"})))

    lines = [json.loads(line) for line in NDJSON.block(*block).splitlines()]
    events = SseParser().feed(SSE.block(*block))

    assert [line.pop("id") for line in lines] == [event.last_event_id for event in events]
    assert lines == [json.loads(event.data) for event in events]


def test_ndjson_heartbeats_are_objects() -> None:
    assert json.loads(NDJSON.heartbeat(BEAT)) == {"heartbeat": {"phase": "model", "turn": 1, "elapsed_s": 30}}
    assert json.loads(NDJSON.connected) == {"heartbeat": {"phase": "connected"}}
    assert NDJSON.control("reconnect", {"reason": "drain"}) == b'{"reconnect":{"reason":"drain"}}\n'
