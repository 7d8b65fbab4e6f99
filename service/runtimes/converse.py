"""The `converse` runtime: the agent loop on a `Model`, turn after turn, tools in between.

    hold (turn) -> model.converse -> tool_use? -> settle (turn) -> tools -> complete (turn) -> next turn
                                  -> else      -> the invocation completes

A later attempt goes on after the last turn that was completed; of one that was only settled it runs the tools
again, with the same arguments and idempotency keys, unless one of them must not run twice. What was refused
(no such tool, input that does not fit) is settled with the turn: it has never run, and never will.

`runner` calls it. It calls a `Model` (by `runtimes.metered`), `Tools` and the `Effects` it is given. Frames
pass from the model to the log in the connection's callback; what the next turn needs is parsed from them only
when there is a next turn.
"""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from service.config import RuntimeConfig
from service.errors import OutcomeUnknown, TurnsExhausted, UpstreamFailed
from service.events import encode
from service.ledger import fixed_bound_tokens, messages_bound_tokens
from service.models import CALL_METADATA, Model, ModelRequest
from service.runtimes import Effects, InvocationInput, Outcome
from service.runtimes.heard import Heard, ToolUse, tool_uses_in
from service.runtimes.metered import ModelCall
from service.tools import ToolCall, ToolResult, Tools

Message = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]
"""Tool results as Converse has them, by `toolUseId`."""

REFUSED: Final = "refused"
"""The role of what is stored with the model's message until its tools have run: calls that can't be made."""


