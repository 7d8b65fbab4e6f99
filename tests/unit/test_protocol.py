"""What the server's protocol does for streams: chunks at once, dropped connections, slow and dead peers."""

import asyncio
import re
import socket
import sys
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service import __main__ as process
from service.app import Drain
from service.config import Settings
from service.protocol import HEAD_LIMIT_BYTES, HEAD_TIMEOUT_S, PIPELINE_LIMIT
from tests.clock import ManualClock
from tests.listening import Server, answers_ok


async def answer_by_writing(scope: Scope, send: Send) -> None:
    """Answer with what each try to write at once has returned."""
    write = scope["extensions"]["headrace.write"]
    took = [write(b"too early")]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    took += [write(b""), write(b"a" * 17), write(b"b")]
    await send({"type": "http.response.body", "body": repr(took).encode(), "more_body": False})
    write(b"too late")


async def abort_or_answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/abort":
        scope["extensions"]["headrace.abort"]()
        return
    if scope["path"] == "/written":
        await answer_by_writing(scope, send)
        return
    await answers_ok(scope, receive, send)


async def test_the_app_can_drop_a_connection(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain(), app=abort_or_answer) as server:
        assert await server.ask("/abort") == b""
        assert (await server.ask("/")).endswith(b"ok")


async def test_what_is_written_at_once_is_a_chunk_of_the_response_while_there_is_one(
    clock: ManualClock,
) -> None:
    async with Server.listening(clock, Drain(), app=abort_or_answer) as server:
        _, _, body = (await server.ask("/written")).partition(b"\r\n\r\n")

    took = b"[False, False, True, True]"
    assert body == b"11\r\naaaaaaaaaaaaaaaaa\r\n1\r\nb\r\n1a\r\n" + took + b"\r\n0\r\n\r\n"


async def test_nothing_is_written_at_once_to_a_peer_that_takes_nothing(clock: ManualClock) -> None:
    got: list[list[bool]] = []
    asked = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        write = scope["extensions"]["headrace.write"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        got.append([write(b"a" * 2**20) for _ in range(64)])
        scope["extensions"]["headrace.abort"]()
        got.append([write(b"gone")])
        asked.set()

    async with Server.listening(clock, Drain(), app=flood) as server:
        _, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asked.wait()
        writer.close()

    first, later = got
    assert (first[0], first[-1], later) == (True, False, [False])


async def test_requests_that_do_not_wait_for_their_answers_are_answered_in_order(clock: ManualClock) -> None:
    gate = asyncio.Event()

    async def says_path(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].encode()
        if path == b"/1":
            await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": path})

    async with Server.listening(clock, Drain(), app=says_path) as server:
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        for path in (b"/1", b"/2", b"/3"):
            writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        await clock.advance(0)
        gate.set()
        got = await reader.readuntil(b"/3\r\n0\r\n\r\n")
        writer.close()

    assert re.findall(rb"\n2\r\n(/.)", got) == [b"/1", b"/2", b"/3"]


async def test_a_send_to_a_slow_peer_goes_on_when_it_reads_again(clock: ManualClock) -> None:
    sent: list[int] = []
    whole = 64 * 2**20

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % whole)]}
        )
        for number in range(64):
            await send({"type": "http.response.body", "body": b"a" * 2**20, "more_body": number < 63})
            sent.append(number)

    async with Server.listening(clock, Drain(), app=floods) as server:
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await clock.advance(0)
        while_it_waits = len(sent)
        got = len(await reader.readexactly(whole))
        writer.close()

    assert (while_it_waits < 64, got, sent[-1]) == (True, whole, 63)


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_peer_that_leaves_is_told_to_the_response_before_the_request_that_it_sent_last(
    clock: ManualClock,
) -> None:
    seen: list[tuple[str, bool]] = []
    gone = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        seen.append((scope["path"], scope["extensions"]["headrace.write"](b"more")))
        gone.set()

    async with Server.listening(clock, Drain(), app=stream) as server:
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        writer.write(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"begun")
        writer.write(b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n")
        (protocol,) = server.server_state.connections
        while not protocol.pipeline:  # type: ignore[union-attr]
            await clock.advance(0)
        protocol.transport.abort()
        await gone.wait()
        writer.close()

    assert seen == [("/first", False)]


# -- peers that send what nobody should have to keep


async def opened(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])


async def left_by(reader: asyncio.StreamReader) -> bytes:
    """Return what still comes before the connection is dropped."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.promise("unread-bytes-bounded")
async def test_a_head_that_gets_too_long_is_dropped(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain()) as server:
        reader, writer = await opened(server)
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"a" * (HEAD_LIMIT_BYTES + 1))
        answer = await left_by(reader)
        writer.close()

    assert answer == b""


@pytest.mark.promise("unread-bytes-bounded")
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\n"])
async def test_a_head_that_does_not_come_in_time_is_dropped(begun: bytes, clock: ManualClock) -> None:
    async with Server.listening(clock, Drain()) as server:
        reader, writer = await opened(server)
        writer.write(begun)
        while not server.server_state.connections:
            await clock.advance(0)
        await clock.advance(HEAD_TIMEOUT_S)
        answer = await left_by(reader)
        writer.close()

    assert answer == b""


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer until the peer has gone."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_connection_has_no_more_attributes_than_are_kept_without_a_dict(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain(), app=streams) as server:
        reader, writer = await opened(server)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = server.server_state.connections
        attributes = vars(connection)
        writer.close()

        assert len(attributes) <= 30  # SHARED_KEYS_MAX_SIZE of CPython: one more is a dict of 1.2 KB


@pytest.mark.promise("unread-bytes-bounded")
@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * (PIPELINE_LIMIT + 1), b"no request\r\n\r\n"]
)
async def test_what_may_not_come_during_an_answer_cuts_it_and_is_not_answered(
    sent: bytes, clock: ManualClock
) -> None:
    async with Server.listening(clock, Drain(), app=streams) as server:
        reader, writer = await opened(server)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"begun\r\n")
        writer.write(sent)
        rest = await left_by(reader)
        writer.close()

    assert rest == b""


async def test_a_line_end_too_many_behind_a_request_does_not_cut_its_answer(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain(), app=streams) as server:
        reader, writer = await opened(server)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"begun\r\n")
        writer.write(b"\r\n")
        (protocol,) = server.server_state.connections
        while not protocol._unread_bytes:  # type: ignore[union-attr]
            await clock.advance(0)
        await clock.advance(HEAD_TIMEOUT_S)
        still = not protocol.transport.is_closing()
        writer.close()

    assert still


# -- peers that die without a word


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
@pytest.mark.allowed_skip("Linux only")
async def test_a_peer_that_acknowledges_nothing_is_dropped_after_the_write_timeout(
    clock: ManualClock,
) -> None:
    config = process._server_config(
        abort_or_answer, Settings("https://issuer", ("client-1",), "https://keys", "sqlite:x"), 7.5
    )
    config.load()
    accepted: list[int] = []

    class Protocol(config.http_protocol_class):  # type: ignore[name-defined,misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            accepted.append(transport.get_extra_info("socket").getsockopt(*option))

    state: dict[str, Any] = {}
    server_state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Protocol(config=config, server_state=server_state, app_state=state), "127.0.0.1", 0
    )
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await clock.advance(0)
        writer.close()
        await writer.wait_closed()

    assert accepted == [7500]
