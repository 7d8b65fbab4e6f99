"""The HTTP session that botocore's clients are given: their requests, over our connections.

`models.bedrock` names `HttpSession` in its `AioConfig(http_session_cls=...)`; aiobotocore makes one per
client, tells it the CA bundle, timeouts and limits that botocore resolved, and calls `send` with each
prepared and signed request.

What aiobotocore sees is a head without a body, or a refusal with one: a streamed body goes from the
connection's callback to whom `Call.on_head` chose. `send` returns at the head, so that a stream which lasts
for hours holds neither botocore's frames nor the request's body.
"""

import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from botocore.httpsession import ProxyConfiguration, get_cert_path

from service.config import ConfigError
from service.models.connection import Exchange, MaySend, OnHead
from service.models.pool import IDLE_S, ConnectionPool


@dataclass(slots=True)
class Call:
    """What the task that makes a call gives to the session, and gets from it."""

    on_head: OnHead
    may_send: MaySend
    exchange: Exchange | None = None

    def close(self) -> None:
        """End the exchange, if it began."""
        if self.exchange is not None:
            self.exchange.close()


CALL: ContextVar[Call] = ContextVar("CALL")
"""The call that the request which this task sends next belongs to; botocore has no argument for it."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class HttpSession:
    """Sends botocore's requests; one `ConnectionPool` per origin.

    Args:
        timeout: Seconds to connect, seconds of silence.
        verify: True for botocore's CA bundle, or the path of another.
        max_pool_connections: Exchanges at once.
        proxies: By scheme, from the environment.
    """

    def __init__(
        self,
        *,
        timeout: tuple[float, float],
        verify: bool | str,
        max_pool_connections: int,
        proxies: Mapping[str, str] | None = None,
        **_unused: Any,
    ) -> None:
        self._connect_timeout_s, self._silence_s = timeout
        self._verify = verify
        self._limit = max_pool_connections
        self._proxies = ProxyConfiguration(proxies)
        self._pools: dict[tuple[str, str, int], ConnectionPool] = {}

    def prepare(self, endpoint_url: str) -> None:
        """Find out now what would fail at the first request.

        Raises:
            ConfigError: A proxy would be needed, or the CA bundle can't be read.
        """
        url = urlsplit(endpoint_url)
        if self._proxies.proxy_url_for(endpoint_url) and url.hostname not in _LOOPBACK:
            setting = f"{url.scheme.upper()}_PROXY"
            raise ConfigError(
                [f"{setting} is set, but model calls go through no proxy: add {url.hostname} to NO_PROXY"]
            )
        if url.scheme == "https":
            try:
                self._tls  # noqa: B018 - reading it makes it
            except OSError as exc:
                raise ConfigError(
                    [f"the CA bundle {get_cert_path(self._verify)} can't be used: {exc}"]
                ) from exc

    async def send(self, request: Any) -> AioAWSResponse:
        """Send an `AWSPreparedRequest` and wait for the head; a body that nobody takes is read too.

        The exchange goes on as that of `CALL`, whose owner finishes and closes it.

        Raises:
            UpstreamError, Withheld: See `ConnectionPool.begin` and `Exchange.head`.
            Exception: What `on_head` or its sink raised.
        """
        call = CALL.get()
        url = urlsplit(request.url)
        headers = {name: _text(value) for name, value in request.headers.items()}
        headers |= {"Host": _host(url), "Accept-Encoding": "identity"}
        exchange = call.exchange = await self._pool(url).begin(
            request.method, _target(url), headers, request.body or b"", call.on_head, call.may_send
        )
        await exchange.head()
        body = b"" if exchange.streams else await exchange.finish()
        return AioAWSResponse(request.url, exchange.status, exchange.headers, _Collected(body))

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _pool(self, url: SplitResult) -> ConnectionPool:
        origin = (url.scheme, url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme])
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = ConnectionPool(
                *origin[1:],
                tls=self._tls if url.scheme == "https" else None,
                limit=self._limit,
                silence_s=self._silence_s,
                connect_timeout_s=self._connect_timeout_s,
                idle_s=IDLE_S,
            )
        return pool

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_verify_locations(get_cert_path(self._verify))
        return tls


class _Collected:
    """What aiobotocore takes for the raw response when it reads a body."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _target(url: SplitResult) -> str:
    return f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"


def _host(url: SplitResult) -> str:
    """Return the `Host` that botocore signed (botocore/auth.py, `_host_from_url`)."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    return host if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f"{host}:{url.port}"
