import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.config import RuntimeConfig
from service.errors import TurnsExhausted, UpstreamFailed, UpstreamThrottled
from service.events import event_type, event_value
from service.invocations import Usage
from service.models import Frame
from service.runtimes import Effects, InvocationInput, Outcome
from service.runtimes.converse import ConverseRuntime
from service.tools import Tools, tool
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, answer, start, stop, text, tool_call

CONFIG = RuntimeConfig("agent", "converse", model="bedrock/m", instructions="Be brief.", max_turns=3)
GIVEN = InvocationInput(
    invocation_id="inv_1",
    runtime_id="agent",
    sub="user-1",
    groups=(),
    session_id=None,
    messages=({"role": "user", "content": [{"text": "What is 6 times 7?"}]},),
    max_tokens=100,
    request_metadata={"team": "search"},
)


@dataclass
class Recorder:
    """Stands for the runner: writes down what a runtime does."""

    did: list[tuple[Any, ...]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    attempt: int = 1

    def effects(self) -> Effects:
        async def reserve(turn: int, tokens: int) -> None:
            self.did.append(("reserve", turn, tokens))

        async def settle(turn: int, usage: Usage) -> None:
            self.did.append(("settle", turn, usage))

        async def complete(turn: int, messages: Sequence[Mapping[str, Any]]) -> None:
            self.did.append(("complete", turn, messages))

        def emit(events: Sequence[bytes]) -> None:
            self.did.extend((event_type(event).decode(), event_value(event)) for event in events)

        return Effects(
            attempt=self.attempt,
            emit=emit,
            deliver=self.frames.extend,
            enter=lambda phase, turn: self.did.append(("enter", phase, turn)),
            reserve=reserve,
            settle=settle,
            settle_at_end=lambda turn, usage: self.did.append(("settle_at_end", turn, usage)),
            complete=complete,
        )


@tool(
    description="Multiply two numbers.",
    input_schema={
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
)
async def multiply(arguments: dict[str, Any], call: Any) -> str:
    return str(arguments["a"] * arguments["b"])


TOOLS = Tools.load(["tests.unit.test_converse:multiply"])
NO_TOOLS = Tools.load([])


async def test_one_turn_passes_the_answer_on_and_is_settled_with_the_ending() -> None:
    model = ScriptedModel(answer("4", "2", input_tokens=12, output_tokens=2))
    recorder = Recorder()

    outcome = await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder.effects())

    assert outcome == Outcome("end_turn")
    assert recorder.did == [("enter", "model", 1), ("settle_at_end", 1, Usage(12, 2))]
    assert recorder.frames == [*start(), *text("4", "2"), *stop(input_tokens=12, output_tokens=2)]


async def test_the_model_is_asked_with_instructions_limit_and_metadata() -> None:
    model = ScriptedModel(answer("42"))

    await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, Recorder().effects())

    (request,) = model.requests
    assert (request.model_id, request.system, request.max_tokens) == ("m", "Be brief.", 100)
    assert list(request.messages) == list(GIVEN.messages)
    assert dict(request.request_metadata) == {"team": "search"}


async def test_a_tool_turn_is_settled_then_completed_before_the_next_is_reserved() -> None:
    model = ScriptedModel(tool_call("multiply", '{"a":6,"b":7}', said="Let me see."), answer("42"))
    recorder = Recorder()
    runtime = ConverseRuntime(CONFIG, model, TOOLS)

    outcome = await runtime.run(GIVEN, recorder.effects())

    use = {"toolUseId": "tool-1", "name": "multiply", "input": {"a": 6, "b": 7}}
    result = {"toolUseId": "tool-1", "content": [{"text": "42"}], "status": "success"}
    added = (
        {"role": "assistant", "content": [{"text": "Let me see."}, {"toolUse": use}]},
        {"role": "user", "content": [{"toolResult": result}]},
    )
    assert outcome == Outcome("end_turn")
    assert [step[:2] for step in recorder.did] == [
        ("enter", "model"),
        ("settle", 1),
        ("enter", "tool"),
        ("toolStarted", {"toolUseId": "tool-1", "name": "multiply"}),
        ("toolFinished", {"toolUseId": "tool-1", "name": "multiply", "status": "success"}),
        ("complete", 1),
        ("reserve", 2),
        ("enter", "model"),
        ("settle_at_end", 2),
    ]
    assert ("complete", 1, added) in recorder.did
    assert list(model.requests[1].messages) == [*GIVEN.messages, *added]


@pytest.mark.promise("tool-errors-go-to-model")
async def test_a_tool_call_that_breaks_its_schema_is_handed_back_to_the_model() -> None:
    model = ScriptedModel(tool_call("multiply", '{"a":6}'), answer("I could not."))
    recorder = Recorder()

    outcome = await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, recorder.effects())

    result = model.requests[1].messages[-1]["content"][0]["toolResult"]
    assert outcome == Outcome("end_turn")
    assert result["status"] == "error"
    assert "required" in result["content"][0]["text"]
    assert ("toolFinished", {"toolUseId": "tool-1", "name": "multiply", "status": "error"}) in recorder.did


@pytest.mark.promise("turn-limit")
async def test_an_agent_that_never_stops_asking_ends_at_its_limit_of_turns() -> None:
    model = ScriptedModel(tool_call("multiply", '{"a":1,"b":1}'))

    with pytest.raises(TurnsExhausted):
        await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, Recorder().effects())

    assert len(model.requests) == CONFIG.max_turns


async def test_a_refused_call_costs_nothing() -> None:
    model = ScriptedModel([UpstreamThrottled()])
    recorder = Recorder()

    with pytest.raises(UpstreamThrottled):
        await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder.effects())

    assert recorder.did == [("enter", "model", 1), ("settle_at_end", 1, Usage())]


@pytest.mark.promise("unreported-usage-estimated")
async def test_a_call_that_broke_off_is_settled_to_an_estimate() -> None:
    delta = text("Half an ans")
    model = ScriptedModel([start(), delta, UpstreamFailed()])
    recorder = Recorder()
    runtime = ConverseRuntime(CONFIG, model, NO_TOOLS)

    with pytest.raises(UpstreamFailed):
        await runtime.run(GIVEN, recorder.effects())

    input_bound = runtime.first_reservation_tokens(GIVEN) - GIVEN.max_tokens
    estimate = Usage(input_bound, len(delta[0][1]), estimated=True)
    assert recorder.did[-1] == ("settle_at_end", 1, estimate)
    assert estimate.counted_tokens <= runtime.first_reservation_tokens(GIVEN)


async def test_a_cancelled_call_is_settled_to_an_estimate(clock: ManualClock) -> None:
    never, delta = asyncio.Event(), text("Hel")
    model = ScriptedModel([start(), delta, never])
    recorder = Recorder()
    task = asyncio.ensure_future(ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder.effects()))
    await clock.advance(0)
    assert len(recorder.frames) == 2

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert model.cancelled == 1
    assert recorder.did[-1][:2] == ("settle_at_end", 1)
    assert recorder.did[-1][2].estimated


async def test_a_later_attempt_goes_on_after_the_completed_turns() -> None:
    done = ({"role": "assistant", "content": []}, {"role": "user", "content": [{"text": "result"}]})
    given = InvocationInput("inv_1", "agent", "user-1", (), None, GIVEN.messages, 100, turns=(done,))
    model = ScriptedModel(answer("42"))
    recorder = Recorder(attempt=2)

    await ConverseRuntime(CONFIG, model, TOOLS).run(given, recorder.effects())

    assert recorder.did[0][:2] == ("reserve", 2)
    assert list(model.requests[0].messages) == [*GIVEN.messages, *done]
