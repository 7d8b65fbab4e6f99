"""Invocations whose processes drain, die, or share a store. One stack each: they are taken apart."""

import asyncio
import signal
from pathlib import Path

import pytest

from local.answers import answer
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, Stream, calling, ended

MODEL = "writer-model"
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
            ready, _ = await ann.get("/ready")
            ping, health = await ann.get("/ping")
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


@pytest.mark.promise("killed-process-consistent-store", "one-terminal-event")
async def test_an_invocation_whose_process_was_killed_ends_honestly(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack, calling(stack) as ann:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")))
        async with ann.submit() as stream:
            await stream.until(b"word3")
            await stack.services[0].kill()
        await stack.services[0].start()
        ids = await read_until_ended(ann, stream.location, "1.6")
        _, record = await ann.get(stream.location)
        _, usage = await ann.get("/usage")

    assert ids == ["2.1", "2.2"]
    assert record["state"] == "failed"
    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "interrupted"
    assert usage["runningInvocations"] == 0
    assert {window["reserved"] for window in usage["windows"]} == {0}


async def test_an_invocation_is_followed_from_another_process(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack) as ann,
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
        calling(stack) as ann,
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
