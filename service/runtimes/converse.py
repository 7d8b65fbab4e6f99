"""The `converse` runtime: the agent loop on a `Model`, turn after turn, tools in between.

    hold (turn) -> model.converse -> tool_use? -> settle (turn) -> tools -> complete (turn) -> next turn
                                  -> else      -> the invocation completes

A later attempt goes on after the last turn that was completed; of one that was only settled it runs the tools
again, with the same arguments and idempotency keys, unless one of them must not run twice. What was refused
(no such tool, input that does not fit) is settled with the turn: it has never run, and never will.

`runner` calls it. It calls a `Model`, `Tools` and the `Effects` it is given. Frames pass from the model to
the log in the connection's callback; what the next turn needs is parsed from them only when there is a next
turn.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.config import RuntimeConfig
from service.errors import (
    BudgetExceeded,
    OutcomeUnknown,
    QuotaExceeded,
    TurnsExhausted,
    UpstreamError,
    UpstreamFailed,
)
from service.events import encode
from service.invocations import Usage
from service.ledger import input_bound_tokens, options_bound_tokens
from service.models import Model, ModelRequest
from service.runtimes import Effects, InvocationInput, Outcome
from service.runtimes.heard import Heard, ToolUse, tool_uses_in
from service.tools import ToolCall, ToolResult, Tools

Message = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]
"""Tool results as Converse has them, by `toolUseId`."""

REFUSED: Final = "refused"
"""The role of what is stored with the model's message until its tools have run: calls that can't be made."""
CALL_METADATA: Final = "headrace:call"
"""Says in the upstream's own logs which model call this is: `<invocation>:<attempt>:<turn>`."""


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

    def _bound_tokens(self, messages: Sequence[Message]) -> int:
        bound = input_bound_tokens(self._config.instructions, messages, self._tools.specs)
        return bound + options_bound_tokens(self._config.options)

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
        if turn > 1 or effects.attempt > 1:  # admission holds turn 1 of attempt 1
            await self._reserve(turn, messages, given, effects)
        heard = Heard(
            effects.deliver,
            input_bound=self._bound_tokens(messages),
            max_output=given.max_tokens,
            keep=bool(self._tools),
        )
        call_id = f"{given.invocation_id}:{effects.attempt}:{turn}"
        sent = is_over = False  # `sent`: a try may have reached the model, and was not refused

        async def before_try() -> None:
            nonlocal sent
            sent = False
            if is_over:
                raise asyncio.CancelledError
            await effects.enter("model", turn)

        def may_send() -> bool:
            nonlocal sent
            sent = effects.may_act()
            return sent

        async def give_up(failure: UpstreamError) -> None:
            nonlocal sent
            if is_over:
                raise failure
            sent = False
            try:
                await effects.give_up(turn, failure.code, heard.usage if failure.billed else Usage())
            except (QuotaExceeded, BudgetExceeded):  # then this call fails as it did
                sent = True
                raise failure from None

        request = ModelRequest(
            model_id=self._config.route[0].model_id,
            messages=messages,
            max_tokens=given.max_tokens,
            system=self._config.instructions,
            tools=self._tools.specs,
            request_metadata={**given.request_metadata, CALL_METADATA: call_id},
            options=self._config.options,
            before_try=before_try,
            may_send=may_send,
            ask=lambda model: effects.ask(turn, model),
            give_up=give_up,
        )
        call = asyncio.ensure_future(self._model.converse(request, heard))
        try:
            await asyncio.shield(call)
        except BaseException as error:
            is_over = True
            try:
                if isinstance(error, asyncio.CancelledError):
                    await _read_on(call, effects.usage_grace_s() if sent else 0)
            finally:
                effects.settle_at_end(turn, _used(call, heard) if sent else Usage())
            raise
        return heard

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


async def _read_on(call: asyncio.Future[None], grace_s: float) -> None:
    """Let a cancelled call go on for a moment, since its usage comes last; then end it, however it ends."""
    try:
        if grace_s:
            await asyncio.wait([call], timeout=grace_s)
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


def _used(call: asyncio.Future[None], heard: Heard) -> Usage:
    """Return what a call that failed or was cut short has used: it was made, so it is paid for.

    Unless the upstream refused it before it generated anything.
    """
    error = call.exception() if call.done() and not call.cancelled() else None
    refused = isinstance(error, UpstreamError) and not error.billed and not heard.generated
    return Usage() if refused else heard.usage