class ConverseRuntime:
    """An agent: a model, instructions, tools, a limit of turns."""

    goes_on = True

    def __init__(self, config: RuntimeConfig, model: Model, tools: Tools) -> None:
        self._config = config
        self._model = model
        self._tools = tools
        self._fixed_bound_tokens = fixed_bound_tokens(config.instructions, tools.specs, config.options)

    def first_reservation_tokens(self, given: InvocationInput) -> int:
        """Return the hold of turn 1: a bound of the input, and the most it may generate."""
        return self._input_bound(given.messages) + given.max_tokens

    async def run(self, given: InvocationInput, effects: Effects) -> Outcome:
        """Run turns until the model stops for another reason than `tool_use`.

        Raises:
            UpstreamError: A model call was refused or failed; it is settled.
            QuotaExceeded, BudgetExceeded: A further turn may not start.
            TurnsExhausted: The model still wants tools after `max_turns`.
            OutcomeUnknown: An earlier attempt ended while tools ran, and one of them must not run twice.
        """
        done, begun = _begun_turn(given.turns)
        messages: list[Message] = [*given.messages, *(message for turn in done for message in turn)]
        for turn in range(len(done) + 1, self._config.max_turns + 1):
            if begun is not None:
                (said, answered), begun = begun, None
                uses = self._repeatable(said, answered)
            else:
                heard = await self._call_model(turn, messages, given, effects)
                uses = self._tool_uses(turn, heard, effects)
                if not uses or turn == self._config.max_turns:  # its last tools would run for nothing
                    effects.settle_at_end(turn, heard.usage)
                    if not uses:
                        return Outcome(heard.stop_reason)
                    break
                said = heard.assistant_message()
                answered = self._refusals(turn, uses, given)
                await effects.settle(turn, heard.usage, _half_turn(said, answered))
            results = await self._run_tools(turn, uses, answered, given, effects)
            added = (said, {"role": "user", "content": results})
            await effects.complete(turn, added)
            messages += added
        raise TurnsExhausted(f"The agent asked for tools {self._config.max_turns} times without an answer.")

    def _repeatable(self, said: Message, answered: Results) -> list[ToolUse]:
        """Return the tools that a turn asked for, if all that may have run already may run again."""
        uses = tool_uses_in(said)
        for use in uses:
            if use.tool_use_id not in answered and not self._tools.may_repeat(use.name):
                raise OutcomeUnknown(
                    f"The tool {use.name} was about to run, or ran, when its process went away. It is not"
                    " marked idempotent, so it was not run again: find out what it did, then submit again."
                )
        return uses

    def _refusals(self, turn: int, uses: Sequence[ToolUse], given: InvocationInput) -> Results:
        """Return the results of the calls that can't be made: later attempts neither make nor doubt them."""
        refused: dict[str, Mapping[str, Any]] = {}
        for number, use in enumerate(uses, 1):
            result = self._tools.refusal(_call(turn, number, use, given), use.name, use.raw_input)
            if result is not None:
                refused[use.tool_use_id] = _result_block(use, result)
        return refused

    def _tool_uses(self, turn: int, heard: Heard, effects: Effects) -> list[ToolUse]:
        try:
            return heard.tool_uses() if heard.stop_reason == "tool_use" else []
        except ValueError as error:
            effects.settle_at_end(turn, heard.usage)
            raise UpstreamFailed("The model asked for a tool in a form that is no JSON.") from error

    def _input_bound(self, messages: Sequence[Message]) -> int:
        return self._fixed_bound_tokens + messages_bound_tokens(messages)

    def _request(self, messages: Sequence[Message], given: InvocationInput, call_id: str) -> ModelRequest:
        return ModelRequest(
            model_id=self._config.route[0].model_id,
            messages=messages,
            max_tokens=given.max_tokens,
            system=self._config.instructions,
            tools=self._tools.specs,
            request_metadata={**given.request_metadata, CALL_METADATA: call_id},
            options=self._config.options,
        )

    def _call_model(
        self, turn: int, messages: Sequence[Message], given: InvocationInput, effects: Effects
    ) -> Coroutine[Any, Any, Heard]:
        bound = self._input_bound(messages)
        heard = Heard(effects.deliver, input_bound=bound, max_output=given.max_tokens, keep=bool(self._tools))
        call = ModelCall(turn, effects, heard)
        effects.begin_call(call)
        request = self._request(messages, given, f"{given.invocation_id}:{effects.attempt}:{turn}")
        return call.made(self._model, request, is_held=turn == 1 and effects.attempt == 1)  # by admission

    async def _run_tools(
        self,
        turn: int,
        uses: Sequence[ToolUse],
        answered: Results,
        given: InvocationInput,
        effects: Effects,
    ) -> list[Mapping[str, Any]]:
        """Run the tools that a turn asked for, in order; errors are results for the model."""
        results: list[Mapping[str, Any]] = []
        for number, use in enumerate(uses, 1):
            await effects.enter("tool", turn)
            shown = {"toolUseId": use.tool_use_id, "name": use.name}
            effects.emit([encode("toolStarted", shown)])
            result = answered.get(use.tool_use_id)
            if result is None:
                call = _call(turn, number, use, given)
                result = _result_block(use, await self._tools.run(call, use.name, use.raw_input))
            effects.emit([encode("toolFinished", shown | {"status": result["toolResult"]["status"]})])
            results.append(result)
        return results


def _call(turn: int, number: int, use: ToolUse, given: InvocationInput) -> ToolCall:
    return ToolCall(
        invocation_id=given.invocation_id,
        turn=turn,
        tool_use_id=use.tool_use_id,
        idempotency_key=f"{given.invocation_id}:{turn}:{number}",
        sub=given.sub,
    )


def _result_block(use: ToolUse, result: ToolResult) -> Mapping[str, Any]:
    return {"toolResult": {"toolUseId": use.tool_use_id, "content": result.content, "status": result.status}}


def _half_turn(said: Message, refused: Results) -> tuple[Message, ...]:
    """Return what is stored of a turn before its tools run."""
    return (said, {"role": REFUSED, "content": list(refused.values())}) if refused else (said,)


def _begun_turn(
    turns: Sequence[tuple[Message, ...]],
) -> tuple[Sequence[tuple[Message, ...]], tuple[Message, Results] | None]:
    """Part the turns that are complete from the one of which `_half_turn` is stored."""
    if not turns or (len(turns[-1]) > 1 and turns[-1][1]["role"] != REFUSED):
        return turns, None
    said, *more = turns[-1]
    refused = {block["toolResult"]["toolUseId"]: block for each in more for block in each["content"]}
    return turns[:-1], (said, refused)
