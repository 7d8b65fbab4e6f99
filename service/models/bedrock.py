"""Amazon Bedrock's ConverseStream as a `Model`: our request, our connections, botocore's endpoint and keys.

`app` opens it, `runtimes.converse` calls it. The request's messages are Converse's JSON from the caller to
the upstream: nothing is decoded or checked again on the way, Bedrock refuses what it does not know.

    converse ── AwsEndpoint.begin ── ConnectionPool.begin       up to the request
        └────── Exchange.finish                                 up to its end
    deliver ─── _Answer.feed ── Decoder.feed ── Exchange.feed ── Connection            within each read

Invariants: what one read brought is one `deliver`; no payload is parsed; foreign text reaches neither callers
nor logs; tried again is only what was refused before a 200 or never sent, which is also all that is not
billed.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote

import orjson
from botocore.exceptions import BotoCoreError, NoRegionError

from service.config import ConfigError
from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from service.models import Deliver, Frame, ModelRequest
from service.models.aws_http import AwsEndpoint, new_session
from service.models.bedrock_errors import Refusal, failure_of, foreign_code, stream_failure_of
from service.models.connection import Sink, Withheld
from service.models.eventstream import Decoder, StreamEnded
from service.models.pool import CONNECT_TIMEOUT_S

logger = logging.getLogger(__name__)

# Full jitter below these: small, so that a last refusal still comes within `first_event_grace_s` and can be a
# status. No try begins later than the window: a caller is waiting.
RETRY_CEILINGS_S: Final = (0.2, 0.5)
RETRY_WINDOW_S: Final = 5.0

_EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
_HEADERS: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Pacing:
    """How retries wait."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    now_s: Callable[[], float] = time.monotonic


class BedrockModel:
    """Makes model calls; `open` it once per process."""

    def __init__(self, endpoint: AwsEndpoint, pacing: Pacing) -> None:
        self._endpoint = endpoint
        self._pacing = pacing

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, max_connections: int, silence_s: float, pacing: Pacing | None = None
    ) -> AsyncIterator[Self]:
        """Find the region, endpoint and credentials as botocore does; leaving ends all calls.

        Args:
            max_connections: Calls at once; more wait.
            silence_s: How long a call may bring nothing, before its first byte too.

        Raises:
            ConfigError: No region, no such profile, an unusable endpoint, CA bundle or proxy.
        """
        async with AsyncExitStack() as stack:
            try:
                opened = AwsEndpoint.open(
                    new_session(),
                    "bedrock-runtime",
                    "ConverseStream",
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=silence_s,
                    max_pool_connections=max_connections,
                )
                endpoint = await stack.enter_async_context(opened)
            except NoRegionError as exc:
                raise ConfigError(["AWS_REGION is not set"]) from exc
            except (BotoCoreError, ValueError) as exc:
                raise ConfigError([f"the client for Bedrock can't be made: {exc}"]) from exc
            yield cls(endpoint, pacing or Pacing())

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Make one call and deliver its frames; see `Model.converse`."""
        give_up_at_s = self._pacing.now_s() + RETRY_WINDOW_S
        ceilings_s = iter(RETRY_CEILINGS_S)
        pause_s = 0.0
        while True:
            await request.before_try()
            if pause_s:
                await self._pacing.sleep(pause_s)
            try:
                return await self._call(request, _Answer(deliver))
            except Withheld:
                pause_s = 0.0
            except (UpstreamThrottled, UpstreamUnavailable) as refusal:
                ceiling_s = next(ceilings_s, None)
                if refusal.billed or ceiling_s is None:
                    raise
                pause_s = self._pacing.random() * ceiling_s
                if self._pacing.now_s() + pause_s > give_up_at_s:
                    raise

    async def _call(self, request: ModelRequest, answer: "_Answer") -> None:
        try:
            await self._ask(request, answer)
        except Exception as exc:
            failure = failure_of(exc)
            if failure is None:
                raise
            failure.billed = failure.billed or answer.accepted
            fields = {
                "model_id": request.model_id,
                "problem": failure.code,
                "billed": failure.billed,
                "upstream_code": foreign_code(exc if failure is not exc else exc.__cause__),
                "upstream_request_id": answer.request_id,
            }
            logger.warning("model call failed", extra=fields)
            if failure is exc:
                raise
            raise failure from exc

    async def _ask(self, request: ModelRequest, answer: "_Answer") -> None:
        exchange = await self._endpoint.begin(
            _path(request.model_id), _HEADERS, _body(request), answer.on_head, request.may_send
        )
        try:
            refusal = await exchange.finish()
        finally:
            exchange.close()
        if not answer.accepted:
            raise Refusal.read(exchange.status, exchange.headers, refusal)
        answer.finish()


class _Answer:
    """One answer while it arrives: decodes it, delivers it, knows whether it is whole."""

    def __init__(self, deliver: Deliver) -> None:
        self.status = 0
        self.request_id = ""
        self._deliver = deliver
        self._decoder = Decoder()
        self._stopped = False

    @property
    def accepted(self) -> bool:
        """True once the model was asked."""
        return self.status == 200

    def on_head(self, status: int, headers: Mapping[str, str]) -> Sink | None:
        """Take the head: an event stream comes here, a refusal is collected."""
        self.status = status
        self.request_id = headers.get("x-amzn-requestid", "")
        if not self.accepted:
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _EVENT_STREAM:
            raise UpstreamFailed("The model backend did not answer with an event stream.")
        return self.feed

    def feed(self, read: bytes) -> Awaitable[None] | None:
        """Take what one read brought and deliver the frames that it completes, those before a failure too."""
        try:
            frames = self._decoder.feed(read)
        except StreamEnded as end:
            failure = stream_failure_of(end)
            gate = self._pass_on(end.frames)
            if gate is None:
                raise failure from end
            return _fail_after(gate, failure, end)
        return self._pass_on(frames)

    def finish(self) -> None:
        """Take the end of the body.

        Raises:
            UpstreamFailed: The answer is not whole.
        """
        if not self._decoder.at_boundary:
            raise UpstreamFailed("The model's answer was cut within an event.")
        if not self._stopped:
            raise UpstreamFailed("The model's answer ended before it was finished.")

    def _pass_on(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        if not frames:
            return None
        for event_type, _ in frames:
            if event_type == b"messageStop":
                self._stopped = True
        return self._deliver(frames)


async def _fail_after(gate: Awaitable[None], failure: UpstreamError, cause: StreamEnded) -> None:
    await gate
    raise failure from cause


def _path(model_id: str) -> str:
    return f"/model/{quote(model_id, safe='-._~')}/converse-stream"  # as botocore/serialize.py does


def _body(request: ModelRequest) -> bytes:
    document: dict[str, Any] = {
        "messages": request.messages,
        "inferenceConfig": {"maxTokens": request.max_tokens},
    }
    if request.system:
        document["system"] = [{"text": request.system}]
    if request.tools:
        document["toolConfig"] = {"tools": [{"toolSpec": tool} for tool in request.tools]}
    if request.request_metadata:
        document["requestMetadata"] = request.request_metadata
    try:
        return orjson.dumps(document)
    except TypeError:  # half a character, or an integer beyond 64 bits, in what a model wrote for a tool
        return json.dumps(document).encode()
