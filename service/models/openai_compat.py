"""Any server of OpenAI's chat completions as a `Model`: vLLM, SGLang, Triton, llama.cpp, OpenAI itself.

`app` opens one for each such upstream, `models.route` calls it. What it says leaves as ConverseStream
frames, so whatever listens knows one language only.

    converse ── tried ── _call ── chat_body ── ConnectionPool.begin                      up to the head
                           └───── Exchange.finish                                        up to its end
    deliver ─── _Answer.feed ── sse.Decoder.feed ── Translation.take ── Exchange.feed    within each read

Invariants: what one read brought is one `deliver`; an answer is whole with a finish reason, `[DONE]` and the
end of the response, and a failure without one of them; foreign text reaches neither callers nor logs; tried
again is only what was refused before a 200 or never sent, which is also all that is not billed.

Why not aiohttp, and why no SDK: docs/decisions/0017-openai-compatible-upstreams.md.
"""

import logging
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from service.config import ConfigError, UpstreamConfig
from service.errors import UpstreamError, UpstreamFailed
from service.models import CALL_METADATA, Deliver, Frame, ModelRequest
from service.models.connection import Exchange, Sink
from service.models.openai_compat_errors import KeyRefused, foreign_code, refusal_of
from service.models.openai_compat_frames import Translation
from service.models.openai_compat_key import ApiKey, opened_key
from service.models.openai_compat_request import chat_body
from service.models.pool import ConnectionPool
from service.models.retries import Pacing, tried
from service.models.sse import Decoder, EventTooLarge

logger = logging.getLogger(__name__)

