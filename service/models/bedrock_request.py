"""What a model call says to Bedrock: a `ModelRequest` as the parameters of botocore's `converse_stream`.

`models.bedrock` calls it. Pure. What a runtime does not ask for is not sent.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html (cache points),
https://docs.aws.amazon.com/bedrock/latest/userguide/guardrails-streaming.html (`sync` keeps back what is not
checked yet, `async` does not and masks nothing),
https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html (`thinking`)
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.config import SYSTEM, TOOLS, Guardrail, ModelOptions, cache_points
from service.config_options import family_of
from service.errors import UpstreamRejected
from service.models import ModelRequest

_CACHE_POINT: Final = {"cachePoint": {"type": "default"}}


def parameters_of(request: ModelRequest) -> dict[str, Any]:
    """Return the parameters of a call.

    Raises:
        UpstreamRejected: Bytes that are not base64.
    """
    options = request.options
    cached = cache_points(request.model_id) if options.cache else frozenset[str]()
    parameters: dict[str, Any] = {
        "modelId": request.model_id,
        "messages": [
            {**message, "content": [_with_bytes(block) for block in _content(message, request.model_id)]}
            for message in request.messages
        ],
        "inferenceConfig": {"maxTokens": request.max_tokens, **_sampling(options)},
    }
    if request.system:
        parameters["system"] = [{"text": request.system}, *([_CACHE_POINT] if SYSTEM in cached else [])]
    if request.tools:
        tools = [{"toolSpec": tool} for tool in request.tools]
        parameters["toolConfig"] = {"tools": [*tools, *([_CACHE_POINT] if TOOLS in cached else [])]}
    if request.request_metadata:
        parameters["requestMetadata"] = dict(request.request_metadata)
    if options.guardrail is not None:
        parameters["guardrailConfig"] = _guardrail(options.guardrail)
    if options.performance is not None:
        parameters["performanceConfig"] = {"latency": options.performance}
    more = dict(options.additional_model_request_fields)
    if options.reasoning is not None:
        more["thinking"] = {"type": "enabled", "budget_tokens": options.reasoning.budget_tokens}
    if more:
        parameters["additionalModelRequestFields"] = more
    return parameters


def _content(message: Mapping[str, Any], model_id: str) -> Sequence[Mapping[str, Any]]:
    """Leave out reasoning that no Claude has signed, where a Claude would refuse all of the request for it.

    Another upstream wrote it, in an earlier turn of the same route.
    """
    content: Sequence[Mapping[str, Any]] = message["content"]
    if family_of(model_id) not in ("anthropic.claude", ""):
        return content
    return [block for block in content if not _is_unsigned(block)] or content


def _is_unsigned(block: Mapping[str, Any]) -> bool:
    match block:
        case {"reasoningContent": {"reasoningText": {"signature": _}}}:
            return False
        case {"reasoningContent": {"reasoningText": _}}:
            return True
        case _:
            return False


def _sampling(options: ModelOptions) -> dict[str, Any]:
    asked = {
        "temperature": options.temperature,
        "topP": options.top_p,
        "stopSequences": list(options.stop_sequences) or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _guardrail(guardrail: Guardrail) -> dict[str, str]:
    return {
        "guardrailIdentifier": guardrail.id,
        "guardrailVersion": guardrail.version,
        "trace": guardrail.trace,
        "streamProcessingMode": guardrail.stream_mode,
    }


def _with_bytes(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn base64 text, as in JSON, into the bytes that botocore wants and encodes again."""
    match block:
        case {"image": {"source": {"bytes": str(text)}}}:
            return {**block, "image": {**block["image"], "source": {"bytes": _bytes(text)}}}
        case {"document": {"source": {"bytes": str(text)}}}:
            return {**block, "document": {**block["document"], "source": {"bytes": _bytes(text)}}}
        case {"reasoningContent": {"redactedContent": str(text)}}:
            return {**block, "reasoningContent": {"redactedContent": _bytes(text)}}
        case {"toolResult": {"content": [*blocks]}}:
            result = {**block["toolResult"], "content": [_with_bytes(inner) for inner in blocks]}
            return {**block, "toolResult": result}
        case _:
            return block


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as exc:
        raise UpstreamRejected("The bytes of an image or document are not base64.") from exc
