"""Amazon Bedrock's ConverseStream as a `Model`: our request, our connections, botocore's endpoint and keys.

`app` opens it, `models.route` calls it. The request's messages are Converse's JSON from the caller to
the upstream: nothing is decoded or checked again on the way, Bedrock refuses what it does not know.

    converse ── AwsEndpoint.begin ── ConnectionPool.begin       up to the request
        └────── Exchange.finish                                 up to its end
    deliver ─── _Answer.feed ── Decoder.feed ── Exchange.feed ── Connection            within each read

Invariants: what one read brought is one `deliver`; no payload is parsed; foreign text reaches neither callers
nor logs; tried again is only what was refused before a 200 or never sent, which is also all that is not
billed.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from service.errors import UpstreamError, UpstreamFailed
from service.models import Deliver, ModelRequest
from service.models.aws_http import AwsEndpoint
from service.models.bedrock_errors import Refusal, failure_of, foreign_code, stream_failure_of
from service.models.bedrock_request import body_of, path_of
from service.models.connection import Sink
from service.models.eventstream import Decoder, StreamEnded
from service.models.pool import CONNECT_TIMEOUT_S
from service.models.retries import Pacing, tried

logger = logging.getLogger(__name__)


_EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
_HEADERS: Final = {"content-type": "application/json"}


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
        opened = AwsEndpoint.open(
            "bedrock-runtime",
            "ConverseStream",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=silence_s,
            max_pool_connections=max_connections,
        )
        async with opened as endpoint:
            yield cls(endpoint, pacing or Pacing())

    def converse(self, request: ModelRequest, deliver: Deliver) -> Coroutine[Any, Any, None]:
        """Make one call and deliver its frames; see `Model.converse`."""
        return tried(request, lambda: self._call(request, _Answer(deliver)), self._pacing)

    async def _call(self, request: ModelRequest, answer: "_Answer") -> None:
        try:
            exchange = await self._endpoint.begin(
                path_of(request.model_id), _HEADERS, body_of(request), answer.on_head, request.may_send
            )
            try:
                collected = await exchange.finish()
            finally:
                exchange.close()
            answer.finish(exchange.headers, collected)
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


class _Answer:
    """One answer while it arrives: decodes it, delivers it, knows whether it is whole."""

    __slots__ = ("_decoder", "_deliver", "_stopped", "request_id", "status")

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
            gate = self._deliver(end.frames) if end.frames else None
            if gate is None:
                raise failure from end
            return _fail_after(gate, failure, end)
        for event_type, _ in frames:
            if event_type == b"messageStop":
                self._stopped = True
        return self._deliver(frames) if frames else None

    def finish(self, headers: Mapping[str, str], collected: bytes) -> None:
        """Take the end of the body; `collected` is that of a refusal.

        Raises:
            Refusal: The model was not asked.
            UpstreamFailed: The answer is not whole.
        """
        if not self.accepted:
            raise Refusal.read(self.status, headers, collected)
        if not self._decoder.at_boundary:
            raise UpstreamFailed("The model's answer was cut within an event.")
        if not self._stopped:
            raise UpstreamFailed("The model's answer ended before it was finished.")


async def _fail_after(gate: Awaitable[None], failure: UpstreamError, cause: StreamEnded) -> None:
    await gate
    raise failure from cause
