"""Invocations whose processes drain, die, or share a store. One stack each: they are taken apart."""

import asyncio
import signal
from pathlib import Path

import pytest

from local.answers import answer, tool_call
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, Stream, calling, ended

MODEL = "writer-model"
CANCEL_WITHIN_S = 2.0
WORDS = [f"word{number} " for number in range(20)]
EDGE = CATALOG.replace("daily_tokens = 1_000_000", "daily_tokens = 12_000")


async def read_until_ended(caller: Caller, location: str, after: str) -> list[str]:
    """Follow as a client does that only knows "reattach with the last id"; return the ids in order."""
    ids: list[str] = []
    async with asyncio.timeout(WAIT_S):
        while True:
            async with caller.follow(location, ids[-1] if ids else after) as stream:
                await stream.whole()
            ids += [event.last_event_id for event in stream.events if event.type != "reconnect"]
            if any(event.type in ("invocationCompleted", "invocationFailed") for event in stream.events):
                return ids


@pytest.mark.promise("sigterm-reconnects-readers")
async def test_sigterm_ends_readers_with_reconnect_and_lets_the_job_finish(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack, calling(stack) as ann:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("drained")))
        async with ann.submit() as stream:
            await stream.until(b"word3")
            stack.services[0].send(signal.SIGTERM)
            await stream.whole()
            inside = ann.at(stack.services[0].url)
            ready, _ = await inside.get("/ready")
            ping, health = await inside.get("/ping")
            async with ann.submit() as refused:
                problem = await refused.response.json(content_type="application/problem+json")
            await stack.bedrock.release("drained")
        exit_status = await stack.services[0].ended()
        await stack.services[0].start()
        record = await ended(ann, stream.location)

    assert stream.events[-1].type == "reconnect"
    assert stream.events[-1].data == '{"reconnect":{"after":"1.6","reason":"drain"}}'
    assert (ready, ping, health["status"]) == (503, 200, "HealthyBusy")
    assert (refused.response.status, problem["code"]) == (503, "draining")
    assert refused.response.headers["Retry-After"] == "1"
    assert exit_status == 0
    assert (record["state"], record["result"]["text"]) == ("completed", "".join(WORDS))


