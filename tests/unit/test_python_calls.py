"""The model calls of an agent: turns, holds, settlements; in one thread and in two."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from service.agents import AgentInvocation, Event, message_of
from service.errors import (
    TurnsExhausted,
    UpstreamThrottled,
)
from service.invocations import Usage
from service.runtimes import Outcome
from service.runtimes.python_calls import CALLS_AT_ONCE
from tests.agents import BOUND, GIVEN, MESSAGES, Loop, forward, ledger_of, outcome_of, runtime_of
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text
from tests.unit.test_converse import Recorder


@pytest.mark.promise("agent-calls-metered")
async def test_a_model_call_is_forwarded_and_settled_like_ours(agent_loop: Loop) -> None:
    recorder = Recorder()
    runtime, model = runtime_of(
        forward, agent_loop, answer("A head", "race.", input_tokens=12, output_tokens=2)
    )

    outcome = await runtime.run(GIVEN, recorder)

    (request,) = model.requests
    assert outcome == Outcome("end_turn")
    assert recorder.frames == [*start(), *text("A head", "race."), *stop(input_tokens=12, output_tokens=2)]
    assert recorder.did == [
        ("enter", "agent", 0),
        ("enter", "model", 1),
        ("settle_at_end", 1, Usage(12, 2)),
        ("settle_noted", 1),
        ("show", "agent"),
    ]
    assert (request.model_id, request.max_tokens, list(request.messages)) == ("m-1", 100, list(MESSAGES))
    assert dict(request.request_metadata) == {"team": "search", "headrace:call": "inv_1:1:1"}


async def test_a_first_call_that_is_larger_than_its_hold_swaps_it_for_its_own(
    agent_loop: Loop,
) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        model = invocation.model("bedrock/m-2")
        async for event in model.converse(messages=invocation.messages, system="Be brief.", max_tokens=200):
            yield event

    recorder = Recorder()
    runtime, model = runtime_of(agent, agent_loop)

    assert runtime.first_reservation_tokens(GIVEN) == BOUND + 100
    await runtime.run(GIVEN, recorder)

    assert ledger_of(recorder) == [
        ("settle_at_end", 1, Usage()),
        ("settle_noted", 1),
        ("reserve", 2, BOUND + 9 + 200),
        ("settle_at_end", 2, Usage(10, 5)),
        ("settle_noted", 2),
    ]
    assert model.requests[0].system == "Be brief."


@pytest.mark.promise("agent-calls-metered")
async def test_calls_beside_one_another_have_turns_and_settlements_of_their_own(
    agent_loop: Loop,
) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        async def said(name: str) -> str:
            events = invocation.model(name).converse(messages=invocation.messages)
            deltas = [event["contentBlockDelta"] async for event in events if "contentBlockDelta" in event]
            return "".join(delta["delta"]["text"] for delta in deltas)

        for words in await asyncio.gather(said("bedrock/m-1"), said("bedrock/m-2"), said("bedrock/m-1")):
            yield words

    recorder = Recorder()
    calls = [answer("a", input_tokens=1), answer("b", input_tokens=2), answer("c", input_tokens=3)]
    runtime, _ = runtime_of(agent, agent_loop, *calls)

    await runtime.run(GIVEN, recorder)

    settled = [did for did in recorder.did if did[0] == "settle_at_end"]
    assert sorted(settled) == [("settle_at_end", turn, Usage(turn, 5)) for turn in (1, 2, 3)]
    assert sorted(did[1] for did in recorder.did if did[0] == "reserve") == [2, 3]
    assert sorted(did[1] for did in recorder.did if did[0] == "settle_noted") == [1, 2, 3]
    assert recorder.frames[1:4] == text("a", "b", "c")


async def test_calls_beyond_those_that_one_ending_can_settle_wait_for_others_to_end(
    agent_loop: Loop,
) -> None:
    here, gate = asyncio.get_running_loop(), asyncio.Event()
    begun = 0

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        async def call() -> None:
            nonlocal begun
            async for event in invocation.model("bedrock/m-1").converse(messages=invocation.messages):
                begun += "messageStart" in event
                if begun == CALLS_AT_ONCE:
                    here.call_soon_threadsafe(gate.set)

        await asyncio.gather(*(call() for _ in range(CALLS_AT_ONCE + 2)))
        yield "Enough."

    recorder = Recorder()
    script: list[Step] = [start(), gate, text("a"), stop()]
    runtime, model = runtime_of(agent, agent_loop, *[script] * (CALLS_AT_ONCE + 2), max_turns=1000)

    await runtime.run(GIVEN, recorder)

    steps = [did[:2] for did in recorder.did if did[0] in ("enter", "settle_at_end")]
    first_end = next(place for place, (did, _) in enumerate(steps) if did == "settle_at_end")
    assert sum(step == ("enter", "model") for step in steps[:first_end]) == CALLS_AT_ONCE
    assert len(model.requests) == CALLS_AT_ONCE + 2
    assert sum(did == "settle_at_end" for did, _ in steps) == CALLS_AT_ONCE + 2


@pytest.mark.promise("agent-calls-metered")
async def test_a_call_that_its_agent_leaves_is_read_on_and_settled_as_reported(
    agent_loop: Loop,
) -> None:
    left = asyncio.Event()
    here = asyncio.get_running_loop()

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        async with aclosing(invocation.model().converse(messages=invocation.messages)) as events:
            async for event in events:
                if "contentBlockDelta" in event:
                    break
        here.call_soon_threadsafe(left.set)
        yield "Enough."

    recorder = Recorder()
    script: list[Step] = [start(), text("A head"), left, stop(input_tokens=7, output_tokens=3)]
    runtime, model = runtime_of(agent, agent_loop, script)

    outcome = await runtime.run(GIVEN, recorder)

    assert outcome == Outcome("end_turn")
    assert ("settle_at_end", 1, Usage(7, 3)) in recorder.did
    assert recorder.frames[1:2] == text("Enough.")
    assert model.cancelled == 0


@pytest.mark.promise("agent-calls-metered")
async def test_a_call_that_goes_on_when_its_agent_has_ended_is_ended_and_settled(clock: ManualClock) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        kept.append(invocation.model().converse(messages=invocation.messages))
        yield str(len(await anext(kept[0])))

    kept: list[AsyncGenerator[Any]] = []
    recorder = Recorder()
    runtime, model = runtime_of(agent, asyncio.get_running_loop(), [start(), asyncio.Event()])

    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await clock.advance(0.9)
    read_on = not running.done()
    await clock.advance(0.1)

    assert await running == Outcome("end_turn")
    assert read_on
    assert ("settle_at_end", 1, Usage(BOUND, 0, estimated=True)) in recorder.did
    assert model.cancelled == 1


async def test_an_upstreams_failure_can_be_caught_and_is_settled(agent_loop: Loop) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        try:
            async for event in invocation.model("bedrock/m-1").converse(messages=invocation.messages):
                yield event
        except UpstreamThrottled:
            async for event in invocation.model("bedrock/m-2").converse(messages=invocation.messages):
                yield event

    recorder = Recorder()
    runtime, model = runtime_of(agent, agent_loop, [UpstreamThrottled("Slow down.")], answer("second"))

    outcome = await runtime.run(GIVEN, recorder)

    assert outcome == Outcome("end_turn")
    assert [request.model_id for request in model.requests] == ["m-1", "m-2"]
    assert ledger_of(recorder) == [
        ("settle_at_end", 1, Usage()),
        ("settle_noted", 1),
        ("reserve", 2, BOUND + 100),
        ("settle_at_end", 2, Usage(10, 5)),
        ("settle_noted", 2),
    ]


async def test_an_upstreams_failure_that_nobody_catches_is_the_invocations(agent_loop: Loop) -> None:
    runtime, _ = runtime_of(forward, agent_loop, [UpstreamThrottled("Slow down.")])

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, UpstreamThrottled)


@pytest.mark.promise("turn-limit")
async def test_an_agent_calls_models_as_often_as_its_runtime_says(agent_loop: Loop) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        while True:
            async for event in invocation.model().converse(messages=invocation.messages):
                yield event

    runtime, model = runtime_of(agent, agent_loop, max_turns=2)

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, TurnsExhausted)
    assert len(model.requests) == 2


async def test_tools_and_bytes_reach_the_model_as_it_wants_them(agent_loop: Loop) -> None:
    spec = {"name": "search", "description": "d", "inputSchema": {"json": {"type": "object"}}}
    image = {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        messages = [{"role": "user", "content": [{"text": "\ud83d"}, image]}]
        async for event in invocation.model().converse(messages=messages, tools=[{"toolSpec": spec}, spec]):
            yield event

    runtime, model = runtime_of(agent, agent_loop)
    await runtime.run(GIVEN, Recorder())

    (request,) = model.requests
    sent = {"image": {"format": "png", "source": {"bytes": "iVBORw=="}}}
    assert list(request.tools) == [spec, spec]
    assert list(request.messages) == [{"role": "user", "content": [{"text": "\ud83d"}, sent]}]


def test_the_events_of_a_call_add_up_to_the_message_of_the_next() -> None:
    def delta(index: int, value: dict[str, Any]) -> Event:
        return {"contentBlockDelta": {"contentBlockIndex": index, "delta": value}}

    use = {"toolUseId": "t-1", "name": "search"}
    events: list[Event] = [
        {"messageStart": {"role": "assistant"}},
        delta(0, {"text": "Let \ud83d"}),
        delta(0, {"text": "\ude00 see."}),
        {"contentBlockStart": {"contentBlockIndex": 1, "start": {"toolUse": use}}},
        delta(1, {"toolUse": {"input": '{"query":'}}),
        delta(1, {"toolUse": {"input": '"x"}'}}),
        {"messageStop": {"stopReason": "tool_use"}},
    ]

    assert message_of(events) == {
        "role": "assistant",
        "content": [{"text": "Let \U0001f600 see."}, {"toolUse": {**use, "input": {"query": "x"}}}],
    }


TOOL = {"name": "add", "inputSchema": {"json": {"type": "object"}}}


@pytest.mark.parametrize(
    "arguments",
    [
        {"system": None},
        {"system": [{"text": "Be brief."}]},
        {"messages": {"role": "user"}},
        {"messages": "Hello"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [{"content": [{"text": "Hello"}]}]},
        {"messages": [{"role": "user", "content": ["Hello"]}]},
        {"messages": [{"role": "user", "content": [{"text": 5}]}]},
        {"messages": [{"role": "assistant", "content": [{"toolUse": {"name": "add", "input": {}}}]}]},
        {
            "messages": [
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": 5, "input": {}}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "1"}}]}]},
        {"messages": [{"role": "user", "content": [{"toolResult": {"content": []}}]}]},
        {"tools": ["add"]},
        {"tools": [{"name": "add"}]},
        {"tools": [{"toolSpec": None}]},
        {"tools": [{"toolSpec": TOOL | {"name": 5}}]},
        {"tools": [TOOL | {"inputSchema": {}}]},
    ],
)
async def test_an_argument_of_another_shape_is_the_agents_to_know(
    agent_loop: Loop, arguments: dict[str, Any]
) -> None:
    heard: list[str] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        try:
            invocation.model().converse(**{"messages": invocation.messages, **arguments})
        except ValueError as error:
            heard.append(str(error))
        yield "Done."

    runtime, model = runtime_of(agent, agent_loop)

    outcome = await runtime.run(GIVEN, Recorder())

    (said,) = heard
    assert next(iter(arguments)) in said
    assert (outcome, model.requests) == (Outcome("end_turn"), [])


async def test_what_every_upstream_takes_is_no_fault(agent_loop: Loop) -> None:
    use = {"toolUseId": "1", "name": "add", "input": {}}
    messages: list[Any] = [
        {"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": b"x"}}}, {"text": "?"}]},
        {"role": "assistant", "content": ({"toolUse": use},)},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"json": 1}]}}]},
    ]

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        async for event in invocation.model().converse(messages=messages, tools=[TOOL, {"toolSpec": TOOL}]):
            yield event

    runtime, model = runtime_of(agent, agent_loop)

    await runtime.run(GIVEN, Recorder())

    assert [request.tools for request in model.requests] == [[TOOL, TOOL]]


async def test_a_call_that_its_agent_has_left_is_read_on_though_the_agent_ends(clock: ManualClock) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        events = invocation.model().converse(messages=invocation.messages)
        await anext(events)
        await events.aclose()
        yield "Enough."

    gate = asyncio.Event()
    recorder = Recorder()
    script: list[Step] = [start(), gate, stop(input_tokens=7, output_tokens=3)]
    runtime, _ = runtime_of(agent, asyncio.get_running_loop(), script)
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await clock.advance(0.5)
    gate.set()

    assert await running == Outcome("end_turn")
    assert ("settle_at_end", 1, Usage(7, 3)) in recorder.did
