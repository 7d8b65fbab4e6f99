"""Invocations as dead processes leave them: put straight into the store, for tests of who takes them over."""

import json
from dataclasses import dataclass
from typing import Any, Final

from service.config import Limits
from service.events import Block, EventId, encode, started
from service.invocations import Usage
from service.stores import EventBlock, NewInvocation, Settlement, Store
from tests.clock import ManualClock
from tests.id_tokens import CLAIMS

DEAD: Final = "inv_01M7ZFN7R0DEADDEADDEADDEAD"
HOLD_TOKENS: Final = 5000
USER: Final = str(CLAIMS["sub"])
ROOMY: Final = Limits(10**9, 10**9, 1000, 10**9)
DELTA: Final = b'{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"Half"}}}'


@dataclass
class LeftBehind:
    """An invocation in the store whose owner has no lease any more; each method stores a bit more of it."""

    store: Store
    clock: ManualClock
    runtime: str = "writer"
    invocation_id: str = DEAD
    stored: int = 0
    attempt: int = 1

    @property
    def location(self) -> str:
        return f"/runtimes/{self.runtime}/invocations/{self.invocation_id}"

    async def create(
        self,
        *,
        owner: str = "dead",
        deadline_s: float = 3600,
        tokens: int = HOLD_TOKENS,
        body: bytes | None = None,
    ) -> "LeftBehind":
        """Admit it, with the input `body`; a hold for its first turn is open."""
        await self.clock.advance(0)  # the first look for expired leases is over
        now_ms = self.clock.now_ms()
        given = {
            "groups": CLAIMS["cognito:groups"],
            "messages": [{"role": "user", "content": [{"text": "6 times 7?"}]}],
            "maxTokens": 100,
            "requestMetadata": {},
        }
        new = NewInvocation(
            self.invocation_id,
            self.runtime,
            USER,
            None,
            json.dumps(given).encode() if body is None else body,
            tokens,
            owner,
            now_ms + int(deadline_s * 1000),
            now_ms + 10**9,
        )
        await self.store.create_invocation(new, ROOMY, now_ms)
        return self

    async def begun(self) -> "LeftBehind":
        """Store the first event."""
        return await self.wrote(started(self.invocation_id, self.runtime))

    async def wrote(self, *events: bytes) -> "LeftBehind":
        """Store events, as the group commit does."""
        block = Block(self.attempt, self.stored + 1, events)
        await self.store.append_events([EventBlock(self.invocation_id, block)], self.clock.now_ms())
        self.stored += len(events)
        return self

    async def asked_for(
        self, tool: str, tool_input: dict[str, Any], usage: Usage = Usage(100, 20)
    ) -> "LeftBehind":
        """Settle turn 1, in which the model has asked for a tool."""
        use = {"toolUseId": "tool-1", "name": tool, "input": tool_input}
        message = {"role": "assistant", "content": [{"toolUse": use}]}
        await self.wrote(DELTA)
        settlement = Settlement(
            self.invocation_id,
            self.attempt,
            1,
            USER,
            self.runtime,
            "bedrock/model-1",
            usage,
            messages=json.dumps([message]).encode(),
            boundary=EventId(self.attempt, self.stored),
        )
        await self.store.settle(settlement, self.clock.now_ms())
        return await self.wrote(encode("toolStarted", {"toolUseId": "tool-1", "name": tool}))
