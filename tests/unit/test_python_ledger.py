"""Whatever an agent does with its model calls: nothing stays held, and all is settled once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from service.agents import AgentInvocation, UpstreamError
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text
from tests.harness import Served, serving

AGENTS: Final = "".join(
    f"""
[runtimes.{name}]
kind = "python"
entry = "tests.unit.test_python_ledger:{name}"
models = ["bedrock/model-1"]
max_output_tokens = 100
deadline_s = 60
"""
    for name in ("leaves", "raises", "crowd", "forgets", "busy")
)
HOLD: Final = 64 + 16 + len("What is a headrace?") + 100
DONE: Final = answer("A", "B", input_tokens=10, output_tokens=2)
CUT: Final = 64 + 16 + len("What is a headrace?") + len('{"contentBlockIndex":0,"delta":{"text":"A"}}')


async def first_delta(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    events = invocation.model().converse(messages=invocation.messages)
    async for event in events:
        if "contentBlockDelta" in event:
            yield event
            return


async def leaves(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Take the first delta of three calls, one after the other."""
    for _ in range(3):
        async for event in first_delta(invocation):
            yield event


async def raises(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Break in the middle of a call."""
    async for event in first_delta(invocation):
        yield event
    events = invocation.model().converse(messages=invocation.messages)
    yield await anext(events)
    raise LookupError


async def crowd(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Make three calls beside one another."""

    async def whole() -> int:
        events = invocation.model().converse(messages=invocation.messages)
        return sum([len(event) async for event in events])

    yield str(sum(await asyncio.gather(whole(), whole(), whole())))


async def forgets(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """End while tasks of its own are in the middle of calls."""

    begun = [asyncio.Event(), asyncio.Event()]

    async def whole(said: asyncio.Event) -> None:
        async for event in invocation.model().converse(messages=invocation.messages):
            if "contentBlockDelta" in event:
                said.set()

    KEPT[:] = [asyncio.ensure_future(whole(said)) for said in begun]
    for task, said in zip(KEPT, begun, strict=True):
        task.add_done_callback(lambda ended: ended.exception())
        await said.wait()
    async for event in first_delta(invocation):
        yield event


async def busy(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Go on after calls that fail."""
    for _ in range(3):
        try:
            async for event in invocation.model().converse(messages=invocation.messages):
                yield event
        except UpstreamError:
            yield "Once more. "


KEPT: Final[list[Any]] = [None]


@asynccontextmanager
async def submitted(
    clock: ManualClock, runtime: str, *calls: list[Step]
) -> AsyncIterator[tuple[Served, dict[str, Any]]]:
    """Submit to an agent, read its stream, and give the service and the record."""
    async with serving(clock, *calls, catalog=AGENTS) as served:
        async with served.post(path=f"/runtimes/{runtime}/invocations") as exchange:
            reading = asyncio.ensure_future(exchange.whole())
            await clock.advance(5)
            if not reading.done():
                location = exchange.headers["location"]
                headers = served._headers("", {})
                await served.client.request("POST", f"{location}/cancel", headers=headers)
                await clock.advance(5)
            await reading
        yield served, (await served.get(exchange.headers["location"])).json()


async def books(served: Served) -> tuple[int, int, int]:
    """Return what is used, what is held and how many run."""
    usage = (await served.get("/usage")).json()
    return usage["windows"][0]["used"], usage["windows"][0]["reserved"], usage["runningInvocations"]


@pytest.mark.promise("agent-calls-metered")
@pytest.mark.parametrize(
    ("runtime", "calls", "state", "used"),
    [
        ("leaves", [DONE], "completed", 3 * 12),
        ("raises", [DONE], "failed", 2 * 12),
        ("crowd", [DONE], "completed", 3 * 12),
        ("forgets", [DONE], "completed", 3 * 12),
        ("forgets", [[start(), text("A"), asyncio.Event()]], "completed", 3 * CUT),
        ("crowd", [DONE, [start(), text("A"), asyncio.Event()], DONE], "cancelled", 2 * 12 + CUT),
        ("busy", [[start(), text("A")], DONE, DONE], "failed", CUT + 12),
    ],
)
async def test_what_an_agent_does_with_its_calls_is_settled_and_nothing_stays_held(
    clock: ManualClock, runtime: str, calls: list[list[Step]], state: str, used: int
) -> None:
    async with submitted(clock, runtime, *calls) as (served, record):
        assert (record["state"], await books(served)) == (state, (used, 0, 0))


@pytest.mark.promise("agent-calls-metered", "store-down-fails-closed")
async def test_a_call_is_settled_once_though_the_store_was_away_when_it_ended(clock: ManualClock) -> None:
    gate = asyncio.Event()
    script: list[Step] = [start(), text("A"), gate, stop(input_tokens=10, output_tokens=2)]
    async with serving(clock, script, catalog=AGENTS) as served:
        async with served.post(path="/runtimes/crowd/invocations") as exchange:
            reading = asyncio.ensure_future(exchange.whole())
            await clock.advance(1)
            served.store.deaf, served.store.only = True, {"settle"}
            gate.set()
            await clock.advance(5)
            waited = not reading.done()
            served.store.deaf = False
            await clock.advance(10)
            await reading
        told = await books(served)

    assert waited
    assert told == (36, 0, 0)
    assert served.store.calls.count("settle") > 3
