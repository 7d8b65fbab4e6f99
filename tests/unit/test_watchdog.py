import asyncio
import gc
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.agent_loops import SERVICE, AgentLoop, open_agent_loops
from service.beat import BEAT_S
from service.watchdog import AGENT_TASK, BLOCKED_S, LOOK_AGAIN_S, Watchdog, Watched
from tests.clock import ManualClock

WAIT_S = 10.0
CANARY = "what the caller said"


@pytest.fixture
async def other() -> Any:
    """Give a loop in another thread."""
    loop = AgentLoop("research")
    loop.start()
    yield loop
    await loop.aclose()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Give an event that blocks a thread until the test ends, at the latest."""
    event = threading.Event()
    yield event
    event.set()


def blocks_its_thread(blocked: threading.Event, gate: threading.Event) -> None:
    blocked.set()
    gate.wait(WAIT_S)


async def agent(blocked: threading.Event, gate: threading.Event) -> None:
    blocks_its_thread(blocked, gate)


@pytest.mark.promise("agent-blocks-only-itself")
async def test_a_loop_that_is_blocked_is_told_once_with_its_stack_and_once_more_when_it_goes_on(
    clock: ManualClock, other: AgentLoop, gate: threading.Event
) -> None:
    told: list[dict[str, Any]] = []
    watched = Watched("research", other.loop, other.thread_id)
    watchdog = Watchdog([watched], lambda fields: told.append(dict(fields)), clock=clock.monotonic_s)
    blocked = threading.Event()

    async def start() -> "asyncio.Task[None]":
        return asyncio.create_task(agent(blocked, gate), name=f"{AGENT_TASK}inv_1")

    asyncio.run_coroutine_threadsafe(start(), other.loop)
    await asyncio.to_thread(blocked.wait, WAIT_S)
    for seconds in (0, BLOCKED_S - 0.1, 0.1, 5.0):
        clock.pass_time(seconds)
        watchdog.look()
    gate.set()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), other.loop))
    watchdog.look()
    watchdog.look()

    first, last = told
    assert "blocks_its_thread" in first.pop("stack")
    assert first == {
        "loop": "research",
        "blocked": True,
        "blocked_ms": 1000,
        "blocks": 1,
        "invocation_id": "inv_1",
    }
    assert last == {"loop": "research", "blocked": False, "blocked_ms": 6000, "blocks": 1}


@pytest.mark.promise("agent-blocks-only-itself")
def test_what_is_blocked_is_told_within_two_seconds() -> None:
    asked_s = BEAT_S  # at the worst it has answered just before it was blocked
    told_s = asked_s + BEAT_S + math.ceil((BLOCKED_S - BEAT_S) / LOOK_AGAIN_S) * LOOK_AGAIN_S

    assert told_s <= 2.0


async def test_a_loop_that_does_not_answer_is_looked_at_again_soon(
    clock: ManualClock, other: AgentLoop, gate: threading.Event
) -> None:
    watchdog = Watchdog([Watched("research", other.loop, other.thread_id)], print, clock=clock.monotonic_s)
    other.loop.call_soon_threadsafe(gate.wait)

    looks = [watchdog.look(), watchdog.look(), watchdog.look()]
    gate.set()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), other.loop))

    assert (looks, watchdog.look()) == ([True, False, False], True)


async def test_a_loop_that_answers_is_not_told(clock: ManualClock, other: AgentLoop) -> None:
    told: list[Any] = []
    watchdog = Watchdog(
        [Watched("research", other.loop, other.thread_id)], told.append, clock=clock.monotonic_s
    )

    for _ in range(3):
        watchdog.look()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), other.loop))
        clock.pass_time(5)

    assert told == []


async def test_a_loop_that_runs_no_agent_is_told_without_an_invocation(
    clock: ManualClock, other: AgentLoop, gate: threading.Event
) -> None:
    told: list[Any] = []
    watched = Watched("research", other.loop, other.thread_id)
    watchdog = Watchdog([watched], told.append, clock=clock.monotonic_s)
    blocked = threading.Event()

    other.loop.call_soon_threadsafe(blocks_its_thread, blocked, gate)
    await asyncio.to_thread(blocked.wait, WAIT_S)
    watchdog.look()
    clock.pass_time(BLOCKED_S)
    watchdog.look()

    assert [fields["invocation_id"] for fields in told] == [""]


async def test_a_loop_that_has_ended_is_left_alone(clock: ManualClock) -> None:
    ended = AgentLoop("ended")
    ended.start()
    await ended.aclose()
    watchdog = Watchdog([Watched("ended", ended.loop, ended.thread_id)], print, clock=clock.monotonic_s)

    watchdog.look()


# -- the threads


async def test_each_runtime_has_a_thread_of_its_own_and_the_service_is_watched_too() -> None:
    async with open_agent_loops(["research", "desk"], print) as loops:
        names = {
            name: await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(thread_name(), loop))
            for name, loop in loops.items()
        }
        alive = {thread.name for thread in threading.enumerate()}

    assert names == {"research": "agents-research", "desk": "agents-desk"}
    assert "watchdog" in alive
    assert SERVICE not in names


async def thread_name() -> str:
    return threading.current_thread().name


async def test_a_task_that_exits_does_not_end_its_thread(
    other: AgentLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        raise SystemExit(1)

    async def start() -> None:
        asyncio.create_task(leave()).add_done_callback(lambda task: task.exception())

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(start(), other.loop))
    name = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(thread_name(), other.loop))

    assert name == "agents-research"
    assert "an agent's task tried to end its thread" in caplog.text


async def test_a_thread_that_is_blocked_is_left_behind(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = AgentLoop("stuck", close_s=0.01)
    stuck.start()
    blocked = threading.Event()
    stuck.loop.call_soon_threadsafe(blocks_its_thread, blocked, gate)
    await asyncio.to_thread(blocked.wait, WAIT_S)

    await stuck.aclose()
    gate.set()

    assert "the agents' loop can't be ended" in caplog.text


@pytest.mark.promise("no-content-in-logs")
async def test_what_a_task_of_an_agents_fails_with_is_logged_without_its_text(
    other: AgentLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise LookupError(CANARY)

    async def start() -> None:
        await asyncio.wait([asyncio.create_task(fail())])

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(start(), other.loop))
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(collected(), other.loop))

    (record,) = [each for each in caplog.records if each.message == "an agent's task failed"]
    assert record.__dict__["fault"] == "Task exception was never retrieved"
    assert record.__dict__["error_type"] == "LookupError"
    assert CANARY not in str(record.__dict__)


async def collected() -> None:
    gc.collect()
