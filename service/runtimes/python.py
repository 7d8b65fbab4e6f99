"""The `python` runtime: a deployer's own async generator, run in a thread of its own and metered like ours.

    the service's loop                                     the runtime's loop ("there"): its author's code
    run ── begin ────────────────────────────────────────> async for piece in agent(invocation)
    log <── Outbox, a batch ────────────────────────────── frames of what it yields      (`python_output`)
    ModelCalls <── begin ───────────────────────────────── invocation.model().converse() (`python_agent`)
         └──── CallStream, a batch ──────────────────────>
    run <── how it ended ─────────────────────────────────

`runner` calls it, `app` gives it the loop (`agent_loops`) and the function that `load_agent` found. An agent
that blocks its loop delays the other invocations of its runtime, and nothing else
(docs/decisions/0016-python-agents.md).

Invariants: nothing that an agent yields after it was cancelled, or after its run has ended, is written; a run
ends at the latest `cleanup_s` after its agent was told to, whether the agent did or not; every model call is
settled by then. Nothing is kept from one attempt for the next: a `restartable` agent begins anew, and any
other is not run twice.
"""

import asyncio
import importlib
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from service.config import ConfigError, RuntimeConfig
from service.errors import AgentFailed, Fenced, HeadraceError, OutcomeUnknown, log_fields_of
from service.ledger import input_bound_tokens
from service.models import Model
from service.runtimes import Effects, InvocationInput, Outcome
from service.runtimes.python_agent import AgentInvocation
from service.runtimes.python_bridge import Outbox, post
from service.runtimes.python_calls import PHASE, ModelCalls
from service.runtimes.python_output import BadOutput, Output
from service.watchdog import AGENT_TASK

logger = logging.getLogger(__name__)

Agent = Callable[[AgentInvocation], AsyncGenerator[Any]]


class PythonRuntime:
    """A runtime whose agent is a deployer's own async generator.

    Args:
        upstreams: The model backends, by name.
        loop: Where the agent runs; may be the service's own, in tests.
        usage_grace_s: How long a model call that its agent has left is read on for its usage.
    """

    goes_on = False  # a generator can't be stopped here and go on there, so it does not wait for quota

    def __init__(
        self,
        config: RuntimeConfig,
        agent: Agent,
        upstreams: Mapping[str, Model],
        loop: asyncio.AbstractEventLoop,
        *,
        usage_grace_s: float,
    ) -> None:
        self._config = config
        self._agent = agent
        self._upstreams = upstreams
        self._loop = loop
        self._usage_grace_s = usage_grace_s

    def first_reservation_tokens(self, given: InvocationInput) -> int:
        """Return the hold of a call with the submitted messages alone; more is known when one is made."""
        return input_bound_tokens("", given.messages, ()) + given.max_tokens if self._config.models else 0

    async def run(self, given: InvocationInput, effects: Effects) -> Outcome:
        """Run the agent to its end.

        Raises:
            OutcomeUnknown: An earlier attempt may have run it, and it is not `restartable`.
            AgentFailed: It raised, or yielded what it may not.
            HeadraceError: A model call failed, or had no room, and the agent did not catch it.
            Fenced: Another attempt has taken over.
        """
        if effects.attempt > 1 and not self._config.restartable:
            raise OutcomeUnknown(
                "The agent ran, or was about to, when its process went away. Its runtime is not marked"
                " restartable, so it was not run again: find out what it did, then submit again."
            )
        await effects.enter(PHASE, 0)
        held_tokens = self.first_reservation_tokens(given) if effects.attempt == 1 else 0
        calls = ModelCalls(
            self._config,
            self._upstreams,
            given,
            effects,
            held_tokens=held_tokens,
            usage_grace_s=self._usage_grace_s,
        )
        return await _Run(self._config, self._agent, self._loop, given, effects, calls).whole()


