"""HTTP/1.1 on loopback with control over every byte that is written.

`bedrock` serves through it; it parses with httptools and writes on the transport itself, because a stand-in
must be able to do what no web framework allows: one byte per write, many frames in one, a reset in the
middle of a body, silence. One request at a time per connection, kept alive; a peer that hangs up cancels
what is being answered.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import httptools

MAX_BODY_BYTES: Final = 25_000_000
"""A guard against mistakes, not a rule of Bedrock's."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower case, `segments` the decoded parts of the path."""

    method: str
    segments: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One peer. What answers a request calls `answer`, or `start`, `chunk` and `finish`, or `cut` at any
    time."""

    def __init__(self, respond: "Respond", connections: "set[Connection]") -> None:
        self._respond = respond
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._target, self._body = b"", bytearray()
        self._headers: dict[str, str] = {}
        self._close_after = False
        self._dropped = False  # this end closed it
        self.task: asyncio.Task[None] | None = None
        self.hung_up = False  # the peer closed it while it was being answered
        self.closed = asyncio.Event()

    # ------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def eof_received(self) -> None:
        self._transport.abort()  # at once, not after what is still unsent

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        self.closed.set()
        if self.task is not None and not self._dropped:
            self.hung_up = not self.task.done()
            self.task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # ------------------------------------------------ httptools

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._transport.abort()

    def on_message_complete(self) -> None:
        if self.task is not None and not self.task.done():
            self._transport.abort()  # pipelining: no client of Bedrock does it
            return
        url = httptools.parse_url(self._target)
        request = Request(
            method=self._parser.get_method().decode(),
            segments=tuple(unquote(part) for part in url.path.decode().strip("/").split("/")),
            query=dict(parse_qsl((url.query or b"").decode())),
            headers=self._headers,
            body=bytes(self._body),
        )
        self._close_after = not self._parser.should_keep_alive()
        self._target, self._body, self._headers = b"", bytearray(), {}
        self.task = asyncio.get_running_loop().create_task(self._respond(request, self))

    # ------------------------------------------------ for who answers

    async def answer(
        self, status: int, value: Any = None, headers: Mapping[str, str] | None = None, *, close: bool = False
    ) -> None:
        """Send a whole response with a JSON body."""
        body = json.dumps(value).encode()
        length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        await self._write(self._head(status, {**length, **(headers or {})}, close) + body)
        self._end()

    async def start(self, headers: Mapping[str, str], *, close: bool = False) -> None:
        """Send the head of a chunked 200 response."""
        await self._write(self._head(200, {**headers, "Transfer-Encoding": "chunked"}, close))

    async def chunk(self, body: bytes) -> None:
        """Send one HTTP chunk in one write; returns when the peer keeps up, having let it read."""
        await self._write(b"%x\r\n%b\r\n" % (len(body), body))
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """End a chunked response."""
        await self._write(b"0\r\n\r\n")
        self._end()

    def cut(self, *, reset: bool) -> None:
        """Drop the connection, by a TCP reset (what is unsent is lost) or by a close (it is still sent)."""
        self._dropped = True
        if not reset:
            self._transport.close()
            return
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as same:
            # A zero linger time turns close into a reset: https://man7.org/linux/man-pages/man7/socket.7.html
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _head(self, status: int, headers: Mapping[str, str], close: bool) -> bytes:
        self._close_after = self._close_after or close
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"Connection: {'close' if self._close_after else 'keep-alive'}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _write(self, body: bytes) -> None:
        await self._writable.wait()
        self._transport.write(body)

    def _end(self) -> None:
        if self._close_after:
            self._dropped = True
            self._transport.close()


Respond = Callable[[Request, Connection], Coroutine[Any, Any, None]]


@asynccontextmanager
async def listening(respond: Respond, port: int = 0) -> AsyncIterator[int]:
    """Serve on 127.0.0.1 and yield the port; at the end, drop all connections and wait for what was being
    answered."""
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(respond, connections), "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        still_open = tuple(connections)
        tasks = [connection.task for connection in still_open if connection.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in still_open:
            connection.cut(reset=True)
            await connection.closed.wait()
        await server.wait_closed()
