"""Keep-alive connections to one origin: at most so many exchanges at once, first come, first served.

`models.aws_http` and `models.openai_compat` open one per origin and make one `Exchange` per request; the
connections are `connection`'s.

Invariant: a request is never sent twice. Should a connection die once the request is on its way, even a
reused one and before any byte of a response, the model may have been asked: the error is billed and the
caller decides. What makes that rare: an idle connection is dropped when its peer closes it, looked at before
it is used again, and closed by us before a peer would (`IDLE_S`).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Final

from service.errors import UpstreamMisconfigured, UpstreamUnavailable
from service.models.connection import Connection, Exchange, MaySend, OnHead, Silence

CONNECT_TIMEOUT_S: Final = 5.0
# AWS closes connections that are idle for 20 s, says the source of aiobotocore, and takes 12:
# https://github.com/aio-libs/aiobotocore/blob/2.25.1/aiobotocore/_constants.py
IDLE_S: Final = 12.0
READ_BYTES: Final = 64 * 1024


class ConnectionPool:
    """Connections to one origin, made when needed and kept for reuse.

    Args:
        tls: None speaks plain HTTP.
        limit: Exchanges at once; more wait, first come, first served.
        silence_s: How long an exchange waits for the next byte.
        idle_s: How long an unused connection is kept.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        limit: int,
        silence_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._silence = Silence(silence_s)
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._slots = asyncio.Semaphore(limit)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # the longest unused first
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None  # made by `aclose`
        self._told = (self._free, self._forget)  # bound once, not for each connection

    async def begin(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        on_head: OnHead,
        may_send: MaySend = lambda: True,
    ) -> Exchange:
        """Send one request, on a connection of its own until the caller closes the exchange.

        `headers` are sent as they are, `Host` and the body's length included. `may_send` is asked once there
        is a connection: waiting for one takes time.

        Raises:
            Withheld: `may_send` said no.
            UpstreamUnavailable: No connection could be made; nothing was sent.
            UpstreamMisconfigured: The certificate is not trusted; nothing was sent.
        """
        request = (_head(method, target, headers), body)
        if self._closed:
            raise UpstreamUnavailable("This process has closed its connections to the model backend.")
        await self._slots.acquire()
        try:
            connection = self._take_idle() or await self._connect()
        except BaseException:
            self._slots.release()
            raise
        try:
            return connection.begin(request, on_head, may_send)
        except BaseException:
            self._free(connection)
            raise

    async def aclose(self) -> None:
        """Close all connections; exchanges in progress fail."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for connection in list(self._open):
            connection.abort()
        if self._open:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await self._emptied

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._buffer, self._silence, *self._told),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
        except ssl.SSLCertVerificationError as exc:
            raise UpstreamMisconfigured("The model backend's certificate is not trusted here.") from exc
        except OSError as exc:  # TLS errors, failed look-ups and TimeoutError are its subclasses
            raise UpstreamUnavailable("No connection to the model backend could be made.") from exc
        if not connection.is_lost:
            self._open.add(connection)
        if self._closed:
            connection.abort()  # `begin` will say so
        return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.abort()
        return None

    def _free(self, connection: Connection) -> None:
        self._slots.release()
        if connection.is_open:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            if self._sweep_timer is None:
                self._sweep()
        else:
            connection.abort()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and loop.time() >= self._idle[0].idle_since + self._idle_s:
            self._idle.popleft().abort()
        due = self._idle[0].idle_since + self._idle_s if self._idle else None
        self._sweep_timer = loop.call_at(due, self._sweep) if due is not None else None

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)
        if connection in self._idle:
            self._idle.remove(connection)


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n"
    breaks = len(lines) + 2
    if head.count("\n") != breaks or head.count("\r") != breaks or "\0" in head:
        raise ValueError("a request line or header that would become two")
    return head.encode("latin-1")
