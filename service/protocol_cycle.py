"""One request and the answer to it on a connection: ASGI's `receive` and `send`, and `write`.

`protocol` makes one of each request, in place of uvicorn's `RequestResponseCycle`: that one looks for what
may not be in a header with two regular expressions for each, and writes the head by itself.

    send(start) ── the head, kept ──┐
    send, write(body) ──────────────┴─> one write        of a stream: head, `connected` and its first events

Invariants: the head leaves with the first piece of the body, as ASGI asks for; a head is as many lines as it
has headers, whatever is in them; a body is a chunk a piece, or as long as its head says.
Source: https://asgi.readthedocs.io/en/latest/specs/www.html#response-start-send-event
"""

import asyncio
import http
import logging
from collections.abc import Callable, Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import FlowControl

logger = logging.getLogger(__name__)

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus
}
_BODILESS: Final = (204, 304)
_FAILED: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Flag:
    """What is used here of an `asyncio.Event`, which has a `deque` of 760 bytes."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters = ()

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:
        if not self._is_set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter
        return True


class Cycle:
    """A request while it is read, and its answer while it is written.

    Attributes:
        scope: As ASGI has it.
        body: What has come of the request's body and was not received yet; `more_body`: more is to come.
        keep_alive: Whether the connection may carry another request.
        message_event: Set when there is something to receive.
        disconnected: The peer has left.
        response_complete: All of the answer was written.
    """

    __slots__ = (
        "_chunked",
        "_default_headers",
        "_expects_continue",
        "_flow",
        "_head",
        "_is_head",
        "_left_bytes",
        "_on_complete",
        "_started",
        "_transport",
        "body",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "scope",
    )

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        on_complete: Callable[[], None],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.scope = scope
        self.body = bytearray()  # else each piece of a body would copy what came before it
        self.more_body = True
        self.keep_alive = keep_alive
        self.message_event = Flag()
        self.disconnected = False
        self.response_complete = False
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._on_complete: Callable[[], None] | None = on_complete
        self._expects_continue = expects_continue
        self._is_head = scope["method"] == "HEAD"
        self._started = False
        self._head = b""  # of an answer that has started, until it leaves
        self._chunked = False
        self._left_bytes = 0  # of a body whose head has said how long it is

    async def run_asgi(self, app: ASGIApp) -> None:
        """Let the app answer; an answer that it leaves undone is cut, or a 500 if nothing of it has left."""
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException:  # the edge of the task: nobody awaits it
            logger.exception("request broke off")
        finally:
            if not self.response_complete and not self.disconnected:
                if not self._started or self._head:  # nothing has left
                    self._transport.write(_FAILED)
                self._transport.close()
            self._on_complete = None  # the protocol's: it would keep both alive

    async def receive(self) -> Message:
        """Return the next piece of the request's body, or that there is none to come."""
        if self._expects_continue and not self._transport.is_closing():
            self._expects_continue = False
            self._transport.write(_CONTINUE)
        if not self.disconnected and not self.response_complete:
            self._flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = bytes(self.body)
        self.body = bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Take the head, then the body piece by piece; waits while the peer takes nothing.

        Raises:
            RuntimeError: It is not the message that must come next, or the body is not as long as was said.
            ValueError: A header that would become two.
        """
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        if self.response_complete or self._started == (message["type"] == "http.response.start"):
            raise RuntimeError(f"{message['type']} may not be sent now")
        if self._started:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            self._begin(message["status"], message.get("headers", ()))

    def write(self, body: bytes) -> bool:
        """Write a chunk of the answer; False where that is not all that `send` would do.

        `send` costs a coroutine, a message and a look at each of its parts; a stream writes once a delta.
        """
        if not self._chunked or self._flow.write_paused or not body:  # chunked: once it has started
            return False
        if self.disconnected or self.response_complete:
            return False
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(body), body))
        else:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head. Names are in lower case, as ASGI has them; none of them comes from outside."""
        named = [*self._default_headers, *headers]
        lines = [b"%b: %b\r\n" % header for header in named]
        fields = dict(named)
        length = fields.get(b"content-length")
        if fields.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self._is_head or status in _BODILESS:
            chunked = False
        elif length is None:
            chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            chunked = False
            self._left_bytes = int(length)
        head = b"".join((_STATUS_LINES[status], *lines, b"\r\n"))
        breaks = len(lines) + 2
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
            raise ValueError("a header that would become two")
        self._head, self._chunked, self._started, self._expects_continue = head, chunked, True, False

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                piece += b"0\r\n\r\n"
        elif self._is_head:
            piece = b""
        else:
            piece = body
            self._left_bytes -= len(body)
            if self._left_bytes < 0 or (self._left_bytes and not more):
                raise RuntimeError("the body is not as long as its head says")
        head, self._head = self._head, b""
        if head or piece:
            self._transport.write(head + piece)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self._transport.close()
        if self._on_complete is not None:
            self._on_complete()
