"""Requests to one AWS service over our connections, to the endpoint and with the keys that botocore found.

`models.bedrock` and `stores.dynamodb` open an `AwsEndpoint` each. botocore (through aioboto3) keeps what
changes on AWS's side: region and endpoint, credentials and their refresh, the choice of how to sign. What it
does for every request in 0.5 ms (validate, serialize, resolve the endpoint again, sign, parse) is done here
and by the callers in 0.1: the body is their JSON, the signature `sigv4`'s. Where botocore chooses another way
to sign (a bearer token), it signs.

    begin ── keys (botocore's, refreshed when due) ── Signer.sign ── ConnectionPool.begin ──> Exchange

What botocore resolved of CA bundle, time-outs, limits and proxies it tells to nobody but the HTTP session of
a client. So `HttpSession` is aiobotocore's `http_session_cls`, which is told all that, opens the connections,
and is never asked to send. (`AioConfig.merge` forgets the class: no default client config may be set on the
session.)
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, NoCredentialsError, NoRegionError
from botocore.httpsession import ProxyConfiguration, get_cert_path

from service.config import ConfigError
from service.models.connection import Exchange, MaySend, OnHead
from service.models.pool import IDLE_S, ConnectionPool
from service.models.sigv4 import Signer

# botocore for Python reads AWS_DEFAULT_REGION only; all other SDKs, Lambda and ECS say AWS_REGION:
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html. A session variable is (key of the
# configuration file, environment variables, default, conversion).
_REGION: Final = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def new_session() -> aioboto3.Session:
    """Return a session that finds region, endpoint and credentials as all of AWS's SDKs do.

    Raises:
        BotoCoreError: It can't be made: no such profile, say.
    """
    return aioboto3.Session(botocore_session=get_session({"region": _REGION}))


class AwsEndpoint:
    """Where a service is, and how to ask it; `open` it once per process.

    Attributes:
        url: The endpoint's, without its path.
    """

    def __init__(self, client: Any, credentials: Any, pool: ConnectionPool, signer: Signer | None) -> None:
        url = urlsplit(client.meta.endpoint_url)
        self._client = client
        self._credentials = credentials
        self._pool = pool
        self._signer = signer
        self.url = f"{url.scheme}://{url.netloc}"
        self._path = url.path.rstrip("/")
        self._host = _host(url)
        self._user_agent = client.meta.config.user_agent

    @classmethod
    @asynccontextmanager
    async def open(
        cls, service: str, operation: str, *, session: aioboto3.Session | None = None, **settings: Any
    ) -> AsyncIterator[Self]:
        """Find region, endpoint and credentials; leaving ends all calls.

        Args:
            operation: One of those that will be asked for: they are all signed in the same way.
            session: To share what one reads once; else its own.
            settings: Of `AioConfig`: time-outs, the most connections.

        Raises:
            ConfigError: No region, no such profile, an endpoint that is no URL, a CA bundle that can't be
                read, a proxy that would be needed.
        """
        async with AsyncExitStack() as stack:
            try:
                endpoint = await cls._found(stack, session or new_session(), service, operation, settings)
            except NoRegionError as exc:
                raise ConfigError(["AWS_REGION is not set"]) from exc
            except (BotoCoreError, ValueError) as exc:
                raise ConfigError([f"the client for {service} can't be made: {exc}"]) from exc
            yield endpoint

    @classmethod
    async def _found(
        cls,
        stack: AsyncExitStack,
        session: aioboto3.Session,
        service: str,
        operation: str,
        settings: Mapping[str, Any],
    ) -> Self:
        sessions: list[HttpSession] = []

        def http_session(**arguments: Any) -> HttpSession:
            sessions.append(HttpSession(**arguments))
            return sessions[-1]

        config = AioConfig(
            retries={"total_max_attempts": 1, "mode": "standard"}, http_session_cls=http_session, **settings
        )
        client = await stack.enter_async_context(session.client(service, config=config))
        pool = sessions[0].pool(client.meta.endpoint_url)
        credentials = await session._session.get_credentials()  # aioboto3 has no other way to them
        model = client.meta.service_model
        scheme = await client._request_signer._choose_signer(operation, "standard", _signing(client))
        signer = Signer(model.signing_name, client.meta.region_name) if scheme == "v4" else None
        return cls(client, credentials, pool, signer)

    async def begin(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        on_head: OnHead,
        may_send: MaySend = lambda: True,
    ) -> Exchange:
        """Sign and send a POST; the caller closes the exchange.

        Args:
            path: Below the endpoint's, percent-encoded.
            headers: What the service wants to be signed, names in lower case.

        Raises:
            UpstreamError, Withheld: See `ConnectionPool.begin`.
            BotoCoreError: There are no credentials, or they can't be refreshed.
        """
        path = self._path + path
        signed = {**headers, "host": self._host}
        if self._signer is not None:
            if self._credentials is None:
                raise NoCredentialsError
            keys = await self._credentials.get_frozen_credentials()
            added = self._signer.sign(path, signed, body, keys)
        else:
            added = await self._signed_by_botocore(path, signed, body)
        all_headers = {
            **signed,
            **added,
            "user-agent": self._user_agent,
            "accept-encoding": "identity",
            "content-length": str(len(body)),
        }
        return await self._pool.begin("POST", path, all_headers, body, on_head, may_send)

    async def _signed_by_botocore(self, path: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        request = AWSRequest("POST", self.url + path, dict(headers), body)
        request.context.update(_signing(self._client))
        await self._client._request_signer.sign("", request)
        return {name.lower(): value for name, value in request.headers.items() if name.lower() not in headers}


def _signing(client: Any) -> dict[str, Any]:
    """Return what botocore goes by when it chooses how to sign."""
    return {
        "client_config": client.meta.config,
        "auth_options": client.meta.service_model.metadata.get("auth"),
    }


class HttpSession:
    """What aiobotocore takes for its client's HTTP session.

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
        self._pools: list[ConnectionPool] = []

    def pool(self, endpoint_url: str) -> ConnectionPool:
        """Make the connections to an endpoint, and find out now what would fail at the first request.

        Raises:
            ConfigError: A proxy would be needed, or the CA bundle can't be read.
        """
        url = urlsplit(endpoint_url)
        if self._proxies.proxy_url_for(endpoint_url) and url.hostname not in _LOOPBACK:
            setting = f"{url.scheme.upper()}_PROXY"
            raise ConfigError(
                [f"{setting} is set, but calls to AWS go through no proxy: add {url.hostname} to NO_PROXY"]
            )
        pool = ConnectionPool(
            url.hostname or "",
            url.port or _DEFAULT_PORTS[url.scheme],
            tls=self._tls if url.scheme == "https" else None,
            limit=self._limit,
            silence_s=self._silence_s,
            connect_timeout_s=self._connect_timeout_s,
            idle_s=IDLE_S,
        )
        self._pools.append(pool)
        return pool

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            tls.load_verify_locations(get_cert_path(self._verify))
        except OSError as exc:
            raise ConfigError([f"the CA bundle {get_cert_path(self._verify)} can't be used: {exc}"]) from exc
        return tls


def _host(url: SplitResult) -> str:
    """Return the `Host` that botocore signs (botocore/auth.py, `_host_from_url`)."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    return host if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f"{host}:{url.port}"
