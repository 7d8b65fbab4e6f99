"""A `ModelRequest`, in Converse's shapes, as the JSON body of a chat completion; pure.

`models.openai_compat` calls it once for each try.

    system                              {"role":"system"}
    text, image                         {"role":"user"|"assistant"}, images as data: URLs
    toolUse                             "tool_calls" of the assistant's message
    toolResult                          {"role":"tool"}, one each, before the rest of the user's message
    reasoningContent                    left out: it is no input of this API
    requestMetadata                     not sent: OpenAI takes `metadata` only for what it may store
    cache points                        not sent: these servers cache by themselves

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from service.config import UpstreamConfig
from service.errors import UpstreamRejected
from service.models import ModelRequest

# https://platform.openai.com/docs/api-reference/chat/create (tools.function.name): the names that a model
# made up stand in its history too, and must not make a request invalid for good.
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_-]", re.ASCII)
MAX_NAME: Final = 64


def chat_body(request: ModelRequest, config: UpstreamConfig) -> bytes:
    """Translate a request.

    Raises:
        UpstreamRejected: It holds a block that this API has no place for, such as a document.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    for message in request.messages:
        messages += _messages(message["role"], message["content"])
    body: dict[str, Any] = {
        "model": request.model_id,
        "messages": messages,
        config.max_tokens_name: request.max_tokens,
        "stream": True,
    }
    options = request.options  # the others are Bedrock's, and no runtime on this upstream has them
    said = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "stop": list(options.stop_sequences) or None,
    }
    body |= {name: value for name, value in said.items() if value is not None}
    if config.include_usage:
        body["stream_options"] = {"include_usage": True}
    if request.tools:
        body["tools"] = [_tool(spec) for spec in request.tools]
    return _dumps(body)


def _messages(role: str, content: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages that one Converse message becomes."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        match block:
            case {"text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"image": {"format": str(kind), "source": {"bytes": str(base64)}}}:
                parts.append(
                    {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64}"}}
                )
            case {"toolUse": use}:
                calls.append(_tool_call(use))
            case {"toolResult": result}:
                results.append(_tool_message(result))
            case {"reasoningContent": _}:
                pass
            case {"document": _}:
                raise UpstreamRejected(
                    "This model takes text and images, and no documents: send the document's text."
                )
            case _:
                raise UpstreamRejected("This model takes text and images only.")
    if not parts and not calls:
        return results or [{"role": role, "content": ""}]
    message: dict[str, Any] = {"role": role, "content": _content(parts)}
    if calls:
        message["tool_calls"] = calls
    return [*results, message]


def _content(parts: Sequence[Mapping[str, Any]]) -> str | Sequence[Mapping[str, Any]] | None:
    """Return plain text where there are no images: the chat templates of many models know nothing else."""
    if not parts:
        return None
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n\n".join(part["text"] for part in parts)


def _tool_call(use: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": _name(use["name"]), "arguments": _dumps(use["input"]).decode()}
    return {"id": use["toolUseId"], "type": "function", "function": function}


def _tool_message(result: Mapping[str, Any]) -> dict[str, Any]:
    texts = []
    for block in result["content"]:
        match block:
            case {"text": str(text)}:
                texts.append(text)
            case {"json": value}:
                texts.append(_dumps(value).decode())
            case _:
                raise UpstreamRejected(
                    "This model takes text and JSON as the result of a tool, nothing else."
                )
    if result.get("status") == "error":  # the API has no place for it
        texts.insert(0, "The tool failed:")
    return {"role": "tool", "tool_call_id": result["toolUseId"], "content": "\n".join(texts)}


def _tool(spec: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": spec["name"],
        "description": spec.get("description", ""),
        "parameters": spec["inputSchema"]["json"],
    }
    return {"type": "function", "function": function}


def _name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:MAX_NAME] or "_"


def _dumps(value: Any) -> bytes:
    """Encode what may hold integers beyond 64 bits, halves of surrogate pairs or deep nesting."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
