"""The load client: opens streams against one subject and says what arrived, when, and at what cost.

`loadings` describes a `Load`; `processes` runs this module as a process of its own (`python -m bench.load`, a
`Load` as JSON on stdin, a `Result` as JSON on stdout) on the upstream's core, so that nothing it does is on
the subject's account. Four ways of loading, each a function here:

    sequential   one answer after another on one connection: how long to its first byte and its first delta
    window       all streams at once; when they are open, a window of time: the deltas that arrived in it and
                 what the watched processes used; what is still open then is dropped
    closed       some connections, each asks again as soon as it is answered: for a time, or so many answers
    hang-up      all streams at once; when they are open, all hang up, and one more caller asks all along

An answer that is not right is an error, never a figure (`load_reader`).
"""

import asyncio
import json
import socket
import sys
import time
from dataclasses import asdict
from itertools import cycle

import uvloop

from bench.cpu import cpu_ns, main_thread_ns, rss_bytes
from bench.load_reader import Reader
from bench.loads import Asking, Load, Result

_SAMPLES = 10
"""How often memory is looked at while a number of answers is fetched."""
_LOOK_S = 0.1
_PAUSE_S = 0.01
"""Between two answers: what a subject still does for one (its log line) is no part of the next one's wait."""
_SMALL_BUFFER_BYTES = 64 * 1024
"""What the kernel holds for a stalled reader: less than the subject would have to."""


