"""One HTTP/1.1 connection whose response is handed on in the callback of its read.

`pool` makes connections and lends them; the adapters that call provide the sinks. It is ours because decoding
right in the connection's callback costs 17 us a delta where a stream reader and its task switches cost 25 to
29.

    socket ── Connection.buffer_updated ── Exchange.feed ── sink(what this read brought) ── deliver
                                                └─ reads no more while the sink's awaitable is not done

Invariants: a request is written once; all that one read brought of a body is one call of the sink; a body
that ends is told from one that is cut; a closed exchange calls its sink no more; a connection lives on only
after a whole response and nothing beyond it, so every failure and every cancellation aborts it.
"""

import asyncio
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Final, cast

import httptools

from service.errors import UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from service.timeouts import Timeouts

Sink = Callable[[bytes], Awaitable[None] | None]
"""Take what one read brought. An awaitable means: read no more until it is done. Raising ends it all."""

OnHead = Callable[[int, Mapping[str, str]], Sink | None]
"""Choose by status and headers (lower-case names) who takes the body; None: `finish` returns it."""

MaySend = Callable[[], bool]
"""Asked right before the first byte of a request leaves."""

HEAD_LIMIT_BYTES: Final = 64 * 1024
COLLECTED_LIMIT_BYTES: Final = 64 * 1024

# NAT gateways, interface endpoints and NLBs drop a flow silently after 350 s without a packet:
# https://aws.amazon.com/blogs/networking-and-content-delivery/implementing-long-running-tcp-connections-within-vpc-networking/
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4))


