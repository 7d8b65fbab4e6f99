"""The relay passes bytes on as they are, both ways, and each end's close to the other."""

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from local.relay import relay

Serving = Callable[[StreamReader, StreamWriter], Awaitable[None]]
MANY_BYTES = bytes(range(256)) * 16 * 1024  # more than all buffers on the way


@asynccontextmanager
async def relayed(serve: Serving) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """Give a caller's connection through a relay to a server that does `serve`; all are closed at the end."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, calling(server.sockets[0].getsockname()[1]) as ends:
        yield ends


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    listener = socket.create_server(("127.0.0.1", 0))
    relaying = asyncio.create_task(relay(listener, port))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while received := await reader.read(1000):
        writer.write(received)
        await writer.drain()
    writer.close()


async def test_what_goes_in_comes_out_both_ways_whatever_its_size() -> None:
    async with relayed(echo) as (reader, writer):
        writer.write(MANY_BYTES)
        returned = await reader.readexactly(len(MANY_BYTES))

    assert returned == MANY_BYTES


async def test_a_caller_reads_the_rest_when_the_server_has_closed() -> None:
    async def answer_and_go(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(MANY_BYTES)
        writer.close()

    async with relayed(answer_and_go) as (reader, _):
        returned = await reader.read(-1)

    assert returned == MANY_BYTES


async def test_a_server_reads_the_rest_when_the_caller_has_closed() -> None:
    received = asyncio.get_running_loop().create_future()

    async def read_all(reader: StreamReader, writer: StreamWriter) -> None:
        received.set_result(await reader.read(-1))
        writer.close()

    async with relayed(read_all) as (_, writer):
        writer.write(MANY_BYTES)
        writer.close()

        assert await received == MANY_BYTES


async def test_a_caller_loses_its_connection_when_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    async with calling(port) as (reader, _):
        try:
            answered = await reader.read(-1)
        except ConnectionResetError:
            answered = b""

    assert answered == b""
