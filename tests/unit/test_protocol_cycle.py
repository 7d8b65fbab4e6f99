"""A request and its answer on a connection: what is written, in how many pieces, and what is refused."""

import asyncio
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl

from service.app import Drain
from service.protocol_cycle import Cycle
from tests.clock import ManualClock
from tests.listening import Server

CLOSE = (b"connection", b"close")
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def begun(wire: Wire, *, method: str = "GET", keep_alive: bool = True, expects: bool = False) -> Cycle:
    return Cycle(
        {"type": "http", "method": method},
        wire,
        FlowControl(wire),
        [(b"date", b"today")],
        lambda: None,
        keep_alive=keep_alive,
        expects_continue=expects,
    )


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(piece: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


def answering(*messages: Message) -> ASGIApp:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def test_the_head_leaves_with_the_first_piece_of_the_body_in_one_write() -> None:
    wire = Wire()
    cycle = begun(wire)

    await cycle.send(start((b"x", b"1")))
    before = list(wire.written)
    cycle.write(b"first")
    cycle.write(b"second")
    await cycle.send(body(b"last"))

    head = b"HTTP/1.1 200 OK\r\ndate: today\r\nx: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    assert (before, wire.written) == (
        [],
        [head + b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"4\r\nlast\r\n0\r\n\r\n"],
    )
    assert cycle.response_complete
    assert not wire.closed


@pytest.mark.parametrize(
    ("method", "status", "headers", "rest"),
    [
        ("GET", 200, [(b"content-length", b"2")], b"content-length: 2\r\n\r\nok"),
        ("HEAD", 200, [(b"content-length", b"2")], b"content-length: 2\r\n\r\n"),
        ("HEAD", 200, [], b"\r\n"),
        ("GET", 200, [], b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("GET", 204, [], b"\r\n"),
    ],
)
async def test_a_body_is_framed_as_its_head_says(
    method: str, status: int, headers: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    wire = Wire()
    cycle = begun(wire, method=method)
    whole = body(b"" if status == 204 else b"ok")

    await cycle.run_asgi(answering(start(*headers, status=status), whole))

    (written,) = wire.written
    assert written.partition(b"date: today\r\n")[2] == rest
    assert (cycle.response_complete, wire.closed) == (True, False)


@pytest.mark.parametrize(("keep_alive", "close"), [(False, []), (True, [CLOSE]), (False, [CLOSE])])
async def test_an_answer_that_is_the_last_says_so_and_closes(
    keep_alive: bool, close: list[tuple[bytes, bytes]]
) -> None:
    wire = Wire()
    app = answering(start((b"content-length", b"0"), *close), body(b""))

    await begun(wire, keep_alive=keep_alive).run_asgi(app)

    assert wire.written == [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    ]
    assert wire.closed


@pytest.mark.promise("heads-stay-whole")
@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_a_header_that_would_become_two_is_an_error_and_not_sent(value: bytes) -> None:
    wire = Wire()

    await begun(wire).run_asgi(answering(start((b"x", value)), body(b"ok")))

    assert wire.written == [FAILED]
    assert wire.closed


LENGTH_2 = start((b"content-length", b"2"))


@pytest.mark.parametrize(
    ("messages", "written"),
    [
        ([LENGTH_2, body(b"a", more=True)], b"a"),
        ([LENGTH_2, body(b"a", more=True), body(b"bc")], b"a"),
        ([LENGTH_2, body(b"ok"), body(b"more")], b"ok"),
    ],
)
async def test_an_answer_that_is_not_what_it_said_is_cut(messages: list[Message], written: bytes) -> None:
    wire = Wire()
    cycle = begun(wire)

    await cycle.run_asgi(answering(*messages))

    assert wire.written == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\n" + written]
    assert wire.closed is not cycle.response_complete


@pytest.mark.parametrize(
    "messages",
    [[], [start()], [start(), start()], [LENGTH_2, body(b"abc")], [LENGTH_2, body(b"a")], [body(b"a")]],
)
async def test_an_answer_of_which_nothing_has_left_becomes_a_500(messages: list[Message]) -> None:
    wire = Wire()

    await begun(wire).run_asgi(answering(*messages))

    assert wire.written == [FAILED]
    assert wire.closed


async def test_a_body_that_waits_to_be_asked_for_is_asked_for_once() -> None:
    wire = Wire()
    cycle = begun(wire, method="POST", expects=True)
    cycle.body += b"job"
    cycle.more_body = False
    cycle.message_event.set()

    got = await cycle.receive()

    assert got == {"type": "http.request", "body": b"job", "more_body": False}
    assert wire.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_paths_arrive_as_they_came_and_decoded(clock: ManualClock) -> None:
    seen: list[tuple[Any, ...]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(
            tuple(scope[name] for name in ("method", "path", "raw_path", "query_string", "http_version"))
        )
        await send(start((b"content-length", b"0")))
        await send(body(b""))

    async with Server.listening(clock, Drain(), app=app) as server:
        await server.ask("/a%2Fb/c?d=%2F")

    assert seen == [("GET", "/a/b/c", b"/a%2Fb/c", b"d=%2F", "1.1")]
