"""The API key of an OpenAI-compatible server: none, one from the environment, or one of Secrets Manager's.

`models.openai_compat` sends `ApiKey.value` with each call, and asks for another when a server refuses it.

A secret holds the key as plain text, or as the member `api_key` of a JSON object. It is read at start, every
five minutes, and at a refusal, then at most once in ten seconds; while it can't be read, the last key is
used. A key is neither logged nor part of an error.

Source: https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import aioboto3
import orjson
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from service.config import ConfigError, UpstreamConfig
from service.config_upstreams import key_fault

logger = logging.getLogger(__name__)

REFRESH_S: Final = 300.0
AT_ONCE_S: Final = 10.0
TIMEOUT_S: Final = 5.0

Fetch = Callable[[], Awaitable[str]]


class SecretUnreadable(Exception):
    """The secret gave no key; the text is a code."""


class ApiKey:
    """A key that may change; an empty `value` means that none is sent."""

    def __init__(self, value: str, fetch: Fetch | None = None) -> None:
        self.value = value
        self._fetch = fetch
        self._fetching = asyncio.Lock()
        self._fetched_at_s = asyncio.get_running_loop().time()

    async def replaced(self, refused: str) -> bool:
        """Tell whether there is another key than the one that was refused, looking for it if need be."""
        async with self._fetching:
            age_s = asyncio.get_running_loop().time() - self._fetched_at_s
            if self.value == refused and age_s >= AT_ONCE_S:
                await self._renew()
        return self.value != refused

    async def renew_forever(self) -> None:
        """Read the secret again, every now and then."""
        while True:
            await asyncio.sleep(REFRESH_S)
            async with self._fetching:
                await self._renew()

    async def _renew(self) -> None:
        if self._fetch is None:
            return
        try:
            self.value = await self._fetch()
        except SecretUnreadable as error:
            logger.warning("api key not refreshed", extra={"upstream_code": str(error)})
        self._fetched_at_s = asyncio.get_running_loop().time()  # those that waited do not ask again


@asynccontextmanager
async def opened_key(config: UpstreamConfig, from_environment: str) -> AsyncIterator[ApiKey]:
    """Give the key of an upstream, kept fresh until the end.

    Raises:
        ConfigError: The secret can't be read.
    """
    if not config.api_key_secret:
        yield ApiKey(from_environment)
        return
    where = f"upstreams.{config.name}.api_key_secret"
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(_client(config.api_key_secret))

            async def fetch() -> str:
                return await _read(client, config.api_key_secret)

            key = ApiKey(await fetch(), fetch)
        except (BotoCoreError, ValueError) as error:
            raise ConfigError([f"{where}: {error}"]) from error
        except SecretUnreadable as error:
            raise ConfigError([f"{where} can't be read: {error}"]) from error
        refreshing = asyncio.create_task(key.renew_forever())
        try:
            yield key
        finally:
            refreshing.cancel()
            await asyncio.wait([refreshing])


def _client(arn: str) -> Any:
    config = AioConfig(
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        retries={"total_max_attempts": 3, "mode": "standard"},
    )
    region = arn.split(":")[3]
    return aioboto3.Session().client("secretsmanager", region_name=region, config=config)


async def _read(client: Any, arn: str) -> str:
    try:
        text = str((await client.get_secret_value(SecretId=arn)).get("SecretString", ""))
    except ClientError as error:
        raise SecretUnreadable(str(error.response.get("Error", {}).get("Code", ""))) from error
    except BotoCoreError as error:
        raise SecretUnreadable(type(error).__name__) from error
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = text
    key = document.get("api_key", "") if isinstance(document, dict) else text
    key = key.strip() if isinstance(key, str) else ""
    if fault := key_fault(key):
        raise SecretUnreadable(f"it {fault}")
    return key
