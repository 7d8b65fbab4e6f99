"""uvicorn's HTTP protocol, for streams that are open for long: what they need of it, and less memory.

`__main__` hands it to the server. It offers the app two things beside ASGI, in `scope["extensions"]`: to drop
the connection of a stuck peer, and to write a chunk at once. Where uvicorn makes a `deque` or an
`asyncio.Event`, which has one (760 bytes each, three a connection), it has what is as good and small.
"""

import asyncio
import socket
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api_stream import ABORT, WRITE


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also tells the app how to drop the connection of a stuck peer, and to write.

    A peer that has died without a word takes no write either, but the kernel would try for a quarter of an
    hour before it said so: https://man7.org/linux/man-pages/man7/tcp.7.html (TCP_USER_TIMEOUT, Linux only).
    With it, a heartbeat that is not acknowledged for as long as a stuck peer has ends the connection.

    Every response that is not complete is told when its peer leaves. uvicorn tells only the one to the newest
    request: not the one that is being streamed, if its peer has sent another request behind it.
    """

    unacknowledged_ms = 30_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = cast("deque[Any]", _Pipeline())
        self._cycles: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if sys.platform == "linux":
            with suppress(OSError):  # the peer has left already
                transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.unacknowledged_ms
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = cast("dict[str, Any]", {ABORT: self.transport.abort})

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # which starts a task: nothing of the app has run yet
        self.cycle.message_event = cast("asyncio.Event", _Event())
        extensions: Any = self.scope["extensions"]
        extensions[WRITE] = partial(_write, self.cycle)
        self._cycles = (*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)


def _write(cycle: RequestResponseCycle, body: bytes) -> bool:
    """Write a chunk of a response; False where that is not all that `send` would do.

    `send` costs a coroutine, a message and a look at each of its parts; a stream writes once a delta.
    """
    if not cycle.chunked_encoding or cycle.flow.write_paused or not body:  # chunked: once it has started
        return False
    if cycle.disconnected or cycle.response_complete:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


class _Event:
    """What uvicorn uses of an `asyncio.Event`."""

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


class _Flow(FlowControl):
    """uvicorn's, with the small event."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = cast("asyncio.Event", _Event())
        self._is_writable_event.set()


class _Pipeline(list[Any]):
    """What uvicorn uses of a `deque`, for requests that came before the answer to an earlier one."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)
