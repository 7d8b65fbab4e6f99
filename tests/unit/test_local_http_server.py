"""The local endpoint's HTTP: one request at a time, and peers that misbehave lose their connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from local.http_server import Connection, Request, listening
from tests.clock import ManualClock

ASK = b"GET /a%2Fb/c?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"


@asynccontextmanager
async def peer_of(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_a_request_is_read_with_its_path_decoded_after_it_was_split() -> None:
    seen: list[Request] = []

    async def respond(request: Request, connection: Connection) -> None:
        seen.append(request)
        await connection.answer(200, {"ok": True})

    async with listening(respond) as port, peer_of(port) as (reader, writer):
        for byte in b"POST /a%2Fb/c?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi":
            writer.write(bytes([byte]))
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(12)

    assert seen == [
        Request("POST", ("a/b", "c"), {"x": "1"}, {"host": "h", "content-length": "2"}, b"hi"),
    ]
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert body == b'{"ok": true}'


async def test_a_connection_that_the_peer_wants_closed_is_closed() -> None:
    async def respond(request: Request, connection: Connection) -> None:
        await connection.answer(299)

    async with listening(respond) as port, peer_of(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        received = await reader.read()

    assert received.startswith(b"HTTP/1.1 299 Unknown\r\n")
    assert received.endswith(b"\r\nConnection: close\r\n\r\nnull")


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ASK + ASK,
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=["no HTTP", "no length", "two at once", "an upgrade"],
)
async def test_a_peer_that_misbehaves_loses_its_connection(sent: bytes) -> None:
    async def respond(request: Request, connection: Connection) -> None:
        await asyncio.Event().wait()

    async with listening(respond) as port, peer_of(port) as (reader, writer):
        writer.write(sent)
        try:
            received = await reader.read()
        except ConnectionResetError:
            received = b""

    assert received == b""


async def test_a_peer_that_does_not_read_is_not_written_to_without_end(clock: ManualClock) -> None:
    written: list[int] = []

    async def respond(request: Request, connection: Connection) -> None:
        await connection.start({})
        for number in range(10_000):
            await connection.chunk(b"x" * 65_536)
            written.append(number)

    async with listening(respond) as port, peer_of(port) as (reader, writer):
        writer.write(ASK)
        await reader.readexactly(1)
        await clock.advance(0)
        written_before = len(written)
        await clock.advance(0)

        assert written_before == len(written)
        assert 0 < len(written) < 1000
