"""An operator denies a user who reads and runs jobs on two processes, and overrides the limits of another."""

import asyncio
import base64
import json
import os
import sys
from pathlib import Path

import pytest

from local.answers import answer
from local.process import ROOT
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, calling

MODEL = "writer-model"
WORDS = [f"word{number} " for number in range(20)]


def sub_of(caller: Caller) -> str:
    """Return the `sub` of a caller's token."""
    claims = caller.token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"])


async def headrace(stack: Stack, *arguments: str) -> str:
    """Run an operator's command beside the service, with its store, and return its output."""
    store = f"sqlite:{stack.directory / 'headrace.db'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "service.cli", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_STORE": store},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.promise("denied-is-refused", "denied-ends-readers", "denied-cancels-jobs", "override-counts")
async def test_who_is_denied_loses_streams_and_jobs_on_every_process(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack,
        calling(stack, at=stack.services[0]) as ann,
        calling(stack, "bob") as bob,
    ):
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("never")))
        urls = [service.url for service in stack.services]
        async with ann.submit() as here, ann.at(urls[1]).follow(here.location) as there:
            await here.until(b"word3")
            await there.until(b"word3")
            said = [
                await headrace(stack, "limit", "set", sub_of(bob), "concurrent_invocations=0"),
                await headrace(stack, "deny", sub_of(ann), "--for", "1h"),
            ]
            await asyncio.gather(here.whole(), there.whole())
        (call,) = await stack.bedrock.account(ended=1)
        refused = [await ann.at(url).get(here.location) for url in urls]
        limits = [(await bob.at(url).get("/usage"))[1]["concurrentInvocations"] for url in urls]
        listed = await headrace(stack, "denied")

    attempts = [json.loads(line) for line in stack.services[0].log().splitlines() if '"attempt"' in line]
    assert said[0] == f"{sub_of(bob)} has concurrent_invocations=0, and else the limits of its groups\n"
    assert said[1].startswith(f"sub:{sub_of(ann)} is denied until ")
    assert [stream.events[-1].type for stream in (here, there)] == ["streamEnded", "streamEnded"]
    assert [(status, problem["code"]) for status, problem in refused] == [(403, "denied")] * 2
    assert limits == [0, 0]
    assert call.outcome == "hung-up"
    assert [line["state"] for line in attempts if line["message"] == "attempt"] == ["cancelled"]
    assert f"sub:{sub_of(ann)}" in listed