@pytest.mark.promise("killed-process-consistent-store", "killed-process-goes-on", "one-terminal-event")
async def test_an_invocation_whose_process_was_killed_goes_on_in_the_next(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack, calling(stack) as ann:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")), answer(deltas=WORDS))
        async with ann.submit() as stream:
            await stream.until(b"word3")
            await stack.services[0].kill()
        await stack.services[0].start()
        ids = await read_until_ended(ann, stream.location, "1.6")
        _, record = await ann.get(stream.location)
        _, usage = await ann.get("/usage")

    assert ids == [f"2.{seq}" for seq in range(1, 27)]
    assert (record["state"], record["result"]["text"]) == ("completed", "".join(WORDS))
    assert [(each["lastEventId"], each["end"]) for each in record["attempts"]] == [
        ("1.1", "lost"),
        ("2.26", "finished"),
    ]
    assert usage["windows"][0]["used"] == 10 + len(WORDS)
    assert (usage["runningInvocations"], usage["windows"][0]["reserved"]) == (0, 0)


@pytest.mark.promise("lapsed-lease-sends-nothing", "lapsed-lease-spends-nothing", "reattach-exactly-once")
async def test_a_process_that_was_stopped_and_overtaken_writes_and_spends_nothing_when_it_goes_on(
    tmp_path: Path,
) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        stopped, other = stack.services
        elsewhere = ann.at(other.url)
        ask = tool_call("multiply", {"a": 6, "b": 7})
        await stack.bedrock.script("reckoner-model", ask.insert(3, Wait("go on")), answer(deltas=WORDS))
        async with ann.submit(runtime="reckoner") as stream:
            await stream.until(b"toolUse")
            stopped.pause()
            await stack.bedrock.release("go on")  # what follows waits in the stopped process's socket
            ids = await read_until_ended(elsewhere, stream.location, "1.1")
            _, ended_record = await elsewhere.get(stream.location)
            stopped.resume()
            await stream.whole()
        calls = await stack.bedrock.account(ended=2)
        _, record = await ann.get(stream.location)
        events = await ann.events(stream.location)

    assert stream.events[-1].type == "reconnect"
    assert b"toolStarted" not in stream.body
    assert ids == [f"2.{seq}" for seq in range(1, 27)]
    assert record == ended_record
    assert events.count(b"attemptRestarted") == 2  # the event line and its data
    assert len(calls) == 2
    assert "attempt fenced" in stopped.log()  # the whole log, now that the process has ended


@pytest.mark.promise("cancel-reaches-everything")
async def test_a_cancellation_reaches_the_process_that_runs_it_and_its_upstream(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")))
        async with ann.submit() as stream:
            await stream.until(b"word3")
            status, asked = await ann.at(stack.services[1].url).post(f"{stream.location}/cancel")
            async with asyncio.timeout(CANCEL_WITHIN_S):
                await stream.whole()
        (call,) = await stack.bedrock.account(ended=1)
        _, record = await ann.get(stream.location)

    assert (status, asked["state"]) == (202, "running")
    assert stream.events[-1].type == "invocationCancelled"
    assert (record["state"], record["result"]["text"]) == ("cancelled", "word0 word1 word2 word3 ")
    assert call.outcome == "hung-up"
    assert record["usage"]["outputTokens"] >= call.output_tokens


@pytest.mark.promise("retry-attaches")
async def test_a_retry_attaches_on_another_process_while_the_first_is_being_admitted(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS))
        callers = [ann, ann.at(stack.services[1].url)] * 5

        async def submit(caller: Caller) -> tuple[str, bytes]:
            async with caller.submit(**{"Idempotency-Key": "one-job"}) as stream:
                return stream.location, await stream.whole()

        answers = await asyncio.gather(*map(submit, callers))
        calls = await stack.bedrock.account(ended=1)

    assert len({location for location, _ in answers}) == 1
    assert len({without_comments(body) for _, body in answers}) == 1
    assert len(calls) == 1


@pytest.mark.promise("handed-over-goes-on", "sigterm-reconnects-readers")
async def test_a_process_that_is_told_to_stop_hands_its_job_to_another_at_once(tmp_path: Path) -> None:
    catalog = CATALOG.replace("drain_s = 20", "drain_s = 1").replace("lease_s = 1.5", "lease_s = 60")
    async with (
        Stack(tmp_path, catalog=catalog, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")), answer(deltas=WORDS))
        async with ann.submit() as stream:
            await stream.until(b"word3")
            stack.services[0].send(signal.SIGTERM)
            await stream.whole()
        elsewhere = ann.at(stack.services[1].url)
        ids = await read_until_ended(elsewhere, stream.location, "1.6")
        exit_status = await stack.services[0].ended()
        _, record = await elsewhere.get(stream.location)

    assert (exit_status, stream.events[-1].type) == (0, "reconnect")
    assert ids == [f"2.{seq}" for seq in range(1, 27)]
    assert [each["end"] for each in record["attempts"]] == ["handed-over", "finished"]


async def test_an_invocation_is_followed_from_another_process(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("followed")))
        elsewhere = ann.at(stack.services[1].url)
        async with ann.submit() as here:
            await here.until(b"word3")
            async with elsewhere.follow(here.location) as there:
                await there.until(b"word3")
                await stack.bedrock.release("followed")
                whole = await here.whole()
                followed = await there.whole()

    assert without_comments(followed) == without_comments(whole)


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_two_processes_admit_together_exactly_what_fits(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=EDGE, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
    ):
        await stack.bedrock.script(MODEL, answer("Held.").insert(0, Wait("never")))
        callers = [ann, ann.at(stack.services[1].url)] * 15

        async def submit(caller: Caller) -> tuple[int, str]:
            async with caller.submit("x" * 100, Prefer="respond-async") as stream:
                body = await stream.response.json(content_type=None)
            return stream.response.status, body.get("code", "")

        answers = await asyncio.gather(*map(submit, callers))
        _, usage = await ann.get("/usage")

    hold_tokens = 64 + 16 + 100 + 1000
    assert answers.count((202, "")) == 12_000 // hold_tokens
    assert answers.count((429, "quota-exceeded")) == 30 - 12_000 // hold_tokens
    assert usage["windows"][0]["reserved"] == 12_000 // hold_tokens * hold_tokens


def without_comments(body: bytes) -> bytes:
    return b"\n".join(line for line in body.split(b"\n") if not line.startswith(b":"))


@pytest.mark.promise("reattach-exactly-once", "usage-equals-metadata")
async def test_the_real_model_answers_once_however_often_its_reader_is_cut(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG) as stack, calling(stack) as ann:
        pieces: list[Stream] = []
        async with ann.submit("Count from one to twenty in words.") as stream:
            await stream.until(b"id: 1.5\n")
            pieces.append(stream)
        location, cursor = stream.location, "1.3"
        for _ in range(3):  # read a little, hang up, come back with the cursor
            async with ann.follow(location, cursor) as stream:
                await stream.until(b"id: ")
                cursor = stream.events[-1].last_event_id if stream.events else cursor
        record = await ended(ann, location)
        whole = await ann.events(location)
        _, usage = await ann.get("/usage")

    ids = [line for line in whole.split(b"\n") if line.startswith(b"id: ")]
    assert ids == [b"id: 1.%d" % seq for seq in range(1, len(ids) + 1)]
    assert record["state"] == "completed"
    assert record["result"]["text"].strip()
    assert usage["windows"][0]["used"] == record["usage"]["inputTokens"] + record["usage"]["outputTokens"]
