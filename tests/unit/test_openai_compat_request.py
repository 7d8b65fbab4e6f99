"""The request to an OpenAI-compatible server: Converse's shapes as the body of a chat completion."""

import base64
import json
from typing import Any

import pytest

from service.config import ModelOptions, UpstreamConfig
from service.errors import UpstreamRejected
from service.models import CALL_METADATA, ModelRequest
from service.models.openai_compat_request import chat_body
from tests.openai_compat import KEY, OK, REQUEST, serving
from tests.scripted_http import replies

PNG = base64.b64encode(bytes(range(256))).decode()


def body_of(request: ModelRequest, **config: Any) -> Any:
    return json.loads(chat_body(request, UpstreamConfig("vllm", "openai", **config)))


def messages_of(*messages: tuple[str, list[Any]]) -> Any:
    said = [{"role": role, "content": content} for role, content in messages]
    return body_of(ModelRequest("qwen", said, 100))["messages"]


def test_a_conversation_with_tools_is_translated_whole() -> None:
    request = ModelRequest(
        model_id="Qwen/Qwen3-8B",
        messages=[
            {"role": "user", "content": [{"text": "Grüße"}, {"text": "twice"}]},
            {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "hm"}}},
                    {"text": "Adding."},
                    {"toolUse": {"toolUseId": "t1", "name": "add", "input": {"a": 1.5, "b": "ü"}}},
                    {"toolUse": {"toolUseId": "t2", "name": "add", "input": {}}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"toolResult": {"toolUseId": "t1", "content": [{"json": {"sum": [1, None]}}]}},
                    {
                        "toolResult": {
                            "toolUseId": "t2",
                            "content": [{"text": "no a"}, {"text": "no b"}],
                            "status": "error",
                        }
                    },
                    {"text": "Go on."},
                ],
            },
        ],
        max_tokens=77,
        system="Be brief.",
        tools=[{"name": "add", "description": "Adds.", "inputSchema": {"json": {"type": "object"}}}],
        request_metadata={"team": "search"},
    )

    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    calls = [("t1", '{"a":1.5,"b":"ü"}'), ("t2", "{}")]
    assert body_of(request) == {
        "model": "Qwen/Qwen3-8B",
        "max_tokens": 77,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Grüße\n\ntwice"},
            {
                "role": "assistant",
                "content": "Adding.",
                "tool_calls": [
                    {"id": each, "type": "function", "function": {"name": "add", "arguments": arguments}}
                    for each, arguments in calls
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": '{"sum":[1,null]}'},
            {"role": "tool", "tool_call_id": "t2", "content": "The tool failed:\nno a\nno b"},
            {"role": "user", "content": "Go on."},
        ],
    }


def test_what_is_not_asked_for_is_not_sent() -> None:
    assert body_of(REQUEST, include_usage=False, max_tokens_name="max_completion_tokens") == {
        "model": "qwen",
        "messages": [{"role": "user", "content": REQUEST.messages[0]["content"][0]["text"]}],
        "max_completion_tokens": 100,
        "stream": True,
    }


def test_the_options_that_this_api_has_are_sent() -> None:
    options = ModelOptions(cache=True, temperature=0.0, top_p=0.5, stop_sequences=("END",))

    body = body_of(REQUEST._replace(options=options))

    assert body == body_of(REQUEST) | {"temperature": 0.0, "top_p": 0.5, "stop": ["END"]}


def test_a_tool_may_go_without_a_description() -> None:
    spec = {"name": "add", "inputSchema": {"json": {"type": "object"}}}

    (tool,) = body_of(REQUEST._replace(tools=[spec]))["tools"]

    assert tool["function"] == {"name": "add", "description": "", "parameters": {"type": "object"}}


def test_an_image_goes_as_a_data_url_beside_its_text() -> None:
    image = {"image": {"format": "png", "source": {"bytes": PNG}}}

    assert messages_of(("user", [{"text": "What is this?"}, image])) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ],
        }
    ]


def test_a_message_of_tool_calls_only_has_no_content() -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": "add", "input": {}}}

    assert messages_of(("assistant", [use]))[0]["content"] is None


def test_results_of_tools_alone_make_no_message_of_the_user() -> None:
    result = {"toolResult": {"toolUseId": "t1", "content": [], "status": "success"}}

    assert messages_of(("user", [result])) == [{"role": "tool", "tool_call_id": "t1", "content": ""}]


def test_a_message_of_reasoning_only_keeps_its_place() -> None:
    hm = {"reasoningContent": {"reasoningText": {"text": "hm"}}}

    assert messages_of(("assistant", [hm])) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("name", "sent"),
    [("get_weather-2", "get_weather-2"), ("get weather.ü", "get_weather__"), ("x" * 65, "x" * 64), ("", "_")],
)
def test_a_name_that_a_model_made_up_does_not_make_the_request_invalid(name: str, sent: str) -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": name, "input": {}}}

    assert messages_of(("assistant", [use]))[0]["tool_calls"][0]["function"]["name"] == sent


def test_what_a_fast_encoder_does_not_take_is_sent_all_the_same() -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": "add", "input": {"big": 2**70, "half": "\ud83d"}}}

    arguments = messages_of(("assistant", [use]))[0]["tool_calls"][0]["function"]["arguments"]

    assert json.loads(arguments) == {"big": 2**70, "half": "\ud83d"}


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"document": {"format": "pdf", "name": "a", "source": {"bytes": PNG}}}, "no documents"),
        ({"video": {}}, "text and images only"),
        ({"image": {"format": "png", "source": {"s3Location": {}}}}, "text and images only"),
        ({"toolResult": {"toolUseId": "t1", "content": [{"image": {}}]}}, "as the result of a tool"),
    ],
)
def test_a_block_that_has_no_place_is_refused(block: Any, sentence: str) -> None:
    with pytest.raises(UpstreamRejected, match=sentence) as caught:
        messages_of(("user", [{"text": "a"}, block]))

    assert not caught.value.billed


async def test_the_request_goes_to_chat_completions_with_key_and_call_and_without_anything_else() -> None:
    told = {"team": "search", CALL_METADATA: "inv_1:1:2"}
    async with serving(replies(OK), key=KEY) as (model, server):
        await model.converse(REQUEST._replace(request_metadata=told), lambda _: None)

    (got,) = server.requests
    assert (got.method, got.target) == ("POST", "/v1/chat/completions")
    assert got.headers == {
        "Host": f"127.0.0.1:{server.port}",
        "User-Agent": "headrace",
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": str(len(got.body)),
        "X-Request-Id": "inv_1:1:2",
        "Authorization": f"Bearer {KEY}",
    }
    assert json.loads(got.body) == body_of(REQUEST)


async def test_without_a_key_none_is_sent() -> None:
    async with serving(replies(OK)) as (model, server):
        await model.converse(REQUEST, lambda _: None)

    assert not {"Authorization", "X-Request-Id"} & server.requests[0].headers.keys()


@pytest.mark.parametrize(
    ("base", "target"),
    [("", "/chat/completions"), ("/", "/chat/completions"), ("/openai/v1/", "/openai/v1/chat/completions")],
)
async def test_the_address_may_have_any_path(base: str, target: str) -> None:
    async with serving(replies(OK), path=base) as (model, server):
        await model.converse(REQUEST, lambda _: None)

    assert server.requests[0].target == target
