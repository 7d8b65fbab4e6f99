import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.config import RuntimeConfig
from service.errors import OutcomeUnknown, TurnsExhausted, UpstreamFailed, UpstreamThrottled
from service.events import event_type, event_value
from service.invocations import Usage
from service.models import Frame
from service.runtimes import Call, InvocationInput, Outcome
from service.runtimes.converse import ConverseRuntime
from service.tools import ToolCall, Tools, tool
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
    grace_s: float = 0.0
    acts: bool = True
    call: Call | None = None

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel as an attempt is."""
        if self.call is None or not self.call.reads_on(task, self.grace_s):
            task.cancel()

    def begin_call(self, call: Call) -> None:
        self.call = call

    def deliver(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        self.frames.extend(frames)
        return None

    def emit(self, events: Sequence[bytes]) -> None:
        self.did.extend((event_type(event).decode(), event_value(event)) for event in events)

    async def enter(self, phase: str, turn: int) -> None:
        self.did.append(("enter", phase, turn))

    def may_act(self) -> bool:
        return self.acts

    async def reserve(self, turn: int, tokens: int) -> None:
        self.did.append(("reserve", turn, tokens))

    async def settle(self, turn: int, usage: Usage, messages: Sequence[Mapping[str, Any]]) -> None:
        self.did.append(("settle", turn, usage, messages))

    def settle_at_end(self, turn: int, usage: Usage) -> None:
        self.did.append(("settle_at_end", turn, usage))

    async def settle_noted(self, turn: int) -> None:
        self.did.append(("settle_noted", turn))

    def ask(self, turn: int, model: str) -> None:
        self.did.append(("ask", turn, model))

    async def give_up(self, turn: int, code: str, usage: Usage) -> None:
        self.did.append(("give_up", turn, code, usage))

    async def complete(self, turn: int, messages: Sequence[Mapping[str, Any]]) -> None:
        self.did.append(("complete", turn, messages))

    def usage_grace_s(self) -> float:
        return self.grace_s

    def show(self, phase: str) -> None:
        self.did.append(("show", phase))

    def remaining_s(self) -> float:
        return 60.0


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

    outcome = await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder)

    assert outcome == Outcome("end_turn")
    assert recorder.did == [("enter", "model", 1), ("settle_at_end", 1, Usage(12, 2))]
    assert recorder.frames == [*start(), *text("4", "2"), *stop(input_tokens=12, output_tokens=2)]


async def test_the_model_is_asked_with_instructions_limit_and_metadata() -> None:
    model = ScriptedModel(answer("42"))

    await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, Recorder())

    (request,) = model.requests
    assert (request.model_id, request.system, request.max_tokens) == ("m", "Be brief.", 100)
    assert list(request.messages) == list(GIVEN.messages)
    assert dict(request.request_metadata) == {"team": "search", "headrace:call": "inv_1:1:1"}


async def test_a_tool_turn_is_settled_then_completed_before_the_next_is_reserved() -> None:
    model = ScriptedModel(tool_call("multiply", '{"a":6,"b":7}', said="Let me see."), answer("42"))
    recorder = Recorder()
    runtime = ConverseRuntime(CONFIG, model, TOOLS)

    outcome = await runtime.run(GIVEN, recorder)

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

    outcome = await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, recorder)

    result = model.requests[1].messages[-1]["content"][0]["toolResult"]
    assert outcome == Outcome("end_turn")
    assert result["status"] == "error"
    assert "required" in result["content"][0]["text"]
    assert ("toolFinished", {"toolUseId": "tool-1", "name": "multiply", "status": "error"}) in recorder.did


@pytest.mark.promise("turn-limit")
async def test_an_agent_that_never_stops_asking_ends_at_its_limit_of_turns() -> None:
    model = ScriptedModel(tool_call("multiply", '{"a":1,"b":1}'))

    with pytest.raises(TurnsExhausted):
        await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, Recorder())

    assert len(model.requests) == CONFIG.max_turns


async def test_a_refused_call_costs_nothing() -> None:
    model = ScriptedModel([UpstreamThrottled()])
    recorder = Recorder()

    with pytest.raises(UpstreamThrottled):
        await ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder)

    assert recorder.did == [("enter", "model", 1), ("settle_at_end", 1, Usage())]


@pytest.mark.promise("unreported-usage-estimated")
async def test_a_call_that_broke_off_is_settled_to_an_estimate() -> None:
    delta = text("Half an ans")
    model = ScriptedModel([start(), delta, UpstreamFailed()])
    recorder = Recorder()
    runtime = ConverseRuntime(CONFIG, model, NO_TOOLS)

    with pytest.raises(UpstreamFailed):
        await runtime.run(GIVEN, recorder)

    input_bound = runtime.first_reservation_tokens(GIVEN) - GIVEN.max_tokens
    estimate = Usage(input_bound, len(delta[0][1]), estimated=True)
    assert recorder.did[-1] == ("settle_at_end", 1, estimate)
    assert estimate.counted_tokens <= runtime.first_reservation_tokens(GIVEN)


async def test_a_cancelled_call_is_settled_to_an_estimate(clock: ManualClock) -> None:
    never, delta = asyncio.Event(), text("Hel")
    model = ScriptedModel([start(), delta, never])
    recorder = Recorder()
    task = asyncio.ensure_future(ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder))
    await clock.advance(0)
    assert len(recorder.frames) == 2

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert model.cancelled == 1
    assert recorder.did[-1][:2] == ("settle_at_end", 1)
    assert recorder.did[-1][2].estimated


@pytest.mark.promise("killed-process-goes-on")
async def test_a_later_attempt_goes_on_after_the_completed_turns() -> None:
    done = ({"role": "assistant", "content": []}, {"role": "user", "content": [{"text": "result"}]})
    given = InvocationInput("inv_1", "agent", "user-1", (), None, GIVEN.messages, 100, turns=(done,))
    model = ScriptedModel(answer("42"))
    recorder = Recorder(attempt=2)

    await ConverseRuntime(CONFIG, model, TOOLS).run(given, recorder)

    assert recorder.did[0][:2] == ("reserve", 2)
    assert list(model.requests[0].messages) == [*GIVEN.messages, *done]


def half_turn(name: str) -> tuple[dict[str, Any], ...]:
    """Return what a turn has stored whose tools had begun when its process died."""
    use = {"toolUseId": "tool-1", "name": name, "input": {"a": 6, "b": 7}}
    return ({"role": "assistant", "content": [{"toolUse": use}]},)


def given_with(*turns: tuple[dict[str, Any], ...]) -> InvocationInput:
    return InvocationInput("inv_1", "agent", "user-1", (), None, GIVEN.messages, 100, turns=turns)


CALLS: list[ToolCall] = []


@tool(description="Count.", input_schema={"type": "object"}, idempotent=True)
async def count(arguments: dict[str, Any], call: ToolCall) -> str:
    CALLS.append(call)
    return str(arguments)


@pytest.mark.promise("tool-key-stable")
async def test_a_later_attempt_runs_the_tools_of_a_settled_turn_again_without_asking_the_model() -> None:
    CALLS.clear()
    model, first = ScriptedModel(tool_call("count", '{"a":6,"b":7}'), answer("42")), Recorder()
    await ConverseRuntime(CONFIG, model, Tools([count])).run(GIVEN, first)
    (stored,) = [messages for kind, *_, messages in first.did if kind == "settle"]
    model, second = ScriptedModel(answer("42")), Recorder(attempt=2)

    await ConverseRuntime(CONFIG, model, Tools([count])).run(given_with(tuple(stored)), second)

    completed = [[entry for entry in each.did if entry[0] == "complete"] for each in (first, second)]
    assert [call.idempotency_key for call in CALLS] == ["inv_1:1:1", "inv_1:1:1"]
    assert completed[0] == completed[1]
    assert [entry[0] for entry in second.did][:5] == [
        "enter",
        "toolStarted",
        "toolFinished",
        "complete",
        "reserve",
    ]
    assert len(model.requests) == 1


@pytest.mark.promise("truncation-is-failure")
async def test_a_tool_call_whose_frames_are_no_json_is_the_upstreams_failure_and_is_paid_for() -> None:
    broken = (b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"toolUse":')
    model = ScriptedModel([start(), [broken], stop("tool_use", input_tokens=12, output_tokens=2)])
    recorder = Recorder()

    with pytest.raises(UpstreamFailed, match="no JSON"):
        await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, recorder)

    assert recorder.did == [("enter", "model", 1), ("settle_at_end", 1, Usage(12, 2))]


@pytest.mark.promise("no-tool-twice")
async def test_a_tool_that_must_not_run_twice_is_not_run_again() -> None:
    model, recorder = ScriptedModel(answer("42")), Recorder(attempt=2)

    with pytest.raises(OutcomeUnknown, match="multiply") as raised:
        await ConverseRuntime(CONFIG, model, TOOLS).run(given_with(half_turn("multiply")), recorder)

    assert not raised.value.is_retryable
    assert (recorder.did, model.requests) == ([], [])


@pytest.mark.promise("no-tool-twice")
async def test_a_tool_that_only_the_process_before_had_may_have_run_and_must_not_be_called_failed() -> None:
    model, recorder = ScriptedModel(answer("42")), Recorder(attempt=2)

    with pytest.raises(OutcomeUnknown, match="transfer"):
        await ConverseRuntime(CONFIG, model, TOOLS).run(given_with(half_turn("transfer")), recorder)

    assert (recorder.did, model.requests) == ([], [])


@pytest.mark.parametrize(
    ("grace_s", "usage"), [(1.0, Usage(10, 5)), (0.2, None)], ids=["in time", "too late"]
)
async def test_a_cancelled_call_is_read_on_for_its_usage(
    clock: ManualClock, grace_s: float, usage: Usage | None
) -> None:
    gate, recorder = asyncio.Event(), Recorder(grace_s=grace_s)
    model = ScriptedModel([start(), text("Half"), gate, stop()])
    task = asyncio.ensure_future(ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder))
    await clock.advance(0)
    asyncio.get_running_loop().call_later(0.5, gate.set)

    recorder.cancel(task)
    await clock.advance(1)

    assert task.cancelled()
    assert recorder.did[-1][:2] == ("settle_at_end", 1)
    assert recorder.did[-1][2] == usage or (usage is None and recorder.did[-1][2].estimated)


@pytest.mark.promise("cancel-reaches-everything")
async def test_what_follows_a_call_that_was_read_on_in_time_is_not_cancelled(clock: ManualClock) -> None:
    gate, recorder = asyncio.Event(), Recorder(grace_s=1)
    runtime = ConverseRuntime(CONFIG, ScriptedModel([start(), text("Half"), gate, stop()]), NO_TOOLS)

    async def attempt() -> str:
        with pytest.raises(asyncio.CancelledError):
            await runtime.run(GIVEN, recorder)
        await asyncio.sleep(10)  # as it takes a store that is slow
        return "ended"

    task = asyncio.ensure_future(attempt())
    await clock.advance(0)
    recorder.cancel(task)
    await clock.advance(0.5)
    gate.set()
    await clock.advance(20)

    assert task.result() == "ended"
    assert recorder.did[-1] == ("settle_at_end", 1, Usage(10, 5))


async def test_a_refusal_that_comes_after_the_cancellation_costs_nothing(clock: ManualClock) -> None:
    gate, recorder = asyncio.Event(), Recorder(grace_s=1)
    model = ScriptedModel([gate, UpstreamThrottled()])
    task = asyncio.ensure_future(ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder))
    await clock.advance(0)

    recorder.cancel(task)
    gate.set()
    await clock.advance(0)

    assert task.cancelled()
    assert recorder.did[-1] == ("settle_at_end", 1, Usage())
