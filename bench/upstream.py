"""A fake model endpoint that is faster than anything it feeds: `python -m bench.upstream --port N`.

The bench runs it on the load client's core, in plain or with a certificate (`--certificate PEM`); HTTP/1.1,
chunked, kept alive, one request at a time on a connection; it checks no signature and no key:

    POST /model/<plan>/converse-stream    Bedrock's ConverseStream: event-stream frames
    POST /sse/<plan>                      the same events as SSE, for subjects that only copy
    POST /v1/chat/completions             OpenAI's, over SSE; the body's `model` is the plan
    GET  /open                            how many answers are under way, as JSON
    GET  /health, /v1/models              200, for gateways that look before they ask

One wheel with a tick of 1 ms paces all streams; a stream whose reader is slow waits for it and takes up its
pace from there. The bytes are those of `script`.
"""

import argparse
import asyncio
import json
import re
import ssl
import time
from typing import cast
from urllib.parse import unquote

import httptools
import uvloop

from bench.script import CHAT, FRAMES, SSE, Lines, Plan

_TICK_S = 0.001
_PATHS = ((re.compile(r"/model/([^/]+)/converse-stream"), FRAMES), (re.compile(r"/sse/([^/]+)"), SSE))
_CHAT_PATH = "/v1/chat/completions"
_LOOKED_AT = ("/health", "/v1/models")
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _json(value: object) -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class Wheel:
    """Steps streams when they are due; costs nothing while none is on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Conversation]] = {}
        self._tick = 0
        self._turning = False

    def put(self, stream: "Conversation", due_s: float) -> None:
        """Step the stream at `due_s` (monotonic), or at the next tick if that has passed."""
        if not self._turning:
            self._turning = True
            self._tick = int(time.monotonic() / _TICK_S)
            self._loop.call_later(_TICK_S, self._turn)
        self._slots.setdefault(max(int(due_s / _TICK_S), self._tick) + 1, []).append(stream)

    def _turn(self) -> None:
        now = int(time.monotonic() / _TICK_S)
        while self._tick < now:
            self._tick += 1
            for stream in self._slots.pop(self._tick, ()):
                stream.step()
        if self._slots:
            self._loop.call_later(_TICK_S, self._turn)
        else:
            self._turning = False


class Conversation(asyncio.Protocol):
    """One connection: reads a request, plays its plan, reads the next one."""

    _transport: asyncio.Transport

    def __init__(self, wheel: Wheel, under_way: "set[Conversation]") -> None:
        self._wheel = wheel
        self._under_way = under_way
        self._parser = httptools.HttpRequestParser(self)
        self._target = self._body = b""
        self._plan: Plan | None = None
        self._lines: Lines = FRAMES
        self._sent = 0
        self._received_s = 0.0
        self._due_s = 0.0
        self._blocked = self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def connection_lost(self, exc: Exception | None) -> None:
        self._plan = None
        self._under_way.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._plan is not None:
            self._transport.abort()  # pipelined: nothing here does that
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._target = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = unquote(self._target.decode("ascii"))
        if path == "/open":
            self._transport.write(_json({"open": len(self._under_way)}))
        elif path in _LOOKED_AT:
            self._transport.write(_json({"object": "list", "data": []}))
        elif (asked := self._asked(path)) is not None:
            self._plan, self._lines = asked
            self._sent = 0
            self._under_way.add(self)
            self._received_s = time.monotonic()
            self._due_s = self._received_s + self._plan.first_ms / 1000
            self._wheel.put(self, self._due_s)
        else:
            self._transport.write(_NOT_FOUND)

    def _asked(self, path: str) -> tuple[Plan, Lines] | None:
        if path == _CHAT_PATH:
            plan = Plan.parse(json.loads(self._body)["model"])
            return None if plan is None else (plan, CHAT)
        for pattern, lines in _PATHS:
            match = pattern.fullmatch(path)
            plan = Plan.parse(match[1]) if match else None
            if plan is not None:
                return plan, lines
        return None

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._waiting:
            self._waiting = False
            self._due_s = time.monotonic()
            self._wheel.put(self, self._due_s)

    def step(self) -> None:
        """Write what is due, and go back on the wheel unless the answer ends or its reader is slow."""
        plan = self._plan
        if plan is None:
            return
        if self._blocked:
            self._waiting = True
            return
        count = min(plan.burst, plan.deltas - self._sent)
        piece = self._piece(plan, count)
        self._sent += count
        if self._sent < plan.deltas:
            self._due_s += plan.interval_us / 1e6
            self._wheel.put(self, self._due_s)
        else:
            piece += self._lines.end(plan.deltas)
            self._plan = None
            self._under_way.discard(self)
        self._transport.write(piece)

    def _piece(self, plan: Plan, count: int) -> bytes:
        now_s = time.monotonic()
        if not self._sent:
            held = self._lines.held(int((now_s - self._received_s) * 1e6))
            return self._lines.head + held + self._lines.deltas(1, count - 1)
        if plan.stamped:
            return b"".join(self._lines.stamped(int(now_s * 1e6)) for _ in range(count))
        return self._lines.deltas(self._sent % 16, count)


async def serve(port: int, certificate: str | None) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    under_way: set[Conversation] = set()
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = await loop.create_server(
        lambda: Conversation(wheel, under_way), "127.0.0.1", port, backlog=4096, ssl=tls
    )
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.upstream", description="A fast fake model.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", help="a PEM file with key and certificate: speak TLS")
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.certificate))


if __name__ == "__main__":
    main()
