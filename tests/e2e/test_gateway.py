"""The service behind the local gateway, as the template configures it: what callers see of its rules.

In the scaled stacks 15 minutes are 2.25 s, 5 minutes 0.75 s and 29 s 73 ms.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from local.answers import answer
from local.process import ROOT
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, calling
from tests.e2e.edge_checks import LONG, LONG_DELAY_S, MODEL, WORDS, read_long, refuses, serves, streams
from tests.edge import extract

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCALE = 0.0025
FLEETING = (
    CATALOG.replace("heartbeat_s = 0.5", "heartbeat_s = 0.2\nabandon_s = 0.2\nusage_grace_s = 0")
    + """
[runtimes.fleeting]
kind = "converse"
model = "bedrock/fleeting-model"
on_disconnect = "cancel"
"""
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    async with Stack(directory, catalog=FLEETING, answers="scripts", services=2) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stack: Stack) -> AsyncIterator[Caller]:
    async with calling(stack) as caller:
        yield caller


async def test_an_answer_streams_through_the_edge(stack: Stack, ann: Caller) -> None:
    await streams(stack, ann)


async def test_the_edge_serves_every_route(stack: Stack, ann: Caller) -> None:
    await serves(stack, ann)


@pytest.mark.promise("edge-refuses-first", "problem-documents-everywhere")
async def test_the_edge_refuses_strangers_before_the_service_does(stack: Stack, ann: Caller) -> None:
    await refuses(stack, ann)


async def test_a_page_of_the_origin_that_the_template_names_may_ask_and_read(
    stack: Stack, ann: Caller
) -> None:
    page = {"Origin": "http://localhost:3000"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    url = f"{stack.url}/runtimes/writer/invocations"
    async with (
        ann.session.options(url, headers=page | wanted) as preflight,
        ann.session.post(url, headers=page) as refused,
    ):
        answers = (preflight, refused)

    assert [each.status for each in answers] == [200, 401]
    assert [each.headers["Access-Control-Allow-Origin"] for each in answers] == [page["Origin"]] * 2
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"].split(", ")


@pytest.mark.promise("abandoned-job-cancelled")
async def test_a_caller_who_hangs_up_at_the_edge_hangs_up_at_the_service(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script("fleeting-model", answer(deltas=WORDS).insert(5, Wait("never")))
    before = len(await stack.bedrock.account())

    async with ann.submit(runtime="fleeting") as stream:
        await stream.until(b"word3")
        stream.response.close()

    calls = await stack.bedrock.account(ended=before + 1)
    assert calls[-1].outcome == "hung-up"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quick(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Give a stack of another stage whose edge's time is quick; its service does not know, its segments are
    long."""
    directory = tmp_path_factory.mktemp("quick")
    api = directory / "gateway.json"
    api.write_text(json.dumps({**extract(), "stage": "quick"}))
    async with Stack(
        directory / ".local", catalog=FLEETING, answers="scripts", gateway=api, time_scale=SCALE
    ) as stack:
        assert stack.url == f"{stack.gateway.url}/quick"
        yield stack


@pytest.mark.promise("outlasts-the-edge", "reattach-exactly-once")
async def test_an_answer_that_the_edge_cuts_arrives_whole_once_and_in_order(quick: Stack) -> None:
    async with calling(quick) as caller:
        ends = await read_long(quick, caller)

    assert len(ends) > len(LONG) * LONG_DELAY_S // 2.25
    assert set(ends[:-1]) == {"cut"}


@pytest.mark.promise("outlasts-the-edge", "retry-attaches")
async def test_the_command_line_prints_an_answer_that_the_edge_cuts_once(quick: Stack) -> None:
    await quick.bedrock.script(MODEL, answer(deltas=LONG, delay_s=LONG_DELAY_S))

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "invoke", "writer", "Count."),
        cwd=quick.directory.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(2 * WAIT_S):
        stdout, stderr = await process.communicate()

    assert (process.returncode, stdout.decode(), stderr) == (0, "".join(LONG) + "\n", b"")
    assert quick.gateway.log().count("cut-total") > 1


async def test_an_answer_that_is_no_stream_is_given_up_after_29_s(quick: Stack, tmp_path: Path) -> None:
    async with calling(quick) as caller:
        quick.services[0].pause()
        try:
            status, problem = await caller.get("/usage")
        finally:
            quick.services[0].resume()

    assert (status, problem["code"], problem["retryable"]) == (504, "edge-timeout", True)
