"""Invocations with several attempts, written through the store's port as other processes would write them.

story = Story(store, clock.now_ms)
await story.begin()                 1.1
await story.write(5)                1.2 .. 1.6
await story.lose(granted=3)         its process dies: 1.4 .. 1.6 are void, 2.1 is the next attempt's
await story.pause()                 2.2; nobody runs it
await story.resume()                3.1, 3.2
await story.end()                   3.3
"""

from collections.abc import Callable

from service.config import Limits
from service.events import Block, EventId, encode, started
from service.invocations import Invocation, State, Usage
from service.stores import Ending, EventBlock, HandOver, NewInvocation, Pause, Settlement, Store
from tests.id_tokens import CLAIMS

INVOCATION_ID = "inv_01M7ZFN7R0Z7C5K3X126DMSQMP"
RUNTIME_ID = "writer"
FAR_MS = 10**15


def delta(attempt: int, seq: int) -> bytes:
    """Return the event that has this id in every story."""
    return encode("contentBlockDelta", {"delta": {"text": f"{attempt}.{seq} "}})


class Story:
    """One invocation; `attempt` and `seq` are the newest id. Nobody's lease ends by itself."""

    def __init__(self, store: Store, now_ms: Callable[[], int], sub: str = str(CLAIMS["sub"])) -> None:
        self.store = store
        self.attempt = 1
        self.seq = 0
        self._now_ms = now_ms
        self.sub = sub

    @property
    def location(self) -> str:
        return f"/runtimes/{RUNTIME_ID}/invocations/{INVOCATION_ID}"

    async def record(self) -> Invocation:
        invocation = await self.store.load_invocation(INVOCATION_ID)
        assert invocation is not None
        return invocation

    async def begin(self) -> None:
        """Admit it; its first event is stored."""
        await self.store.renew_lease(self._owner, FAR_MS)
        new = NewInvocation(INVOCATION_ID, RUNTIME_ID, self.sub, None, b"{}", 10, self._owner, FAR_MS, FAR_MS)
        await self.store.create_invocation(new, Limits(), self._now_ms())
        await self._append(started(INVOCATION_ID, RUNTIME_ID))

    async def write(self, count: int) -> None:
        """Store deltas, in one block."""
        await self._append(*(delta(self.attempt, self.seq + number) for number in range(1, count + 1)))

    async def lose(self, granted: int) -> None:
        """Let its process die and another one take over; `granted` is the end of the last turn."""
        await self._settle(granted)
        await self.store.renew_lease(self._owner, 0)
        await self.take_over()

    async def hand_over(self, granted: int) -> None:
        """Let its process leave it to the next one; nobody runs it."""
        await self._settle(granted)
        await self.store.hand_over(HandOver(INVOCATION_ID, self.attempt), self._now_ms())

    async def take_over(self) -> None:
        """Let another process claim it."""
        await self._next_attempt()
        (claim,) = await self.store.claim_expired(self._owner, self._now_ms(), limit=1, running=None)
        await self._append(self._restarted(claim.invocation.rewind_to))

    async def pause(self) -> None:
        """Let it wait for quota."""
        paused = encode("invocationPaused", {"problem": {}, "resumesAt": "2026-11-21T17:40:00.000Z"})
        block = Block(self.attempt, self.seq + 1, (paused,))
        await self.store.pause(Pause(INVOCATION_ID, self.attempt, block, 2, 10, FAR_MS), self._now_ms())
        self.seq += 1

    async def resume(self) -> None:
        """Let it go on, in another process."""
        last = EventId(self.attempt, self.seq)
        await self._next_attempt()
        await self.store.resume(INVOCATION_ID, last.attempt, self._owner, self._now_ms(), limits=Limits())
        await self._append(self._restarted(last), encode("invocationResumed", {"attempt": self.attempt}))

    async def end(self) -> None:
        """Complete it."""
        block = Block(
            self.attempt, self.seq + 1, (encode("invocationCompleted", {"stopReason": "end_turn"}),)
        )
        ending = Ending(INVOCATION_ID, self.attempt, State.COMPLETED, block)
        await self.store.finish(ending, self._now_ms())
        self.seq += 1

    async def _settle(self, granted: int) -> None:
        turn = Settlement(
            INVOCATION_ID,
            self.attempt,
            self.attempt,
            self.sub,
            RUNTIME_ID,
            "model-1",
            Usage(1, 1),
            messages=b"[]",
            boundary=EventId(self.attempt, granted),
        )
        await self.store.settle(turn, self._now_ms())

    @property
    def _owner(self) -> str:
        return f"process-{self.attempt}"

    async def _next_attempt(self) -> None:
        self.attempt, self.seq = self.attempt + 1, 0
        await self.store.renew_lease(self._owner, FAR_MS)

    def _restarted(self, rewind_to: EventId) -> bytes:
        return encode("attemptRestarted", {"attempt": self.attempt, "rewindTo": str(rewind_to)})

    async def _append(self, *events: bytes) -> None:
        block = Block(self.attempt, self.seq + 1, events)
        assert not await self.store.append_events([EventBlock(INVOCATION_ID, block)], self._now_ms())
        self.seq += len(events)
