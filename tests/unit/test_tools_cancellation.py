"""Tools that are cancelled: what a call leaves behind."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from service.tools import CANCEL_GRACE_S, ToolResult, Tools
from tests.clock import ManualClock
from tests.probing import CALL, CANARY, a_tool, failed, fields, forever


async def cancel_midway(body: Callable[[], Any], clock: ManualClock) -> asyncio.Task[ToolResult]:
    """Start a call, cancel it once the tool waits, and let all run until nothing can."""
    running = asyncio.create_task(Tools([a_tool(body)]).run(CALL, "probe", b"{}"))
    await clock.advance(0)
    running.cancel()
    await clock.advance(0)
    return running


async def test_cancelling_a_call_waits_for_the_tool_to_clean_up(clock: ManualClock) -> None:
    steps: list[str] = []

    async def careful() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            steps.append("cancelled")
            await asyncio.sleep(3.0)
            steps.append("cleaned up")
            raise

    running = await cancel_midway(careful, clock)
    before = (list(steps), running.done())
    await clock.advance(3.0)

    assert before == (["cancelled"], False)
    assert (steps, running.cancelled()) == (["cancelled", "cleaned up"], True)


async def test_a_tool_that_returns_in_spite_of_its_cancellation_does_not_undo_it(clock: ManualClock) -> None:
    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        return "done anyway"

    running = await cancel_midway(stubborn, clock)

    assert running.cancelled()


@pytest.mark.promise("no-content-in-logs")
async def test_a_tool_that_fails_while_it_is_cancelled_is_not_heard_of(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails_late() -> None:
        try:
            await forever()
        finally:
            raise ValueError(CANARY)

    running = await cancel_midway(fails_late, clock)
    gc.collect()  # asyncio speaks of an exception that nobody asked for when its task is collected

    assert running.cancelled()
    assert caplog.records == []


@pytest.mark.parametrize("by", ["cancellation", "timeout"])
async def test_a_tool_that_ignores_its_cancellation_holds_nobody_up_for_long(
    by: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []
    may_end = asyncio.Event()

    async def deaf() -> None:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        steps.append("ended")

    if by == "cancellation":
        running = await cancel_midway(deaf, clock)
    else:
        running = asyncio.create_task(Tools([a_tool(deaf)]).run(CALL, "probe", b"{}"))
        await clock.advance(60.0)
    await clock.advance(CANCEL_GRACE_S - 1.0)
    waited = not running.done()
    await clock.advance(1.0)
    told = running.cancelled() or running.result()
    may_end.set()
    await clock.advance(0)

    assert waited
    assert told == (True if by == "cancellation" else failed("The tool was stopped after 60 s."))
    assert steps == ["ended"]
    assert fields(caplog.records[0]) == {
        "message": "tool ignores its cancellation",
        "level": "ERROR",
        "tool": "probe",
        "invocation_id": "inv_1",
        "turn": 2,
    }


async def test_a_second_cancellation_does_not_wait_for_the_tool(clock: ManualClock) -> None:
    steps: list[str] = []

    async def slow_to_end() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(3.0)
            steps.append("cleaned up")

    running = await cancel_midway(slow_to_end, clock)
    running.cancel()
    await clock.advance(0)
    at_once = (running.cancelled(), list(steps))
    await clock.advance(3.0)

    assert at_once == (True, [])
    assert steps == ["cleaned up"]


async def test_a_call_cancelled_before_it_began_leaves_nothing_behind(clock: ManualClock) -> None:
    running = asyncio.create_task(Tools([a_tool(lambda: "never")]).run(CALL, "probe", b"{}"))
    running.cancel()

    await clock.advance(0)

    assert running.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.promise("no-content-in-logs")
async def test_a_call_cancelled_as_its_tool_fails_is_cancelled_in_silence(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ending = asyncio.Event()

    async def ends_now() -> None:
        await ending.wait()
        raise LookupError(CANARY)

    running = asyncio.create_task(Tools([a_tool(ends_now)]).run(CALL, "probe", b"{}"))
    await clock.advance(0)
    ending.set()
    await asyncio.sleep(0)
    running.cancel()
    await clock.advance(0)
    gc.collect()

    assert running.cancelled()
    assert caplog.records == []
