"""Cancelling: from any process, reaches the model and the tools, keeps what was produced, ends honestly."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.errors import AlreadyEnded
from service.takeover import HEED_S
from service.tools import ToolCall, tool
from tests.asgi import Answer
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text, tool_call
from tests.harness import Served, serving
from tests.sse import events_of, kinds_of

WAITER = """
[runtimes.waiter]
kind = "converse"
model = "bedrock/model-1"
tools = ["tests.unit.test_cancel:wait"]
"""
SEEN: list[str] = []
WITHIN_S = 2.0
"""What the API promises, whichever process was asked."""


@tool(description="Wait.", input_schema={"type": "object"})
async def wait(arguments: dict[str, Any], call: ToolCall) -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise
    return str(arguments or call)


def never() -> list[Step]:
    return [start(), text("Half an "), asyncio.Event()]


async def cancel(served: Served, location: str, **headers: str) -> Answer:
    return await served.submit(b"", f"{location}/cancel", **headers)


@pytest.mark.promise("cancel-reaches-everything", "one-terminal-event")
async def test_a_cancelled_invocation_ends_with_what_was_produced_and_is_settled(clock: ManualClock) -> None:
    async with serving(clock, never()) as served, served.post() as exchange:
        await exchange.until(b"Half an ")
        location = exchange.headers["location"]
        asked = await cancel(served, location)
        await clock.advance(1.5)
        got = await exchange.whole()
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()

    assert (asked.status, asked.json()["state"]) == (202, "running")
    assert asked.json()["cancelRequestedAt"] == "2026-11-21T16:40:00.000Z"
    assert served.model.cancelled == 1
    _, event = events_of(got.body)[-1]
    assert event == {"invocationCancelled": {"reason": "requested", "usage": record["usage"]}}
    assert (record["state"], record["result"]["text"], record["usage"]["estimated"]) == (
        "cancelled",
        "Half an ",
        True,
    )
    assert usage["windows"][0]["used"] == sum(
        record["usage"][name] for name in ("inputTokens", "outputTokens")
    )
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)


async def test_usage_that_comes_within_the_grace_is_exact(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), text("Nearly"), gate, text(" done."), stop()]) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        await cancel(served, location)
        asyncio.get_running_loop().call_later(0.5, gate.set)
        await clock.advance(1)
        record = (await served.get(location)).json()

    assert (record["state"], record["result"]["text"]) == ("cancelled", "Nearly done.")
    assert (record["usage"]["inputTokens"], record["usage"]["outputTokens"]) == (10, 5)
    assert "estimated" not in record["usage"]


@pytest.mark.promise("cancel-reaches-everything")
async def test_a_running_tool_is_cancelled(clock: ManualClock) -> None:
    SEEN.clear()
    async with serving(clock, tool_call("wait", "{}"), catalog=WAITER) as served:
        path = "/runtimes/waiter/invocations"
        location = (
            await served.submit({"prompt": "?", "maxTokens": 9}, path, prefer="respond-async")
        ).headers["location"]
        await clock.advance(0)
        await cancel(served, location)
        await clock.advance(0)
        record = (await served.get(location)).json()

    assert (SEEN, record["state"]) == (["cancelled"], "cancelled")


@pytest.mark.promise("cancel-reaches-everything")
async def test_any_process_may_be_asked_and_the_owner_sees_it_in_time(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    async with serving(clock, never(), store=path) as owner, serving(clock, store=path) as other:
        location = (await owner.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        asked = await cancel(other, location)
        await clock.advance(WITHIN_S)
        reached = owner.model.cancelled
        record = (await other.get(location)).json()

    assert (asked.status, reached, record["state"]) == (202, 1, "cancelled")


async def test_cancelling_again_is_the_same(clock: ManualClock) -> None:
    async with serving(clock, never()) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        await clock.advance(0)
        answers = [await cancel(served, location), await cancel(served, location)]
        await clock.advance(1)
        answers.append(await cancel(served, location))
        await clock.advance(5)
        got = await served.get(f"{location}/events")

    assert [each.status for each in answers] == [202, 202, 200]
    assert len({each.json()["cancelRequestedAt"] for each in answers}) == 1
    assert kinds_of(got.body).count("invocationCancelled") == 1


async def test_an_invocation_that_has_ended_otherwise_is_a_conflict_with_its_state(
    clock: ManualClock,
) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        refused = [await served.submit(b"", f"{location}/{what}") for what in ("cancel", "resume")]
        record = (await served.get(location)).json()

    error = AlreadyEnded(
        "Its state is completed: its record says how it ended.", extra={"state": "completed"}
    )
    assert [(got.status, got.json()) for got in refused] == [(409, error.problem())] * 2
    assert "cancelRequestedAt" not in record


@pytest.mark.promise("owner-only")
async def test_nobody_cancels_or_resumes_another_principals_invocation(clock: ManualClock) -> None:
    async with serving(clock, never()) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        statuses = [
            (await served.submit(b"", f"{location}/{what}", as_user="someone-else")).status
            for what in ("cancel", "resume")
        ]
        await clock.advance(3)
        record = (await served.get(location)).json()

    assert (statuses, record["state"]) == ([404, 404], "running")


async def test_a_cancellation_that_the_store_can_not_take_is_refused(clock: ManualClock) -> None:
    async with serving(clock, never()) as served:
        location = (await served.submit(prefer="respond-async")).headers["location"]
        served.store.only, served.store.down = {"request_cancel"}, True
        got = await cancel(served, location)

    assert (got.status, got.json()["code"]) == (503, "store-unavailable")


@pytest.mark.promise("cancel-reaches-everything")
async def test_a_cancellation_survives_the_process_that_was_to_do_it(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    async with (
        serving(clock, never(), store=path) as owner,
        serving(clock, answer("no"), store=path) as other,
    ):
        location = (await owner.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        invocation_id = location.rpartition("/")[2]
        await other.store.as_store.request_cancel(invocation_id, clock.now_ms())
        owner.store.down = True
        await clock.advance(40)
        record = (await other.get(location)).json()
        owner.store.down = False
        await clock.advance(2)

    assert record["state"] == "cancelled"
    assert [each["end"] for each in record["attempts"]] == ["lost", "finished"]
    assert other.model.requests == []


async def test_heeding_goes_on_after_the_store_was_away(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with serving(clock, never(), store=path) as owner, serving(clock, store=path) as other:
        location = (await owner.submit(prefer="respond-async")).headers["location"]
        owner.store.only, owner.store.down = {"cancel_requests"}, True
        await clock.advance(1)
        await cancel(other, location)
        await clock.advance(5)
        owner.store.down = False
        await clock.advance(HEED_S + 1)
        record = (await other.get(location)).json()

    assert (record["state"], len(record["attempts"])) == ("cancelled", 1)
