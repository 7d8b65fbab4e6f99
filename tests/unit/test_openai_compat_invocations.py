"""Invocations on an OpenAI-compatible server, through the whole service: tools, usage, refusals."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.bedrock import in_turn
from tests.clock import ManualClock
from tests.harness import Served, serving
from tests.openai_compat import BEGIN, DONE, FINISH, answer, opened, refusal, said
from tests.scripted_http import ScriptedServer, scripted

CATALOG = """
[upstreams.vllm]
kind = "openai"
base_url = "http://vllm:8000/v1"

[runtimes.poet]
kind = "converse"
model = "vllm/qwen"
instructions = "Be brief."
max_output_tokens = 1000
tools = ["tests.unit.test_converse:multiply"]
"""
PATH = "/runtimes/poet/invocations"


def counts(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}}


def says(delta: Any, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


@asynccontextmanager
async def invoking(clock: ManualClock, *responses: bytes) -> AsyncIterator[tuple[Served, ScriptedServer]]:
    async with (
        scripted(in_turn(*responses)) as server,
        opened(server.url) as model,
        serving(clock, catalog=CATALOG, upstreams={"vllm": model}) as served,
    ):
        yield served, server


async def test_an_agent_uses_its_tools_and_every_turn_is_metered(clock: ManualClock) -> None:
    arguments = '{"a": 6, "b": 7}'
    call = {"index": 0, "id": "call_1", "function": {"name": "multiply", "arguments": arguments}}
    asks = said(BEGIN, says({"tool_calls": [call]}), says({}, "tool_calls"), counts(50, 20)) + DONE
    tells = said(BEGIN, says({"content": "42"}), FINISH, counts(80, 3, cached=48)) + DONE
    async with invoking(clock, answer(asks), answer(tells)) as (served, server):
        got = await served.submit({"prompt": "What is 6 times 7?"}, PATH)
        record = (await served.get(got.headers["location"])).json()

    assert record["state"] == "completed"
    assert record["result"]["text"] == "42"
    assert record["usage"] == {
        "inputTokens": 82,
        "outputTokens": 23,
        "cacheReadInputTokens": 48,
        "cacheWriteInputTokens": 0,
    }
    again = json.loads(server.requests[1].body)["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "tool"]
    assert json.loads(again[2]["tool_calls"][0]["function"]["arguments"]) == {"a": 6, "b": 7}
    assert again[3] == {"role": "tool", "tool_call_id": "call_1", "content": "42"}


@pytest.mark.promise("unreported-usage-estimated")
@pytest.mark.parametrize(
    ("rest", "state"),
    [(said(FINISH) + DONE, "completed"), (said({"error": {"code": 500}}), "failed"), (b"", "failed")],
    ids=["no usage", "failed", "cut"],
)
async def test_a_call_without_usage_is_estimated_and_marked(
    clock: ManualClock, rest: bytes, state: str
) -> None:
    async with invoking(clock, answer(said(BEGIN, says({"content": "a" * 100})) + rest)) as (served, _):
        got = await served.submit({"prompt": "Hi"}, PATH)
        record = (await served.get(got.headers["location"])).json()

    assert (got.status, record["state"]) == (200, state)
    assert record["usage"]["estimated"]
    assert 100 <= record["usage"]["outputTokens"] <= 1000
    assert b"event: metadata" not in got.body


async def test_a_refusal_is_a_status_costs_nothing_and_says_when_to_come_back(clock: ManualClock) -> None:
    async with invoking(clock, refusal(429, retry_after="20")) as (served, server):
        got = await served.submit({"prompt": "Hi"}, PATH)
        usage = (await served.get("/usage")).json()

    assert (got.status, got.json()["code"], got.headers["retry-after"]) == (503, "upstream-throttled", "20")
    assert len(server.requests) == 1
    assert [(window["used"], window["reserved"]) for window in usage["windows"]] == [(0, 0), (0, 0)]
