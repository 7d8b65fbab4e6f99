"""The runner owns running attempts: each is a task that no HTTP request owns.

    api.submit ──start──> RunningAttempt.run ──> ended, paused, handed over or fenced
    takeover ──take_over──┘      ^ cancel, drain, a lapsed lease

`api` starts first attempts, `takeover` further ones, `app` drains them. `attempt` says how one ends.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from service.attempt import Ended, RunningAttempt, Stop
from service.config import RuntimeConfig, ServiceConfig
from service.errors import Draining, HeadraceError, Overloaded
from service.events import encode, started
from service.invocations import Invocation, State
from service.leases import Lease
from service.ledger import AttemptLedger
from service.log import AttemptLog, GroupCommit, Log
from service.policies import PolicyWatch
from service.runtimes import InvocationInput, Runtime
from service.stores import Store
from service.timeouts import Timeouts

logger = logging.getLogger(__name__)

HAND_OVER_GRACE_S: Final = 5.0
DEADLINE_TICK_S: Final = 1 / 16
# One principal may have at most this many times as much of a process as is free (alone, four fifths of it),
# so no process fills up with one principal's work. Dynamic thresholds: https://doi.org/10.1109/90.664262
FAIR_SHARE: Final = 4


class Runner:
    """The attempts of this process."""

    def __init__(
        self,
        store: Store,
        runtimes: Mapping[str, Runtime],
        config: ServiceConfig,
        lease: Lease,
        policies: PolicyWatch,
        *,
        now_ms: Callable[[], int],
        on_attempt_finished: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._runtimes = runtimes
        self._config = config
        self._lease = lease
        self._policies = policies
        self._now_ms = now_ms
        # Bound here, once: each attempt keeps them for as long as it runs.
        self._is_held, self._held, self._limits_of = lease.is_held, lease.held, policies.limits_of
        self._on_attempt_finished = on_attempt_finished
        self._running: dict[str, RunningAttempt] = {}
        self._deadlines = Timeouts(DEADLINE_TICK_S)
        self._admitting = 0
        self._by_principal: Counter[str] = Counter()  # running and being admitted
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._leave_between_turns = False
        self._stop: Stop | None = None
        self.busy_changed_at_s = now_ms() / 1000
        self.commit = GroupCommit(store, now_ms, self._fence, unstored_bytes=config.unstored_bytes)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def attempts(self) -> dict[str, int]:
        """What runs here: invocation id -> attempt."""
        return {invocation_id: running.invocation.attempt for invocation_id, running in self._running.items()}

    @property
    def invocation_ids(self) -> frozenset[str]:
        """What runs here: the same without a look at each attempt."""
        return frozenset(self._running)

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def free(self) -> int:
        """How many more invocations may run here now."""
        if self._draining or self.commit.is_full:
            return 0
        return max(0, self._config.running_invocations - len(self._running) - self._admitting)

    def own_log(self, invocation_id: str) -> Log | None:
        """Return the log of an invocation that runs here."""
        running = self._running.get(invocation_id)
        return running.log if running is not None else None

    # -- room

    def check_room(self, sub: str) -> None:
        """Shed before any work is done.

        Raises:
            Draining: This process is going away.
            Overloaded: It runs `running_invocations` already, or too many of them are this principal's, or
                the store is too far behind, or has not renewed its lease in time.
        """
        if self._draining:
            raise Draining("Submit again in a moment: another process answers.", retry_after_s=1)
        if not self._lease.is_held():
            raise Overloaded("This process has to renew its lease first: try again.", retry_after_s=1)
        if self.commit.is_full:
            raise Overloaded("The store is behind: try again.", retry_after_s=5)
        if not self.free:
            raise Overloaded("Too many invocations run here: try again.", retry_after_s=1)
        if self._by_principal[sub] >= FAIR_SHARE * self.free:
            raise Overloaded("Most of what runs here is yours: try again.", retry_after_s=1)

    @contextmanager
    def room(self, sub: str) -> Iterator[None]:
        """Keep room for an invocation that is admitted and started in this block; a drain waits for it.

        Raises:
            Draining, Overloaded: As `check_room`.
        """
        self.check_room(sub)
        self._admitting += 1
        self._count(sub, 1)
        self._idle.clear()
        try:
            yield
        finally:
            self._admitting -= 1
            self._count(sub, -1)
            self._note_idle()

    def _count(self, sub: str, change: int) -> None:
        self._by_principal[sub] += change
        if not self._by_principal[sub]:
            del self._by_principal[sub]

    # -- start

    def start(self, invocation: Invocation, given: InvocationInput, runtime: RuntimeConfig) -> RunningAttempt:
        """Start the first attempt of an admitted invocation."""
        first = started(invocation.invocation_id, invocation.runtime_id, invocation.models)
        return self._start(invocation, given, _model_of(runtime), [first], held_turn=1)

    def take_over(
        self,
        invocation: Invocation,
        given: InvocationInput,
        runtime: RuntimeConfig | None,
        *,
        stop: Stop | HeadraceError | None = None,
        resumed_turn: int | None = None,
    ) -> RunningAttempt:
        """Start a further attempt of an invocation that this process has claimed.

        Args:
            stop: Why it only writes the ending; needed where the runtime is no longer served (None).
            resumed_turn: The turn that is held for already, of an invocation that was paused.
        """
        restarted = {"attempt": invocation.attempt, "rewindTo": str(invocation.rewind_to)}
        first = [encode("attemptRestarted", restarted)]
        if resumed_turn is not None:
            first.append(encode("invocationResumed", {"attempt": invocation.attempt}))
        model = _model_of(runtime)
        return self._start(invocation, given, model, first, held_turn=resumed_turn, stop=stop)

    def _start(
        self,
        invocation: Invocation,
        given: InvocationInput,
        model: str,
        first: list[bytes],
        *,
        held_turn: int | None,
        stop: Stop | HeadraceError | None = None,
    ) -> RunningAttempt:
        loop = asyncio.get_running_loop()
        started_at = loop.time() - (self._now_ms() - invocation.created_at_ms) / 1000
        log = Log(head=invocation.rewind_to, started_at=started_at)
        pen = AttemptLog(log, invocation.invocation_id, invocation.attempt, self.commit, self._is_held)
        ledger = AttemptLedger(
            self._store,
            pen,
            invocation,
            model,
            partial(self._limits_of, given.sub, given.groups),
            now_ms=self._now_ms,
            held=self._held,
        )
        running = RunningAttempt(
            invocation,
            given,
            pen,
            ledger,
            store=self._store,
            now_ms=self._now_ms,
            is_held=self._is_held,
            held=self._held,
            deadlines=self._deadlines,
            usage_grace_s=self._config.usage_grace_s,
            held_turn=held_turn,
        )
        pen.append(first)
        if not self._running:
            self.busy_changed_at_s = self._now_ms() / 1000
        # An attempt of ours that others have claimed meanwhile.
        self._fence(invocation.invocation_id, invocation.attempt - 1)
        self._running[invocation.invocation_id] = running
        self._count(invocation.sub, 1)
        self._idle.clear()
        running.stop = stop or self._stop
        running.leave_between_turns = self._leave_between_turns
        running.task = loop.create_task(self._attempt(running))
        return running

    async def _attempt(self, running: RunningAttempt) -> None:
        """Run one attempt to its end. The edge of every job: nothing that it raises gets past here."""
        invocation = running.invocation
        ended = Ended(State.RUNNING, "unfinished")
        try:
            ended = await running.run(self._runtimes.get(invocation.runtime_id))
        except Exception:  # the store broke its contract: `takeover` claims what nobody runs any more
            logger.exception(
                "attempt could not be finished", extra={"invocation_id": invocation.invocation_id}
            )
        finally:
            if self._running.get(invocation.invocation_id) is running:
                del self._running[invocation.invocation_id]
            self._count(invocation.sub, -1)
            if not self._running:
                self.busy_changed_at_s = self._now_ms() / 1000
            self._note_idle()
            running.mark_begun()
            self._on_attempt_finished(self._line(running, ended))

    def _line(self, running: RunningAttempt, ended: Ended) -> dict[str, Any]:
        invocation, usage = running.invocation, running.ledger.total
        now = asyncio.get_running_loop().time()
        first_s = running.first_frame_at
        return {
            "invocation_id": invocation.invocation_id,
            "runtime_id": invocation.runtime_id,
            "sub": invocation.sub,
            "attempt": invocation.attempt,
            "state": str(ended.state),
            "code": ended.code,
            "turns": running.log.turn,
            "events": running.log.head.seq,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "estimated": usage.estimated,
            "tried": [tried._asdict() for tried in running.ledger.tried],
            "first_frame_ms": round((first_s - running.started_at) * 1000) if first_s is not None else None,
            "duration_ms": round((now - running.started_at) * 1000),
        }

    # -- stop

    def cancel(self, invocation_id: str, reason: str) -> None:
        """Cancel an invocation if it runs here; `reason` is `requested`, `abandoned` or `denied`."""
        running = self._running.get(invocation_id)
        if running is not None:
            running.cancel(reason)

    def cancel_denied(self) -> None:
        """Cancel what runs here of principals, or of sign-ins, that are denied."""
        for running in tuple(self._running.values()):
            if self._policies.refusal(running.given.sub, running.given.origin_jti) is not None:
                running.cancel("denied")

    def regained(self, lost: Mapping[str, int]) -> None:
        """Drop the attempts that were claimed while the lease had lapsed, and let the rest go on."""
        for invocation_id, running in tuple(self._running.items()):
            if lost.get(invocation_id) == running.invocation.attempt:
                running.interrupt(Stop.FENCED)
            else:
                running.pen.catch_up()

    def _fence(self, invocation_id: str, attempt: int) -> None:
        """Drop this attempt, or an earlier one; a later one of ours is no less good for it."""
        running = self._running.get(invocation_id)
        if running is not None and running.invocation.attempt <= attempt:
            running.interrupt(Stop.FENCED)

    def refuse_new(self) -> None:
        """Admit nothing any more."""
        self._draining = True

    async def drain(self, within_s: float) -> None:
        """Let attempts finish for `within_s`, then hand the rest over; returns when none is left.

        From half of the time on an attempt leaves after its current turn, where nothing is lost.
        """
        self.refuse_new()
        if await self._idle_within(within_s / 2):
            return
        self._leave_between_turns = True
        for running in self._running.values():
            running.leave_between_turns = True
        if await self._idle_within(within_s / 2):
            return
        self._stop = Stop.HANDED_OVER
        for running in self._running.values():
            running.interrupt(self._stop)
        if not await self._idle_within(HAND_OVER_GRACE_S):
            for running in self._running.values():  # the lease is given back: others claim them all the same
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


def _model_of(runtime: RuntimeConfig | None) -> str:
    """Return the model that the usage record of a call names which has asked none."""
    return str(runtime.route[0]) if runtime is not None and runtime.route else ""
