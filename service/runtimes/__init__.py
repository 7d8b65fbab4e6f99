"""The port of runtimes: what an invocation can run.

`runner` calls it; `runtimes.converse` (the agent loop) and `runtimes.python` (a deployer's own agent)
implement it. A runtime gets the job as a value (`InvocationInput`) and its `Effects`, the few things that it
may do to its invocation; it knows neither the store nor the log nor HTTP.
"""

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import orjson

from service.invocations import Invocation, Usage
from service.models import Deliver, Frame


@dataclass(frozen=True, slots=True)
class InvocationInput:
    """The job, as submitted and validated; what a takeover needs to run it again.

    `messages` are Bedrock Converse messages as JSON (bytes members in base64). `turns` are what turns of
    earlier attempts added, one tuple of messages per turn; of the last one it may be what the runtime settled
    before its tools ran. `origin_jti` is the sign-in that submitted it.
    """

    invocation_id: str
    runtime_id: str
    sub: str
    groups: tuple[str, ...]
    session_id: str | None
    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    request_metadata: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    origin_jti: str | None = None

    def to_json(self) -> bytes:
        """Encode what a takeover needs; the record has the rest.

        Older processes read it too, during a deploy: add members, and change none.
        """
        return orjson.dumps(
            {
                "groups": self.groups,
                "messages": self.messages,
                "maxTokens": self.max_tokens,
                "requestMetadata": dict(self.request_metadata),
                "originJti": self.origin_jti,
            }
        )

    @classmethod
    def from_json(cls, invocation: Invocation, stored: bytes, turns: Sequence[bytes]) -> Self:
        """Read what `to_json` wrote, with the messages of the turns that earlier attempts stored.

        Raises:
            ValueError: It was not written by `to_json`, or by a version that is too old.
        """
        document = json.loads(stored)
        try:
            return cls(
                invocation_id=invocation.invocation_id,
                runtime_id=invocation.runtime_id,
                sub=invocation.sub,
                groups=tuple(document["groups"]),
                session_id=invocation.session_id,
                messages=tuple(document["messages"]),
                max_tokens=document["maxTokens"],
                request_metadata=document["requestMetadata"],
                turns=tuple(tuple(json.loads(turn)) for turn in turns),
                origin_jti=document.get("originJti"),  # older inputs have none
            )
        except (KeyError, TypeError) as error:
            raise ValueError("not the input of an invocation") from error

    @classmethod
    def unreadable(cls, invocation: Invocation) -> Self:
        """Stand for an input that can't be read, where only the ending of its invocation is to be written."""
        return cls(
            invocation.invocation_id,
            invocation.runtime_id,
            invocation.sub,
            (),
            invocation.session_id,
            (),
            0,
        )


class Call(Protocol):
    """A model call that is being made."""

    def reads_on(self, task: asyncio.Task[None], grace_s: float) -> bool:
        """Let it go on for at most `grace_s`, and cancel its task then; False: cancel it now."""
        ...


class Effects(Protocol):
    """What a runtime may do while it runs; made by `runner` for one attempt."""

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        ...

    @property
    def deliver(self) -> Deliver:
        """Append a batch of upstream frames; the `Deliver` of a model call."""
        ...

    def emit(self, events: Sequence[bytes]) -> None:
        """Append events of our own types, encoded by `events.encode`."""
        ...

    def enter(self, phase: str, turn: int) -> Awaitable[None]:
        """Say what begins now, before a model call or a tool; heartbeats show it.

        Waits until this process may act for the invocation.
        """
        ...

    def begin_call(self, call: Call) -> None:
        """Say which model call this attempt makes now: cancelled, it is read on for its usage."""
        ...

    def may_act(self) -> bool:
        """Tell whether it may act this moment, right before something leaves it: waits can be long."""
        ...

    def reserve(self, turn: int, tokens: int) -> Awaitable[None]:
        """Hold `tokens` for the model call of a turn. Raises QuotaExceeded, BudgetExceeded, Fenced."""
        ...

    def settle(self, turn: int, usage: Usage, messages: Sequence[Mapping[str, Any]]) -> Awaitable[None]:
        """Replace the turn's hold by what was used, now, with the events so far and what the model said.

        A takeover goes on from there. Raises Fenced.
        """
        ...

    def settle_at_end(self, turn: int, usage: Usage) -> None:
        """Do the same for the last model call: it is committed with the invocation's ending."""
        ...

    def settle_noted(self, turn: int) -> Awaitable[None]:
        """Write what `settle_at_end` was told of a turn, if it was, now: before the ending."""
        ...

    def ask(self, turn: int, model: str) -> None:
        """Say which model a turn's call asks now."""
        ...

    def give_up(self, turn: int, code: str, usage: Usage) -> Awaitable[None]:
        """Say why that model is given up for the next one, and what it may have cost.

        That is charged apart from the turn. Raises QuotaExceeded, BudgetExceeded: there is no room for it;
        Fenced.
        """
        ...

    def complete(self, turn: int, messages: Sequence[Mapping[str, Any]]) -> Awaitable[None]:
        """Store what a turn added to the conversation; a takeover goes on after it. Raises Fenced."""
        ...

    def usage_grace_s(self) -> float:
        """Return how long a model call that is cancelled now is read on for its usage."""
        ...

    def show(self, phase: str) -> None:
        """Say what goes on, in the same place of heartbeats as `enter`'s phase; waits for nothing."""
        ...

    def remaining_s(self) -> float:
        """Return the seconds to the deadline; may be asked in any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a runtime ended when it ended well: the model's stop reason."""

    stop_reason: str


class Runtime(Protocol):
    """A named agent's way of running."""

    @property
    def goes_on(self) -> bool:
        """Whether a later attempt goes on where an earlier one stopped; only then it may wait for quota."""
        ...

    def first_reservation_tokens(self, given: InvocationInput) -> int:
        """Return an upper bound of what the first model call can cost; admission holds it as turn 1."""
        ...

    async def run(self, given: InvocationInput, effects: Effects) -> Outcome:
        """Run the job to its end. Cancellation settles what was used and propagates.

        Raises:
            HeadraceError: The invocation fails with this problem.
        """
        ...


__all__ = ["Call", "Deliver", "Effects", "Frame", "InvocationInput", "Outcome", "Runtime"]
