"""Nothing that a caller, a model or a tool says is in a log line or in somebody else's problem document."""

import io
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from service.errors import UpstreamRejected
from service.telemetry import Telemetry, configure_logging
from service.tools import ToolError, tool
from tests.clock import ManualClock
from tests.fakes import answer, start, text, tool_call
from tests.harness import Served, serving
from tests.id_tokens import CLAIMS, bearer

CANARY = "canary-5f2a"
FORGED = bearer({"aud": CANARY})
CATALOG = """
[runtimes.parrot]
kind = "converse"
model = "bedrock/model-1"
instructions = "canary-5f2a"
tools = ["tests.unit.test_api_logs:echo", "tests.unit.test_api_logs:fail", "tests.unit.test_api_logs:refuse"]
max_output_tokens = 100
"""
PARROT = "/runtimes/parrot/invocations"
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@tool(description="Say it again.", input_schema=SCHEMA)
async def echo(arguments: Mapping[str, Any], call: object) -> str:
    return f"{arguments['text']} {CANARY}"


@tool(description="Fail.", input_schema=SCHEMA)
async def fail(arguments: Mapping[str, Any], call: object) -> str:
    raise ValueError(arguments["text"])


@tool(description="Refuse.", input_schema=SCHEMA)
async def refuse(arguments: Mapping[str, Any], call: object) -> str:
    raise ToolError(arguments["text"])


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """All that our loggers and others' write from DEBUG on, as the process would write it."""
    root, ours = logging.getLogger(), [logging.getLogger(name) for name in ("service", "headrace")]
    handlers, level, root.handlers = root.handlers, root.level, []
    stream = io.StringIO()
    configure_logging(stream)
    for logger in (root, *ours):
        logger.setLevel(logging.DEBUG)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    for logger in ours:
        logger.setLevel(logging.NOTSET)


def written(served: Served, output: io.StringIO) -> str:
    """Return all lines, the canonical ones included, which the harness keeps apart."""
    for line in served.lines.requests:
        Telemetry().request_finished(line)
    for line in served.lines.attempts:
        Telemetry().attempt_finished(line)
    return output.getvalue()


def check_no_content(written: str, *, lines: int) -> None:
    token = bearer().removeprefix("Bearer ")
    for secret in (CANARY, token, *token.split("."), FORGED.rpartition(".")[2], CLAIMS["email"]):
        assert str(secret) not in written
    assert len([json.loads(line) for line in written.splitlines()]) >= lines


@pytest.mark.promise("no-content-in-logs")
async def test_an_answer_with_tools_leaves_no_content_in_any_log_line(
    clock: ManualClock, output: io.StringIO
) -> None:
    given = json.dumps({"text": CANARY})
    calls = [*(tool_call(name, given, said=CANARY) for name in ("echo", "fail", "refuse", "unknown", CANARY))]
    broken = tool_call("echo", f'{{"text": {CANARY}')
    async with serving(clock, *calls, broken, answer(CANARY), catalog=CATALOG) as served:
        got = await served.submit(
            {"prompt": CANARY, "requestMetadata": {"team": CANARY}},
            PARROT,
            X_Amzn_Bedrock_AgentCore_Runtime_Session_Id=CANARY,
            idempotency_key=CANARY,
            user_agent=CANARY,
        )
        await served.get(got.headers["location"])
        async with served.follow(got.headers["location"]) as exchange:
            await exchange.whole()

    assert got.body.decode().count(CANARY) > 6
    check_no_content(written(served, output), lines=5)


@pytest.mark.promise("no-content-in-logs", "problem-documents-everywhere")
@pytest.mark.parametrize(
    "failure",
    [RuntimeError(CANARY), TimeoutError(CANARY), UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY)],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_failure_leaves_no_content_in_any_log_line_nor_on_the_wire(
    clock: ManualClock, output: io.StringIO, failure: Exception
) -> None:
    async with serving(clock, [start(), text("Half"), failure]) as served:
        got = await served.submit({"prompt": CANARY})

    assert b"internal-error" in got.body
    assert CANARY not in got.body.decode()
    check_no_content(written(served, output), lines=3)


@pytest.mark.promise("no-content-in-logs")
async def test_refused_input_leaves_no_content_in_any_log_line(
    clock: ManualClock, output: io.StringIO
) -> None:
    async with serving(clock, [UpstreamRejected("It takes no images.")]) as served:
        location = (await served.submit({"prompt": CANARY}, prefer="respond-async")).headers["location"]
        for body in (
            CANARY.encode(),
            {CANARY: 1},
            {"prompt": {"text": CANARY}},
            {"prompt": "Hi", "maxTokens": CANARY},
            {"prompt": "Hi", "requestMetadata": {f"headrace-{CANARY}": "x"}},
        ):
            assert (await served.submit(body)).status == 400
        assert (await served.submit(authorization=FORGED)).status == 401
        assert (await served.submit(authorization=f"Bearer {CANARY}")).status == 401
        assert (await served.submit(accept=f"text/{CANARY}")).status == 406
        assert (await served.submit(content_type=f"text/{CANARY}")).status == 415
        assert (await served.submit(path=f"/runtimes/{CANARY}/invocations")).status == 404
        assert (await served.get(f"{location}/events?after={CANARY}")).status == 400
        assert (await served.submit({"prompt": CANARY})).status == 400

    check_no_content(written(served, output), lines=12)


@pytest.mark.promise("no-content-in-logs")
async def test_a_store_that_fails_leaves_no_content_in_any_log_line(
    clock: ManualClock, output: io.StringIO
) -> None:
    async with serving(clock, answer(CANARY)) as served:
        served.store.only = {"create_invocation", "append_events", "finish"}
        served.store.broken = ValueError(f"these events are {CANARY}")
        assert (await served.submit({"prompt": CANARY})).status == 500
        served.store.only, served.store.broken = {"finish"}, ValueError(f"these events are {CANARY}")
        async with served.post({"prompt": CANARY}) as exchange:
            await exchange.until(b"metadata")
            await clock.advance(12)
        served.store.broken, served.store.down = None, True
        async with served.post({"prompt": CANARY}) as exchange:
            await exchange.until(b"metadata")
            await clock.advance(12)
            served.store.down = False
            await clock.advance(6)
            await exchange.whole()

    check_no_content(written(served, output), lines=5)


async def test_the_line_of_a_request_names_who_asked_for_what_and_how_it_ended(clock: ManualClock) -> None:
    async with serving(clock) as served:
        got = await served.submit(x_request_id="request-12345")
        refused = await served.submit({}, x_request_id="request-12346")

    lines = [dict(line) for line in served.lines.requests]
    for line in lines:
        assert type(line.pop("duration_ms")) is int
    common = {
        "method": "POST",
        "operation": "submit",
        "sub": CLAIMS["sub"],
        "runtime_id": "writer",
    }
    assert lines == [
        common
        | {
            "request_id": "request-12345",
            "status": 200,
            "bytes_out": len(got.body),
            "invocation_id": got.headers["location"].rpartition("/")[2],
            "end": "terminal",
            "events": 8,
        },
        common
        | {
            "request_id": "request-12346",
            "status": 400,
            "bytes_out": len(refused.body),
            "code": "invalid-request",
        },
    ]
