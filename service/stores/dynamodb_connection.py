"""DynamoDB's wire: JSON 1.0 over our connections, with botocore's endpoint and keys and our signature.

`stores.dynamodb` opens it and hands its `Call` to `dynamodb_client`, which knows what may be made again. What
a call raises is what aiobotocore's client would: `ClientError` with the whole answer, botocore's errors of
connections. Values are DynamoDB's JSON, with bytes as bytes.

    {"Item": {"blob": {"B": b"..."}}} ── orjson, base64 ──> POST /, X-Amz-Target: DynamoDB_20120810.PutItem
                                      <── CRC-32 of the body, `__type` of a refusal ──

Sources: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.LowLevelAPI.html,
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
"""

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from zlib import crc32

import aioboto3
import orjson
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from service.errors import UpstreamError, UpstreamFailed, UpstreamTimeout
from service.models.aws_http import AwsEndpoint
from service.models.connection import Exchange, Sink
from service.stores.dynamodb_client import Call

CONNECTIONS: Final = 64
CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 2.0
# A batch's answer has at most 16 MB of items, a third more in base64:
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
ANSWER_LIMIT_BYTES: Final = 32 * 1024 * 1024

_HEADERS: Final = {"content-type": "application/x-amz-json-1.0"}
_TARGET: Final = "DynamoDB_20120810."


@asynccontextmanager
async def connected(session: aioboto3.Session | None = None) -> AsyncIterator[Call]:
    """Find region, endpoint and credentials, and yield the function that makes calls; at the end, close.

    Raises:
        ConfigError: There is no region, or an endpoint, a profile or a CA bundle that can't be used.
    """
    opened = AwsEndpoint.open(
        "dynamodb",
        "GetItem",
        session=session,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
    )
    async with opened as endpoint:
        yield partial(_call, endpoint)


async def _call(endpoint: AwsEndpoint, operation: str, parameters: Mapping[str, Any]) -> Any:
    """Make one call, once.

    Raises:
        ClientError: DynamoDB refuses.
        BotoCoreError: There are no credentials; no connection, or it was cut; no answer in time.
    """
    answer = _Answer()
    headers = {**_HEADERS, "x-amz-target": _TARGET + operation}
    body = orjson.dumps(parameters, default=_base64)
    try:
        exchange = await endpoint.begin("/", headers, body, answer.on_head)
        try:
            await exchange.finish()
        finally:
            exchange.close()
    except UpstreamError as error:
        raise _foreign(error, endpoint.url) from error
    return _read(exchange, bytes(answer.body), operation, endpoint.url)


class _Answer:
    """Collects the body of an answer."""

    def __init__(self) -> None:
        self.body = bytearray()

    def on_head(self, status: int, headers: Mapping[str, str]) -> Sink:
        return self._take

    def _take(self, read: bytes) -> None:
        self.body += read
        if len(self.body) > ANSWER_LIMIT_BYTES:
            raise UpstreamFailed("DynamoDB's answer is larger than any.")


def _read(exchange: Exchange, body: bytes, operation: str, url: str) -> Any:
    status = exchange.status
    checksum = exchange.headers.get("x-amz-crc32", "")
    if checksum and checksum != str(crc32(body)):
        raise ConnectionClosedError(endpoint_url=url)  # what has arrived is not what was sent
    try:
        answer = _with_bytes(orjson.loads(body)) if body else {}
    except ValueError as error:  # a proxy's or a balancer's page, or base64 that is none
        if status < 300:
            raise ConnectionClosedError(endpoint_url=url) from error
        answer = {}
    if status < 300:
        return answer
    details: dict[str, Any] = answer if isinstance(answer, dict) else {}
    code = str(details.pop("__type", status)).rpartition("#")[2]
    message = details.pop("message", "") or details.pop("Message", "")
    refusal: Any = {
        **details,
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    raise ClientError(refusal, operation)


def _foreign(error: UpstreamError, url: str) -> BotoCoreError:
    """Return what aiobotocore would have raised."""
    if isinstance(error, UpstreamTimeout):
        return ReadTimeoutError(endpoint_url=url)
    if isinstance(error, UpstreamFailed):
        return ConnectionClosedError(endpoint_url=url)
    return EndpointConnectionError(endpoint_url=url, error=error)


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError


def _with_bytes(value: Any) -> Any:
    """Decode the binary values of an answer, in place."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "B" and isinstance(each, str):
                value[name] = b64decode(each, validate=True)
            elif isinstance(each, dict | list):
                _with_bytes(each)
    elif isinstance(value, list):
        for each in value:
            _with_bytes(each)
    return value
