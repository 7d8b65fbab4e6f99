"""What storing the events of many streams costs, and nothing else: `python -m bench.appends STORE` prints it.

`loadings` runs it on the subject's core, with the settings of the store that Headrace has there. It writes
what Headrace's log writes for 1,000 streams of 20 deltas/s: a block of 20 events for each, once a second, a
quarter of them at a time. All CPU of this process is the store's, with its share of the event loop and of the
kernel; as the process sleeps in between, each write also pays for waking up.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

import uvloop

from bench.script import delta_payload
from service.app import open_store
from service.config import Limits, ServiceConfig
from service.events import Block, from_frames, started
from service.stores import EventBlock, NewInvocation, Store

_INVOCATIONS = 250
_WRITES_AT_ONCE = 8
_EVENTS = 20
_EVERY_S = 0.25
_SETTLE_WRITES = 4
_WRITES = 16
_ACCOUNTS = 64
_HOUR_MS = 3_600_000
_RUNTIME = "bench"
_LIMITS = Limits(10**12, 10**12, 10**6, 10**9)


async def measure(place: str) -> dict[str, float]:
    """Microseconds of CPU that storing one delta costs, and what 20,000 of them a second take of a core."""
    deltas = _delta_events()
    async with open_store(place, ServiceConfig()) as store:
        names = await _invocations(store)
        await store.append_events([_block(name, 1, [started(name, _RUNTIME)]) for name in names], _now_ms())
        written = 0
        due_s = began_s = time.monotonic()
        used_ns = 0
        for number in range(_SETTLE_WRITES + _WRITES):
            if number == _SETTLE_WRITES:
                written, used_ns, began_s = 0, time.process_time_ns(), time.monotonic()
            blocks = [_block(name, 2 + number * _EVENTS, deltas) for name in names]
            assert not await store.append_events(blocks, _now_ms())
            written += len(blocks) * _EVENTS
            due_s += _EVERY_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        used_s, took_s = (time.process_time_ns() - used_ns) / 1e9, time.monotonic() - began_s
    return {"store_us": used_s / written * 1e6, "stored": written / took_s}


def _delta_events() -> tuple[bytes, ...]:
    payloads = [delta_payload(b"~the words of a river ......", 3 * number) for number in range(_EVENTS)]
    return from_frames((b"contentBlockDelta", payload) for payload in payloads)


def _block(name: str, first_seq: int, events: Sequence[bytes]) -> EventBlock:
    return EventBlock(name, Block(1, first_seq, tuple(events)))


async def _invocations(store: Store) -> list[str]:
    """Admit what is then written for, some at a time."""
    names = [f"inv_bench{time.time_ns()}{number:04}" for number in range(_INVOCATIONS)]
    owner = names[0]
    await store.renew_lease(owner, _now_ms() + _HOUR_MS)
    left = list(names)

    async def admit() -> None:
        while left:
            await store.create_invocation(_new(left.pop(), owner, len(left)), _LIMITS, _now_ms())

    await asyncio.gather(*(admit() for _ in range(_WRITES_AT_ONCE)))
    return names


def _new(name: str, owner: str, number: int) -> NewInvocation:
    later_ms = _now_ms() + _HOUR_MS
    return NewInvocation(
        invocation_id=name,
        runtime_id=_RUNTIME,
        sub=f"user-{number % _ACCOUNTS}",
        session_id=None,
        input=b'{"prompt":"?"}',
        first_reservation_tokens=1000,
        owner=owner,
        deadline_at_ms=later_ms,
        reservation_expires_at_ms=later_ms,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.appends", description="What a store costs.")
    parser.add_argument("store", help="sqlite:PATH or dynamodb:USAGE:INVOCATIONS")
    print(json.dumps(uvloop.run(measure(parser.parse_args().store))))


if __name__ == "__main__":
    main()
