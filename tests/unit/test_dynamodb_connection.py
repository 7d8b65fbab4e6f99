"""DynamoDB's wire: what is sent, and what becomes of every kind of answer."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import botocore.session
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
)

from service.config import ConfigError
from service.stores.dynamodb_client import Call
from service.stores.dynamodb_connection import connected
from tests.bedrock import in_turn
from tests.scripted_http import ScriptedServer, scripted, sized

PUT: dict[str, Any] = {
    "TableName": "t",
    "Item": {"pk": {"S": "Gr\u00fc\u00dfe"}, "n": {"N": "7"}, "blob": {"B": bytes(range(256))}},
    "ConditionExpression": "attribute_not_exists(pk)",
}


def answered(status: int, document: Any, **headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return sized(status, body, **{"x_amz_crc32": str(crc32(body))} | headers)


@asynccontextmanager
async def dynamodb(
    responses: Sequence[bytes], monkeypatch: pytest.MonkeyPatch, *, hang_up: bool = False
) -> AsyncIterator[tuple[Call, ScriptedServer]]:
    async with scripted(in_turn(*responses, hang_up=hang_up)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", server.url)
        async with connected() as call:
            yield call, server


class Captured(Exception):
    """Takes a request out of botocore before it is sent."""

    def __init__(self, request: Any) -> None:
        self.request = request


def prepared_by_botocore(endpoint_url: str) -> Any:
    def capture(request: Any, **_: Any) -> None:
        raise Captured(request)

    client = botocore.session.get_session().create_client(
        "dynamodb", region_name="us-east-1", endpoint_url=endpoint_url
    )
    client.meta.events.register("before-send.dynamodb.PutItem", capture)
    with pytest.raises(Captured) as caught:
        client.put_item(**PUT)
    return caught.value.request


async def test_a_call_is_the_one_that_botocore_would_make(monkeypatch: pytest.MonkeyPatch) -> None:
    async with dynamodb([answered(200, {})], monkeypatch) as (call, server):
        assert await call("PutItem", PUT) == {}
        (got,) = server.requests
        theirs = prepared_by_botocore(server.url)

    assert (got.method, server.url + got.target) == (theirs.method, theirs.url)
    assert json.loads(got.body) == json.loads(theirs.body)
    theirs_headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else value
        for name, value in theirs.headers.items()
    }
    for name in ("content-type", "x-amz-target"):
        assert got.headers[name] == theirs_headers[name]
    signed = [
        text.partition(", Signature")[0].partition("/us-east-1/")[2]
        for text in (got.headers["authorization"], theirs_headers["authorization"])
    ]
    assert signed[0] == signed[1]


async def test_bytes_come_back_as_bytes_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"B": b64encode(b"\x00\xff").decode()}
    item = {"blob": data, "B": {"S": "no bytes"}, "list": {"L": [data, {"M": {"B": data}}]}}
    decoded = {"B": b"\x00\xff"}
    async with dynamodb([answered(200, {"Items": [item], "Count": 1})], monkeypatch) as (call, _):
        answer = await call("Query", {"TableName": "t"})

    assert answer == {
        "Items": [{"blob": decoded, "B": {"S": "no bytes"}, "list": {"L": [decoded, {"M": {"B": decoded}}]}}],
        "Count": 1,
    }


async def test_a_refusal_has_its_code_and_all_that_came_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [{"Code": "None"}, {"Code": "ConditionalCheckFailed", "Item": {"b": {"B": "AP8="}}}]
    refused = {
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "why",
        "CancellationReasons": reasons,
    }
    async with dynamodb([answered(400, refused)], monkeypatch) as (call, _):
        with pytest.raises(ClientError) as caught:
            await call("TransactWriteItems", {})

    assert caught.value.response == {
        "Error": {"Code": "TransactionCanceledException", "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
        "CancellationReasons": [
            {"Code": "None"},
            {"Code": "ConditionalCheckFailed", "Item": {"b": {"B": b"\x00\xff"}}},
        ],
    }


@pytest.mark.parametrize("page", [b"<html>", b"[]", b""])
async def test_a_refusal_that_is_not_dynamodbs_goes_by_its_status(
    page: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dynamodb([sized(503, page)], monkeypatch) as (call, _):
        with pytest.raises(ClientError) as caught:
            await call("GetItem", {})

    assert caught.value.response["Error"]["Code"] == "503"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


@pytest.mark.parametrize(
    "response",
    [
        answered(200, {"Item": {}}, x_amz_crc32="1"),
        sized(200, b"<html>"),
        sized(200, b'{"Item":{"blob":{"B":"no base64"}}}'),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    ],
    ids=["checksum", "no JSON", "no base64", "cut"],
)
async def test_an_answer_that_is_damaged_is_no_answer(
    response: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dynamodb([response], monkeypatch, hang_up=True) as (call, _):
        with pytest.raises(ConnectionClosedError):
            await call("GetItem", {})


async def test_no_connection_and_no_credentials_are_botocores_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with dynamodb([], monkeypatch) as (_, server):
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", server.url)
    async with connected() as call:
        with pytest.raises(EndpointConnectionError):
            await call("GetItem", {})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with connected() as call:
        with pytest.raises(NoCredentialsError):
            await call("GetItem", {})


async def test_a_proxy_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")

    with pytest.raises(ConfigError, match="HTTPS_PROXY is set, but calls to AWS go through no proxy"):
        async with connected():
            pass