class _Run:
    """One run of an agent; made and awaited in the service's loop, driven in the agent's."""

    def __init__(
        self,
        config: RuntimeConfig,
        agent: Agent,
        there: asyncio.AbstractEventLoop,
        given: InvocationInput,
        effects: Effects,
        calls: ModelCalls,
    ) -> None:
        here = asyncio.get_running_loop()
        self._config = config
        self._agent = agent
        self._here, self._there = here, there
        self._given = given
        self._calls = calls
        self._outbox = Outbox(here, there, effects.deliver, calls.show)
        self._invocation = AgentInvocation(
            config, given, effects.attempt, effects.remaining_s, self._outbox, calls, here
        )
        self._result: asyncio.Future[Outcome | BaseException] = here.create_future()
        self._left: asyncio.Future[None] = here.create_future()
        self._task: asyncio.Task[None] | None = None  # of `there`
        self._stopped = False

    # -- here

    async def whole(self) -> Outcome:
        """Run the agent; returns or raises once it has left, or had the time for it."""
        post(self._there, self._begin)
        try:
            either: list[asyncio.Future[Any]] = [self._result, self._calls.fenced]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._outbox.close()
            await self._end(stop=True)
            raise
        if not self._result.done():
            self._outbox.close()
            await self._end(stop=True)
            raise Fenced
        self._outbox.flush()
        self._outbox.close()
        await self._end(stop=False)
        result = self._result.result()
        if isinstance(result, Outcome):
            return result
        if told := _told_in(result, self._calls.told):
            raise told from None
        raise self._failure(result) from result

    async def _end(self, *, stop: bool) -> None:
        """End the agent and its model calls; what does not end is left behind, and can write no more."""
        # First: an agent that is told to stop leaves its calls, which are then to be over already.
        closing = asyncio.ensure_future(self._calls.aclose(stopped=stop))
        if stop:
            post(self._there, self._stop)
        try:
            if not self._left.done():
                await asyncio.wait([self._left], timeout=self._config.cleanup_s)
            await asyncio.shield(closing)
        finally:
            if not closing.done():  # told twice to end
                closing.cancel()
                await asyncio.wait([closing])
            if not self._left.done():
                post(self._there, self._stop)
                logger.error(
                    "agent does not end", extra=self._fields() | {"cleanup_s": self._config.cleanup_s}
                )

    def _failure(self, error: BaseException) -> HeadraceError:
        """Return what an agent's failure is to its caller; what only its author may see is logged."""
        if isinstance(error, BadOutput):
            logger.error("agent failed", extra=self._fields() | {"reason": str(error)})
            return AgentFailed(f"The agent is at fault: {error}.")
        logger.error("agent failed", extra=self._fields() | log_fields_of(error))
        return AgentFailed("The failure has been logged with this invocation's id.")

    def _fields(self) -> dict[str, Any]:
        return {"runtime_id": self._given.runtime_id, "invocation_id": self._given.invocation_id}

    # -- there

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._drive(), name=AGENT_TASK + self._given.invocation_id
        )
        # Cancelled before its first step it runs none of `_drive`, and has left all the same.
        self._task.add_done_callback(lambda _: post(self._here, _set, self._left, None))

    def _stop(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def _drive(self) -> None:
        """Iterate the agent. The edge of its author's code: whatever it raises is how the run ended."""
        output = Output()
        pieces = self._agent(self._invocation)
        try:
            async for piece in pieces:
                room = self._outbox.put(output.frames(piece))
                if room is not None:
                    await room
                if self._stopped:  # it goes on, though it was told to end
                    break
            self._outbox.put(output.end())
            result: Outcome | BaseException = Outcome(output.stop_reason)
        except BaseException as error:  # noqa: BLE001  its author's may be anything, SystemExit too
            result = error
        post(self._here, _set, self._result, result)
        try:
            await pieces.aclose()
        except BaseException as error:  # noqa: BLE001  the same
            logger.warning("agent's cleanup failed", extra=self._fields() | log_fields_of(error))


def _told_in(error: BaseException, told: Sequence[HeadraceError]) -> HeadraceError | None:
    """Return which of the errors that an agent was told this one is, was raised from, or has in its group."""
    looked_at: list[BaseException] = [error]
    for each in looked_at:  # which grows meanwhile
        if found := next((one for one in told if one is each), None):
            return found
        within = [each.__cause__, *(each.exceptions if isinstance(each, BaseExceptionGroup) else ())]
        looked_at += [
            one for one in within if one is not None and all(one is not other for other in looked_at)
        ]
    return None


def _set(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def load_agent(entry: str) -> Agent:
    """Import the agent that `entry` names as "package.module:function".

    Raises:
        ConfigError: It can't be imported, or is no async generator function of one argument.
    """
    module_name, _, function_name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the deployer's module, which may raise anything
        raise ConfigError([f"{entry} can't be imported: {type(error).__name__}: {error}"]) from error
    found: Any = getattr(module, function_name, None)
    fault = f"is not there: {module_name} has no {function_name}" if found is None else _fault(found)
    if fault is not None:
        raise ConfigError([f"{entry} {fault}"])
    agent: Agent = found
    return agent


def _fault(found: Any) -> str | None:
    """Say why something is no agent; None if it is one."""
    if not callable(found):
        return f"is no function but a value of type {type(found).__name__}"
    if inspect.isgeneratorfunction(found):
        return "is a generator, but a synchronous one, which stops others while it waits: write async def"
    if inspect.iscoroutinefunction(found):
        return "is a coroutine function that yields nothing: yield what the agent says, piece by piece"
    if not inspect.isasyncgenfunction(found):
        return "is no async generator function: write async def, and yield what the agent says"
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        return "must take one argument, the invocation"
    return None
