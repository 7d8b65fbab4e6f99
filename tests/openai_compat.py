"""Calls to `OpenAICompatModel` over a scripted connection."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from service.config import UpstreamConfig
from service.models import Frame, ModelRequest
from service.models.openai_compat import OpenAICompatModel
from service.models.retries import Pacing
from tests.bedrock import FOREIGN, PROMPT, Pauses
from tests.scripted_http import END, Script, ScriptedServer, chunk, head, scripted, sized

KEY: Final = "sk-a-key-that-nobody-may-log"
REQUEST: Final = ModelRequest("qwen", [{"role": "user", "content": [{"text": PROMPT}]}], 100)
HEAD: Final = head(content_type="text/event-stream", transfer_encoding="chunked", x_request_id="req-7")
START: Final[Frame] = (b"messageStart", b'{"role":"assistant"}')
STOP: Final[Frame] = (b"messageStop", b'{"stopReason":"end_turn"}')

BEGIN: Final = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
FINISH: Final = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
DONE: Final = b"data: [DONE]\n\n"


def said(*chunks: Any) -> bytes:
    """Encode chunks as a server does."""
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks)


def answer(*parts: bytes) -> bytes:
    """Return a whole response, each part a chunk of its own."""
    return HEAD + b"".join(map(chunk, parts)) + END


OK: Final = answer(said(BEGIN, FINISH) + DONE)


def refusal(status: int, error: Any = None, **headers: str) -> bytes:
    """Return a refusal in OpenAI's form."""
    body = {"error": {"message": FOREIGN, "type": "invalid_request_error", **(error or {})}}
    return sized(status, json.dumps(body).encode(), x_request_id="req-7", **headers)


@asynccontextmanager
async def serving(
    script: Script, *, pacing: Pacing | None = None, key: str = "", **config: Any
) -> AsyncIterator[tuple[OpenAICompatModel, ScriptedServer]]:
    """Run a server that plays the script, and the model that calls it."""
    async with scripted(script) as server, opened(server.url, pacing=pacing, key=key, **config) as model:
        yield model, server


def opened(url: str, *, pacing: Pacing | None = None, key: str = "", path: str = "/v1", **config: Any) -> Any:
    """Open the model of the API at this address."""
    upstream = UpstreamConfig("vllm", "openai", base_url=url + path, **config)
    pacing = pacing or Pauses().pacing()
    return OpenAICompatModel.open(upstream, key, max_connections=4, silence_s=900.0, pacing=pacing)
