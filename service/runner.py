"""The runner owns running attempts: each is a task that no HTTP request owns.

    start ─> runtime.run ─> ending decided ─> finish committed ─> terminal event published
               │  deadline, drain: cancelled, settled, then finished like every other ending

`api` starts attempts and asks for their logs, `app` drains them. It calls a `Runtime`, gives it
its `Effects`, and ends every invocation with exactly one terminal event, which nobody sees before the store
has it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from service.config import Limits, RuntimeConfig, ServiceConfig
from service.errors import (
    DeadlineExceeded,
    Draining,
    Fenced,
    HeadraceError,
    InternalError,
    Interrupted,
    Overloaded,
)
from service.events import Block, encode
from service.invocations import Invocation, State, Usage
from service.ledger import AttemptLedger, persist
from service.log import AttemptLog, GroupCommit, Log
from service.runtimes import Effects, InvocationInput, Runtime
from service.stores import Ending, Store

logger = logging.getLogger(__name__)

INTERRUPT_GRACE_S: Final = 5.0


class RunningAttempt:
    """One attempt in this process: its log, its account, its task."""

    def __init__(
        self,
        invocation: Invocation,
        given: InvocationInput,
        pen: AttemptLog,
        ledger: AttemptLedger,
        *,
        started_at: float,
    ) -> None:
        self.invocation = invocation
        self.given = given
        self.pen = pen
        self.ledger = ledger
        self.log = pen.log
        self.started_at = started_at
        self.first_frame_at: float | None = None
        self.refusal: HeadraceError | None = None
        self.stop: HeadraceError | None = None
        self.entered = False
        self.ending = False
        self.task: asyncio.Task[None]
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pen.on_first_frame(self._on_first_frame)

    async def begun(self, within_s: float) -> None:
        """Wait for the upstream's first frame or the end of the attempt, at most `within_s`.

        Raises:
            HeadraceError: It ended before the upstream said anything.
        """
        await asyncio.wait([self._begun], timeout=within_s)
        if self._begun.done() and self.refusal is not None:
            raise self.refusal

    def interrupt(self, reason: HeadraceError) -> None:
        """Make the attempt end with `reason`; one whose ending is decided already keeps it."""
        if self.ending:
            return
        self.stop = reason
        if self.entered:  # a task that is cancelled before its first step never takes one
            self.task.cancel()

    def mark_ended(self) -> None:
        """Release who waits for the beginning; called when the task has ended."""
        if not self._begun.done():
            self._begun.set_result(None)

    def _on_first_frame(self) -> None:
        self.first_frame_at = asyncio.get_running_loop().time()
        self.mark_ended()

    def effects(self) -> Effects:
        """Return what the runtime may do."""
        return Effects(
            attempt=self.invocation.attempt,
            emit=self._emit,
            deliver=self.pen.deliver,
            enter=self._enter,
            reserve=self.ledger.reserve,
            settle=self.ledger.settle,
            settle_at_end=self.ledger.settle_at_end,
            complete=self.ledger.complete,
        )

    def _emit(self, events: Any) -> None:
        self.pen.append(events)

    def _enter(self, phase: str, turn: int) -> None:
        self.log.phase, self.log.turn = phase, turn


class Runner:
    """The attempts of this process."""

    def __init__(
        self,
        store: Store,
        runtimes: Mapping[str, Runtime],
        config: ServiceConfig,
        *,
        now_ms: Callable[[], int],
        on_attempt_finished: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._runtimes = runtimes
        self._config = config
        self._now_ms = now_ms
        self._on_attempt_finished = on_attempt_finished
        self._running: dict[str, RunningAttempt] = {}
        self._admitting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._stop: HeadraceError | None = None
        self.busy_changed_at_s = now_ms() / 1000
        self.commit = GroupCommit(store, now_ms, self._on_fenced)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def running_ids(self) -> frozenset[str]:
        return frozenset(self._running)

    def own_log(self, invocation_id: str) -> Log | None:
        """Return the log of an invocation that runs here."""
        running = self._running.get(invocation_id)
        return running.log if running is not None else None

    def check_room(self) -> None:
        """Shed before any work is done.

        Raises:
            Draining: This process is going away.
            Overloaded: It runs `running_invocations` already.
        """
        if self._draining:
            raise Draining("Submit again in a moment: another process answers.", retry_after_s=1)
        if len(self._running) + self._admitting >= self._config.running_invocations:
            raise Overloaded("Too many invocations run here: try again.", retry_after_s=1)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keep room for an invocation that is admitted and started in this block; a drain waits for it.

        Raises:
            Draining, Overloaded: As `check_room`.
        """
        self.check_room()
        self._admitting += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._admitting -= 1
            self._note_idle()

    def start(
        self, invocation: Invocation, given: InvocationInput, runtime: RuntimeConfig, limits: Limits
    ) -> RunningAttempt:
        """Start the first attempt of an admitted invocation."""
        started = {
            "invocationId": invocation.invocation_id,
            "runtimeId": invocation.runtime_id,
            "attempt": invocation.attempt,
        }
        return self._start(invocation, given, runtime, limits, encode("invocationStarted", started))

    def _start(
        self,
        invocation: Invocation,
        given: InvocationInput,
        runtime: RuntimeConfig,
        limits: Limits,
        first_event: bytes,
    ) -> RunningAttempt:
        loop = asyncio.get_running_loop()
        log = Log(started_at=loop.time() - (self._now_ms() - invocation.created_at_ms) / 1000)
        pen = AttemptLog(log, invocation.invocation_id, invocation.attempt, self.commit)
        ledger = AttemptLedger(self._store, pen, invocation, runtime.model, limits, self._now_ms)
        running = RunningAttempt(invocation, given, pen, ledger, started_at=loop.time())
        pen.append([first_event])
        if not self._running:
            self.busy_changed_at_s = self._now_ms() / 1000
        self._running[invocation.invocation_id] = running
        self._idle.clear()
        running.stop = self._stop
        running.task = loop.create_task(self._attempt(running))
        return running

    async def _attempt(self, running: RunningAttempt) -> None:
        """Run one attempt to its end. The edge of every job: nothing that it raises gets past here."""
        running.entered = True
        invocation_id = running.invocation.invocation_id
        state, code = State.RUNNING, "unfinished"
        try:
            if running.stop is not None:
                running.ledger.settle_at_end(1, Usage())  # admission's hold: no call was made
                decided, event, failure_code = _failed(running, running.stop)
            else:
                decided, event, failure_code = await self._run(running)
            await self._finish(running, decided, event)
            state, code = decided, failure_code
        except Fenced:
            code = "fenced"
            running.log.fenced = True
            logger.warning("attempt fenced", extra={"invocation_id": invocation_id})
        except Exception:  # the store broke its contract: `leases` ends what nobody runs any more
            running.log.fenced = True
            logger.exception("attempt could not be finished", extra={"invocation_id": invocation_id})
        finally:
            del self._running[invocation_id]
            if not self._running:
                self.busy_changed_at_s = self._now_ms() / 1000
            self._note_idle()
            running.mark_ended()
            self._on_attempt_finished(self._line(running, state, code))

    async def _run(self, running: RunningAttempt) -> tuple[State, bytes, str]:
        """Run the runtime and decide the ending."""
        invocation = running.invocation
        remaining_s = (invocation.deadline_at_ms - self._now_ms()) / 1000
        failure: HeadraceError
        deadline = asyncio.timeout(remaining_s)
        try:
            async with deadline:
                runtime = self._runtimes[invocation.runtime_id]
                outcome = await runtime.run(running.given, running.effects())
        except HeadraceError as error:
            failure = error
        except asyncio.CancelledError:
            if running.stop is None:
                raise
            running.task.uncancel()
            failure = running.stop
        except Fenced:
            raise
        except Exception as error:  # a runtime's own fault ends its invocation, never the process
            if deadline.expired() and isinstance(error, TimeoutError):
                failure = DeadlineExceeded(
                    "The deadline of this runtime has passed; what was produced is in the log."
                )
            else:
                logger.exception("runtime failed", extra={"invocation_id": invocation.invocation_id})
                failure = InternalError("The failure has been logged with this invocation's id.")
        else:
            completed = {"stopReason": outcome.stop_reason, "usage": running.ledger.total.as_json()}
            return State.COMPLETED, encode("invocationCompleted", completed), ""
        return _failed(running, failure)

    async def _finish(self, running: RunningAttempt, state: State, event: bytes) -> None:
        """Commit the ending, then show it."""
        running.ending = True
        running.log.phase = "committing"
        rest = await running.pen.take()
        last = running.pen.number([event])
        block = last if rest is None else Block(last.attempt, rest.first_seq, rest.events + last.events)
        ending = Ending(
            invocation_id=running.invocation.invocation_id,
            attempt=running.invocation.attempt,
            state=state,
            block=block,
            settlements=running.ledger.unwritten,
        )
        await persist(lambda: self._store.finish(ending, self._now_ms()))
        running.log.mark_stored(last.last)
        running.log.publish(last, ended=True)

    def _line(self, running: RunningAttempt, state: State, code: str) -> dict[str, Any]:
        invocation, usage = running.invocation, running.ledger.total
        now = asyncio.get_running_loop().time()
        first_s = running.first_frame_at
        return {
            "invocation_id": invocation.invocation_id,
            "runtime_id": invocation.runtime_id,
            "sub": invocation.sub,
            "attempt": invocation.attempt,
            "state": str(state),
            "code": code,
            "turns": running.log.turn,
            "events": running.log.head.seq,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "estimated": usage.estimated,
            "first_frame_ms": round((first_s - running.started_at) * 1000) if first_s is not None else None,
            "duration_ms": round((now - running.started_at) * 1000),
        }

    def _on_fenced(self, invocation_id: str) -> None:
        running = self._running.get(invocation_id)
        if running is not None:
            running.log.fenced = True
            running.interrupt(Interrupted())

    def refuse_new(self) -> None:
        """Admit nothing any more."""
        self._draining = True

    async def drain(self, within_s: float) -> None:
        """Let attempts finish for `within_s`, then interrupt the rest; returns when none is left."""
        self.refuse_new()
        if await self._idle_within(within_s):
            return
        self._stop = Interrupted("The process was stopped. Submit it again.")
        for running in self._running.values():
            running.interrupt(self._stop)
        if not await self._idle_within(INTERRUPT_GRACE_S):
            for running in self._running.values():
                running.task.cancel()

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _note_idle(self) -> None:
        if not self._running and not self._admitting:
            self._idle.set()


def _failed(running: RunningAttempt, failure: HeadraceError) -> tuple[State, bytes, str]:
    """Return the ending of an attempt that failed; before the first frame it is a refusal too."""
    if running.first_frame_at is None:
        running.refusal = failure
    invocation = running.invocation
    problem = failure.problem(
        instance=f"/runtimes/{invocation.runtime_id}/invocations/{invocation.invocation_id}",
        invocationId=invocation.invocation_id,
    )
    return State.FAILED, encode("invocationFailed", {"problem": problem}), failure.code
