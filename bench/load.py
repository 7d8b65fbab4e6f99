"""The load client: opens streams against one subject and says what arrived, when, and at what cost of CPU.

`scenarios` runs it as a process of its own (`python -m bench.load`, a `Load` as JSON on stdin, a `Result` as
JSON on stdout), on the upstream's core, so that nothing it does is on the subject's account. It parses no
event: it counts the bytes that begin a delta, which the subject names. Two ways of loading:

    sequential   one stream after another on one connection: how long to its first byte and its first delta
    window       all streams at once; when they are open, a window of time: the deltas that arrived in it and
                 the CPU that the watched processes used; then a grace in which streams may still end

An answer that is not 200, has another number of deltas than its plan or lacks its proper end is an error,
never a figure.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import cast

import httptools
import uvloop

from bench.cpu import cpu_ns

_HELD = re.compile(rb"held=(\d+)us")
_CONNECTING_AT_ONCE = 64


@dataclass(frozen=True)
class Load:
    """What to send and what to count. `requests` > 0 asks for the sequential way."""

    port: int
    request: str
    delta_mark: str
    end_mark: str
    deltas: int
    streams: int = 1
    requests: int = 0
    ramp_s: float = 1.0
    settle_s: float = 1.0
    window_s: float = 5.0
    grace_s: float = 0.0
    limit_s: float = 60.0
    watched: dict[str, int] = field(default_factory=dict)


@dataclass
class Result:
    """What was seen. Times are from the request to the byte, less what the upstream held the answer back."""

    first_byte_ms: list[float] = field(default_factory=list)
    first_delta_ms: list[float] = field(default_factory=list)
    deltas: int = 0
    window_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    ended: int = 0
    unfinished: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Reader(asyncio.Protocol):
    """One connection: asks, counts what comes, calls `done` with an error or None when an answer ends."""

    _transport: asyncio.Transport

    def __init__(self, load: Load, done: Callable[["Reader", str | None], None]) -> None:
        self._load = load
        self._done = done
        self._request = load.request.encode("latin-1")
        self._mark = load.delta_mark.encode()
        self._end = load.end_mark.encode()
        self.deltas = 0
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def ask(self) -> None:
        """Send the request; the connection must be free."""
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self.deltas = 0
        self._ending = b""
        self.held_s = self.first_byte_s = self.first_delta_s = 0.0
        self.open = True
        self.asked_s = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("not HTTP")

    def on_headers_complete(self) -> None:
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
            self.deltas += found
        if self.deltas >= self._load.deltas:
            self._ending += body

    def on_message_complete(self) -> None:
        if self._end not in self._ending:
            self._finish("no proper end")
        elif self.deltas != self._load.deltas:
            self._finish("wrong number of deltas")
        else:
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("connection lost")

    def _finish(self, error: str | None) -> None:
        if self.open:
            self.open = False
            self._done(self, error)
            if error is not None:
                self._transport.abort()

    def abort(self) -> None:
        """Drop the connection; what it was still reading is neither ended nor an error."""
        self.open = False
        self._transport.abort()


async def _connect(load: Load, done: Callable[[Reader, str | None], None]) -> Reader:
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: Reader(load, done), "127.0.0.1", load.port)
    return reader


async def measure_sequential(load: Load) -> Result:
    """Ask `requests` times on one connection and time each answer; stops at the first error."""
    result = Result()
    answered = asyncio.Event()

    def done(reader: Reader, error: str | None) -> None:
        if error is None:
            result.ended += 1
            waited_s = reader.asked_s + reader.held_s
            result.first_byte_ms.append((reader.first_byte_s - waited_s) * 1000)
            result.first_delta_ms.append((reader.first_delta_s - waited_s) * 1000)
        else:
            result.errors[error] = result.errors.get(error, 0) + 1
        answered.set()

    reader = await _connect(load, done)
    for _ in range(load.requests):
        answered.clear()
        reader.ask()
        await answered.wait()
        if result.errors:
            break
    reader.abort()
    return result


async def measure_window(load: Load) -> Result:
    """Open all streams over ramp_s, let them settle, then count over the window."""
    result = Result()
    open_streams: set[Reader] = set()
    all_ended = asyncio.Event()
    counted = 0

    def done(reader: Reader, error: str | None) -> None:
        nonlocal counted
        counted += reader.deltas
        open_streams.discard(reader)
        if not open_streams:
            all_ended.set()
        if error is None:
            result.ended += 1
            reader.abort()
        else:
            result.errors[error] = result.errors.get(error, 0) + 1

    began = time.monotonic()
    for number in range(load.streams):
        await asyncio.sleep(max(0.0, began + load.ramp_s * number / load.streams - time.monotonic()))
        reader = await _connect(load, done)
        all_ended.clear()
        open_streams.add(reader)
        reader.ask()
    await asyncio.sleep(load.settle_s)

    def arrived() -> int:
        return counted + sum(reader.deltas for reader in open_streams)

    deltas, cpu, opened_s = arrived(), _cpu(load), time.monotonic()
    await asyncio.sleep(load.window_s)
    result.deltas = arrived() - deltas
    result.cpu_s = {name: (used - cpu[name]) / 1e9 for name, used in _cpu(load).items()}
    result.window_s = time.monotonic() - opened_s
    if open_streams:
        with suppress(TimeoutError):
            await asyncio.wait_for(all_ended.wait(), load.grace_s)
    result.unfinished = len(open_streams)
    for reader in list(open_streams):
        reader.abort()
    return result


def _cpu(load: Load) -> dict[str, int]:
    return {"client": time.process_time_ns()} | {name: cpu_ns(pid) for name, pid in load.watched.items()}


async def measure(load: Load) -> Result:
    """Measure within limit_s, or raise TimeoutError."""
    async with asyncio.timeout(load.limit_s):
        return await (measure_sequential(load) if load.requests else measure_window(load))


def main() -> None:
    load = Load(**json.load(sys.stdin))
    json.dump(asdict(uvloop.run(measure(load))), sys.stdout)


if __name__ == "__main__":
    main()
