"""What the Bedrock endpoint accepts as a Converse request, and the words with which it refuses one.

`bedrock` parses every request with `parse`; `model` reads the result. Pure. It checks what a wrong client
gets wrong (shape, order of roles, tools and their results, ranges of the inference parameters), not all of
Converse: an unknown member is ignored, as Bedrock does. Messages of the errors follow Bedrock's where they
are publicly known.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html,
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlock.html,
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InferenceConfiguration.html
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

BLOCKS: Final = frozenset(
    {
        "audio",
        "cachePoint",
        "citationsContent",
        "document",
        "guardContent",
        "image",
        "reasoningContent",
        "searchResult",
        "text",
        "toolResult",
        "toolUse",
        "video",
    }
)
MAX_REQUEST_METADATA: Final = 16
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
# The SigV4 header of https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html. Its form is
# checked, not the signature itself: signing is botocore's.
_SIGNED: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/\s]+/\d{8}/[a-z0-9-]+/bedrock/aws4_request, ?"
    r"SignedHeaders=[a-z0-9;-]+, ?Signature=[0-9a-f]{64}",
    re.ASCII,
)


class Invalid(Exception):
    """The request is not a Converse request; the text is for the caller, as Bedrock's ValidationException."""


@dataclass(frozen=True, slots=True)
class ConverseRequest:
    """One request; `body` is all of it, the rest what a model needs. `messages` are (role, content
    blocks)."""

    model_id: str
    body: Mapping[str, Any]
    messages: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...]
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: tuple[str, ...] = ()
    request_metadata: Mapping[str, str] = field(default_factory=dict)