class Silence(Timeouts):
    """How long exchanges wait for the next byte; it is told late by at most a sixteenth of it, or 1 s."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(min(limit_s / 16, 1.0))
        self.limit_s = limit_s


class Withheld(Exception):
    """A request was not sent, since it may not be any more: nothing of it has left."""


class Exchange:
    """One response while it arrives: parses it, hands its body on, watches for silence.

    Whoever began it calls `close`, whatever happened. Nothing here holds the request, which may be megabytes.

    Attributes:
        status: 0 until the head is there.
        headers: Names in lower case; repeated ones joined by commas.
        streams: A sink takes the body.
    """

    __slots__ = (
        "_bodiless_bytes",
        "_closed",
        "_collected",
        "_complete",
        "_failure",
        "_gate",
        "_http",
        "_interim",
        "_keep_alive",
        "_loop",
        "_on_close",
        "_on_head",
        "_parts",
        "_read_at",
        "_silence",
        "_sink",
        "_transport",
        "_woken",
        "headers",
        "on_body",
        "slot",
        "status",
        "streams",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        on_head: OnHead,
        silence: Silence,
        on_close: Callable[[bool], None],
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.streams = False
        self.slot = -1
        self._transport = transport
        self._on_head = on_head
        self._on_close = on_close
        self._sink: Sink | None = None
        self._collected = b""
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # what httptools calls for each part of a body
        self._http = httptools.HttpResponseParser(self)
        self._interim = False
        self._bodiless_bytes = 0
        self._complete = False
        self._closed = False
        self._keep_alive = False
        self._failure: Exception | None = None
        self._gate: Awaitable[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()  # done: `_step` has something to do
        self._silence = silence
        self._read_at = self._loop.time()
        silence.watch(self, self._read_at + silence.limit_s)

    async def head(self) -> None:
        """Wait until `status` and `headers` are known.

        Raises:
            UpstreamTimeout: No byte came for too long.
            UpstreamFailed: The response is cut, is not HTTP or is over a limit.
            Exception: What `on_head`, the sink or its awaitable raised.
        """
        while not self.status:
            await self._step()

    async def finish(self) -> bytes:
        """Wait for the end and return the body that no sink took; raises what `head` does."""
        while True:
            await self._step()
            if self._complete:
                return self._collected

    def close(self) -> None:
        """Give the connection back if the response was read to its end, else abort it; idempotent."""
        if not self._closed:
            self._closed = True
            self._silence.cancel(self)
            del self._http  # it refers to us
            if isinstance(self._gate, Coroutine):
                self._gate.close()  # nobody will await it
            self._on_close(self._keep_alive and self._failure is None)

    async def _step(self) -> None:
        await self._woken
        if self._gate is not None:
            gate, self._gate = self._gate, None
            await gate
        if self._failure is not None:
            raise self._failure
        if not self._complete:
            self._woken = self._loop.create_future()
            self._read_at = self._loop.time()
            self._transport.resume_reading()

    def feed(self, read: memoryview) -> None:
        """Take the bytes of one read; all of its body goes to the sink in one call."""
        if self._complete or self._failure is not None:
            self._keep_alive = False
            return
        self._read_at = self._loop.time()
        broken = None
        try:
            self._http.feed_data(read)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._keep_alive = False
            if not self._complete:
                broken = _failed("The model backend did not answer in HTTP.", exc)
        parts = self._parts
        try:
            if self._sink is None and self.status:
                self._take_head()
            if not parts:
                broken = broken or self._count_bodiless(len(read))
            elif self._sink is not None:
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                self._bodiless_bytes = 0
                self._gate = self._sink(body)
        except Exception as exc:  # noqa: BLE001 - the loop called us: whatever it is goes to the task that waits
            self._wake(exc)
            return
        if self._gate is None and broken is None and not self._complete:
            return
        if self._gate is not None and not self._complete:
            self._transport.pause_reading()
        self._wake(broken)

    def connection_lost(self, cause: Exception | None) -> None:
        """Take the end of the connection: also that of a body of no stated length (RFC 9112, section 6.3)."""
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self.status and not framed and cause is None:
            self._complete = True
        if self._complete:
            self._wake(None)
        else:
            self._wake(_failed("The model backend closed the connection early.", cause))

    def _take_head(self) -> None:
        sink = self._on_head(self.status, self.headers)
        self.streams = sink is not None
        self._sink = sink or self._collect
        self._wake(None)

    def _wake(self, failure: Exception | None) -> None:
        self._failure = self._failure or failure
        if not self._woken.done():
            self._woken.set_result(None)

    def _count_bodiless(self, read_bytes: int) -> UpstreamFailed | None:
        """Bound heads, trailers and chunk extensions, which the parser keeps until they end."""
        self._bodiless_bytes += read_bytes
        if self._bodiless_bytes > HEAD_LIMIT_BYTES and not self._complete:
            return UpstreamFailed("The head of the model backend's answer is too large.")
        return None

    def _collect(self, body: bytes) -> None:
        self._collected += body
        if len(self._collected) > COLLECTED_LIMIT_BYTES:
            raise UpstreamFailed("The model backend's error is too large.")

    def look(self, now_s: float) -> float | None:
        """Tell a silence that is too long from one that began later than this look was asked for.

        So a read sets no timer. Time under a gate is ours, not silence.
        """
        since_s = now_s if self._woken.done() else self._read_at
        if since_s + self._silence.limit_s > now_s:
            return since_s + self._silence.limit_s
        self._wake(UpstreamTimeout("The model backend was silent for too long."))
        return None

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamFailed("More than was asked for.")  # stops the parser: nothing of it is taken

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status == 0:
            key, text = sys.intern(name.decode("latin-1").lower()), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        status = self._http.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self.headers.clear()
        else:
            self.status = status

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete = True
            self._keep_alive = self._http.should_keep_alive()


class Connection(asyncio.BufferedProtocol):  # not a Protocol too: uvloop would take its slow path for TLS
    """One connection, which carries one exchange at a time.

    Args:
        buffer: What reads are written to; shared by all connections of a loop: each read is taken at once.
        silence: How long an exchange waits for the next byte; shared as well.
        on_free: Called at the end of each exchange, when the next may begin or the connection was aborted.
        on_lost: Called once, when the connection is gone.
    """

    __slots__ = (
        "_buffer",
        "_exchange",
        "_on_free",
        "_on_lost",
        "_silence",
        "_transport",
        "idle_since",
        "is_lost",
    )

    def __init__(
        self,
        buffer: memoryview,
        silence: Silence,
        on_free: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        self._buffer = buffer
        self._silence = silence
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._exchange: Exchange | None = None
        self.idle_since = 0.0
        self.is_lost = False

    def begin(
        self, request: tuple[bytes, bytes], on_head: OnHead, may_send: MaySend = lambda: True
    ) -> Exchange:
        """Write the request's head and body; the caller closes the exchange.

        Raises:
            Withheld: `may_send` said no; the connection is as it was.
            UpstreamUnavailable: The connection was closed before anything was sent.
        """
        if self._transport.is_closing():
            raise UpstreamUnavailable("The model backend closed the connection at once.")
        if not may_send():
            raise Withheld
        self._exchange = Exchange(self._transport, on_head, self._silence, self._over)
        self._transport.writelines(request)
        return self._exchange

    @property
    def is_open(self) -> bool:
        """True unless the loop knows better."""
        return not self._transport.is_closing()

    @property
    def usable(self) -> bool:
        """True if another exchange may begin here, as far as can be told without sending."""
        return self.is_open and not _readable(self._transport)

    def abort(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        self._transport.abort()

    def _over(self, reusable: bool) -> None:
        self._exchange = None
        if not reusable or self._transport.get_write_buffer_size():
            self.abort()
        self._on_free(self)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _set_socket_options(self._transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._exchange is not None:
            self._exchange.feed(self._buffer[:nbytes])
        else:
            self.abort()  # nobody asked for this; it must not be taken for the next answer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.connection_lost(exc)
        self.is_lost = True
        self._on_lost(self)


def _failed(detail: str, cause: Exception | None) -> UpstreamFailed:
    failure = UpstreamFailed(detail)
    failure.__cause__ = cause
    return failure


def _set_socket_options(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # Linux and macOS name the first two differently
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _readable(transport: asyncio.Transport) -> bool:
    """Tell whether the peer has closed or sent something that the loop has not seen yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
