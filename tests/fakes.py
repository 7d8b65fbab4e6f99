"""Doubles: an upstream that says what a test tells it, and a store that fails when a test tells it to.

`ScriptedModel` is under the contract of the `Model` port. `FaultyStore` is no second store: it stands before
a real one.
"""

import asyncio
import json
from collections.abc import Collection, Sequence
from typing import Any, cast

from service.errors import StoreUnavailable, UpstreamFailed
from service.models import Deliver, Frame, ModelRequest
from service.stores import Store

Step = list[Frame] | asyncio.Event | Exception
"""A batch to deliver, a barrier to wait for, or an error to raise."""


def frame(kind: str, value: Any) -> Frame:
    """Return one frame."""
    return kind.encode(), json.dumps(value, separators=(",", ":")).encode()


def text(*deltas: str) -> list[Frame]:
    """Return a batch of text deltas."""
    return [
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": delta}}) for delta in deltas
    ]


def start() -> list[Frame]:
    """Return the batch that opens an answer."""
    return [frame("messageStart", {"role": "assistant"})]


def stop(
    reason: str = "end_turn", *, input_tokens: int = 10, output_tokens: int = 5, **more: int
) -> list[Frame]:
    """Return the batch that ends an answer, with its usage."""
    usage = {"inputTokens": input_tokens, "outputTokens": output_tokens, **more}
    usage["totalTokens"] = input_tokens + output_tokens
    return [
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": reason}),
        frame("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
    ]


def answer(*deltas: str, input_tokens: int = 10, output_tokens: int = 5) -> list[Step]:
    """Return a whole answer, each delta a batch of its own."""
    last = stop(input_tokens=input_tokens, output_tokens=output_tokens)
    return [start(), *(text(delta) for delta in deltas), last]


def tool_call(name: str, raw_input: str, *, tool_use_id: str = "tool-1", said: str = "") -> list[Step]:
    """Return an answer that asks for a tool; the input comes in two pieces."""
    half = len(raw_input) // 2
    pieces = [
        frame("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": piece}}})
        for piece in (raw_input[:half], raw_input[half:])
    ]
    opened = frame(
        "contentBlockStart",
        {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": tool_use_id, "name": name}}},
    )
    return [start(), *([text(said)] if said else []), [opened, *pieces], stop("tool_use")]


class ScriptedModel:
    """An upstream with a script for each call; the last one repeats. `requests` are the calls it got."""

    def __init__(self, *calls: Sequence[Step]) -> None:
        self._calls = list(calls)
        self.requests: list[ModelRequest] = []
        self.cancelled = 0

    def play(self, *calls: Sequence[Step]) -> None:
        """Answer with other scripts from now on."""
        self._calls = list(calls)

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Play the next script."""
        await request.before_try()
        while not request.may_send():
            await request.before_try()
        self.requests.append(request)
        steps = self._calls.pop(0) if len(self._calls) > 1 else self._calls[0]
        stopped = False
        try:
            for step in steps:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    stopped = stopped or any(kind == b"messageStop" for kind, _ in step)
                    waiting = deliver(step)
                    if waiting is not None:
                        await waiting
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not stopped:
            raise UpstreamFailed("The answer ended without messageStop.")


class FaultyStore:
    """A real store behind faults.

    Attributes:
        down: Every call raises `StoreUnavailable`, and nothing happens.
        deaf: Every call happens, and then raises `StoreUnavailable`: the answer was lost.
        broken: What every call raises instead, as a store does that breaks its contract.
        gate: While it is cleared, calls wait.
        answers: While it is cleared, calls happen, and their answers wait.
        only: The methods that the faults are of; none named, all of them.
        calls: The names of the methods that were called, in order.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False
        self.deaf = False
        self.broken: Exception | None = None
        self.only: Collection[str] = ()
        self.gate = asyncio.Event()
        self.answers = asyncio.Event()
        for event in (self.gate, self.answers):
            event.set()
        self.calls: list[str] = []

    @property
    def as_store(self) -> Store:
        return cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.only and name not in self.only:
                return await method(*args, **kwargs)
            await self.gate.wait()
            if self.broken is not None:
                raise self.broken
            if self.down:
                raise StoreUnavailable
            result = await method(*args, **kwargs)
            await self.answers.wait()
            if self.deaf:
                raise StoreUnavailable
            return result

        return faulty
