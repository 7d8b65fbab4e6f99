"""One connection of the load client: asks, counts what comes, says how the answer ended.

`load` opens them. Nothing is parsed: the bytes that begin a delta are counted, and the two texts that tell
the time are searched (`script` says what they are).
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import cast

import httptools

_HELD = re.compile(rb"~held=(\d+)us")
_AT = re.compile(rb"~at=(\d+)us")
_NO_BYTES = b""


class Reader(asyncio.Protocol):
    """Asks one thing at a time; `done` gets an error, or None, when an answer ends.

    An answer that is not 200, has another number of deltas than `deltas` or lacks `end_mark` behind its last
    delta is an error. `late_ms`, if given, gets how long each stamped delta was on its way. A reader that is
    to `stall` reads up to its first delta and then no more.
    """

    _transport: asyncio.Transport

    def __init__(
        self,
        done: Callable[["Reader", str | None], None],
        *,
        delta_mark: str,
        end_mark: str,
        deltas: int,
        late_ms: list[float] | None = None,
        stall: bool = False,
    ) -> None:
        self._done = done
        self._mark = delta_mark.encode()
        self._end = end_mark.encode()
        self._wanted = deltas
        self._late_ms = late_ms
        self._stall = stall
        self.deltas = 0
        self.begun = False
        self.open = False
        self.lost = False
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def call(self, done: Callable[["Reader", str | None], None]) -> None:
        """Tell somebody else from now on how answers end."""
        self._done = done

    def ask(self, request: bytes) -> None:
        """Send the request; the connection must be free."""
        self._parser = httptools.HttpResponseParser(self)
        self._tail = self._ending = _NO_BYTES
        self.deltas = 0
        self.held_s = self.first_byte_s = self.first_delta_s = 0.0
        self.begun = False
        self.open = True
        self.asked_s = time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("not HTTP")

    def on_headers_complete(self) -> None:
        self.begun = True
        if (status := self._parser.get_status_code()) != 200:
            self._finish(f"status {status}")

    def on_body(self, body: bytes) -> None:
        if not self.first_byte_s:
            self.first_byte_s = time.monotonic()
        seen = self._tail + body
        self._tail = seen[-len(self._mark) + 1 :]
        if found := seen.count(self._mark):
            if not self.deltas:
                self.first_delta_s = time.monotonic()
                held = _HELD.search(seen)
                self.held_s = int(held[1]) / 1e6 if held else 0.0
                if self._stall:
                    self._transport.pause_reading()
            self.deltas += found
        if self._late_ms is not None:
            now_us = time.monotonic() * 1e6
            self._late_ms.extend((now_us - int(at)) / 1000 for at in _AT.findall(body))
        if self.deltas >= self._wanted:
            self._ending += body

    def on_message_complete(self) -> None:
        self.lost = self.lost or not self._parser.should_keep_alive()
        if self.deltas != self._wanted:
            self._finish(f"{self.deltas} deltas, not {self._wanted}")
        elif self._end not in self._ending:
            self._finish("no proper end")
        else:
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.gone.set()
        self._finish("connection lost")

    def _finish(self, error: str | None) -> None:
        if self.open:
            self.open = False
            if error is not None:
                self.abort()
            self._done(self, error)

    def abort(self) -> None:
        """Drop the connection; what it was still reading is neither ended nor an error."""
        self.open = False
        self.lost = True
        self._transport.abort()
