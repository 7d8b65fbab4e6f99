"""Upstreams that play the same answers, each in its own words: a `Wire` for each implementation of `Model`.

`test_model` holds the contract; the double is there too.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import pytest

from service.config import UpstreamConfig
from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from service.models import Frame, Model, ModelRequest
from service.models.bedrock import BedrockModel
from service.models.openai_compat import OpenAICompatModel
from service.models.retries import Pacing
from tests.fakes import ScriptedModel
from tests.scripted_http import END, Peer, chunk, event, exception, head, scripted, sized

REQUEST: Final = ModelRequest("some.model-v1:0", [{"role": "user", "content": [{"text": "Hello"}]}], 100)
SILENCE_S: Final = 900.0

START = ("messageStart", {"role": "assistant"})
BLOCK_STOP = ("contentBlockStop", {"contentBlockIndex": 0})
STOP = ("messageStop", {"stopReason": "end_turn"})
METADATA = (
    "metadata",
    {"usage": {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9}, "metrics": {"latencyMs": 0}},
)


def delta(text: str) -> tuple[str, Any]:
    return "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}


HELLO = [START, delta("Hel"), delta("lo"), BLOCK_STOP, STOP, METADATA]

Said = Sequence[tuple[str, Any]]
Step = Said | asyncio.Event | UpstreamError | None
"""Frames, a barrier, an error; None is silence until the model hangs up."""


@dataclass
class Upstream:
    """An upstream at work; `hung_up` counts the calls that the model left."""

    model: Model
    hung_up: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))


Playing = Callable[..., AbstractAsyncContextManager[Upstream]]
"""Play these answers (lists of steps) to one call each."""


def payload(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Wire:
    """How an upstream says what a test plays."""

    head: bytes
    end: bytes
    refusals: ClassVar[dict[type[UpstreamError], bytes]]

    def step(self, step: Said | UpstreamError) -> bytes:
        raise NotImplementedError

    def opened(self, url: str, monkeypatch: pytest.MonkeyPatch) -> AbstractAsyncContextManager[Model]:
        raise NotImplementedError

    def answer(self, *said: Said) -> bytes:
        return self.head + b"".join(map(self.step, said)) + self.end

    async def play(self, peer: Peer, steps: Sequence[Step]) -> None:
        await peer.request()
        if isinstance(steps[0], UpstreamError):
            return await peer.send(self.refusals[type(steps[0])])
        await peer.send(self.head)
        for step in steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is None:
                return await peer.gone()
            else:
                await peer.send(self.step(step))
        return await peer.send(self.end)


class BedrockWire(Wire):
    """What Bedrock sends."""

    head = head(content_type="application/vnd.amazon.eventstream", transfer_encoding="chunked")
    end = END
    refusals: ClassVar[dict[type[UpstreamError], bytes]] = {
        UpstreamRejected: sized(400, b"{}", x_amzn_errortype="ValidationException"),
        UpstreamMisconfigured: sized(403, b"{}", x_amzn_errortype="AccessDeniedException"),
    }
    exceptions: Final = {UpstreamRejected: "validationException", UpstreamFailed: "modelStreamErrorException"}

    def step(self, step: Said | UpstreamError) -> bytes:
        if isinstance(step, UpstreamError):
            return chunk(exception(self.exceptions[type(step)], {}))
        return chunk(b"".join(event(event_type, payload(value)) for event_type, value in step))

    def opened(self, url: str, monkeypatch: pytest.MonkeyPatch) -> AbstractAsyncContextManager[Model]:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", url)
        return BedrockModel.open(max_connections=4, silence_s=SILENCE_S)


class ChatWire(Wire):
    """What a server of OpenAI's chat completions sends for the same frames."""

    head = head(content_type="text/event-stream; charset=utf-8", transfer_encoding="chunked")
    end = chunk(b"data: [DONE]\n\n") + END
    refusals: ClassVar[dict[type[UpstreamError], bytes]] = {
        UpstreamRejected: sized(400, b'{"error":{"code":"context_length_exceeded"}}'),
        UpstreamMisconfigured: sized(403, b"{}"),
    }

    def step(self, step: Said | UpstreamError) -> bytes:
        if isinstance(step, UpstreamError):
            return chunk(b'data: {"error":{"message":"x","code":500}}\n\n')
        said = [self._said(event_type, value) for event_type, value in step]
        return chunk(b"".join(b"data: " + payload(each) + b"\n\n" for each in said if each))

    def _said(self, event_type: str, value: Any) -> dict[str, Any] | None:
        match event_type:
            case "messageStart":
                return {"choices": [{"index": 0, "delta": value}]}
            case "contentBlockDelta":
                return {"choices": [{"index": 0, "delta": {"content": value["delta"]["text"]}}]}
            case "messageStop":
                return {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            case "metadata":
                usage = value["usage"]
                counts = {
                    "prompt_tokens": usage["inputTokens"],
                    "completion_tokens": usage["outputTokens"],
                }
                return {"choices": [], "usage": counts}
        return None  # the end of a block is not said

    def opened(self, url: str, monkeypatch: pytest.MonkeyPatch) -> AbstractAsyncContextManager[Model]:
        config = UpstreamConfig("vllm", "openai", base_url=url + "/v1")
        pacing = Pacing(now_s=lambda: 0.0)
        return OpenAICompatModel.open(config, max_connections=4, silence_s=SILENCE_S, pacing=pacing)


WIRES: Final = {"bedrock": BedrockWire(), "openai": ChatWire()}


def playing_on(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Playing:
    @asynccontextmanager
    async def playing(*answers: Sequence[Step]) -> AsyncIterator[Upstream]:
        waiting = list(answers)

        async def script(peer: Peer) -> None:
            while waiting:
                steps = waiting.pop(0)
                await wire.play(peer, steps)
                if None in steps:
                    return upstream.hung_up.release()
            return await peer.gone()

        async with scripted(script) as server, wire.opened(server.url, monkeypatch) as model:
            upstream = Upstream(model)
            yield upstream

    return playing


def playing_double() -> Playing:
    @asynccontextmanager
    async def playing(*answers: Sequence[Step]) -> AsyncIterator[Upstream]:
        def translated(step: Step) -> list[Frame] | asyncio.Event | Exception:
            if isinstance(step, asyncio.Event | UpstreamError):
                return step
            if step is None:
                return asyncio.Event()
            return [(event_type.encode(), payload(value)) for event_type, value in step]

        class Noticing(ScriptedModel):
            async def converse(self, request: ModelRequest, deliver: Any) -> None:
                try:
                    await super().converse(request, deliver)
                except asyncio.CancelledError:
                    upstream.hung_up.release()
                    raise

        upstream = Upstream(Noticing(*([translated(step) for step in steps] for steps in answers)))
        yield upstream

    return playing
