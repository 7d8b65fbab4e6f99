"""uvicorn's HTTP protocol, for streams that are open for long: what they need of it, and less memory.

`__main__` hands it to the server. It offers the app two things beside ASGI, in `scope["extensions"]`: to drop
the connection of a stuck peer, and to write a chunk at once; each request is a `protocol_cycle.Cycle`. Where
uvicorn makes a `deque` or an `asyncio.Event`, which has one (760 bytes each, three a connection), it has what
is as good and small.
"""

import asyncio
import socket
import sys
from collections import deque
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api_stream import ABORT, WRITE
from service.protocol_cycle import Cycle, Flag

HEAD_LIMIT_BYTES: Final = 64 * 1024
"""Of what comes without a whole head or a part of a body. API Gateway takes 10,240 bytes of headers:
https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""
HEAD_TIMEOUT_S: Final = 30.0
PIPELINE_LIMIT: Final = 8
"""How many requests may wait for the answer to an earlier one on their connection; who sends more is cut."""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also tells the app how to drop the connection of a stuck peer, and to write.

    A peer that has died without a word takes no write either, but the kernel would try for a quarter of an
    hour before it said so: https://man7.org/linux/man-pages/man7/tcp.7.html (TCP_USER_TIMEOUT, Linux only).
    With it, a heartbeat that is not acknowledged for as long as a stuck peer has ends the connection.

    The response that is being written is told when its peer leaves. uvicorn tells the one to the newest
    request: not the one that is being streamed, if its peer has sent another request behind it.

    A head is bounded in bytes and time, and so is what waits behind a request: uvicorn's parser takes any,
    and nobody has been authenticated yet.
    """

    # uvicorn's 28 attributes and these would be more than the 30 that CPython keeps without a dict of 1.2 KB.
    __slots__ = ("_head_timer", "_running", "_unread_bytes")

    unacknowledged_ms = 30_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: RequestResponseCycle | None = None
        self._unread_bytes = 0  # since the last whole head, part of a body or end of one
        self._head_timer: asyncio.TimerHandle | None = None
        self.pipeline = cast("deque[Any]", _Pipeline())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if sys.platform == "linux":
            with suppress(OSError):  # the peer has left already
                transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.unacknowledged_ms
                )
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > HEAD_LIMIT_BYTES:
            self.transport.abort()
        elif self._unread_bytes:
            self._await_head()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if not self._is_answering:  # else its connection is open anyway
            self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINE_LIMIT:
            self.transport.abort()
            raise _TooManyRequests  # the parser takes no more of what was read
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, or let it wait for the answer to the one before."""
        self._unread_bytes = 0
        parser, scope = self.parser, cast("dict[str, Any]", self.scope)
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version = parser.get_http_version()
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            expects_continue=self.expect_100_continue,
        )
        scope["extensions"] = {ABORT: self.transport.abort, WRITE: cycle.write}
        self.cycle = cast("RequestResponseCycle", cycle)
        if self._is_answering:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._is_answering or self.transport.is_closing():
            self.transport.abort()  # never into the middle of an answer
        else:
            super().send_400_response(msg)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)


class _TooManyRequests(Exception):
    """A peer has sent more requests than it may without waiting for answers."""


class _Flow(FlowControl):
    """uvicorn's, with the small event."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = cast("asyncio.Event", Flag())
        self._is_writable_event.set()


class _Pipeline(list[Any]):
    """What uvicorn uses of a `deque`, for requests that came before the answer to an earlier one."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)
