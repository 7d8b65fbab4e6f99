"""Wire formats: events to the bytes that a client reads. Pure; called by `readers`, calls only `events`.

    Server-Sent Events (default)                NDJSON (`Accept: application/x-ndjson`)
    : connected                                 {"heartbeat":{"phase":"connected"}}
    id: 1.3                                     {"id":"1.3","contentBlockDelta":{...}}
    event: contentBlockDelta
    data: {"contentBlockDelta":{...}}

    : heartbeat phase=model turn=1 elapsed_s=30     {"heartbeat":{"phase":"model","turn":1,"elapsed_s":30}}

A comment line carries one newline and no empty line after it: after any `id:`, an empty line makes common
clients emit an empty event. LF only, no BOM, one `data:` line an event. Source:
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from service.events import Block, encode, event_type


class Heartbeat(NamedTuple):
    """What a silent stream says: what the invocation is doing, and for how long it has run."""

    phase: str
    turn: int
    elapsed_s: int


@dataclass(frozen=True, slots=True)
class Wire:
    """One format. `block` frames a block's events with ids; `control` an event without one (`reconnect`)."""

    media_type: str
    connected: bytes
    block: Callable[[int, int, Sequence[bytes]], bytes]
    heartbeat: Callable[[Heartbeat], bytes]
    control: Callable[[str, Mapping[str, Any]], bytes]

    def blocks(self, blocks: Sequence[Block]) -> bytes:
        """Frame what was read from a log."""
        return b"".join([self.block(*block) for block in blocks])


def _sse_block(attempt: int, seq: int, events: Sequence[bytes]) -> bytes:
    if len(events) == 1:  # the usual case by far: one delta a read
        event = events[0]
        kind = event[2 : event.index(b'"', 2)]  # `event_type`, without a call
        return b"id: %d.%d\nevent: %b\ndata: %b\n\n" % (attempt, seq, kind, event)
    return b"".join(
        [
            b"id: %d.%d\nevent: %b\ndata: %b\n\n" % (attempt, number, event_type(event), event)
            for number, event in enumerate(events, seq)
        ]
    )


def _sse_heartbeat(beat: Heartbeat) -> bytes:
    return b": heartbeat phase=%b turn=%d elapsed_s=%d\n" % (beat.phase.encode(), beat.turn, beat.elapsed_s)


def _sse_control(event: str, value: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encode(event, value))


def _ndjson_block(attempt: int, seq: int, events: Sequence[bytes]) -> bytes:
    return b"".join(
        [b'{"id":"%d.%d",%b\n' % (attempt, number, event[1:]) for number, event in enumerate(events, seq)]
    )


def _ndjson_heartbeat(beat: Heartbeat) -> bytes:
    return b'{"heartbeat":{"phase":"%b","turn":%d,"elapsed_s":%d}}\n' % (
        beat.phase.encode(),
        beat.turn,
        beat.elapsed_s,
    )


def _ndjson_control(event: str, value: Mapping[str, Any]) -> bytes:
    return encode(event, value) + b"\n"


SSE: Final = Wire("text/event-stream", b": connected\n", _sse_block, _sse_heartbeat, _sse_control)
NDJSON: Final = Wire(
    "application/x-ndjson",
    b'{"heartbeat":{"phase":"connected"}}\n',
    _ndjson_block,
    _ndjson_heartbeat,
    _ndjson_control,
)