class Client:
    """Opens streams, gathers what they say, and keeps the accounts of one load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.result = Result(rss_bytes={name: [] for name in load.watched})
        self.open: set[Reader] = set()
        self._connected: list[Reader] = []
        self._counted = 0
        self._requests = cycle([request.encode("latin-1") for request in load.asking.requests])
        self._late_ms = self.result.late_ms if load.stamped else None

    def request(self) -> bytes:
        return next(self._requests)

    async def connect(self, asking: Asking | None = None, *, stall: bool = False) -> Reader:
        """Open one connection for what the load asks, or for something else."""
        expected = asking or self.load.asking

        def make() -> Reader:
            return Reader(
                self.done,
                delta_mark=expected.delta_mark,
                end_mark=expected.end_mark,
                deltas=expected.deltas,
                late_ms=None if asking else self._late_ms,
                stall=stall,
            )

        loop = asyncio.get_running_loop()
        if not stall:
            _, reader = await loop.create_connection(make, "127.0.0.1", self.load.port)
            self._connected.append(reader)
            return reader
        narrow = socket.socket()
        narrow.setblocking(False)
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        await loop.sock_connect(narrow, ("127.0.0.1", self.load.port))
        _, reader = await loop.create_connection(make, sock=narrow)
        self._connected.append(reader)
        return reader

    async def close(self) -> None:
        """Drop all connections and wait until they are gone."""
        for reader in self._connected:
            reader.abort()
        for reader in self._connected:
            await reader.gone.wait()

    def done(self, reader: Reader, error: str | None) -> None:
        """Take note of an ending, and give the connection up."""
        self.count(reader, error)
        if not reader.lost:
            reader.abort()

    def count(self, reader: Reader, error: str | None) -> None:
        """Take note of an ending."""
        self._counted += reader.deltas
        self.open.discard(reader)
        if error is not None:
            self.result.errors[error] = self.result.errors.get(error, 0) + 1

    @property
    def arrived(self) -> int:
        """All deltas so far."""
        return self._counted + sum(reader.deltas for reader in self.open)

    async def open_all(self) -> None:
        """Open the stalled streams, then the others over ramp_s, and let them settle."""
        load = self.load
        self.look_at_memory()
        stalled = []
        if load.beside is not None and load.stalled:
            for number in range(load.stalled):
                reader = await self.connect(load.beside, stall=True)
                reader.ask(load.beside.requests[number % len(load.beside.requests)].encode("latin-1"))
                stalled.append(reader)
        began_s = time.monotonic()
        for number in range(load.streams):
            wait_s = began_s + load.ramp_s * number / load.streams - time.monotonic()
            await asyncio.sleep(max(0.0, wait_s))
            reader = await self.connect()
            self.open.add(reader)
            reader.ask(self.request())
        opened = [*self.open, *stalled]
        begin_by_s = time.monotonic() + load.begin_s
        # An event would cost each of thousands of readers a look at all the others.
        while time.monotonic() < begin_by_s and not all(reader.begun for reader in opened):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(load.settle_s)
        self.result.begun = sum(reader.begun for reader in self.open)

    def look_at_memory(self) -> None:
        for name, pid in self.load.watched.items():
            self.result.rss_bytes[name].append(rss_bytes(pid))

    def used(self) -> dict[str, int]:
        """CPU so far in ns, of ourselves and of the watched."""
        used = {"client": time.process_time_ns()}
        for name, pid in self.load.watched.items():
            used |= {name: cpu_ns(pid), f"{name} main": main_thread_ns(pid)}
        return used

    def account(self, since: dict[str, int], began_s: float) -> None:
        """Close a window: what was used since its beginning."""
        self.result.cpu_s = {name: (used - since[name]) / 1e9 for name, used in self.used().items()}
        self.result.window_s = time.monotonic() - began_s


async def sequential(client: Client) -> None:
    """Ask `times` times on one connection and time each answer; stops at the first error."""
    await _ask_in_turn(client, client.load.asking, client.load.times, limit_s=client.load.limit_s)


async def _ask_in_turn(client: Client, asking: Asking, times: int, limit_s: float) -> None:
    result, until_s = client.result, time.monotonic() + limit_s
    requests = cycle([request.encode("latin-1") for request in asking.requests])
    answered = asyncio.Event()

    def done(_reader: Reader, error: str | None) -> None:
        if error is not None:
            result.errors[error] = result.errors.get(error, 0) + 1
        answered.set()

    reader: Reader | None = None
    for _ in range(times):
        if time.monotonic() >= until_s:
            break
        if reader is None or reader.lost:
            reader = await client.connect(asking)
            reader.call(done)
        answered.clear()
        reader.ask(next(requests))
        await answered.wait()
        if result.errors:
            break
        result.answers += 1
        waited_s = reader.asked_s + reader.held_s
        result.first_byte_ms.append((reader.first_byte_s - waited_s) * 1000)
        result.first_delta_ms.append((reader.first_delta_s - waited_s) * 1000)
        await asyncio.sleep(_PAUSE_S)


async def window(client: Client) -> None:
    """Open all streams, let them settle, then look at a window."""
    load, result = client.load, client.result
    await client.open_all()
    client.look_at_memory()
    result.late_ms.clear()
    deltas, used, began_s = client.arrived, client.used(), time.monotonic()
    await asyncio.sleep(load.window_s)
    result.deltas = client.arrived - deltas
    client.account(used, began_s)
    client.look_at_memory()
    result.unfinished = len(client.open)


async def closed(client: Client) -> None:
    """Keep all connections busy: for settle_s and a window, or from the first to the last of `times`."""
    load, result = client.load, client.result
    asked = 0

    async def one_after_another() -> None:
        nonlocal asked
        answered = asyncio.Event()

        def done(reader: Reader, error: str | None) -> None:
            client.count(reader, error)
            if error is None:
                result.answers += 1
                if load.times and result.answers * _SAMPLES % load.times < _SAMPLES:
                    client.look_at_memory()
            answered.set()

        reader: Reader | None = None
        while not result.errors and (not load.times or asked < load.times):
            asked += 1
            if reader is None or reader.lost:
                reader = await client.connect()
                reader.call(done)
            answered.clear()
            client.open.add(reader)
            reader.ask(client.request())
            await answered.wait()

    client.look_at_memory()
    deltas, answers, used, began_s = 0, 0, client.used(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one_after_another()) for _ in range(load.streams)]
        if load.times:
            await asyncio.wait(tasks)
        else:
            await asyncio.sleep(load.settle_s)
            deltas, answers = client.arrived, result.answers
            used, began_s = client.used(), time.monotonic()
            await asyncio.sleep(load.window_s)
        result.deltas, result.answers = client.arrived - deltas, result.answers - answers
        client.account(used, began_s)
        for task in tasks:
            task.cancel()


async def hang_up(client: Client) -> None:
    """Open all streams, hang up all at once, and time a caller that asks again and again for window_s."""
    load = client.load
    assert load.beside is not None
    await client.open_all()
    client.look_at_memory()
    used, began_s = client.used(), time.monotonic()
    for reader in list(client.open):
        reader.abort()
    client.open.clear()
    await _ask_in_turn(client, load.beside, sys.maxsize, load.window_s)
    client.account(used, began_s)
    client.look_at_memory()


WAYS = {"sequential": sequential, "window": window, "closed": closed, "hang-up": hang_up}


async def measure(load: Load) -> Result:
    """Measure within limit_s, or raise TimeoutError."""
    client = Client(load)
    async with asyncio.timeout(load.limit_s):
        await WAYS[load.way](client)
        await client.close()
    return client.result


def main() -> None:
    json.dump(asdict(uvloop.run(measure(Load.read(sys.stdin.read())))), sys.stdout)


if __name__ == "__main__":
    main()
