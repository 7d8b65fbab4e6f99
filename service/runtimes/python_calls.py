"""The model calls of one python agent, in the service's thread: each a turn, held, made, settled like ours.

    agent: converse() ──> begin ─> hold ─> `metered.ModelCall` ─> noted ─> written ─> the agent's stream ends
    agent: leaves it  ──> leave ─> read on for its usage, noted, written

`runtimes.python` makes one `ModelCalls` a run; `python_agent` asks it, by `python_bridge.post`. Calls may run
beside one another: each has a turn, a hold and a settlement of its own, written as soon as it is over, so
that the agent's next call finds the room that is really there. What is not written when the run ends is in
the ending: a bounded part, since of more than `CALLS_AT_ONCE` the others wait.

A hold that admission made is used by the first call if that fits into it, else given back before the call's
own is made. Nothing here stores a turn: a later attempt of an agent begins anew.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.config import RuntimeConfig
from service.errors import Fenced, HeadraceError, InternalError, TurnsExhausted
from service.invocations import Usage
from service.ledger import fixed_bound_tokens, messages_bound_tokens
from service.models import CALL_METADATA, Model, ModelRequest
from service.runtimes import Effects, InvocationInput
from service.runtimes.heard import Heard
from service.runtimes.metered import ModelCall
from service.runtimes.python_bridge import CallStream

logger = logging.getLogger(__name__)

PHASE: Final = "agent"
# One transaction must be able to settle what is open: of 92 calls its condition would be over 4,096 bytes.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
CALLS_AT_ONCE: Final = 32


class InvocationOver(Exception):
    """The invocation has ended, or was stopped: its agent may call no model any more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an agent asks of a model; all of it its own copy."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    system: str
    tools: Sequence[Mapping[str, Any]]
    max_tokens: int


class _Making:
    """One call of the agent, from its beginning to its settlement; cut at most once."""

    __slots__ = ("_is_cut", "call", "task")

    def __init__(self) -> None:
        self._is_cut = False
        self.call: ModelCall | None = None
        self.task: asyncio.Task[None]

    def cut(self, grace_s: float) -> None:
        """End it, if it was sent to its model once it was read on; the second time does nothing."""
        if not self._is_cut:
            self._is_cut = True
            if self.call is None or not self.call.reads_on(self.task, grace_s):
                self.task.cancel()


