"""The port of runtimes: what an invocation can run.

`runner` calls it, `runtimes.converse` (the agent loop) implements it. A runtime gets the job as a value
(`InvocationInput`) and its `Effects`, the few things that it may do to its invocation; it knows neither the
store nor the log nor HTTP.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.invocations import Usage
from service.models import Deliver, Frame


@dataclass(frozen=True, slots=True)
class InvocationInput:
    """The job, as submitted and validated; what a takeover needs to run it again.

    `messages` are Bedrock Converse messages as JSON (bytes members in base64). `turns` are the messages that
    completed turns of earlier attempts added, one tuple per turn.
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

    def to_json(self) -> bytes:
        """Encode what a takeover needs; the record has the rest."""
        return json.dumps(
            {
                "groups": self.groups,
                "messages": self.messages,
                "maxTokens": self.max_tokens,
                "requestMetadata": dict(self.request_metadata),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()


@dataclass(frozen=True, slots=True)
class Effects:
    """What a runtime may do while it runs; made by `runner` for one attempt.

    Attributes:
        attempt: The number of the attempt.
        emit: Append events of our own types, encoded by `events.encode`.
        deliver: Append a batch of upstream frames; the `Deliver` of a model call.
        enter: Say what is going on now (phase, turn); heartbeats show it.
        reserve: Hold `tokens` for the model call of a turn. Raises QuotaExceeded, BudgetExceeded, Fenced.
        settle: Replace the turn's hold by what was used, now, together with the events so far.
        settle_at_end: The same for the last model call: it is committed with the invocation's ending.
        complete: Store what a turn added to the conversation; a takeover goes on after it. Raises Fenced.
    """

    attempt: int
    emit: Callable[[Sequence[bytes]], None]
    deliver: Deliver
    enter: Callable[[str, int], None]
    reserve: Callable[[int, int], Awaitable[None]]
    settle: Callable[[int, Usage], Awaitable[None]]
    settle_at_end: Callable[[int, Usage], None]
    complete: Callable[[int, Sequence[Mapping[str, Any]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a runtime ended when it ended well: the model's stop reason."""

    stop_reason: str


class Runtime(Protocol):
    """A named agent's way of running."""

    def first_reservation_tokens(self, given: InvocationInput) -> int:
        """Return an upper bound of what the first model call can cost; admission holds it as turn 1."""
        ...

    async def run(self, given: InvocationInput, effects: Effects) -> Outcome:
        """Run the job to its end. Cancellation settles what was used and propagates.

        Raises:
            HeadraceError: The invocation fails with this problem.
        """
        ...


__all__ = ["Deliver", "Effects", "Frame", "InvocationInput", "Outcome", "Runtime"]
