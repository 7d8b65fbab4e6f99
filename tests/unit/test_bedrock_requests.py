"""The request to Bedrock: the one that botocore alone would send, signed as it arrives; sent if it may be."""

import asyncio
import base64
import json
from typing import Any
from urllib.parse import quote

import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from service.config import Guardrail, ModelName, ModelOptions, Reasoning
from service.errors import (
    UpstreamRejected,
)
from service.models import ModelRequest
from service.models.retries import Pacing
from tests.bedrock import OK, PROMPT, REQUEST, bedrock, in_turn, refusal
from tests.scripted_http import (
    Received,
    replies,
)


async def received(request: ModelRequest, monkeypatch: pytest.MonkeyPatch) -> Received:
    """Return what the upstream gets for a request."""
    async with bedrock(replies(OK), monkeypatch) as (model, server):
        await model.converse(request, lambda _: None)
    return server.requests[0]


FULL = ModelRequest(
    model_id="arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.some.model-v1:0",
    messages=[
        {"role": "user", "content": [{"text": "Grüße"}, {"text": "twice"}]},
        {
            "role": "assistant",
            "content": [{"toolUse": {"toolUseId": "t1", "name": "add", "input": {"a": 1.5}}}],
        },
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "t1", "content": [{"json": {"sum": [1, None]}}]}}],
        },
    ],
    max_tokens=77,
    system="Be brief.",
    tools=[{"name": "add", "description": "Adds.", "inputSchema": {"json": {"type": "object"}}}],
    request_metadata={"team": "search"},
)
FULL_FOR_BOTOCORE = {
    "modelId": FULL.model_id,
    "messages": FULL.messages,
    "inferenceConfig": {"maxTokens": 77},
    "system": [{"text": "Be brief."}],
    "toolConfig": {"tools": [{"toolSpec": FULL.tools[0]}]},
    "requestMetadata": {"team": "search"},
}


class Captured(Exception):
    """Takes a request out of botocore before it is sent."""

    def __init__(self, request: Any) -> None:
        self.request = request


def prepared_by_botocore(endpoint_url: str, parameters: Any) -> Any:
    def capture(request: Any, **_: Any) -> None:
        raise Captured(request)

    client = botocore.session.get_session().create_client(
        "bedrock-runtime", region_name="us-east-1", endpoint_url=endpoint_url
    )
    client.meta.events.register("before-send.bedrock-runtime.ConverseStream", capture)
    with pytest.raises(Captured) as caught:
        client.converse_stream(**parameters)
    return caught.value.request


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# They name the attempt, the client or the moment; the signature holds the moment's.
OF_THE_MOMENT = {"amz-sdk-invocation-id", "amz-sdk-request", "user-agent", "x-amz-date", "authorization"}


def lasting(headers: Any) -> dict[str, str]:
    return {name.lower(): text(value) for name, value in headers.items() if name.lower() not in OF_THE_MOMENT}


async def test_the_request_is_the_one_that_botocore_alone_would_send(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await received(FULL, monkeypatch)
    url = f"http://{got.headers['host']}"
    theirs = prepared_by_botocore(url, FULL_FOR_BOTOCORE)

    assert (got.method, url + got.target) == (theirs.method, theirs.url)
    assert json.loads(got.body) == json.loads(theirs.body)
    assert lasting(got.headers) == lasting(theirs.headers) | {
        "host": got.headers["host"],
        "accept-encoding": "identity",
        "content-length": str(len(got.body)),
    }
    signed = got.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    assert signed == text(theirs.headers["Authorization"]).partition("SignedHeaders=")[2].partition(",")[0]


async def test_the_signature_is_that_of_what_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await received(FULL, monkeypatch)
    scope, signed, signature = (
        part.partition("=")[2]
        for part in got.headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(", ")
    )
    access_key, _, region, service, _ = scope.split("/")
    arrived = {name.lower(): value for name, value in got.headers.items()}
    again = AWSRequest(
        method=got.method,
        url=f"http://{arrived['host']}{got.target}",
        headers={name: arrived[name] for name in signed.split(";")},
        data=got.body,
    )
    again.context["timestamp"] = arrived["x-amz-date"]
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    signer = SigV4Auth(Credentials(access_key, secret), service, region)

    expected = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)

    assert (signature, service) == (expected, "bedrock")


