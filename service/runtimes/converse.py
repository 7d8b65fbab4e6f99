"""The `converse` runtime: the agent loop on a `Model`, turn after turn, tools in between.

    hold (turn) -> model.converse -> settle (turn) -> tool_use? -> tools -> complete (turn) -> next turn
                                                   -> else      -> the invocation completes

`runner` calls it. It calls a `Model`, `Tools` and the `Effects` it is given. Frames pass from the model to
the log in the connection's callback; what the next turn needs is parsed from them only when there is a next
turn.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from service.config import RuntimeConfig
from service.errors import TurnsExhausted, UpstreamError, UpstreamFailed
from service.events import encode
from service.invocations import Usage
from service.ledger import input_bound_tokens
from service.models import Model, ModelRequest
from service.runtimes import Effects, InvocationInput, Outcome
from service.runtimes.heard import Heard, ToolUse
from service.tools import ToolCall, Tools

Message = Mapping[str, Any]


class ConverseRuntime:
    """An agent: a model, instructions, tools, a limit of turns."""

    def __init__(self, config: RuntimeConfig, model: Model, tools: Tools) -> None:
        self._config = config
        self._model = model
        self._tools = tools

    def first_reservation_tokens(self, given: InvocationInput) -> int:
        """Return the hold of turn 1: a bound of the input, and the most it may generate."""
        return self._bound_tokens(given.messages) + given.max_tokens

    async def run(self, given: InvocationInput, effects: Effects) -> Outcome:
        """Run turns until the model stops for another reason than `tool_use`.

        Raises:
            UpstreamError: A model call was refused or failed; it is settled.
            QuotaExceeded, BudgetExceeded: A further turn may not start.
            TurnsExhausted: The model still wants tools after `max_turns`.
        """
        messages: list[Message] = [*given.messages, *(message for turn in given.turns for message in turn)]
        for turn in range(len(given.turns) + 1, self._config.max_turns + 1):
            if turn > 1 or effects.attempt > 1:  # admission holds turn 1 of attempt 1
                await self._reserve(turn, messages, given, effects)
            heard = await self._call_model(turn, messages, given, effects)
            try:
                uses = heard.tool_uses() if heard.stop_reason == "tool_use" else []
            except ValueError as error:
                effects.settle_at_end(turn, heard.usage)
                raise UpstreamFailed("The model asked for a tool in a form that is no JSON.") from error
            if not uses or turn == self._config.max_turns:  # its last tools would run for nothing
                effects.settle_at_end(turn, heard.usage)
                if not uses:
                    return Outcome(heard.stop_reason)
                break
            await effects.settle(turn, heard.usage)
            results = await self._run_tools(turn, uses, given, effects)
            added = (heard.assistant_message(), {"role": "user", "content": results})
            await effects.complete(turn, added)
            messages += added
        raise TurnsExhausted(f"The agent asked for tools {self._config.max_turns} times without an answer.")

    def _bound_tokens(self, messages: Sequence[Message]) -> int:
        return input_bound_tokens(self._config.instructions, messages, self._tools.specs)

    async def _reserve(
        self, turn: int, messages: Sequence[Message], given: InvocationInput, effects: Effects
    ) -> None:
        try:
            await effects.reserve(turn, self._bound_tokens(messages) + given.max_tokens)
        except asyncio.CancelledError:  # the hold may be there, but no call was made
            effects.settle_at_end(turn, Usage())
            raise

    async def _call_model(
        self, turn: int, messages: Sequence[Message], given: InvocationInput, effects: Effects
    ) -> Heard:
        heard = Heard(
            effects.deliver,
            input_bound=self._bound_tokens(messages),
            max_output=given.max_tokens,
            keep=bool(self._tools),
        )
        request = ModelRequest(
            model_id=self._config.model_id,
            messages=messages,
            max_tokens=given.max_tokens,
            system=self._config.instructions,
            tools=self._tools.specs,
            request_metadata=given.request_metadata,
        )
        effects.enter("model", turn)
        try:
            await self._model.converse(request, heard)
        except UpstreamError as error:
            effects.settle_at_end(turn, heard.usage if error.billed or heard.generated else Usage())
            raise
        except BaseException:  # cancelled: the call was made, so it is paid for
            effects.settle_at_end(turn, heard.usage)
            raise
        return heard

    async def _run_tools(
        self, turn: int, uses: Sequence[ToolUse], given: InvocationInput, effects: Effects
    ) -> list[dict[str, Any]]:
        """Run the tools that a turn asked for, in order; errors are results for the model."""
        results: list[dict[str, Any]] = []
        effects.enter("tool", turn)
        for number, use in enumerate(uses, 1):
            shown = {"toolUseId": use.tool_use_id, "name": use.name}
            effects.emit([encode("toolStarted", shown)])
            call = ToolCall(
                invocation_id=given.invocation_id,
                turn=turn,
                tool_use_id=use.tool_use_id,
                idempotency_key=f"{given.invocation_id}:{turn}:{number}",
                sub=given.sub,
            )
            result = await self._tools.run(call, use.name, use.raw_input)
            effects.emit([encode("toolFinished", shown | {"status": result.status})])
            results.append(
                {
                    "toolResult": {
                        "toolUseId": use.tool_use_id,
                        "content": result.content,
                        "status": result.status,
                    }
                }
            )
        return results
