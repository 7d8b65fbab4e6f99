"""The `headrace` command line against a running stack, as a user types it."""

import asyncio
import json
import os
import sys
from pathlib import Path

from local.answers import answer
from local.process import ROOT
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S

MODEL = "writer-model"
WORDS = [f"word{number} " for number in range(20)]


async def headrace(directory: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        *arguments,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(directory: Path, *arguments: str) -> str:
    """Run a command to its end and return its output; it must succeed."""
    process = await headrace(directory, *arguments)
    async with asyncio.timeout(WAIT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_what_a_killed_reader_missed_is_shown_once_and_whole_by_follow(tmp_path: Path) -> None:
    async with Stack(tmp_path / ".local", catalog=CATALOG, answers="scripts") as stack:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS, input_tokens=9).insert(8, Wait("killed")))
        reader = await headrace(tmp_path, "invoke", "writer", "Tell me.", "--live")
        assert reader.stdout is not None
        async with asyncio.timeout(WAIT_S):
            seen = (await reader.stdout.readuntil(b"word6 ")).decode()
        reader.kill()
        await reader.communicate()
        await stack.bedrock.release("killed")

        (listed,) = json.loads(await run(tmp_path, "list", "writer", "--json"))["invocations"]
        whole = await run(tmp_path, "follow", listed["invocationId"])
        usage = json.loads(await run(tmp_path, "usage", "--json"))
        shown = json.loads(await run(tmp_path, "show", listed["invocationId"], "--json"))

    assert whole == "".join(WORDS) + "\n"
    assert whole.startswith(seen)
    assert usage["windows"][0]["used"] == 9 + 20
    assert (shown["state"], shown["result"]["text"]) == ("completed", "".join(WORDS))


async def test_a_job_that_is_cancelled_ends_for_everybody_who_follows_it(tmp_path: Path) -> None:
    async with Stack(tmp_path / ".local", catalog=CATALOG, answers="scripts") as stack:
        await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(8, Wait("never")))
        reader = await headrace(tmp_path, "invoke", "writer", "Tell me.", "--live")
        assert reader.stdout is not None
        async with asyncio.timeout(WAIT_S):
            await reader.stdout.readuntil(b"word6 ")
        (listed,) = json.loads(await run(tmp_path, "list", "writer", "--json"))["invocations"]
        asked = await run(tmp_path, "cancel", listed["invocationId"])
        async with asyncio.timeout(WAIT_S):
            _, errors = await reader.communicate()
        asked_again = await run(tmp_path, "cancel", listed["invocationId"])
        resumed = await headrace(tmp_path, "resume", listed["invocationId"])
        async with asyncio.timeout(WAIT_S):
            _, refusal = await resumed.communicate()

    reference = f"writer/{listed['invocationId']}"
    assert (asked, asked_again) == (f"{reference} will be cancelled\n", f"{reference} is cancelled\n")
    assert (reader.returncode, resumed.returncode) == (5, 3)
    assert errors.startswith(b"headrace: the invocation was cancelled (requested)\n")
    assert b"(already-ended)" in refusal


async def test_smoke_finds_nothing_amiss_with_the_local_stack(tmp_path: Path) -> None:
    slow = answer(deltas=[f"word{number} " for number in range(60)], delay_s=0.03, input_tokens=9)
    async with Stack(tmp_path / ".local", catalog=CATALOG, answers="scripts") as stack:
        await stack.bedrock.script(MODEL, slow)
        program = await headrace(tmp_path, "smoke", "--runtime", "writer", "--json")
        async with asyncio.timeout(WAIT_S):
            output, errors = await program.communicate()
        log = (tmp_path / ".local" / "service.log").read_text()

    report = json.loads(output)
    assert (program.returncode, errors) == (0, b"")
    assert [check for check in report["checks"] if check["outcome"] != "ok"] == []
    assert len(report["checks"]) == 12
    assert '"level":"ERROR"' not in log


async def test_a_token_is_printed_for_curl(tmp_path: Path) -> None:
    async with Stack(tmp_path / ".local", catalog=CATALOG, answers="scripts"):
        token = await run(tmp_path, "token")

    assert token.count(".") == 2
