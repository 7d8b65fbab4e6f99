"""Calls to `BedrockModel` over a scripted connection."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.models import Frame, ModelRequest
from service.models.bedrock import BedrockModel
from service.models.retries import Pacing
from tests.scripted_http import (
    END,
    Peer,
    Script,
    ScriptedServer,
    chunk,
    event,
    head,
    scripted,
    sized,
)

PROMPT = "a prompt that nobody may log"
FOREIGN = "foreign text that nobody may see"
REQUEST = ModelRequest("us.some.model-v1:0", [{"role": "user", "content": [{"text": PROMPT}]}], 100)
HEAD = head(
    content_type="application/vnd.amazon.eventstream", transfer_encoding="chunked", x_amzn_RequestId="req-7"
)
START: Frame = (b"messageStart", b'{"role":"assistant"}')
STOP: Frame = (b"messageStop", b'{"stopReason":"end_turn"}')


def events(*frames: Frame) -> bytes:
    return b"".join(event(event_type.decode(), payload) for event_type, payload in frames)


def answer(*parts: bytes) -> bytes:
    return HEAD + b"".join(map(chunk, parts)) + END


OK = answer(events(START, STOP))


def refusal(status: int, code: str = "") -> bytes:
    headers = {"x_amzn_RequestId": "req-7"} | (
        {"x_amzn_errortype": f"{code}:http://internal"} if code else {}
    )
    return sized(status, json.dumps({"message": FOREIGN}).encode(), **headers)


class Pauses(list[float]):
    """How long retries paused, at most half of what they might."""

    def pacing(self, now_s: Any = lambda: 0.0) -> Pacing:
        async def sleep(seconds: float) -> None:
            self.append(seconds)

        return Pacing(sleep=sleep, random=lambda: 0.5, now_s=now_s)


@asynccontextmanager
async def bedrock(
    script: Script, monkeypatch: pytest.MonkeyPatch, *, pacing: Pacing | None = None
) -> AsyncIterator[tuple[BedrockModel, ScriptedServer]]:
    async with scripted(script) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        async with opened(pacing) as model:
            yield model, server


def opened(pacing: Pacing | None = None) -> Any:
    return BedrockModel.open(max_connections=4, silence_s=900.0, pacing=pacing or Pauses().pacing())


def in_turn(*responses: bytes, hang_up: bool = False) -> Script:
    """Answer one request after another, whatever connection it comes on."""
    waiting = list(responses)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(waiting.pop(0))
            if hang_up:
                return

    return script