class ModelCalls:
    """The model calls of one run.

    Args:
        held_tokens: The hold of turn 1 that admission has made; 0 if it made none.
        usage_grace_s: How long a call that its agent has left is read on for its usage.

    Attributes:
        fenced: Done when another attempt has taken over.
        told: The errors that the agent was told of: ours, if they come back out of it.
        phase: What heartbeats say while no model is called.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        upstreams: Mapping[str, Model],
        given: InvocationInput,
        effects: Effects,
        *,
        held_tokens: int,
        usage_grace_s: float,
    ) -> None:
        self._config = config
        self._upstreams = upstreams
        self._given = given
        self._effects = effects
        self._held_tokens = held_tokens
        self._usage_grace_s = usage_grace_s
        self._turns = 1 if held_tokens else 0  # turn 1 is held, and maybe never called
        self._made = 0
        self._running: dict[CallStream, _Making] = {}
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)
        self._ends: list[CallStream] = []
        self._over = False
        self.fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.told: list[HeadraceError] = []
        self.phase = PHASE

    def begin(self, asked: Asked, stream: CallStream) -> None:
        """Begin a call; what it says, and how it ends, goes to the stream."""
        if self._over:
            stream.stop(InvocationOver("The invocation has ended: its agent can call no model any more."))
        elif self._made == self._config.max_turns:
            self._tell(stream, TurnsExhausted(f"The agent has called models {self._made} times already."))
        else:
            self._made += 1
            making = self._running[stream] = _Making()
            making.task = asyncio.get_running_loop().create_task(self._call(asked, stream, making))
            making.task.add_done_callback(lambda _: self._ended(stream))

    def leave(self, stream: CallStream) -> None:
        """End a call whose agent takes no more of it, unless it is over."""
        stream.drop()
        making = self._running.get(stream)
        if making is not None:
            making.cut(self._usage_grace_s)

    def show(self, phase: str) -> None:
        """Say in heartbeats what the agent does."""
        self.phase = phase
        self._effects.show(phase)

    def _ended(self, stream: CallStream) -> None:
        del self._running[stream]
        self._ends.append(stream)
        if self._over:
            self._end_all()

    def _end_all(self) -> None:
        """End the streams of calls that ended without a word, behind the cancellation of their agent."""
        while self._ends:
            self._ends.pop().stop(InvocationOver("The call was stopped."))

    async def aclose(self, *, stopped: bool) -> None:
        """Begin no more, cut what runs, and wait until its usage is noted; cancelled, it reads nothing on.

        Args:
            stopped: The run was stopped from outside: `Effects` say how long calls are read on.
        """
        self._over = True
        self._end_all()
        grace_s = self._effects.usage_grace_s() if stopped else self._usage_grace_s
        tasks = [making.task for making in self._running.values()]
        for stream, making in tuple(self._running.items()):
            stream.drop()
            making.cut(grace_s)
        interrupted = False
        while tasks:
            try:
                await asyncio.wait(tasks)
                break
            except asyncio.CancelledError:
                interrupted = True
                for task in tasks:
                    task.cancel()
        if interrupted:
            raise asyncio.CancelledError

    async def _call(self, asked: Asked, stream: CallStream, making: _Making) -> None:
        """Make one call; however it ends, its stream does, and its hold is gone or noted."""
        try:
            async with self._room:
                self._tell(stream, await self._settled(asked, stream, making))
        except Fenced:
            if not self.fenced.done():
                self.fenced.set_result(None)
        except Exception:  # a fault of ours: the agent hears that there was one, instead of waiting for ever
            logger.exception("agent's model call failed", extra={"invocation_id": self._given.invocation_id})
            self._tell(stream, InternalError("The failure has been logged with this invocation's id."))
        finally:
            if len(self._running) == 1:
                self._effects.show(self.phase)

    async def _settled(self, asked: Asked, stream: CallStream, making: _Making) -> HeadraceError | None:
        """Hold, call and settle; returns what the agent is told of it, None if all went well."""
        bound = fixed_bound_tokens(asked.system, asked.tools, self._config.options)
        bound += messages_bound_tokens(asked.messages)
        heard = Heard(stream.deliver, input_bound=bound, max_output=asked.max_tokens)
        turn, is_held = await self._turn(heard.most_tokens)
        failure: HeadraceError | None = None
        try:
            making.call = ModelCall(turn, self._effects, heard)
            model = self._upstreams[asked.model.partition("/")[0]]
            await making.call.made(model, self._request(asked, turn), is_held=is_held)
            self._effects.settle_at_end(turn, heard.usage)
        except HeadraceError as error:
            failure = error
        except asyncio.CancelledError:
            if self._over:
                raise
        await self._effects.settle_noted(turn)
        return failure

    async def _turn(self, tokens: int) -> tuple[int, bool]:
        """Return the turn of a call, and whether it is held for already."""
        held_tokens, self._held_tokens = self._held_tokens, 0
        if held_tokens >= tokens:
            return 1, True
        self._turns += 1
        turn = self._turns
        if held_tokens:
            self._effects.settle_at_end(1, Usage())
            await self._effects.settle_noted(1)
        return turn, False

    def _request(self, asked: Asked, turn: int) -> ModelRequest:
        return ModelRequest(
            model_id=asked.model.partition("/")[2],
            messages=asked.messages,
            max_tokens=asked.max_tokens,
            system=asked.system,
            tools=asked.tools,
            request_metadata=self._metadata(turn),
            options=self._config.options,
        )

    def _metadata(self, turn: int) -> Mapping[str, str]:
        call_id = f"{self._given.invocation_id}:{self._effects.attempt}:{turn}"
        return {**self._given.request_metadata, CALL_METADATA: call_id}

    def _tell(self, stream: CallStream, error: HeadraceError | None) -> None:
        if error is not None:
            self.told.append(error)
        stream.end(error)