# uvicorn (vLLM, SGLang) and cpp-httplib (llama.cpp) close connections that are idle for 5 s:
# https://uvicorn.dev/settings/#timeouts and CPPHTTPLIB_KEEPALIVE_TIMEOUT_SECOND of
# https://github.com/yhirose/cpp-httplib. A request that crosses the close is a failure, so we close before.
IDLE_S: Final = 4.0
_EVENT_STREAM: Final = "text/event-stream"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)  # what a log line may hold
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class OpenAICompatModel:
    """Makes model calls to one server; `open` it once per process."""

    def __init__(self, config: UpstreamConfig, key: ApiKey, pool: ConnectionPool, pacing: Pacing) -> None:
        self._config = config
        self._key = key
        self._pool = pool
        self._pacing = pacing
        url = urlsplit(config.base_url)
        self._host = _host(url)
        self._target = url.path.rstrip("/") + "/chat/completions"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: UpstreamConfig,
        key: str = "",
        *,
        max_connections: int,
        silence_s: float,
        pacing: Pacing | None = None,
    ) -> AsyncIterator[Self]:
        """Get the API key and make room for connections; leaving ends all calls.

        Args:
            config: Where the server is, and its ways.
            key: The API key, if the environment has it.
            max_connections: Calls at once; more wait.
            silence_s: How long a call may bring nothing, before its first byte too.
            pacing: How retries wait.

        Raises:
            ConfigError: The key's secret can't be read, or the CA bundle.
        """
        url = urlsplit(config.base_url)
        async with opened_key(config, key) as opened:
            pool = ConnectionPool(
                url.hostname or "",
                url.port or _DEFAULT_PORTS[url.scheme],
                tls=_tls() if url.scheme == "https" else None,
                limit=max_connections,
                silence_s=silence_s,
                idle_s=IDLE_S,
            )
            try:
                yield cls(config, opened, pool, pacing or Pacing())
            finally:
                await pool.aclose()

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Make one call and deliver its frames; see `Model.converse`."""
        key = self._key.value
        try:
            await self._tried(request, deliver, key)
        except KeyRefused:  # it may have been rotated
            await request.before_try()  # the refusal has cost nothing, however the wait for a key ends
            if not await self._key.replaced(key):
                raise
            await self._tried(request, deliver, self._key.value)

    async def _tried(self, request: ModelRequest, deliver: Deliver, key: str) -> None:
        await tried(request, lambda: self._call(request, deliver, key), self._pacing)

    async def _call(self, request: ModelRequest, deliver: Deliver, key: str) -> None:
        answer = _Answer(deliver, self._pacing.now_s)
        exchange: Exchange | None = None
        try:
            exchange = await self._begin(request, key, answer)
            body = await exchange.finish()
            if not answer.accepted:
                raise refusal_of(exchange.status, exchange.headers, body)
            answer.finish()
        except UpstreamError as failure:
            failure.billed = failure.billed or answer.accepted
            fields = {
                "upstream": self._config.name,
                "model_id": request.model_id,
                "problem": failure.code,
                "billed": failure.billed,
                "upstream_code": foreign_code(failure.__cause__),
                "upstream_request_id": answer.request_id,
            }
            logger.warning("model call failed", extra=fields)
            raise
        finally:
            if exchange is not None:
                exchange.close()

    async def _begin(self, request: ModelRequest, key: str, answer: "_Answer") -> Exchange:
        """Send the request and wait for the head; nothing holds the request's body after that."""
        body = chat_body(request, self._config)
        headers = {
            "Host": self._host,
            "User-Agent": "headrace",
            "Accept": _EVENT_STREAM,
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        if call_id := request.request_metadata.get(CALL_METADATA):
            headers["X-Request-Id"] = call_id  # vLLM logs it, and so do proxies
        if key:
            headers["Authorization"] = f"Bearer {key}"
        exchange = await self._pool.begin(
            "POST", self._target, headers, body, answer.on_head, request.may_send
        )
        try:
            await exchange.head()
        except BaseException:
            exchange.close()
            raise
        return exchange


class _Answer:
    """One answer while it arrives: decodes it, translates it, delivers it, knows whether it is whole."""

    __slots__ = ("_decoder", "_deliver", "_translation", "accepted", "request_id")

    def __init__(self, deliver: Deliver, now_s: Callable[[], float]) -> None:
        self.accepted = False
        self.request_id = ""
        self._deliver = deliver
        self._decoder = Decoder()
        began_at_s = now_s()
        self._translation = Translation(_new_tool_use_id, lambda: round((now_s() - began_at_s) * 1000))

    def on_head(self, status: int, headers: Mapping[str, str]) -> Sink | None:
        """Take the head: an event stream comes here, a refusal is collected."""
        self.accepted = status == 200
        if _REQUEST_ID.fullmatch(request_id := headers.get("x-request-id", "")):
            self.request_id = request_id
        if not self.accepted:
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _EVENT_STREAM:
            raise UpstreamFailed("The model backend did not answer with an event stream.")
        return self.feed

    def feed(self, read: bytes) -> Awaitable[None] | None:
        """Take what one read brought and deliver the frames that it completes, those before a failure too."""
        frames: list[Frame] = []
        try:
            self._translate(read, frames)
        except UpstreamError as failure:
            gate = self._deliver(frames) if frames else None
            if gate is None:
                raise
            return _fail_after(gate, failure)
        return self._deliver(frames) if frames else None

    def finish(self) -> None:
        """Take the end of the body.

        Raises:
            UpstreamFailed: The answer is not whole.
        """
        if not self._translation.is_whole:
            raise UpstreamFailed("The model's answer ended before it was finished.")

    def _translate(self, read: bytes, frames: list[Frame]) -> None:
        try:
            events = self._decoder.feed(read)
        except EventTooLarge as end:
            for event in end.events:
                self._translation.take(event, frames)
            raise UpstreamFailed("The model backend sent an event that is too large.") from end
        for event in events:
            self._translation.take(event, frames)


async def _fail_after(gate: Awaitable[None], failure: UpstreamError) -> None:
    await gate
    raise failure


def _new_tool_use_id() -> str:
    return "call_" + secrets.token_hex(12)


def _host(url: SplitResult) -> str:
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    return host if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f"{host}:{url.port}"


def _tls() -> ssl.SSLContext:
    try:
        return ssl.create_default_context()  # TLS 1.2 or newer; `SSL_CERT_FILE` names another CA bundle
    except OSError as exc:
        raise ConfigError([f"the CA bundle can't be used: {exc}"]) from exc
