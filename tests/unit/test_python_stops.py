"""Agents that are cancelled, that do not end, that are too fast for the log; in one thread and in two."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any

import pytest

from service.agent_loops import AgentLoop
from service.config import RuntimeConfig
from service.errors import AgentFailed, Fenced, InternalError
from service.invocations import Usage
from service.models import Frame
from service.runtimes import Outcome
from service.runtimes.python import PythonRuntime
from service.runtimes.python_agent import AgentInvocation
from tests.agents import BOUND, GIVEN, Loop, forward, ledger_of, outcome_of, runtime_of
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, start, stop, text
from tests.unit.test_converse import Recorder


@pytest.mark.promise("agent-stops-in-time")
async def test_a_cancelled_agent_gets_cancelled_error_and_time_to_clean_up(
    agent_loop: Loop,
) -> None:
    heard: list[str] = []
    begun = asyncio.Event()
    here = asyncio.get_running_loop()

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        try:
            async for event in invocation.model().converse(messages=invocation.messages):
                here.call_soon_threadsafe(begun.set)
                yield event
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            heard.append("cancelled")
            raise

    recorder = Recorder(grace_s=0.0)
    runtime, model = runtime_of(agent, agent_loop, [start(), asyncio.Event()])
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await begun.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running

    assert heard == ["cancelled"]
    assert model.cancelled == 1
    assert ledger_of(recorder)[-1] == ("settle_at_end", 1, Usage(BOUND, 0, estimated=True))


@pytest.mark.promise("agent-stops-in-time")
async def test_an_agent_that_swallows_its_cancellation_is_left_behind_and_writes_no_more(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on, went_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    refused: list[str] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        yield "before"
        begun.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue
        try:
            await anext(invocation.model().converse(messages=invocation.messages))
        except Exception as error:  # noqa: BLE001  whatever it is
            refused.append(type(error).__name__)
        went_on.set()
        yield "after"

    recorder = Recorder()
    runtime, model = runtime_of(agent, asyncio.get_running_loop(), cleanup_s=2.0)
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await begun.wait()
    await clock.advance(0)
    running.cancel()
    await clock.advance(1.9)
    in_time = not running.done()
    await clock.advance(0.2)
    over = running.done()
    go_on.set()
    await went_on.wait()
    await clock.advance(0)

    assert (in_time, over, running.cancelled()) == (True, True, True)
    assert recorder.frames == [*start(), *text("before")]
    assert refused == ["InvocationOver"]
    assert model.requests == []
    assert "agent does not end" in caplog.text


@pytest.mark.promise("agent-stops-in-time")
async def test_an_agent_that_is_cancelled_before_its_first_step_has_left(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    busy = threading.Event()
    other = AgentLoop("agent")
    other.start()
    other.loop.call_soon_threadsafe(busy.wait, 20)
    runtime, model = runtime_of(forward, other.loop)
    running = asyncio.ensure_future(runtime.run(GIVEN, Recorder()))
    await clock.advance(0)
    running.cancel()
    await clock.advance(0)
    busy.set()
    await asyncio.wait([running])
    await other.aclose()

    assert (running.cancelled(), model.requests, caplog.messages) == (True, [], [])


async def test_a_generator_that_yields_after_its_cancellation_is_closed(clock: ManualClock) -> None:
    closed: list[str] = []
    begun = asyncio.Event()

    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        try:
            try:
                yield "before"
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                yield "after"
                closed.append("went on")
        finally:
            closed.append("closed")

    recorder = Recorder()
    runtime, _ = runtime_of(agent, asyncio.get_running_loop())
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await begun.wait()
    await clock.advance(0)
    running.cancel()
    await clock.advance(0)

    assert running.cancelled()
    assert closed == ["closed"]
    assert recorder.frames == [*start(), *text("before")]


async def test_a_clean_up_that_fails_changes_nothing(
    agent_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[Any]:
        try:
            yield 7
        finally:
            raise LookupError

    runtime, _ = runtime_of(agent, agent_loop)

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, AgentFailed)
    assert "neither text nor an event" in str(failure.problem())
    assert "agent's cleanup failed" in caplog.text


async def test_an_agent_waits_for_a_log_that_is_behind(agent_loop: Loop) -> None:
    behind: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stuck = asyncio.Event()
    here = asyncio.get_running_loop()
    yielded: list[int] = []

    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        for number in range(100):
            yielded.append(number)
            yield "x" * 8000
            if number == 7:
                here.call_soon_threadsafe(stuck.set)

    class Behind(Recorder):
        def deliver(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
            self.frames.extend(frames)
            return None if behind.done() else asyncio.shield(behind)

    recorder = Behind()
    runtime, _ = runtime_of(agent, agent_loop)
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await stuck.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    at_most = len(yielded)
    behind.set_result(None)

    assert await running == Outcome("end_turn")
    assert at_most < 40
    assert sum(len(payload) for kind, payload in recorder.frames if kind == b"contentBlockDelta") > 800_000


async def test_a_model_call_waits_for_an_agent_that_is_behind(agent_loop: Loop) -> None:
    here = asyncio.get_running_loop()
    go_on = asyncio.Event()
    waiting = asyncio.Event()

    class Waiting(ScriptedModel):
        async def converse(self, request: Any, deliver: Any) -> None:
            await request.before_try()
            assert request.may_send()
            for piece in range(40):
                room = deliver(text("x" * 8000) if piece else start())
                if room is not None:
                    waiting.set()
                    await room
            deliver(stop())

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        events = invocation.model().converse(messages=invocation.messages)
        yield await anext(events)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), here))
        async for event in events:
            yield event

    recorder = Recorder()
    config = RuntimeConfig("agent", "python", entry="m:f", models=("bedrock/m-1",))
    runtime = PythonRuntime(config, agent, {"bedrock": Waiting()}, agent_loop, usage_grace_s=1.0)
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await waiting.wait()
    go_on.set()

    assert await running == Outcome("end_turn")
    assert len(recorder.frames) == 1 + 39 + 3


async def test_a_call_that_its_agent_has_left_is_read_on_however_much_comes(agent_loop: Loop) -> None:
    class Wordy(ScriptedModel):
        async def converse(self, request: Any, deliver: Any) -> None:
            await request.before_try()
            assert request.may_send()
            deliver(start())
            await left.wait()
            for _ in range(40):
                assert deliver(text("x" * 8000)) is None
            deliver(stop(input_tokens=7, output_tokens=3))

    left = asyncio.Event()
    here = asyncio.get_running_loop()

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        events = invocation.model().converse(messages=invocation.messages)
        await anext(events)
        await events.aclose()
        here.call_soon_threadsafe(left.set)
        yield "Enough."

    recorder = Recorder()
    config = RuntimeConfig("agent", "python", entry="m:f", models=("bedrock/m-1",))
    runtime = PythonRuntime(config, agent, {"bedrock": Wordy()}, agent_loop, usage_grace_s=1.0)

    await runtime.run(GIVEN, recorder)

    assert ("settle_at_end", 1, Usage(7, 3)) in recorder.did


async def test_an_agent_whose_invocation_another_process_has_claimed_is_stopped(agent_loop: Loop) -> None:
    heard: list[str] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        try:
            yield await anext(invocation.model().converse(messages=invocation.messages))
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    class Claimed(Recorder):
        async def reserve(self, turn: int, tokens: int) -> None:
            raise Fenced

    recorder = Claimed(attempt=2)
    runtime, model = runtime_of(agent, agent_loop, restartable=True)

    with pytest.raises(Fenced):
        await runtime.run(GIVEN, recorder)

    assert (heard, recorder.frames, model.requests) == (["cancelled"], [], [])


async def test_who_is_told_twice_to_end_reads_nothing_on(clock: ManualClock) -> None:
    recorder = Recorder(grace_s=10.0)
    runtime, model = runtime_of(forward, asyncio.get_running_loop(), [start(), asyncio.Event()])
    running = asyncio.ensure_future(runtime.run(GIVEN, recorder))
    await clock.advance(0)
    running.cancel()
    await clock.advance(5)
    reading_on = not running.done()
    running.cancel()
    await clock.advance(0)

    assert (reading_on, running.cancelled(), model.cancelled) == (True, True, 1)
    assert ledger_of(recorder)[-1] == ("settle_at_end", 1, Usage(BOUND, 0, estimated=True))


async def test_a_fault_of_ours_in_a_call_ends_it_for_its_agent(
    agent_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, _ = runtime_of(forward, agent_loop, [RuntimeError("ours")])

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, InternalError)
    assert "agent's model call failed" in caplog.text
