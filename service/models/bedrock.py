"""Amazon Bedrock's ConverseStream as a `Model`: botocore signs the requests, our connections carry them.

`app` opens it, `runtimes.converse` calls it. botocore (through aioboto3) keeps what changes on AWS's side:
credentials and their refresh, endpoints, serialization, signing, the reading of refusals. The seam is the
HTTP session class of aiobotocore's `AioConfig`, and not a `before-send` hook, because only the session is
told which CA bundle, proxies and limits botocore resolved. (`AioConfig.merge` forgets the class: no default
client config may be set on the session.)

    converse ── client.converse_stream ── HttpSession.send ── ConnectionPool.begin     up to the head
        └────── Exchange.finish                                                        up to its end
    deliver ─── _Answer.feed ── Decoder.feed ── Exchange.feed ── Connection            within each read

Invariants: what one read brought is one `deliver`; no payload is parsed; foreign text reaches neither callers
nor logs; tried again is only what was refused before a 200 or never sent, which is also all that is not
billed.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Self, cast

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, NoRegionError

from service.config import ConfigError
from service.errors import UpstreamError, UpstreamFailed
from service.models import Deliver, Frame, ModelRequest
from service.models.aws_http import CALL, Call, HttpSession
from service.models.bedrock_errors import failure_of, foreign_code, stream_failure_of
from service.models.bedrock_request import parameters_of
from service.models.connection import Exchange, Sink
from service.models.eventstream import Decoder, StreamEnded
from service.models.pool import CONNECT_TIMEOUT_S
from service.models.retries import Pacing, tried

logger = logging.getLogger(__name__)

# botocore for Python reads AWS_DEFAULT_REGION only; all other SDKs, Lambda and ECS say AWS_REGION:
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html. A session variable is (key of the
# configuration file, environment variables, default, conversion).
_REGION: Final = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)

_EVENT_STREAM: Final = "application/vnd.amazon.eventstream"


class BedrockModel:
    """Makes model calls; `open` it once per process."""

    def __init__(self, client: Any, pacing: Pacing) -> None:
        self._client = client
        self._pacing = pacing

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, max_connections: int, silence_s: float, pacing: Pacing | None = None
    ) -> AsyncIterator[Self]:
        """Make the client for the region, endpoint and credentials botocore finds; leaving ends all calls.

        Args:
            max_connections: Calls at once; more wait.
            silence_s: How long a call may bring nothing, before its first byte too.

        Raises:
            ConfigError: No region, no such profile, an unusable endpoint, CA bundle or proxy.
        """
        sessions: list[HttpSession] = []

        def http_session(**arguments: Any) -> HttpSession:
            sessions.append(HttpSession(**arguments))
            return sessions[-1]

        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=silence_s,
            max_pool_connections=max_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            http_session_cls=http_session,
        )
        async with AsyncExitStack() as stack:
            try:
                session = aioboto3.Session(botocore_session=get_session({"region": _REGION}))
                client = await stack.enter_async_context(session.client("bedrock-runtime", config=config))
            except NoRegionError as exc:
                raise ConfigError(["AWS_REGION is not set"]) from exc
            except (BotoCoreError, ValueError) as exc:
                raise ConfigError([f"the client for Bedrock can't be made: {exc}"]) from exc
            sessions[0].prepare(client.meta.endpoint_url)
            yield cls(client, pacing or Pacing())

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Make one call and deliver its frames; see `Model.converse`."""
        await tried(request, lambda: self._call(request, _Answer(deliver)), self._pacing)

    async def _call(self, request: ModelRequest, answer: "_Answer") -> None:
        call = Call(answer.on_head, request.may_send)
        token = CALL.set(call)
        try:
            await self._client.converse_stream(**parameters_of(request))
            await cast(Exchange, call.exchange).finish()  # its head is here, so it has begun
            answer.finish()
        except Exception as exc:
            failure = failure_of(exc, answer.status)
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
        finally:
            call.close()
            CALL.reset(token)


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
        """Take the head: an event stream comes here, a refusal is left to botocore."""
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
            return self._pass_on(self._decoder.feed(read))
        except StreamEnded as end:
            failure = stream_failure_of(end)
            gate = self._pass_on(end.frames)
            if gate is None:
                raise failure from end
            return _fail_after(gate, failure, end)

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
