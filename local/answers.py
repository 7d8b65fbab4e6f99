"""The usual answers of a model, as scripts: text, a request for a tool, a refusal.

Tests call these and bend the result with `Script.first`, `then`, `insert` and `over`; `bedrock` builds the
small model's frames from `delta` and `metadata`. Pure.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from local.scripts import Delay, Emit, Refuse, Script, Step

REFUSALS: Final = {
    "AccessDeniedException": 403,
    "InternalServerException": 500,
    "ModelErrorException": 424,
    "ModelNotReadyException": 429,
    "ModelTimeoutException": 408,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 400,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "ValidationException": 400,
}
"""Its errors before the stream, with their HTTP status."""


def answer(
    text: str = "",
    *,
    deltas: Sequence[str] | None = None,
    delay_s: float = 0.0,
    input_tokens: int = 10,
    output_tokens: int | None = None,
    usage: Mapping[str, int] | None = None,
    stop_reason: str = "end_turn",
) -> Script:
    """Return a plain text answer: messageStart, its deltas, contentBlockStop, messageStop, metadata.

    `deltas` are the pieces of text (default: the words of `text`, each with the space after it); `delay_s`
    passes before each. Usage is one output token per delta unless said otherwise; `usage` adds members,
    such as ``cacheReadInputTokens``. There is no contentBlockStart: Bedrock sends none for text.
    """
    texts = list(deltas) if deltas is not None else re.findall(r"\S+\s*|\s+", text)
    steps: list[Step] = [Emit("messageStart", {"role": "assistant"})]
    for piece in texts:
        if delay_s:
            steps.append(Delay(delay_s))
        steps.append(delta({"text": piece}))
    steps += [Emit("contentBlockStop", {"contentBlockIndex": 0})]
    steps += _ending(stop_reason, input_tokens, len(texts) if output_tokens is None else output_tokens, usage)
    return Script(tuple(steps))


def tool_call(
    name: str,
    tool_input: Mapping[str, Any],
    *,
    tool_use_id: str = "tooluse_1",
    text: str = "",
    pieces: int = 2,
    input_tokens: int = 10,
    output_tokens: int | None = None,
) -> Script:
    """Return an answer that asks for a tool: text first, if any, then the tool's input in `pieces` deltas."""
    steps: list[Step] = [Emit("messageStart", {"role": "assistant"})]
    index = 0
    if text:
        steps += [delta({"text": text}), Emit("contentBlockStop", {"contentBlockIndex": 0})]
        index = 1
    start = {"toolUse": {"toolUseId": tool_use_id, "name": name}}
    steps.append(Emit("contentBlockStart", {"contentBlockIndex": index, "start": start}))
    raw = json.dumps(tool_input, separators=(",", ":"))
    length = max(1, -(-len(raw) // pieces))
    parts = [raw[at : at + length] for at in range(0, len(raw), length)]
    steps += [delta({"toolUse": {"input": part}}, index=index) for part in parts]
    steps.append(Emit("contentBlockStop", {"contentBlockIndex": index}))
    generated = len(parts) + index if output_tokens is None else output_tokens
    return Script((*steps, *_ending("tool_use", input_tokens, generated, None)))


def delta(value: Mapping[str, Any], *, index: int = 0) -> Emit:
    """Return one contentBlockDelta: `value` is ``{"text": ...}``, ``{"toolUse": ...}``,
    ``{"reasoningContent": ...}``."""
    return Emit("contentBlockDelta", {"contentBlockIndex": index, "delta": value})


def metadata(
    input_tokens: int, output_tokens: int, *, usage: Mapping[str, int] | None = None, latency_ms: int = 100
) -> Emit:
    """Return the metadata event, the last one of a stream."""
    total = {
        "inputTokens": input_tokens,
        "outputTokens": output_tokens,
        "totalTokens": input_tokens + output_tokens,
    }
    return Emit("metadata", {"usage": {**total, **(usage or {})}, "metrics": {"latencyMs": latency_ms}})


def refusal(error: str, message: str = "The scripted refusal.", **headers: str) -> Script:
    """Return a refusal before the stream, with the status that Bedrock gives this error; `retry_after="1"`
    is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Script((Refuse(REFUSALS[error], error, message, named),))


def _ending(
    stop_reason: str, input_tokens: int, output_tokens: int, usage: Mapping[str, int] | None
) -> list[Step]:
    return [
        Emit("messageStop", {"stopReason": stop_reason}),
        metadata(input_tokens, output_tokens, usage=usage),
    ]
