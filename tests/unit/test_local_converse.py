"""What the local endpoint accepts and refuses as a Converse request."""

import json
from typing import Any

import pytest

from local.converse import ConverseRequest, Invalid, parse, signature_fault

ASK: dict[str, Any] = {"role": "user", "content": [{"text": "Hi"}]}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": [{"toolUse": {"toolUseId": "t1", "name": "search", "input": {}}}],
}
RESULT: dict[str, Any] = {
    "role": "user",
    "content": [{"toolResult": {"toolUseId": "t1", "content": [{"text": "x"}]}}],
}
TOOLS = {"tools": [{"toolSpec": {"name": "search", "inputSchema": {"json": {"type": "object"}}}}]}


def test_a_request_is_read_whole() -> None:
    body: dict[str, Any] = {
        "messages": [ASK, CALL, RESULT],
        "system": [{"text": "Be terse."}, {"cachePoint": {"type": "default"}}, {"text": "Be kind."}],
        "inferenceConfig": {"maxTokens": 9, "temperature": 0, "topP": 0.5, "stopSequences": ["###"]},
        "toolConfig": TOOLS,
        "requestMetadata": {"team": "search"},
    }

    assert parse("m", json.dumps(body).encode()) == ConverseRequest(
        model_id="m",
        body=body,
        messages=(
            ("user", ({"text": "Hi"},)),
            ("assistant", tuple(CALL["content"])),
            ("user", tuple(RESULT["content"])),
        ),
        system="Be terse.\n\nBe kind.",
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        stop_sequences=("###",),
        request_metadata={"team": "search"},
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "The request body must be a JSON object."),
        ({}, "The messages field is required"),
        ({"messages": []}, "The messages field is required"),
        ({"messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "A conversation must start with"),
        ({"messages": [ASK, ASK]}, "A conversation must alternate"),
        ({"messages": [{"role": "system", "content": []}]}, "The role of messages.0"),
        ({"messages": [{"role": "user", "content": []}]}, "The content field in the Message object"),
        (
            {"messages": [{"role": "user", "content": [{"text": "x", "image": {}}]}]},
            "The ContentBlock object",
        ),
        ({"messages": [{"role": "user", "content": [{"song": {}}]}]}, "The ContentBlock object"),
        ({"messages": [{"role": "user", "content": [{"text": 1}]}]}, "The text field in the ContentBlock"),
        (
            {"messages": [{"role": "user", "content": [{"text": " \n"}]}]},
            "The text field in the ContentBlock object at messages.0.content.0 is blank.",
        ),
        ({"messages": [ASK, CALL, ASK], "toolConfig": TOOLS}, "Expected toolResult blocks at messages.2"),
        ({"messages": [RESULT], "toolConfig": TOOLS}, "Expected toolResult blocks at messages.0"),
        ({"messages": [ASK, CALL, RESULT]}, "The toolConfig field must be defined"),
        ({"messages": [ASK], "toolConfig": {"tools": []}}, "The tools field of toolConfig"),
        (
            {"messages": [ASK], "toolConfig": {"tools": [{"toolSpec": {"name": "a b"}}]}},
            "The name of a toolSpec",
        ),
        ({"messages": [ASK], "toolConfig": {"tools": [{"toolSpec": {"name": "a"}}]}}, "The inputSchema of"),
        ({"messages": [ASK], "requestMetadata": {"team": 1}}, "The values of the requestMetadata field"),
        (
            {"messages": [ASK], "requestMetadata": {str(number): "x" for number in range(17)}},
            "The requestMetadata field must have at most 16 members.",
        ),
        ({"messages": [ASK], "system": "terse"}, "The system field has the wrong type."),
        ({"messages": [ASK], "system": [{"text": ""}]}, "The text field in the SystemContentBlock"),
        ({"messages": [ASK], "inferenceConfig": {"maxTokens": 0}}, "The value of inferenceConfig.maxTokens"),
        (
            {"messages": [ASK], "inferenceConfig": {"maxTokens": True}},
            "The value of inferenceConfig.maxTokens",
        ),
        ({"messages": [ASK], "inferenceConfig": {"topP": 2}}, "The value of inferenceConfig.topP"),
        (
            {"messages": [ASK], "inferenceConfig": {"stopSequences": [""]}},
            "The value of inferenceConfig.stop",
        ),
    ],
)
def test_a_wrong_request_is_refused_by_name(body: object, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse("m", json.dumps(body).encode())

    assert str(caught.value).startswith(message)


def test_a_body_that_is_not_json_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        parse("m", b"{")

    assert str(caught.value) == "The request body is not valid JSON."


SIGNED = (
    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261121/us-east-1/bedrock/aws4_request, "
    f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"authorization": SIGNED, "x-amz-date": "20261121T164000Z"}, None),
        ({"x-amz-date": "20261121T164000Z"}, "MissingAuthenticationTokenException"),
        ({"authorization": SIGNED}, "IncompleteSignatureException"),
        ({"authorization": SIGNED[:-1], "x-amz-date": "20261121T164000Z"}, "IncompleteSignatureException"),
        (
            {"authorization": SIGNED.replace("/bedrock/", "/s3/"), "x-amz-date": "20261121T164000Z"},
            "IncompleteSignatureException",
        ),
    ],
)
def test_a_request_must_look_signed(headers: dict[str, str], error: str | None) -> None:
    fault = signature_fault(headers)

    assert (fault and fault[0]) == error