def signature_fault(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the error and message with which AWS refuses a request that is not signed, or None."""
    authorization = headers.get("authorization")
    if authorization is None:
        return "MissingAuthenticationTokenException", "Missing Authentication Token"
    if _SIGNED.fullmatch(authorization) is None:
        return (
            "IncompleteSignatureException",
            "The Authorization header is not a SigV4 signature for bedrock.",
        )
    if re.fullmatch(r"\d{8}T\d{6}Z", headers.get("x-amz-date", "")) is None:
        return (
            "IncompleteSignatureException",
            "Authorization header requires existence of an 'X-Amz-Date' header.",
        )
    return None


def parse(model_id: str, raw: bytes) -> ConverseRequest:
    """Read and check one request.

    Raises:
        Invalid: Bedrock would answer with a ValidationException.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise Invalid("The request body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise Invalid("The request body must be a JSON object.")
    messages = _messages(body.get("messages"))
    _check_tools(body, messages)
    inference = _member(body, "inferenceConfig", dict) or {}
    return ConverseRequest(
        model_id=model_id,
        body=body,
        messages=messages,
        system=_system(_member(body, "system", list) or []),
        max_tokens=_max_tokens(inference),
        temperature=_fraction(inference, "temperature"),
        top_p=_fraction(inference, "topP"),
        stop_sequences=_stop_sequences(inference),
        request_metadata=_request_metadata(_member(body, "requestMetadata", dict) or {}),
    )


def _messages(messages: object) -> tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...]:
    if not isinstance(messages, list) or not messages:
        raise Invalid("The messages field is required and must hold at least one message.")
    parsed = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise Invalid(f"The role of messages.{index} must be user or assistant.")
        if role != ("user", "assistant")[index % 2]:
            raise Invalid(
                "A conversation must start with a user message. Try again with a conversation that starts "
                "with a user message."
                if index == 0
                else "A conversation must alternate between user and assistant roles. Make sure the "
                "conversation alternates between user and assistant roles and try again."
            )
        content = message.get("content")
        if not isinstance(content, list) or not content:
            raise Invalid(f"The content field in the Message object at messages.{index} is empty.")
        parsed.append(
            (role, tuple(_block(block, f"messages.{index}.content.{n}") for n, block in enumerate(content)))
        )
    return tuple(parsed)


def _block(block: object, where: str) -> Mapping[str, Any]:
    if not isinstance(block, dict) or len(block) != 1 or not block.keys() <= BLOCKS:
        raise Invalid(
            f"The ContentBlock object at {where} must set one of the following keys: "
            f"{', '.join(sorted(BLOCKS))}."
        )
    if "text" in block:
        if not isinstance(block["text"], str):
            raise Invalid(f"The text field in the ContentBlock object at {where} must be a string.")
        if not block["text"].strip():
            raise Invalid(
                f"The text field in the ContentBlock object at {where} is blank. Add text to the text field, "
                "and try again."
            )
    return block


def _check_tools(
    body: Mapping[str, Any], messages: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
) -> None:
    config = _member(body, "toolConfig", dict)
    if config is not None:
        tools = _member(config, "tools", list)
        if not tools:
            raise Invalid("The tools field of toolConfig must hold at least one tool.")
        for tool in tools:
            _check_tool(tool)
    asked: list[str] = []
    for index, (_, content) in enumerate(messages):
        results = [block["toolResult"].get("toolUseId") for block in content if "toolResult" in block]
        if sorted(asked) != sorted(results):
            raise Invalid(
                f"Expected toolResult blocks at messages.{index}.content for the following Ids: "
                f"{', '.join(asked)}, but found: {', '.join(map(str, results))}"
            )
        asked = [block["toolUse"].get("toolUseId") for block in content if "toolUse" in block]
        if config is None and (asked or results):
            raise Invalid(
                "The toolConfig field must be defined when using toolUse and toolResult content blocks."
            )


def _check_tool(tool: object) -> None:
    spec = tool.get("toolSpec", {}) if isinstance(tool, dict) else None
    if spec == {} and isinstance(tool, dict) and ("cachePoint" in tool or "systemTool" in tool):
        return
    if not isinstance(spec, dict) or _NAME.fullmatch(str(spec.get("name"))) is None:
        raise Invalid(
            "The name of a toolSpec must match the pattern [a-zA-Z0-9_-]+ and have at most 64 characters."
        )
    schema = spec.get("inputSchema")
    if not isinstance(schema, dict) or not isinstance(schema.get("json"), dict):
        raise Invalid(f"The inputSchema of the tool {spec['name']} must hold a JSON schema under json.")


def _system(system: Sequence[object]) -> str:
    texts = []
    for index, block in enumerate(system):
        if not isinstance(block, dict) or len(block) != 1:
            raise Invalid(f"The SystemContentBlock object at system.{index} must set one key.")
        text = block.get("text", "")
        if not isinstance(text, str) or ("text" in block and not text.strip()):
            raise Invalid(f"The text field in the SystemContentBlock object at system.{index} is blank.")
        texts.append(text)
    return "\n\n".join(text for text in texts if text)


def _max_tokens(inference: Mapping[str, Any]) -> int | None:
    value = inference.get("maxTokens")
    if value is not None and (type(value) is not int or value < 1):
        raise Invalid("The value of inferenceConfig.maxTokens must be an integer of at least 1.")
    return value


def _fraction(inference: Mapping[str, Any], name: str) -> float | None:
    value = inference.get(name)
    if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
        raise Invalid(f"The value of inferenceConfig.{name} must be from 0 to 1.")
    return value


def _stop_sequences(inference: Mapping[str, Any]) -> tuple[str, ...]:
    value = inference.get("stopSequences") or []
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise Invalid("The value of inferenceConfig.stopSequences must be a list of texts.")
    return tuple(value)


def _request_metadata(given: Mapping[str, object]) -> Mapping[str, str]:
    if len(given) > MAX_REQUEST_METADATA:
        raise Invalid(f"The requestMetadata field must have at most {MAX_REQUEST_METADATA} members.")
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    if len(texts) < len(given):
        raise Invalid("The values of the requestMetadata field must be strings.")
    return texts


def _member(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise Invalid(f"The {name} field has the wrong type.")
    return value
