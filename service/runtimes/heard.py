"""What one model call said: its usage, its stop reason and the message that the next turn needs.

`runtimes.converse` puts a `Heard` between the model and the log: batches pass through untouched. Only sizes
are counted on the way; `metadata` and `messageStop` are kept, and parsed when the call is over. Where the
agent has tools the payloads are kept too, and parsed only if there is a next turn.
"""

import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

from service.events import whole
from service.invocations import Usage
from service.ledger import estimated_usage, parsed, reported_usage
from service.models import Deliver, Frame


class ToolUse(NamedTuple):
    """A tool that the model asked for; `raw_input` is valid JSON or not."""

    tool_use_id: str
    name: str
    raw_input: bytes


class Heard:
    """The `Deliver` of one model call.

    Args:
        deliver: Where the batches go.
        input_bound: Upper bound of the input tokens, for the hold and for an estimate.
        max_output: `maxTokens` of the call, the same.
        keep: Whether the next turn may need what was said.
    """

    __slots__ = ("_deliver", "_input_bound", "_kept", "_max_output", "_metadata", "_output_bytes", "_stop")

    def __init__(self, deliver: Deliver, *, input_bound: int, max_output: int, keep: bool = False) -> None:
        self._deliver = deliver
        self._input_bound = input_bound
        self._max_output = max_output
        self._output_bytes = 0
        self._metadata = b""
        self._stop = b""
        self._kept: list[Frame] | None = [] if keep else None

    def __call__(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        for kind, payload in frames:
            if kind in (b"contentBlockDelta", b"contentBlockStart"):
                self._output_bytes += len(payload)
            elif kind == b"metadata":
                self._metadata = payload
            elif kind == b"messageStop":
                self._stop = payload
        if self._kept is not None:
            self._kept += frames
        return self._deliver(frames)

    @property
    def most_tokens(self) -> int:
        """The most that the call can use: a bound of its input, and all that it may generate."""
        return self._input_bound + self._max_output

    @property
    def generated(self) -> bool:
        """Whether the model is known to have generated anything."""
        return bool(self._output_bytes or self._metadata)

    @property
    def usage(self) -> Usage:
        """What the upstream reported, or an estimate that is never below what was streamed."""
        reported = reported_usage(self._metadata) if self._metadata else None
        return reported or estimated_usage(
            input_bound=self._input_bound, max_output=self._max_output, output_bytes=self._output_bytes
        )

    @property
    def stop_reason(self) -> str:
        """The model's stop reason, `unknown` if it gave none."""
        try:
            reason = parsed(self._stop)["stopReason"]
        except (ValueError, TypeError, KeyError):
            return "unknown"
        return reason if isinstance(reason, str) else "unknown"

    def assistant_message(self) -> Mapping[str, Any]:
        """Assemble the assistant's message for the next turn; tool input that is no JSON object is {}."""
        blocks = [_content_block(parts) for parts in self._content_parts()]
        return {"role": "assistant", "content": [block for block in blocks if block is not None]}

    def tool_uses(self) -> list[ToolUse]:
        """Return the tools that the model asked for, in order, each with its input as the model wrote it."""
        return [
            ToolUse(block["toolUse"]["toolUseId"], block["toolUse"]["name"], _raw_tool_input(parts))
            for parts in self._content_parts()
            if (block := _content_block(parts)) is not None and "toolUse" in block
        ]

    def _content_parts(self) -> list[list[Mapping[str, Any]]]:
        """Return, for each content block in order, its start and deltas."""
        parts: dict[int, list[Mapping[str, Any]]] = {}
        for kind, payload in self._kept or ():
            if kind in (b"contentBlockDelta", b"contentBlockStart"):
                part = json.loads(payload)
                said = part.get("start") or part.get("delta") or {}
                parts.setdefault(part.get("contentBlockIndex", 0), []).append(said)
        return [parts[index] for index in sorted(parts)]


def tool_uses_in(message: Mapping[str, Any]) -> list[ToolUse]:
    """Return the tools that a stored message of the model asked for, in order."""
    uses = (block["toolUse"] for block in message["content"] if "toolUse" in block)
    return [ToolUse(use["toolUseId"], use["name"], json.dumps(use["input"]).encode()) for use in uses]


def _content_block(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Turn the start and the deltas of one content block into the block; None if it says nothing."""
    kinds = {kind for part in parts for kind in part}
    if "toolUse" in kinds:
        use = [part["toolUse"] for part in parts if "toolUse" in part]
        start: Mapping[str, Any] = next((piece for piece in use if "toolUseId" in piece), {})
        return {
            "toolUse": {
                "toolUseId": start.get("toolUseId", ""),
                "name": start.get("name", ""),
                "input": _tool_input(_raw_tool_input(parts)),
            }
        }
    if "reasoningContent" in kinds:
        return _reasoning_block([part["reasoningContent"] for part in parts if "reasoningContent" in part])
    text = whole("".join(part.get("text", "") for part in parts))
    return {"text": text} if text.strip() else None


def _raw_tool_input(parts: Sequence[Mapping[str, Any]]) -> bytes:
    return whole("".join(part.get("toolUse", {}).get("input", "") for part in parts)).encode() or b"{}"


def _tool_input(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, or nested too deep to be read
        return {}
    return value if isinstance(value, dict) else {}


def _reasoning_block(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give reasoning back as Bedrock wants it: text with its signature, or redacted bytes (base64)."""
    redacted = "".join(piece.get("redactedContent", "") for piece in pieces)
    if redacted:
        return {"reasoningContent": {"redactedContent": redacted}}
    said = {"text": whole("".join(piece.get("text", "") for piece in pieces))}
    signature = "".join(piece.get("signature", "") for piece in pieces)
    return {"reasoningContent": {"reasoningText": said | ({"signature": signature} if signature else {})}}
