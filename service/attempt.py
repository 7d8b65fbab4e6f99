"""One attempt at an invocation in this process: it runs its runtime, and ends in exactly one of these ways.

    runtime.run ─┬─ returned, failed, deadline, cancelled ─> finish     terminal event, once it is stored
                 ├─ no room in the quota ──────────────────> pause      `invocationPaused`, once it is stored
                 ├─ drain ─────────────────────────────────> hand over  the next attempt goes on at once
                 └─ fenced ────────────────────────────────> nothing    the next attempt has begun already

`runner` makes it and runs it as a task that no request owns. To its runtime it is the `Effects`. Nothing that
decides about the invocation is shown before the store has it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from service.errors import (
    DeadlineExceeded,
    Fenced,
    HeadraceError,
    InternalError,
    QuotaExceeded,
    StoreUnavailable,
)
from service.events import Block, encode
from service.invocations import Invocation, State, Usage, timestamp
from service.ledger import AttemptLedger, persist
from service.log import AttemptLog
from service.models import Deliver
from service.runtimes import Call, InvocationInput, Runtime
from service.stores import Ending, HandOver, Pause, Store

logger = logging.getLogger(__name__)

# A limit that is raised moves no clock: a paused invocation is tried again at least this often.
LONGEST_POSTPONEMENT_S: Final = 60.0
_DEADLINE: Final = "The deadline of this runtime has passed; what was produced is in the log."


class Stop(Enum):
    """Why an attempt is stopped from outside, other than a failure."""

    CANCELLED = "cancelled"
    HANDED_OVER = "handed-over"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Ended:
    """What an attempt came to: the state it left, and the code of the canonical line."""

    state: State
    code: str = ""


@dataclass(frozen=True, slots=True)
class _Decision:
    """An ending that is decided: the state and its terminal event."""

    state: State
    event: bytes
    code: str = ""


class _HandedOver(Exception):
    """Leaves a runtime between two turns."""


class RunningAttempt:
    """One attempt in this process: its log, its account, its task.

    Args:
        is_held: Tells whether this process's lease is held.
        held: Waits until it is.
        usage_grace_s: How long a cancelled model call is read on for its usage.
        held_turn: The turn whose hold was made before the attempt began, if one was; if its model call never
            begins, nothing is charged for it.
    """

    def __init__(
        self,
        invocation: Invocation,
        given: InvocationInput,
        pen: AttemptLog,
        ledger: AttemptLedger,
        *,
        store: Store,
        now_ms: Callable[[], int],
        is_held: Callable[[], bool],
        held: Callable[[], Awaitable[None]],
        usage_grace_s: float,
        held_turn: int | None,
    ) -> None:
        self.invocation = invocation
        self.given = given
        self.pen = pen
        self.ledger = ledger
        self.log = pen.log
        self.started_at = asyncio.get_running_loop().time()
        self.first_frame_at: float | None = None
        self.refusal: HeadraceError | None = None
        self.stop: Stop | HeadraceError | None = None
        self.leave_between_turns = False
        self.cancel_reason = "requested"
        self.task: asyncio.Task[None]
        self._store = store
        self._now_ms = now_ms
        self._is_held = is_held
        self._held = held
        self._usage_grace_s = usage_grace_s
        self._held_turn = held_turn
        self._entered = False
        self._ending = False
        self._has_begun = False
        self._call: Call | None = None
        self._awaited: asyncio.Future[None] | None = None
        pen.on_first_frame(self._on_first_frame)

    # -- from outside

    async def begun(self, within_s: float) -> None:
        """Wait for the upstream's first frame or the end of the attempt, at most `within_s`.

        Raises:
            HeadraceError: It ended before the upstream said anything.
        """
        if not self._has_begun:
            loop = asyncio.get_running_loop()
            self._awaited = loop.create_future()
            timer = loop.call_later(within_s, self._release)
            try:
                await self._awaited
            finally:
                timer.cancel()
                self._awaited = None
        if self._has_begun and self.refusal is not None:
            raise self.refusal

    def interrupt(self, reason: Stop | HeadraceError) -> None:
        """Make the attempt end for `reason`; the first one stands, but what is fenced out ends at once."""
        fenced = reason is Stop.FENCED
        if (self._ending or self.stop is not None) and not (fenced and self.stop is not Stop.FENCED):
            return
        self.stop = reason
        if not self._entered:  # a task that is cancelled before its first step never takes one
            return
        if self._call is None or not self._call.reads_on(self.task, self.usage_grace_s()):
            self.task.cancel()

    def cancel(self, reason: str) -> None:
        """Make the attempt end as cancelled, for `reason`; the first reason to end stands."""
        if self.stop is None:
            self.cancel_reason = reason
        self.interrupt(Stop.CANCELLED)

    def mark_begun(self) -> None:
        """Release who waits for the beginning; called when the task has ended, too."""
        self._has_begun = True
        self._release()

    def _release(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def _on_first_frame(self) -> None:
        self.first_frame_at = asyncio.get_running_loop().time()
        self.mark_begun()

    # -- from inside: the `Effects` of its runtime

    @property
    def attempt(self) -> int:
        return self.invocation.attempt

    @property
    def deliver(self) -> Deliver:
        return self.pen.deliver

    def emit(self, events: Sequence[bytes]) -> None:
        self.pen.append(events)

    async def enter(self, phase: str, turn: int) -> None:
        self.log.phase, self.log.turn = phase, turn
        if phase == "model" and turn == self._held_turn:
            self._held_turn = None  # from here on the runtime settles it
        await self._held()

    def begin_call(self, call: Call) -> None:
        self._call = call

    def may_act(self) -> bool:
        return self._is_held()

    def reserve(self, turn: int, tokens: int) -> Awaitable[None]:
        return self.ledger.reserve(turn, tokens)

    def settle(self, turn: int, usage: Usage, messages: Sequence[Any]) -> Awaitable[None]:
        return self.ledger.settle(turn, usage, messages)

    def settle_at_end(self, turn: int, usage: Usage) -> None:
        if turn == self._held_turn:
            self._held_turn = None
        self.ledger.settle_at_end(turn, usage)

    def settle_noted(self, turn: int) -> Awaitable[None]:
        return self.ledger.settle_noted(turn)

    def ask(self, turn: int, model: str) -> None:
        self.ledger.ask(turn, model)

    def give_up(self, turn: int, code: str, usage: Usage) -> Awaitable[None]:
        return self.ledger.give_up(turn, code, usage)

    async def complete(self, turn: int, messages: Sequence[Any]) -> None:
        await self.ledger.complete(turn, messages)
        if self.leave_between_turns:
            raise _HandedOver

    def usage_grace_s(self) -> float:
        return self._usage_grace_s if self.stop is Stop.CANCELLED else 0.0

    def show(self, phase: str) -> None:
        self.log.phase = phase

    def remaining_s(self) -> float:
        return (self.invocation.deadline_at_ms - self._now_ms()) / 1000

    # -- the run

    async def run(self, runtime: Runtime | None) -> Ended:
        """Run to the end; `runtime` is None where only the ending is to be written.

        Raises:
            Exception: The store broke its contract: the invocation is still running as far as it knows.
        """
        self._entered = True
        try:
            decision = await self._decide(runtime)
            if self._held_turn is not None:
                self.ledger.settle_at_end(self._held_turn, Usage())
            return await self._end(decision)
        except Fenced:
            pass
        except asyncio.CancelledError:
            if self.stop is not Stop.FENCED:
                raise
        finally:
            self._call = None  # which refers to us: nothing is left to the garbage collector
            if not self.log.ended:
                self.log.move()
        logger.warning("attempt fenced", extra={"invocation_id": self.invocation.invocation_id})
        return Ended(State.RUNNING, "fenced")

    async def _decide(self, runtime: Runtime | None) -> "_Decision | QuotaExceeded | Stop":
        """Run the runtime and decide the ending; `QuotaExceeded` says: pause."""
        remaining_s, stop = self.remaining_s(), self.stop
        if stop is not None:
            return self._stopped()
        if runtime is None or remaining_s <= 0:
            return self._failed(DeadlineExceeded(_DEADLINE))
        deadline = asyncio.get_running_loop().call_later(remaining_s, self._pass_deadline)
        try:
            outcome = await runtime.run(self.given, self)
        except _HandedOver:
            return Stop.HANDED_OVER
        except asyncio.CancelledError:
            if self.stop is None:
                raise
            while self.task.uncancel():
                pass
            return self._stopped()
        except QuotaExceeded as refusal:
            may_wait = runtime.goes_on and refusal.is_retryable and self.ledger.refused is not None
            return refusal if may_wait else self._failed(refusal)
        except HeadraceError as failure:
            return self._failed(failure)
        except Fenced:
            raise
        except Exception:  # a runtime's own fault ends its invocation, never the process
            logger.exception("runtime failed", extra={"invocation_id": self.invocation.invocation_id})
            return self._failed(InternalError("The failure has been logged with this invocation's id."))
        finally:
            deadline.cancel()
        completed = {"stopReason": outcome.stop_reason, "usage": self.ledger.total.as_json()}
        return _Decision(State.COMPLETED, encode("invocationCompleted", completed))

    def _pass_deadline(self) -> None:
        self.interrupt(DeadlineExceeded(_DEADLINE))

    def _stopped(self) -> "_Decision | Stop":
        """Decide for an attempt that was stopped from outside."""
        if self.stop is Stop.CANCELLED:
            cancelled = {"reason": self.cancel_reason, "usage": self.ledger.total.as_json()}
            return _Decision(State.CANCELLED, encode("invocationCancelled", cancelled), "cancelled")
        if isinstance(self.stop, HeadraceError):
            return self._failed(self.stop)
        return self.stop or Stop.FENCED

    def _failed(self, failure: HeadraceError) -> _Decision:
        """Decide for an attempt that failed; before the first frame it is a refusal too."""
        if self.first_frame_at is None:
            self.refusal = failure
        event = encode("invocationFailed", {"problem": self._problem(failure)})
        return _Decision(State.FAILED, event, failure.code)

    def _problem(self, failure: HeadraceError) -> dict[str, Any]:
        invocation = self.invocation
        return failure.problem(
            instance=f"/runtimes/{invocation.runtime_id}/invocations/{invocation.invocation_id}",
            invocationId=invocation.invocation_id,
        )

    # -- the end

    async def _end(self, decision: "_Decision | QuotaExceeded | Stop") -> Ended:
        """Write what was decided, then show it."""
        self._ending = True
        if decision is Stop.FENCED:
            raise Fenced
        await self._held()
        if isinstance(decision, _Decision):
            return await self._finish(decision)
        if isinstance(decision, QuotaExceeded):
            return await self._pause(decision)
        return await self._hand_over()

    async def _finish(self, decision: _Decision) -> Ended:
        self.log.phase = "committing"
        block = await self._last_block(decision.event)
        ending = Ending(
            invocation_id=self.invocation.invocation_id,
            attempt=self.invocation.attempt,
            state=decision.state,
            block=block,
            settlements=self.ledger.unwritten,
        )
        await persist(lambda: self._store.finish(ending, self._now_ms()))
        self._show(block, ended=True)
        return Ended(decision.state, decision.code)

    async def _pause(self, refusal: QuotaExceeded) -> Ended:
        """Wait for quota without a process: between two turns all that a later attempt needs is stored."""
        turn, tokens = self.ledger.refused or (1, 0)
        resumes_at_ms = self._now_ms() + int((refusal.retry_after_s or 0) * 1000)
        paused = {"problem": self._problem(refusal), "resumesAt": timestamp(resumes_at_ms)}
        block = await self._last_block(encode("invocationPaused", paused))
        pause = Pause(
            invocation_id=self.invocation.invocation_id,
            attempt=self.invocation.attempt,
            block=block,
            turn=turn,
            tokens=tokens,
            resumes_at_ms=resumes_at_ms,
        )
        await persist(lambda: self._store.pause(pause, self._now_ms()))
        self._show(block, ended=False)
        look_at_ms = self._now_ms() + int(LONGEST_POSTPONEMENT_S * 1000)
        if look_at_ms < resumes_at_ms:
            with suppress(StoreUnavailable):  # then it is looked at when there may be room, and not before
                await self._store.postpone(pause.invocation_id, pause.attempt, look_at_ms)
        return Ended(State.PAUSED, refusal.code)

    async def _hand_over(self) -> Ended:
        """Leave the invocation to the next attempt; what was used of an unfinished turn is not charged."""
        await self.pen.take()  # what is not stored by now is void
        given = HandOver(
            invocation_id=self.invocation.invocation_id,
            attempt=self.invocation.attempt,
            settlements=tuple(replace(settlement, charged=False) for settlement in self.ledger.unwritten),
        )
        await persist(lambda: self._store.hand_over(given, self._now_ms()))
        return Ended(State.RUNNING, Stop.HANDED_OVER.value)

    async def _last_block(self, event: bytes) -> Block:
        """Return what is not stored yet, with `event` behind it."""
        rest = await self.pen.take()
        last = self.pen.number([event])
        return last if rest is None else Block(last.attempt, rest.first_seq, rest.events + last.events)

    def _show(self, block: Block, *, ended: bool) -> None:
        self.log.mark_stored(block.last)
        self.log.publish(block.attempt, block.last.seq, block.events[-1:], ended=ended)