async def test_what_is_not_asked_for_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await received(REQUEST, monkeypatch)

    assert json.loads(got.body) == {
        "messages": [{"role": "user", "content": [{"text": PROMPT}]}],
        "inferenceConfig": {"maxTokens": 100},
    }


OPTIONS = ModelOptions(
    cache=True,
    guardrail=Guardrail("gr1", "3", "enabled", "async"),
    performance="optimized",
    reasoning=Reasoning(2048),
    stop_sequences=("END", "STOP"),
    additional_model_request_fields={"anthropic_beta": ["x"], "top_k": 5, "deep": {"a": [1.5, True]}},
)
CACHE_POINT = {"cachePoint": {"type": "default"}}


@pytest.mark.promise("options-sent-exactly")
async def test_every_option_is_sent_as_bedrock_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    request = FULL._replace(model_id="us.anthropic.claude-sonnet-4-5-20250929-v1:0", options=OPTIONS)

    got = json.loads((await received(request, monkeypatch)).body)

    assert got == {
        "messages": FULL.messages,
        "inferenceConfig": {"maxTokens": 77, "stopSequences": ["END", "STOP"]},
        "system": [{"text": "Be brief."}, CACHE_POINT],
        "toolConfig": {"tools": [{"toolSpec": FULL.tools[0]}, CACHE_POINT]},
        "requestMetadata": {"team": "search"},
        "guardrailConfig": {
            "guardrailIdentifier": "gr1",
            "guardrailVersion": "3",
            "trace": "enabled",
            "streamProcessingMode": "async",
        },
        "performanceConfig": {"latency": "optimized"},
        "additionalModelRequestFields": {
            "anthropic_beta": ["x"],
            "top_k": 5,
            "deep": {"a": [1.5, True]},
            "thinking": {"type": "enabled", "budget_tokens": 2048},
        },
    }


async def test_sampling_is_sent_even_where_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    request = REQUEST._replace(options=ModelOptions(temperature=0.0, top_p=0.0))

    got = json.loads((await received(request, monkeypatch)).body)

    assert got["inferenceConfig"] == {"maxTokens": 100, "temperature": 0.0, "topP": 0.0}


@pytest.mark.parametrize(
    ("model_id", "system", "tools"),
    [
        ("eu.anthropic.claude-haiku-4-5-20251001-v1:0", True, True),
        ("eu.amazon.nova-lite-v1:0", True, False),
        ("meta.llama3-1-8b-instruct-v1:0", False, False),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1", True, True),
    ],
)
async def test_cache_points_are_sent_where_the_model_takes_them(
    monkeypatch: pytest.MonkeyPatch, model_id: str, system: bool, tools: bool
) -> None:
    request = FULL._replace(model_id=model_id, options=ModelOptions(cache=True))

    got = json.loads((await received(request, monkeypatch)).body)

    assert got["system"] == [{"text": "Be brief."}] + [CACHE_POINT] * system
    assert got["toolConfig"]["tools"] == [{"toolSpec": FULL.tools[0]}] + [CACHE_POINT] * tools


async def test_a_cache_point_stands_only_behind_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = REQUEST._replace(model_id="anthropic.claude-v9", options=ModelOptions(cache=True))

    got = json.loads((await received(request, monkeypatch)).body)

    assert got.keys() == {"messages", "inferenceConfig"}


@pytest.mark.parametrize(
    "model_id",
    [
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "global.amazon.nova-2-lite-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3",
    ],
)
async def test_an_inference_profile_is_a_model_id(monkeypatch: pytest.MonkeyPatch, model_id: str) -> None:
    request = REQUEST._replace(model_id=ModelName.of(f"bedrock/{model_id}").model_id)

    got = await received(request, monkeypatch)

    assert got.target == f"/model/{quote(model_id, safe='')}/converse-stream"


