"""What the Bedrock endpoint generated for each call: the provider's side of the bill, which the ledger must
equal.

`bedrock` writes it; tests read it, in the same process or through `control`. It counts what was generated,
whether or not anybody was there to read it.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Outcome = Literal["running", "finished", "refused", "failed", "cut", "hung-up", "stopped"]
"""finished: sent to its end; refused: an error before the stream; failed: an exception inside it; cut: the
script cut the connection; hung-up: the peer went away; stopped: the endpoint was shut down."""

MAX_CALLS: Final = 10_000
"""Calls and request bodies are kept for tests, the oldest are forgotten: a demo that runs for days stays
small."""


@dataclass(slots=True)
class Call:
    """One call of ConverseStream. `output_tokens` grows while deltas are sent; `reported` once metadata was
    sent whole. `request_metadata` is the caller's own: what its bill is split by."""

    number: int
    model_id: str
    request_id: str
    started_at_ms: int
    input_tokens: int = 0
    output_tokens: int = 0
    reported: bool = False
    outcome: Outcome = "running"
    waiting: str | None = None
    ended_at_ms: int | None = None
    request_metadata: Mapping[str, str] = field(default_factory=dict)


class Account:
    """The calls, oldest first, and a way to wait until they are so far."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)
        self._started = 0
        self._changed = asyncio.Event()

    def start(
        self, model_id: str, request_id: str, started_at_ms: int, request_metadata: Mapping[str, str]
    ) -> Call:
        """Open the account of one call."""
        self._started += 1
        call = Call(
            self._started, model_id, request_id, started_at_ms, request_metadata=dict(request_metadata)
        )
        self._calls.append(call)
        self.changed()
        return call

    def end(self, call: Call, outcome: Outcome, ended_at_ms: int) -> None:
        """Close the account of a call."""
        call.outcome, call.ended_at_ms, call.waiting = outcome, ended_at_ms, None
        self.changed()

    def changed(self) -> None:
        """Wake who waits in `when`; call it after a change of a `Call`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def when(
        self, *, started: int = 0, ended: int = 0, waiting: str | None = None, timeout_s: float = 10.0
    ) -> Sequence[Call]:
        """Return the calls once so many have started and ended and one waits for the signal `waiting`.

        Raises:
            TimeoutError: It did not come to that.
        """
        async with asyncio.timeout(timeout_s):
            while not self._reached(started, ended, waiting):
                await self._changed.wait()
        return tuple(self._calls)

    def _reached(self, started: int, ended: int, waiting: str | None) -> bool:
        running = [call for call in self._calls if call.outcome == "running"]
        return (
            self._started >= started
            and self._started - len(running) >= ended
            and (waiting is None or any(call.waiting == waiting for call in running))
        )
