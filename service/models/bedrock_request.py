"""What a model call says to Bedrock: a `ModelRequest` as the path and the JSON body of ConverseStream.

`models.bedrock` calls it. Pure. What a runtime does not ask for is not sent; bytes are base64, as they came.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html (cache points),
https://docs.aws.amazon.com/bedrock/latest/userguide/guardrails-streaming.html (`sync` keeps back what is not
checked yet, `async` does not and masks nothing),
https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html (`thinking`)
"""

import json
from typing import Any, Final
from urllib.parse import quote

import orjson

from service.config import SYSTEM, TOOLS, Guardrail, ModelOptions, cache_points
from service.models import ModelRequest

_CACHE_POINT: Final = {"cachePoint": {"type": "default"}}


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
        "messages": request.messages,
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
