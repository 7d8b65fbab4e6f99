"""The local stack starts real processes, watches them, and leaves none behind."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from local.answers import answer
from local.places import AlreadyRunning, clean_environ
from local.process import ROOT, ProcessDied
from local.scripts import NEVER, Wait
from local.stack import Stack

MODEL = "some.model-v1:0"
CATALOG = f"""
[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/{MODEL}"
"""
# A supervisor that says where its processes are and waits until it is killed.
SUPERVISOR = """
import asyncio, pathlib, sys
from local.stack import Stack

async def main():
    async with Stack(pathlib.Path(sys.argv[1]), catalog="", answers="scripts", services=0) as stack:
        print("ready", flush=True)
        await stack.first_death()

asyncio.run(main())
"""


async def ask(stack: Stack, prompt: str = "Hello", *, service: int = 0) -> tuple[int, str]:
    """Invoke the writer and return the status and the whole body."""
    headers = {"Authorization": f"Bearer {await stack.token('ann')}"}
    url = f"{stack.services[service].url}/runtimes/writer/invocations"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"prompt": prompt}, headers=headers) as sent,
    ):
        return sent.status, await sent.text()


def is_listening(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as caller:
        return caller.connect_ex((parts.hostname, parts.port)) == 0


async def until_nothing_listens(*urls: str) -> None:
    async with asyncio.timeout(20):
        while any(is_listening(url) for url in urls):  # noqa: ASYNC110 - the end of another's child is no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def python(*arguments: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run this Python in a directory, its output in a pipe; killed at the end if it still runs."""
    environ = {**clean_environ(os.environ, aws=False), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def lines_until(process: asyncio.subprocess.Process, last: str) -> list[str]:
    """Return the lines up to the one that begins with `last`."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(30):
        while not lines or not lines[-1].startswith(last):
            line = await process.stdout.readline()
            if not line:
                raise EOFError("\n".join(lines))
            lines.append(line.decode().rstrip())
    return lines


async def test_services_share_a_store_and_a_killed_one_comes_back_at_its_address(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack:
        await stack.bedrock.script(MODEL, answer("Hello there."))
        urls = [service.url for service in stack.services]
        told = json.loads((tmp_path / "stack.json").read_text())
        before = await ask(stack)
        await stack.services[0].kill()
        other = await ask(stack, service=1)
        await stack.services[0].start()
        after = await ask(stack)
        calls = await stack.bedrock.account(ended=3)

        assert [status for status, _ in (before, other, after)] == [200, 200, 200]
        assert all("invocationCompleted" in body for _, body in (before, other, after))
        assert (told["url"], told["services"]) == (stack.url, urls)
        assert told["pids"]["service-2"] == stack.services[1].pid
        assert [call.outcome for call in calls] == ["finished"] * 3
        assert (tmp_path / "headrace.db").exists()
    assert [is_listening(url) for url in urls] == [False, False]
    assert not (tmp_path / "stack.json").exists()


async def test_a_service_that_is_paused_keeps_its_connections_and_goes_on(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack:
        await stack.bedrock.script(MODEL, answer("a b c").insert(2, Wait("go")))
        asking = asyncio.create_task(ask(stack))
        await stack.bedrock.account(waiting="go")
        stack.services[0].pause()
        await stack.bedrock.release("go")
        await stack.bedrock.account(ended=1)
        finished_while_paused = asking.done()
        stack.services[0].resume()
        status, body = await asking

    assert not finished_while_paused
    assert status == 200
    assert "invocationCompleted" in body


async def test_a_service_that_is_killed_hangs_up_on_bedrock(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack:
        await stack.bedrock.script(MODEL, answer("a b c", input_tokens=4).insert(2, Wait(NEVER)))
        asking = asyncio.create_task(ask(stack))
        await stack.bedrock.account(waiting=NEVER)
        await stack.services[0].kill()
        (call,) = await stack.bedrock.account(ended=1)
        with suppress(aiohttp.ClientError):
            await asking

    assert (call.outcome, call.input_tokens, call.output_tokens) == ("hung-up", 4, 1)


async def test_a_service_that_can_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProcessDied) as caught:
        async with Stack(tmp_path, catalog="[runtimes]", answers="scripts"):
            pass

    said = str(caught.value)
    assert said.startswith("service ended with status 2\nthe end of ")
    assert "headrace: " in said
    assert not (tmp_path / "stack.json").exists()


async def test_the_first_death_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog="", answers="scripts", services=0) as stack:
        stack.issuer.send(signal.SIGKILL)
        death = await stack.first_death()

    assert str(death).startswith("issuer ended with status -9\n")


async def test_a_directory_has_one_stack_at_a_time(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog="", answers="scripts", services=0):
        with pytest.raises(AlreadyRunning):
            async with Stack(tmp_path, catalog="", answers="scripts", services=0):
                pass


async def test_tokens_of_the_stack_are_the_ones_asked_for(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path, catalog=CATALOG, answers="scripts") as stack,
        aiohttp.ClientSession() as session,
    ):
        odd = {
            "expired": await stack.token(expires_in=-100),
            "access": await stack.token(use="access"),
            "audience": await stack.token(audience="another"),
            "good": await stack.token(),
        }
        statuses = {}
        for name, token in odd.items():
            headers = {"Authorization": f"Bearer {token}"}
            async with session.get(f"{stack.url}/usage", headers=headers) as response:
                statuses[name] = response.status

    assert statuses == {"expired": 401, "access": 401, "audience": 401, "good": 200}


@pytest.mark.parametrize("paused", [False, True])
async def test_children_end_when_their_supervisor_is_killed(tmp_path: Path, paused: bool) -> None:
    if paused and sys.platform != "linux":
        pytest.skip("a stopped child of a dead supervisor goes on by itself on Linux only")
    async with python("-c", SUPERVISOR, str(tmp_path), cwd=tmp_path) as supervisor:
        await lines_until(supervisor, "ready")
        told = json.loads((tmp_path / "stack.json").read_text())
        endpoint = re.findall(r"http://127[^\s]+", (tmp_path / "bedrock.log").read_text())[0]
        if paused:
            os.kill(told["pids"]["bedrock"], signal.SIGSTOP)
        supervisor.kill()

        await until_nothing_listens(told["issuer"], endpoint)


async def test_one_command_runs_all_of_it_and_what_it_prints_works(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    shutil.copy(ROOT / "headrace.toml", tmp_path)
    async with python("-m", "local", cwd=tmp_path) as supervisor:
        lines = await lines_until(supervisor, "Ctrl-C")
        asking, refused = (shlex.split(line) for line in lines if line.startswith("curl "))
        answered = await output_of(*asking, "--silent", "--max-time", "30")
        forbidden = await output_of(*refused, "--silent", "--max-time", "30")
        told = json.loads((tmp_path / ".local" / "stack.json").read_text())
        supervisor.terminate()
        left = await lines_until(supervisor, "Stopped.")
        status = await supervisor.wait()

    assert answered.startswith(": connected\nid: 1.1\nevent: invocationStarted\n")
    assert "event: contentBlockDelta\n" in answered
    assert "event: invocationCompleted\n" in answered
    assert forbidden.startswith("HTTP/1.1 401 ")
    assert (status, left[-1]) == (0, "Stopped.")
    assert not is_listening(told["url"])
    assert not is_listening(told["issuer"])


async def test_one_command_stops_when_a_process_dies_and_says_which(tmp_path: Path) -> None:
    shutil.copy(ROOT / "headrace.toml", tmp_path)
    async with python("-m", "local", cwd=tmp_path) as supervisor:
        await lines_until(supervisor, "Ctrl-C")
        told = json.loads((tmp_path / ".local" / "stack.json").read_text())
        os.kill(told["pids"]["service"], signal.SIGKILL)
        lines = await lines_until(supervisor, "the end of ")
        status = await supervisor.wait()

    assert lines[-2] == "local: service ended with status -9"
    assert status == 1
    assert not is_listening(told["issuer"])


async def output_of(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()
