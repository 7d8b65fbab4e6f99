"""Python runtimes in the whole service: submitted, metered, cancelled, taken over, shown."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import pytest

from service.config import ConfigError
from service.runtimes.python import load_agent
from service.runtimes.python_agent import AgentInvocation
from service.takeover import LONGEST_LOOK_S
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, text
from tests.harness import serving
from tests.left_behind import LeftBehind
from tests.sse import events_of, kinds_of

AGENTS: Final = """
[runtimes.designed]
kind = "python"
entry = "tests.agents:designed"
models = ["bedrock/model-1"]
max_output_tokens = 1000
deadline_s = 600

[runtimes.twice]
kind = "python"
entry = "tests.agents:twice"
models = ["bedrock/model-1", "bedrock/model-2"]
max_output_tokens = 8000

[runtimes.gated]
kind = "python"
entry = "tests.unit.test_python_service:gated"
restartable = true
"""
RICH: Final = """
[limits.writers]
daily_tokens = 20_000
monthly_tokens = 100_000
invocation_tokens = 50_000
"""
DESIGNED: Final = "/runtimes/designed/invocations"
GATED: Final = "/runtimes/gated/invocations"
GATES: Final[dict[str, asyncio.Event]] = {}
CLOCKS: Final[list[ManualClock | None]] = [None]


async def gated(invocation: AgentInvocation) -> AsyncGenerator[str]:
    """Say something, wait, stop the whole process if the test says so, and say something more."""
    invocation.progress("waiting at the gate")
    yield f"attempt {invocation.attempt} "
    await GATES["go on"].wait()
    if CLOCKS[0] is not None:
        CLOCKS[0].pass_time(40)  # as if its code had held the interpreter for so long
        GATES["passed"].set()
    yield "unfenced"


@pytest.fixture(autouse=True)
def gates() -> None:
    GATES.update({"go on": asyncio.Event(), "passed": asyncio.Event()})
    CLOCKS[0] = None


async def test_the_agent_of_the_documents_streams_and_is_metered_like_an_agent_of_ours(
    clock: ManualClock,
) -> None:
    async with serving(clock, catalog=AGENTS) as served:
        got = await served.submit(path=DESIGNED)
        ours = await served.submit()
        usage = (await served.get("/usage")).json()
        record = (await served.get(got.headers["location"])).json()

    assert got.status == 200
    assert [event for _, event in events_of(got.body)][1:] == [event for _, event in events_of(ours.body)][1:]
    assert record["usage"] == {
        "inputTokens": 10,
        "outputTokens": 5,
        "cacheReadInputTokens": 0,
        "cacheWriteInputTokens": 0,
    }
    assert usage["windows"][0]["used"] == 30
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)


@pytest.mark.promise("budget-per-invocation")
async def test_an_agent_never_starts_a_call_that_its_budget_does_not_cover(clock: ManualClock) -> None:
    first = answer("a", input_tokens=9000, output_tokens=5000)
    async with serving(clock, first, catalog=AGENTS) as served:
        got = await served.submit(path="/runtimes/twice/invocations")
        usage = (await served.get("/usage")).json()

    (_, last) = events_of(got.body)[-1]
    assert last["invocationFailed"]["problem"]["code"] == "budget-exceeded"
    assert len(served.model.requests) == 1
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (14000, 0)


async def test_an_agent_without_quota_for_its_next_call_fails_and_does_not_wait(clock: ManualClock) -> None:
    first = answer("a", input_tokens=8000, output_tokens=5000)
    async with serving(clock, first, catalog=AGENTS + RICH) as served:
        got = await served.submit(path="/runtimes/twice/invocations")
        usage = (await served.get("/usage")).json()

    (_, last) = events_of(got.body)[-1]
    assert last["invocationFailed"]["problem"]["code"] == "quota-exceeded"
    assert len(served.model.requests) == 1
    assert (usage["windows"][0]["used"], usage["windows"][0]["reserved"]) == (13000, 0)


async def test_heartbeats_say_what_the_agent_does(clock: ManualClock) -> None:
    async with serving(clock, catalog=AGENTS) as served, served.post(path=GATED) as exchange:
        await exchange.until(b"attempt 1")
        await clock.advance(10)
        body = exchange.body
        GATES["go on"].set()
        await exchange.whole()

    assert b": heartbeat phase=agent:waiting-at-the-gate turn=0 elapsed_s=" in body


@pytest.mark.promise("cancel-reaches-everything", "agent-stops-in-time")
async def test_an_agent_is_cancelled_with_its_model_call(clock: ManualClock) -> None:
    script: list[Step] = [start(), text("A head"), asyncio.Event()]
    async with serving(clock, script, catalog=AGENTS) as served, served.post(path=DESIGNED) as exchange:
        await exchange.until(b"A head")
        location = exchange.headers["location"]
        async with served.client.stream(
            "POST", f"{location}/cancel", headers=served._headers("", {})
        ) as asking:
            await asking.whole()
        await clock.advance(2)
        got = await exchange.whole()
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()

    assert kinds_of(got.body)[-1] == "invocationCancelled"
    assert served.model.cancelled == 1
    assert record["usage"]["estimated"] is True
    assert usage["windows"][0]["reserved"] == 0


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_an_agent_that_stops_the_process_beyond_its_lease_writes_nothing_once_overtaken(
    clock: ManualClock,
) -> None:
    async with serving(clock, catalog=AGENTS) as served, served.post(path=GATED) as exchange:
        await exchange.until(b"attempt 1 ")
        await clock.advance(1)
        store, later_ms = served.store.as_store, clock.now_ms() + 60_000
        await store.renew_lease("another", later_ms)
        (claim,) = await store.claim_expired("another", later_ms - 1, limit=1)
        CLOCKS[0] = clock
        GATES["go on"].set()
        await GATES["passed"].wait()
        await clock.advance(12)
        got = await exchange.whole()
        record = (await served.get(exchange.headers["location"])).json()

    assert (claim.invocation.attempt, b"unfenced" in got.body) == (2, False)
    assert [line["code"] for line in served.lines.attempts] == ["fenced"]
    assert (record["attempts"][0]["lastEventId"], record["attempts"][0]["end"]) == ("1.1", "lost")


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_an_agent_that_stops_the_process_beyond_its_lease_goes_on_once_it_is_renewed(
    clock: ManualClock,
) -> None:
    async with serving(clock, catalog=AGENTS) as served, served.post(path=GATED) as exchange:
        await exchange.until(b"attempt 1 ")
        served.store.only, served.store.down = {"renew_lease"}, True
        CLOCKS[0] = clock
        GATES["go on"].set()
        await GATES["passed"].wait()
        await clock.advance(5)
        lapsed = exchange.body
        served.store.down = False
        await clock.advance(5)
        got = await exchange.whole()

    assert b"unfenced" not in lapsed
    assert [event_id for event_id, _ in events_of(got.body)] == [f"1.{seq}" for seq in range(1, 8)]
    assert b"unfenced" in got.body


@pytest.mark.promise("agent-restarts", "no-agent-twice")
@pytest.mark.parametrize(("runtime", "ended"), [("gated", "completed"), ("designed", "failed")])
async def test_an_agent_whose_process_died_runs_again_if_it_may(
    clock: ManualClock, runtime: str, ended: str
) -> None:
    GATES["go on"].set()
    async with serving(clock, catalog=AGENTS) as served:
        dead = await (await LeftBehind(served.store.as_store, served.clock, runtime).create()).begun()
        await clock.advance(LONGEST_LOOK_S + 1)
        async with served.follow(dead.location) as exchange:
            got = await exchange.whole()
        record = (await served.get(dead.location)).json()
        usage = (await served.get("/usage")).json()

    assert record["state"] == ended
    assert ("2.1", {"attemptRestarted": {"attempt": 2, "rewindTo": "1.1"}}) in events_of(got.body)
    assert usage["windows"][0]["reserved"] == 0
    if ended == "failed":
        assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "outcome-unknown"
    else:
        assert record["result"]["text"] == "attempt 2 unfenced"


async def test_a_usage_record_names_the_model_that_was_called(clock: ManualClock) -> None:
    named: list[str] = []

    async with serving(clock, catalog=AGENTS) as served:
        settle = served.store.as_store.settle

        async def noting(settlement: Any, *rest: Any) -> bool:
            named.append(settlement.model)
            return await settle(settlement, *rest)

        served.store.__dict__["settle"] = noting
        await served.submit(path=DESIGNED)

    assert named == ["bedrock/model-1"]


@pytest.mark.promise("agent-refused-at-start")
@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("nowhere.at_all:run", "can't be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("tests.agents:nothing", "is not there: tests.agents has no nothing"),
        ("tests.agents:VALUE", "is no function but a value of type int"),
        (
            "tests.agents:synchronous",
            "is a generator, but a synchronous one, which stops others while it waits: write async def",
        ),
        (
            "tests.agents:silent",
            "is a coroutine function that yields nothing: yield what the agent says, piece by piece",
        ),
        (
            "tests.agents:plain",
            "is no async generator function: write async def, and yield what the agent says",
        ),
        ("tests.agents:greedy", "must take one argument, the invocation"),
    ],
)
def test_what_is_no_agent_is_refused_at_start_with_the_reason(entry: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_agent(entry)

    assert caught.value.faults == [f"{entry} {fault}"]
