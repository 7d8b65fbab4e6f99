"""What a store's decisions of one invocation cost, and nothing else: `python -m bench.decisions STORE`.

`loadings` runs it on the subject's core, with the settings of the store that Headrace has there. It calls the
port as the service does for an invocation of one delta, 32 at a time, one after another: `create_invocation`,
then `finish` with all its events and its settlement (it is over before a group commit is due). All CPU of
this process is the store's, with its share of the event loop, of the kernel and of the garbage collector,
which is set as the service sets it.
"""

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from itertools import count

import uvloop

from bench.script import INPUT_TOKENS, delta_payload
from service.__main__ import GC_THRESHOLDS
from service.app import open_store
from service.config import Limits, ServiceConfig
from service.events import Block, encode, from_frames, started
from service.invocations import State, Tried, Usage
from service.stores import Ending, NewInvocation, Settlement, Store

_AT_ONCE = 32
_ACCOUNTS = 64
_SETTLE_S = 1.0
_WINDOW_S = 3.0
_HOUR_MS = 3_600_000
_HELD_TOKENS = 1_000
_RUNTIME = "bench-0-1-1000-1"
_MODEL = "bedrock/bench-0-1-1000-1"
_USAGE = Usage(INPUT_TOKENS, 1)
_OWNER = "bench"
_LIMITS = Limits(10**12, 10**12, 10**6, 10**9)
_INPUT = json.dumps(
    {
        "groups": ["bench"],
        "messages": [
            {"role": "user", "content": [{"text": "Describe the river between the weir and the turbine."}]}
        ],
        "maxTokens": 1024,
        "requestMetadata": {},
        "originJti": "b8933136-441f-4ca8-83c2-fbf19928622e",
    },
    separators=(",", ":"),
).encode()
_STARTED = started("inv_", _RUNTIME, [_MODEL])
_FOLLOWING = (
    *from_frames(
        (
            (b"messageStart", b'{"p":"abcdefgh","role":"assistant"}'),
            (b"contentBlockDelta", delta_payload(b"~held=0us...................", 24)),
            (b"contentBlockStop", b'{"contentBlockIndex":0,"p":"abcdefghijk"}'),
            (b"messageStop", b'{"p":"abcdefghijklm","stopReason":"end_turn"}'),
            (b"metadata", b'{"metrics":{"latencyMs":1000},"usage":{"inputTokens":12,"outputTokens":1}}'),
        )
    ),
    encode("invocationCompleted", {"stopReason": "end_turn", "usage": _USAGE.as_json()}),
)
"""The events of `_STARTED`'s invocation after it: made once, for encoding them is not the store's."""


async def measure(
    place: str,
    *,
    settle_s: float = _SETTLE_S,
    window_s: float = _WINDOW_S,
    opened: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Milliseconds of CPU that the decisions of one invocation cost, and of how many they were made a second.

    Raises:
        StoreUnavailable, Fenced: A decision failed.
    """
    async with open_store(place, ServiceConfig()) as store, asyncio.TaskGroup() as asking:
        opened()
        await store.renew_lease(_OWNER, _now_ms() + _HOUR_MS)
        ended: list[str] = []
        numbers = count()
        tasks = [asking.create_task(_invoke(store, numbers, ended)) for _ in range(_AT_ONCE)]
        await asyncio.sleep(settle_s)
        before, used_ns, began_s = len(ended), time.process_time_ns(), time.monotonic()
        await asyncio.sleep(window_s)
        used_ns, took_s = time.process_time_ns() - used_ns, time.monotonic() - began_s
        made = len(ended) - before
        for task in tasks:
            task.cancel()
    return {"decisions_ms": used_ns / 1e6 / made, "decided": made / took_s}


async def _invoke(store: Store, numbers: Iterator[int], ended: list[str]) -> None:
    """Begin and end one invocation after another."""
    prefix = f"inv_{time.time_ns() % 10**16:016}"
    for number in numbers:
        new = _new(f"{prefix}{number:010}", f"{number % _ACCOUNTS:08}-0000-4000-8000-000000000000")
        await store.create_invocation(new, _LIMITS, _now_ms())
        await store.finish(_ending(new), _now_ms())
        ended.append(new.invocation_id)


def _new(name: str, sub: str) -> NewInvocation:
    later_ms = _now_ms() + _HOUR_MS
    return NewInvocation(
        invocation_id=name,
        runtime_id=_RUNTIME,
        sub=sub,
        session_id=None,
        input=_INPUT,
        first_reservation_tokens=_HELD_TOKENS,
        owner=_OWNER,
        deadline_at_ms=later_ms,
        reservation_expires_at_ms=later_ms + _HOUR_MS,
        models=(_MODEL,),
    )


def _ending(new: NewInvocation) -> Ending:
    name = new.invocation_id
    settlement = Settlement(name, 1, 1, new.sub, _RUNTIME, _MODEL, _USAGE, tried=(Tried(_MODEL),))
    events = (_STARTED.replace(b"inv_", name.encode(), 1), *_FOLLOWING)
    return Ending(name, 1, State.COMPLETED, Block(1, 1, events), (settlement,))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _relieve_collector() -> None:
    """As the service does once it serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description="What a store costs.")
    parser.add_argument("store", help="sqlite:PATH or dynamodb:USAGE:INVOCATIONS")
    print(json.dumps(uvloop.run(measure(parser.parse_args().store, opened=_relieve_collector))))


if __name__ == "__main__":
    main()
