"""What a model call says to Bedrock: a `ModelRequest` as the path and the JSON body of ConverseStream.

`models.bedrock` calls it. Pure. What a runtime does not ask for is not sent; bytes are base64, as they came.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html (cache points),
https://docs.aws.amazon.com/bedrock/latest/userguide/guardrails-streaming.html (`sync` keeps back what is not
checked yet, `async` does not and masks nothing),
https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html (`thinking`)
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import orjson

from service.config import SYSTEM, TOOLS, Guardrail, ModelOptions, cache_points
from service.config_options import family_of
from service.models import ModelRequest

_CACHE_POINT: Final = {"cachePoint": {"type": "default"}}


@lru_cache(maxsize=1024)  # one a model
def path_of(model_id: str) -> str:
    """Return the path of a model's calls; slashes and colons of ARNs are escaped, as botocore does."""
    return f"/model/{quote(model_id, safe='-._~')}/converse-stream"


def body_of(request: ModelRequest) -> bytes:
    """Return the body of a call."""
    document = _document(request)
    try:
        return orjson.dumps(document)
    except TypeError:  # half a character, or an integer beyond 64 bits, in what a model wrote for a tool
        return json.dumps(document).encode()


def _document(request: ModelRequest) -> dict[str, Any]:
    options = request.options
    cached = cache_points(request.model_id) if options.cache else frozenset[str]()
    document: dict[str, Any] = {
        "messages": [
            {**message, "content": _content(message, request.model_id)} for message in request.messages
        ],
        "inferenceConfig": {"maxTokens": request.max_tokens, **_sampling(options)},
    }
    if request.system:
        document["system"] = [{"text": request.system}, *([_CACHE_POINT] if SYSTEM in cached else [])]
    if request.tools:
        tools = [{"toolSpec": tool} for tool in request.tools]
        document["toolConfig"] = {"tools": [*tools, *([_CACHE_POINT] if TOOLS in cached else [])]}
    if request.request_metadata:
        document["requestMetadata"] = request.request_metadata
    if options.guardrail is not None:
        document["guardrailConfig"] = _guardrail(options.guardrail)
    if options.performance is not None:
        document["performanceConfig"] = {"latency": options.performance}
    more = dict(options.additional_model_request_fields)
    if options.reasoning is not None:
        more["thinking"] = {"type": "enabled", "budget_tokens": options.reasoning.budget_tokens}
    if more:
        document["additionalModelRequestFields"] = more
    return document


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
