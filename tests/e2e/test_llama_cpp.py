"""A runtime on llama.cpp's own server: real tokens, its own counts, its own refusals."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local.model import weights_path
from local.stack import Stack
from tests.e2e.client import WAIT_S, Caller, calling

KEY = "the-key-of-this-test"
INSTRUCTIONS = "Be brief."
PROMPT = "Tell me a long story about a river."
OUTPUT_TOKENS = 8


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """Run llama.cpp's server with the packaged model; gives its address."""
    import xllamacpp  # noqa: PLC0415 - loads llama.cpp: only who asks for it waits for it

    params = xllamacpp.CommonParams()
    params.model.path = str(weights_path())
    params.model_alias = {"smollm2"}
    params.n_ctx, params.n_parallel, params.kv_unified = 1024, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity = -1
    params.api_keys = [KEY]
    params.port = 0
    server = xllamacpp.Server(params)
    yield str(server.listening_address)
    del server  # it ends with its last reference


def catalog(address: str) -> str:
    return f"""
    [service]
    first_event_grace_s = 10

    [upstreams.llama]
    kind = "openai"
    base_url = "{address}/v1"
    api_key_env = "LLAMA_KEY"

    [upstreams.locked]
    kind = "openai"
    base_url = "{address}/v1"
    api_key_env = "WRONG_KEY"

    [runtimes.writer]
    kind = "converse"
    model = "llama/smollm2"
    instructions = "{INSTRUCTIONS}"
    max_output_tokens = {OUTPUT_TOKENS}

    [runtimes.locked]
    kind = "converse"
    model = "locked/smollm2"
    """


def stack_of(address: str, directory: Path) -> Stack:
    keys = {"LLAMA_KEY": KEY, "WRONG_KEY": "another"}
    return Stack(directory, catalog=catalog(address), answers="scripts", environ=keys)


async def counted_by_llama_cpp(address: str) -> int:
    """Ask llama.cpp itself how many tokens the prompt has."""
    body = {
        "messages": [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": PROMPT}],
        "max_tokens": 1,
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WAIT_S)) as session,
        session.post(f"{address}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        usage: dict[str, Any] = (await response.json())["usage"]
    return int(usage["prompt_tokens"])


async def invoked(caller: Caller) -> tuple[list[str], dict[str, Any]]:
    """Invoke the writer; return the types of its events and the value of the last one."""
    async with caller.submit(PROMPT) as stream:
        await stream.whole()
    types = [event.type for event in stream.events]
    return types, json.loads(stream.events[-1].data)[types[-1]]


async def test_a_self_hosted_model_streams_and_its_own_counts_are_metered(tmp_path: Path, llama: str) -> None:
    async with stack_of(llama, tmp_path) as stack, calling(stack) as ann:
        types, first = await invoked(ann)
        _, second = await invoked(ann)
        prompt_tokens = await counted_by_llama_cpp(llama)
        log = stack.services[0].log()

    assert types[:2] == ["invocationStarted", "messageStart"]
    assert types.count("contentBlockDelta") > OUTPUT_TOKENS / 2  # half a character waits for its end
    assert types[-4:] == ["contentBlockStop", "messageStop", "metadata", "invocationCompleted"]
    assert first == {
        "stopReason": "max_tokens",
        "usage": {
            "inputTokens": prompt_tokens,
            "outputTokens": OUTPUT_TOKENS,
            "cacheReadInputTokens": 0,
            "cacheWriteInputTokens": 0,
        },
    }
    cached_tokens = second["usage"]["cacheReadInputTokens"]
    assert 0 < cached_tokens == prompt_tokens - second["usage"]["inputTokens"]
    assert KEY not in log


async def test_refusals_of_a_self_hosted_model_are_statuses_and_cost_nothing(
    tmp_path: Path, llama: str
) -> None:
    async with stack_of(llama, tmp_path) as stack, calling(stack) as ann:
        async with ann.submit(PROMPT, "locked") as locked:
            misconfigured = await locked.response.json(content_type="application/problem+json")
        async with ann.submit("river " * 3000) as long:
            rejected = await long.response.json(content_type="application/problem+json")
        _, usage = await ann.get("/usage")

    assert (locked.response.status, misconfigured["code"]) == (502, "upstream-misconfigured")
    assert (long.response.status, rejected["code"]) == (400, "upstream-rejected")
    assert not re.search("context size|Invalid API", str([misconfigured, rejected]))
    assert [(window["used"], window["reserved"]) for window in usage["windows"]] == [(0, 0), (0, 0)]