async def test_bytes_go_as_they_stand_in_the_public_json(monkeypatch: pytest.MonkeyPatch) -> None:
    data = base64.b64encode(bytes(range(256))).decode()
    image = {"image": {"format": "png", "source": {"bytes": data}}}
    document = {"document": {"format": "pdf", "name": "a", "source": {"bytes": data}}}
    content = [
        image,
        document,
        {"toolResult": {"toolUseId": "t1", "content": [image, document, {"text": "x"}], "status": "success"}},
        {"reasoningContent": {"redactedContent": data}},
        {"reasoningContent": {"reasoningText": {"text": "x", "signature": "y"}}},
    ]

    got = await received(REQUEST._replace(messages=[{"role": "user", "content": content}]), monkeypatch)

    assert json.loads(got.body)["messages"] == [{"role": "user", "content": content}]


async def test_what_no_encoding_of_unicode_has_is_sent_as_the_model_wrote_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": "add", "input": {"half": "\ud83d", "many": 2**64}}}

    got = await received(REQUEST._replace(messages=[{"role": "assistant", "content": [use]}]), monkeypatch)

    assert json.loads(got.body)["messages"] == [{"role": "assistant", "content": [use]}]


async def test_a_shape_that_nobody_knows_is_for_the_upstream_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [{"role": "user", "content": [{"x": 1}]}]
    async with bedrock(in_turn(refusal(400, "ValidationException")), monkeypatch) as (model, server):
        with pytest.raises(UpstreamRejected) as caught:
            await model.converse(REQUEST._replace(messages=messages), lambda _: None)

    assert (caught.value.billed, json.loads(server.requests[0].body)["messages"]) == (False, messages)


async def test_a_bearer_token_of_the_environment_is_preferred_to_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "a-bedrock-api-key")

    got = await received(FULL, monkeypatch)
    theirs = prepared_by_botocore(f"http://{got.headers['host']}", FULL_FOR_BOTOCORE)

    assert got.headers["authorization"] == text(theirs.headers["Authorization"])
    assert "x-amz-date" not in got.headers


# When it is sent.


@pytest.mark.parametrize(
    ("model_id", "is_sent"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", False),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", False),
        ("openai.gpt-oss-120b-1:0", True),
    ],
)
async def test_reasoning_of_another_upstream_is_not_sent_to_a_claude(
    model_id: str, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = {"reasoningContent": {"reasoningText": {"text": "x", "signature": "y"}}}
    unsigned = {"reasoningContent": {"reasoningText": {"text": "x"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"text": "a"}]},
        {"role": "assistant", "content": [unsigned, signed, {"text": "b"}]},
        {"role": "user", "content": [{"text": "c"}]},
    ]
    got = await received(REQUEST._replace(model_id=model_id, messages=messages), monkeypatch)

    sent = json.loads(got.body)["messages"][1]["content"]
    assert sent == [*([unsigned] if is_sent else []), signed, {"text": "b"}]


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_before_a_retry_pauses_its_caller_knows_that_what_was_tried_has_cost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    async def before_try() -> None:
        happened.append("before")

    async def sleep(_: float) -> None:
        happened.append("pause")

    def may_send() -> bool:
        happened.append("send")
        return True

    pacing = Pacing(sleep=sleep, random=lambda: 0.5, now_s=lambda: 0.0)
    request = REQUEST._replace(before_try=before_try, may_send=may_send)
    async with bedrock(in_turn(refusal(429), OK), monkeypatch, pacing=pacing) as (model, _):
        await model.converse(request, lambda _: None)

    assert happened == ["before", "send", "before", "pause", "send"]


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_a_connection_that_takes_longer_than_the_lease_carries_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, waited = True, list[bool]()

    async def before_try() -> None:
        nonlocal held
        waited.append(held)
        held = True

    async with bedrock(in_turn(OK), monkeypatch) as (model, server):
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def slowly(*args: Any, **options: Any) -> Any:
            nonlocal held
            connected = await connect(*args, **options)
            held = len(waited) > 1  # the first one takes too long
            return connected

        monkeypatch.setattr(loop, "create_connection", slowly)
        request = REQUEST._replace(before_try=before_try, may_send=lambda: held)
        await model.converse(request, lambda _: None)

    assert (waited, len(server.requests)) == ([True, False], 1)
