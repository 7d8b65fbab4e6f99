"""Python agents in real processes: blocked, cancelled, drained, killed."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from local.answers import answer
from local.process import Process
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, Stream, calling
from tests.e2e.test_processes import read_until_ended

MODEL: Final = "writer-model"
WORDS: Final = [f"word{number} " for number in range(20)]
AGENTS: Final = (
    CATALOG
    + """
[runtimes.spins]
kind = "python"
entry = "tests.e2e.agents:spins"
cleanup_s = 0.5

[runtimes.stays]
kind = "python"
entry = "tests.e2e.agents:stays"
cleanup_s = 0.5

[runtimes.again]
kind = "python"
entry = "tests.e2e.agents:writes"
models = ["bedrock/writer-model"]
restartable = true

[runtimes.once]
kind = "python"
entry = "tests.e2e.agents:writes"
models = ["bedrock/writer-model"]
"""
)
HEARTBEAT: Final = b": heartbeat phase="


async def line_of(process: Process, message: str) -> dict[str, Any]:
    """Wait until a process has logged this message, and return the first line that has it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for line in process.log().splitlines():
                if f'"message":"{message}"' in line:
                    fields: dict[str, Any] = json.loads(line)
                    return fields
            await asyncio.sleep(0.02)


async def heartbeats(stream: Stream, count: int) -> None:
    """Read until so many more heartbeats have come."""
    wanted = stream.body.count(HEARTBEAT) + count
    async with asyncio.timeout(WAIT_S):
        while stream.body.count(HEARTBEAT) < wanted:
            stream.body += await stream.response.content.readany()


async def account(caller: Caller) -> tuple[int, int]:
    """Return what is held, and how many run."""
    _, usage = await caller.get("/usage")
    return usage["windows"][0]["reserved"], usage["runningInvocations"]


@pytest.mark.promise("agent-blocks-only-itself", "heartbeat-before-first-token")
async def test_an_agent_that_blocks_is_named_while_other_streams_go_on(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=AGENTS, answers="scripts") as stack, calling(stack) as ann:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")))
        async with ann.submit(str(tmp_path), "spins") as spinning, ann.submit() as other:
            await spinning.until(b"Before. ")
            await other.until(b"word3")
            line = await line_of(stack.services[0], "event loop blocked")
            await heartbeats(other, 4)
            await heartbeats(spinning, 2)
            while_blocked = spinning.body
            (tmp_path / "released").touch()
            await spinning.whole()

    invocation_id = spinning.location.rpartition("/")[2]
    assert (line["loop"], line["invocation_id"], line["blocked"]) == ("spins", invocation_id, True)
    assert line["blocked_ms"] <= 2000
    assert "in spins" in line["stack"]
    assert b"After." not in while_blocked
    assert spinning.events[-1].type == "invocationCompleted"


@pytest.mark.promise("process-ends-in-time", "agent-stops-in-time")
async def test_a_process_whose_agent_blocks_for_ever_ends_all_the_same(tmp_path: Path) -> None:
    catalog = AGENTS.replace("drain_s = 20", "drain_s = 1")
    async with Stack(tmp_path, catalog=catalog, answers="scripts") as stack, calling(stack) as ann:
        async with ann.submit(str(tmp_path), "spins") as stream:
            await stream.until(b"Before. ")
            await line_of(stack.services[0], "event loop blocked")
            stack.services[0].send(signal.SIGTERM)
            await stream.whole()
        exit_status = await stack.services[0].ended()
        log = stack.services[0].log()

    assert (exit_status, stream.events[-1].type) == (0, "reconnect")
    assert "the agents' loop can't be ended" in log
    assert "handed-over" in log


@pytest.mark.promise("agent-stops-in-time", "cancel-reaches-everything")
async def test_an_agent_that_swallows_its_cancellation_does_not_keep_its_invocation_alive(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path, catalog=AGENTS, answers="scripts") as stack, calling(stack) as ann:
        async with ann.submit(str(tmp_path), "stays") as stream:
            await stream.until(b"Here I am.")
            await ann.post(f"{stream.location}/cancel")
            await stream.whole()
        held = await account(ann)
        line = await line_of(stack.services[0], "agent does not end")
        (tmp_path / "released").touch()

    assert stream.events[-1].type == "invocationCancelled"
    assert (tmp_path / "cancelled").exists()
    assert line["runtime_id"] == "stays"
    assert held == (0, 0)


@pytest.mark.promise("agent-restarts", "no-agent-twice", "killed-process-consistent-store")
@pytest.mark.parametrize(("runtime", "end"), [("again", "completed"), ("once", "failed")])
async def test_an_agent_whose_process_is_killed_runs_again_only_if_it_may(
    tmp_path: Path, runtime: str, end: str
) -> None:
    async with Stack(tmp_path, catalog=AGENTS, answers="scripts") as stack, calling(stack) as ann:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")), answer(deltas=WORDS))
        async with ann.submit(str(tmp_path), runtime) as stream:
            await stream.until(b"word3")
            await stack.services[0].kill()
        await stack.services[0].start()
        await read_until_ended(ann, stream.location, "1.6")
        _, record = await ann.get(stream.location)
        held = await account(ann)

    invocation_id = stream.location.rpartition("/")[2]
    runs = (tmp_path / "runs").read_text().split("\n")[:-1]
    assert record["state"] == end
    assert record["attempts"][0]["lastEventId"] == "1.1"
    assert held == (0, 0)
    if end == "completed":
        assert record["result"]["text"] == "".join(WORDS)
        assert runs == [f"{invocation_id} 1", f"{invocation_id} 2"]
    else:
        assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "outcome-unknown"
        assert runs == [f"{invocation_id} 1"]


@pytest.mark.promise("agent-stops-in-time", "handed-over-goes-on", "agent-restarts")
async def test_a_drain_reaches_an_agent_as_its_cancellation_and_another_process_runs_it_again(
    tmp_path: Path,
) -> None:
    catalog = AGENTS.replace("drain_s = 20", "drain_s = 1").replace("lease_s = 1.5", "lease_s = 60")
    async with (
        Stack(tmp_path, catalog=catalog, answers="scripts", services=2) as stack,
        calling(stack) as ann,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")), answer(deltas=WORDS))
        async with ann.submit(str(tmp_path), "again") as stream:
            await stream.until(b"word3")
            stack.services[0].send(signal.SIGTERM)
            await stream.whole()
        elsewhere = ann.at(stack.services[1].url)
        await read_until_ended(elsewhere, stream.location, "1.6")
        exit_status = await stack.services[0].ended()
        _, record = await elsewhere.get(stream.location)
        held = await account(elsewhere)

    assert (exit_status, stream.events[-1].type) == (0, "reconnect")
    assert (tmp_path / "cancelled").exists()
    assert [each["end"] for each in record["attempts"]] == ["handed-over", "finished"]
    assert record["result"]["text"] == "".join(WORDS)
    assert held == (0, 0)
