"""What a runtime's options do to an invocation: the request, the hold, the account, the end."""

import asyncio

import pytest

from service.config import Guardrail, ModelOptions, Reasoning
from tests.clock import ManualClock
from tests.fakes import start, stop, text, tool_call
from tests.harness import serving

THINKER = """
[runtimes.thinker]
kind = "converse"
model = "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
instructions = "Think."
tools = ["tests.unit.test_converse:multiply"]
max_output_tokens = 3000
cache = true
guardrail = { id = "gr1", version = "1" }
reasoning = { budget_tokens = 2048 }
additional_model_request_fields = { top_k = 5 }
"""
THINKER_PATH = "/runtimes/thinker/invocations"


async def test_every_call_of_a_runtime_carries_its_options(clock: ManualClock) -> None:
    calls = (tool_call("multiply", '{"a":6,"b":7}'), [start(), text("42"), stop()])
    async with serving(clock, *calls, catalog=THINKER) as served:
        await served.submit(path=THINKER_PATH)

    assert [request.options for request in served.model.requests] == [
        ModelOptions(
            cache=True,
            guardrail=Guardrail("gr1", "1"),
            reasoning=Reasoning(2048),
            additional_model_request_fields={"top_k": 5},
        )
    ] * 2


async def test_what_options_add_to_the_input_is_held_too(clock: ManualClock) -> None:
    gate = asyncio.Event()
    plain = THINKER.replace("runtimes.thinker", "runtimes.plain").partition("cache")[0]
    held = []
    async with serving(clock, [start(), gate, stop()], catalog=THINKER + plain) as served:
        for name in ("plain", "thinker"):
            async with served.post(path=f"/runtimes/{name}/invocations") as exchange:
                await exchange.until(b"messageStart")
                held.append((await served.get("/usage")).json()["windows"][0]["reserved"])
                gate.set()
                await exchange.whole()
                gate.clear()

    assert held[1] - held[0] == 1024 + 1024 + len('{"top_k": 5}')


@pytest.mark.promise("cache-metered-apart")
async def test_cache_reads_and_writes_are_metered_apart_everywhere(clock: ManualClock) -> None:
    reported = stop(input_tokens=20, output_tokens=30, cacheReadInputTokens=400, cacheWriteInputTokens=50)
    used = {
        "inputTokens": 20,
        "outputTokens": 30,
        "cacheReadInputTokens": 400,
        "cacheWriteInputTokens": 50,
    }
    async with serving(clock, [start(), text("Yes."), reported], catalog=THINKER) as served:
        got = await served.submit(path=THINKER_PATH)
        record = (await served.get(got.headers["location"])).json()
        usage = (await served.get("/usage")).json()

    (line,) = served.lines.attempts
    assert record["usage"] == record["terminalEvent"]["invocationCompleted"]["usage"] == used
    assert [(window["usage"], window["used"]) for window in usage["windows"]] == [(used, 100)] * 2
    assert {name: value for name, value in line.items() if name.endswith("_tokens")} == {
        "input_tokens": 20,
        "output_tokens": 30,
        "cache_read_tokens": 400,
        "cache_write_tokens": 50,
    }


async def test_an_answer_that_a_guardrail_stopped_says_so(clock: ManualClock) -> None:
    async with serving(
        clock, [start(), text("No."), stop("guardrail_intervened")], catalog=THINKER
    ) as served:
        got = await served.submit(path=THINKER_PATH)
        record = (await served.get(got.headers["location"])).json()

    assert (record["state"], record["terminalEvent"]["invocationCompleted"]["stopReason"]) == (
        "completed",
        "guardrail_intervened",
    )


async def test_an_answer_that_thinking_would_use_up_is_refused_before_anything_is_held(
    clock: ManualClock,
) -> None:
    async with serving(clock, catalog=THINKER) as served:
        refused = await served.submit({"prompt": "?", "maxTokens": 2048}, THINKER_PATH)
        admitted = await served.submit({"prompt": "?", "maxTokens": 2049}, THINKER_PATH)

    assert (refused.status, refused.json()["detail"]) == (
        400,
        "/maxTokens must be more than 2048, which this runtime may think with.",
    )
    assert admitted.status == 200
