"""The agent loop in a later attempt or try: what it holds and waits for, which tools it runs again."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from service.errors import OutcomeUnknown, TurnsExhausted
from service.invocations import Usage
from service.models import Deliver, ModelRequest
from service.runtimes.converse import ConverseRuntime
from service.tools import ToolCall, Tools, tool
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, Step, answer, frame, start, stop, tool_call
from tests.unit.test_converse import (
    CALLS,
    CONFIG,
    GIVEN,
    NO_TOOLS,
    TOOLS,
    Recorder,
    count,
    given_with,
    half_turn,
    multiply,
)


def asking_for(*names: str) -> tuple[dict[str, Any], ...]:
    """Return what a turn has stored that asked for several tools."""
    uses = [
        {"toolUse": {"toolUseId": f"tool-{number}", "name": name, "input": {"a": number, "b": 7}}}
        for number, name in enumerate(names)
    ]
    return ({"role": "assistant", "content": [{"text": "Both."}, *uses]},)


@pytest.mark.promise("killed-process-goes-on", "quota-exact-under-concurrency")
async def test_a_later_attempt_at_the_first_turn_holds_for_it_again() -> None:
    model, recorder = ScriptedModel(answer("42")), Recorder(attempt=2)
    runtime = ConverseRuntime(CONFIG, model, TOOLS)

    await runtime.run(GIVEN, recorder)

    assert recorder.did[:2] == [
        ("reserve", 1, runtime.first_reservation_tokens(GIVEN)),
        ("enter", "model", 1),
    ]


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_every_try_of_a_model_call_waits_until_this_process_may_act() -> None:
    class Retrying(ScriptedModel):
        async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
            await request.before_try()  # and the connection breaks before anything was sent
            await super().converse(request, deliver)

    recorder = Recorder()

    await ConverseRuntime(CONFIG, Retrying(answer("42")), NO_TOOLS).run(GIVEN, recorder)

    assert [entry[:2] for entry in recorder.did] == [
        ("enter", "model"),
        ("enter", "model"),
        ("settle_at_end", 1),
    ]


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_a_model_call_is_not_sent_once_this_process_may_not_act_any_more() -> None:
    class Slow(ScriptedModel):
        async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
            recorder.acts = False  # the lease lapses while the connection is made
            sent.append(request.may_send())
            recorder.acts = True
            await super().converse(request, deliver)

    recorder, sent = Recorder(), list[bool]()

    await ConverseRuntime(CONFIG, Slow(answer("42")), NO_TOOLS).run(GIVEN, recorder)

    assert sent == [False]


class Refusing(ScriptedModel):
    """Is refused at each try, and pauses before the next one."""

    sent = 0

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        while True:
            await request.before_try()
            await asyncio.sleep(0.2 if self.sent else 0)
            self.sent += request.may_send()
            await asyncio.sleep(0.5)  # the refusal is on its way


@pytest.mark.promise("cancel-reaches-everything", "settle-exactly-once")
@pytest.mark.parametrize("after_s", [0.3, 0.6, 0.8], ids=["asked", "refused", "asked again"])
async def test_a_call_that_was_only_refused_costs_nothing_when_it_is_cancelled_and_is_not_made_again(
    clock: ManualClock, after_s: float
) -> None:
    recorder, model = Recorder(grace_s=1.0), Refusing(answer("42"))
    task = asyncio.ensure_future(ConverseRuntime(CONFIG, model, NO_TOOLS).run(GIVEN, recorder))
    await clock.advance(after_s)
    sent = model.sent

    recorder.cancel(task)
    await clock.advance(60)

    assert task.cancelled()
    assert (recorder.did[-1], model.sent) == (("settle_at_end", 1, Usage()), sent)


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_every_tool_of_a_turn_waits_until_this_process_may_act() -> None:
    recorder = Recorder(attempt=2)
    runtime = ConverseRuntime(CONFIG, ScriptedModel(answer("42")), Tools([count]))

    await runtime.run(given_with(asking_for("count", "count")), recorder)

    assert [entry[0] for entry in recorder.did][:6] == ["enter", "toolStarted", "toolFinished"] * 2


@pytest.mark.promise("no-tool-twice")
@pytest.mark.parametrize("names", [("count", "multiply"), ("multiply", "count"), ("count", "transfer")])
async def test_one_tool_that_must_not_run_twice_keeps_all_of_its_turn_from_being_run_again(
    names: tuple[str, ...],
) -> None:
    CALLS.clear()
    model, recorder = ScriptedModel(answer("42")), Recorder(attempt=2)
    runtime = ConverseRuntime(CONFIG, model, Tools([count, multiply]))

    with pytest.raises(OutcomeUnknown, match=max(names)):
        await runtime.run(given_with(asking_for(*names)), recorder)

    assert (recorder.did, model.requests, CALLS) == ([], [], [])


@pytest.mark.promise("tool-key-stable")
async def test_every_call_has_a_key_of_its_own_and_the_same_arguments_whichever_attempt_makes_it() -> None:
    CALLS.clear()
    done = (*asking_for("count"), {"role": "user", "content": [{"text": "results"}]})
    begun = asking_for("count", "count")
    model = ScriptedModel(tool_call("count", '{"a":1}', tool_use_id="tool-0"), answer("42"))

    results = []
    for attempt in (2, 3):
        recorder = Recorder(attempt=attempt)
        runtime = ConverseRuntime(replace(CONFIG, max_turns=4), model, Tools([count]))
        await runtime.run(given_with(done, begun), recorder)
        _, turn, (_, added) = next(entry for entry in recorder.did if entry[0] == "complete")
        results.append((turn, [each["toolResult"]["content"][0]["text"] for each in added["content"]]))

    shared = [("inv_1:2:1", 2, "tool-0"), ("inv_1:2:2", 2, "tool-1")]
    assert [(call.idempotency_key, call.turn, call.tool_use_id) for call in CALLS] == [
        *shared,
        ("inv_1:3:1", 3, "tool-0"),
        *shared,
    ]
    assert results == [(2, ["{'a': 0, 'b': 7}", "{'a': 1, 'b': 7}"])] * 2


def two_calls(name: str, raw_input: str) -> list[Step]:
    """Return an answer that asks for `count`, and for another tool."""
    calls: list[Step] = []
    for at, (asked, raw) in enumerate((("count", '{"a":1}'), (name, raw_input))):
        use = {"toolUseId": f"tool-{at}", "name": asked}
        opened = frame("contentBlockStart", {"contentBlockIndex": at, "start": {"toolUse": use}})
        said = frame("contentBlockDelta", {"contentBlockIndex": at, "delta": {"toolUse": {"input": raw}}})
        calls.append([opened, said])
    return [start(), *calls, stop("tool_use")]


@pytest.mark.promise("no-tool-twice", "tool-errors-go-to-model", "killed-process-goes-on")
@pytest.mark.parametrize(
    ("name", "raw_input"),
    [
        ("sweep", '{"path": "/tmp/x"'),
        ("sweep", '["/tmp/x"]'),
        ("multiply", '{"a": 6}'),
        ("multiply", "6 times 7"),
        ("transfer", '{"a": 6}'),
        pytest.param("sweep", f'{{"path": {"[" * 100_000}{"]" * 100_000}}}', id="sweep-too deep"),
    ],
)
async def test_a_call_that_could_not_be_made_is_answered_with_the_same_error_by_every_attempt(
    name: str, raw_input: str
) -> None:
    swept: list[dict[str, Any]] = []

    @tool(description="Sweep it all, or a path.", input_schema={"type": "object"}, idempotent=True)
    async def sweep(arguments: dict[str, Any], call: ToolCall) -> str:
        swept.append(arguments)
        return "swept"

    tools = Tools([count, multiply, sweep])
    first, later = Recorder(), Recorder(attempt=2)
    model = ScriptedModel(two_calls(name, raw_input), answer("42"))
    await ConverseRuntime(CONFIG, model, tools).run(GIVEN, first)
    (stored,) = [messages for kind, *_, messages in first.did if kind == "settle"]
    given = given_with(tuple(json.loads(json.dumps(stored))))
    CALLS.clear()
    await ConverseRuntime(CONFIG, ScriptedModel(answer("42")), tools).run(given, later)

    kinds = ("toolStarted", "toolFinished", "complete")
    told = [[entry for entry in each.did if entry[0] in kinds] for each in (first, later)]
    assert told[0] == told[1]
    assert [entry[0] for entry in told[1]] == [*kinds[:2] * 2, "complete"]
    assert told[1][3][1] == {"toolUseId": "tool-1", "name": name, "status": "error"}
    assert (swept, len(CALLS)) == ([], 1)


async def test_a_turn_of_which_every_call_was_refused_shows_them_again() -> None:
    first, later = Recorder(), Recorder(attempt=2)
    model = ScriptedModel(tool_call("guess", "{}"), answer("42"))
    await ConverseRuntime(CONFIG, model, TOOLS).run(GIVEN, first)
    (stored,) = [messages for kind, *_, messages in first.did if kind == "settle"]

    await ConverseRuntime(CONFIG, model, TOOLS).run(given_with(tuple(stored)), later)

    assert [entry[0] for entry in later.did][:4] == ["enter", "toolStarted", "toolFinished", "complete"]
    assert [entry for entry in first.did if entry[0] == "complete"] == [later.did[3]]


async def test_a_limit_of_turns_that_was_lowered_meanwhile_still_lets_the_tools_of_the_last_one_run() -> None:
    CALLS.clear()
    model, recorder = ScriptedModel(answer("42")), Recorder(attempt=2)
    runtime = ConverseRuntime(replace(CONFIG, max_turns=1), model, Tools([count]))

    with pytest.raises(TurnsExhausted):
        await runtime.run(given_with(half_turn("count")), recorder)

    assert [entry[0] for entry in recorder.did] == ["enter", "toolStarted", "toolFinished", "complete"]
    assert [call.idempotency_key for call in CALLS] == ["inv_1:1:1"]
    assert model.requests == []
