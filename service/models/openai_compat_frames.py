"""Turns the events of a chat completion's stream into ConverseStream frames; pure, no I/O.

`models.openai_compat` feeds it what `models.sse` decoded.

    delta {"role":"assistant"}                 messageStart                      once, at the first choice
    delta {"content":"Hel"}, {"refusal":".."}  contentBlockDelta text
    delta {"reasoning_content":".."}           contentBlockDelta reasoningContent    vLLM also: `reasoning`
    delta {"tool_calls":[{"index":0, ..}]}     contentBlockStart, then contentBlockDelta toolUse
    finish_reason                              contentBlockStop, messageStop
    usage                                      metadata, with cache reads apart
    [DONE]                                     the end

Invariants: blocks come one after another, as from Bedrock: where another kind or another tool begins, the
one before it is stopped; nothing but usage comes after `messageStop`; a stream is whole at `[DONE]`, not
before. Without usage there is no `metadata`: whoever listens then estimates
(docs/decisions/0006-holds-and-estimates.md).

Sources: https://platform.openai.com/docs/api-reference/chat-streaming/streaming and
https://docs.vllm.ai/en/latest/features/reasoning_outputs/
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from service.errors import UpstreamFailed
from service.models import Frame
from service.models.openai_compat_errors import error_in, stream_failure_of
from service.models.sse import Event

DONE: Final = b"[DONE]"

# A reason that is not here says that the answer is not whole: DeepSeek's `insufficient_system_resource`,
# vLLM's `abort`, a proxy's `error`.
STOP_REASONS: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}

# What Bedrock takes, so that the same conversation may go on there:
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolUseBlock.html
_TOOL_USE_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)


class Translation:
    """One answer on its way from chunks to frames.

    Args:
        new_tool_use_id: Makes the id of a tool call that has none, or none that Bedrock would take.
        latency_ms: How long the call has taken, for `metadata`.

    Attributes:
        is_stopped: `messageStop` was made.
        is_whole: `[DONE]` was seen too; what follows it is not looked at.
    """

    __slots__ = (
        "_asked_for_tools",
        "_block",
        "_index",
        "_input",
        "_latency_ms",
        "_new_tool_use_id",
        "_started",
        "_tool_id",
        "_tool_name",
        "_usage_is_told",
        "is_stopped",
        "is_whole",
    )

    def __init__(self, new_tool_use_id: Callable[[], str], latency_ms: Callable[[], int]) -> None:
        self.is_stopped = False
        self.is_whole = False
        self._new_tool_use_id = new_tool_use_id
        self._latency_ms = latency_ms
        self._index = -1  # of the last block that was begun
        self._block: str | int = ""  # what is open: "text", "reasoning", the index of a tool call, nothing
        self._tool_id: Any = None  # as the upstream said it
        self._tool_name: Any = None
        self._input: list[str] = []  # of the last tool call
        self._asked_for_tools = False
        self._started = False
        self._usage_is_told = False

    def take(self, event: Event, frames: list[Frame]) -> None:
        """Append the frames of one event.

        Raises:
            UpstreamError: The event is an error, or not one of a chat completion; the frames before it stand.
        """
        kind, written = event
        if self.is_whole:
            return
        if written == DONE:
            if not self.is_stopped:
                raise UpstreamFailed("The model's answer ended before it was finished.")
            self.is_whole = True
            return
        try:
            chunk = orjson.loads(written)
            error = error_in(chunk)
            if error is not None or kind == b"error":
                raise stream_failure_of(error or {})
            self._take_chunk(chunk, frames)
        except (orjson.JSONDecodeError, AttributeError, TypeError) as exc:  # or members of other types
            raise UpstreamFailed("The model backend sent something that is no chat completion.") from exc

    def _take_chunk(self, chunk: Mapping[str, Any], frames: list[Frame]) -> None:
        for choice in chunk.get("choices") or ():  # vLLM's last chunk may have null
            if choice.get("index") in (0, None):  # we ask for one
                self._take_choice(choice, frames)
        usage = chunk.get("usage")
        if usage is not None and self.is_stopped and not self._usage_is_told:
            self._tell_usage(usage, frames)

    def _take_choice(self, choice: Mapping[str, Any], frames: list[Frame]) -> None:
        if not self._started:
            self._started = True
            frames.append((b"messageStart", b'{"role":"assistant"}'))
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            self._say("reasoning", {"reasoningContent": {"text": _text(reasoning)}}, frames)
        for text in (delta.get("content"), delta.get("refusal")):
            if text:
                self._say("text", {"text": _text(text)}, frames)
        for call in delta.get("tool_calls") or ():
            self._take_tool_call(call, frames)
        reason = choice.get("finish_reason")
        if reason is not None and not self.is_stopped:
            self._stop(reason, frames)

    def _take_tool_call(self, call: Mapping[str, Any], frames: list[Frame]) -> None:
        function = call.get("function") or {}
        index, tool_id, name = call.get("index"), call.get("id"), function.get("name")
        # Some servers repeat the name with each piece, some give every call the index 0.
        is_same = isinstance(self._block, int) and index in (None, self._block)
        arguments = function.get("arguments")
        if name and is_same and index is None and not tool_id:  # some give neither
            is_same = name == self._tool_name and not (arguments and _is_object(self._input))
        if name and not (is_same and tool_id in (None, "", self._tool_id)):
            self._open(index if type(index) is int else 0, frames)
            self._tool_id, self._asked_for_tools = tool_id, True
            self._tool_name, self._input = name, []
            is_good = isinstance(tool_id, str) and _TOOL_USE_ID.fullmatch(tool_id)
            start = {"toolUseId": tool_id if is_good else self._new_tool_use_id(), "name": _text(name)}
            frames.append(_frame(b"contentBlockStart", self._index, "start", {"toolUse": start}))
        elif not is_same:
            raise UpstreamFailed("The model backend sent a piece of a tool call that it had not begun.")
        if arguments:
            self._input.append(_text(arguments))
            piece = {"toolUse": {"input": arguments}}
            frames.append(_frame(b"contentBlockDelta", self._index, "delta", piece))

    def _say(self, block: str, delta: Mapping[str, Any], frames: list[Frame]) -> None:
        if self._block != block:
            self._open(block, frames)
        frames.append(_frame(b"contentBlockDelta", self._index, "delta", delta))

    def _open(self, block: str | int, frames: list[Frame]) -> None:
        if self.is_stopped:
            raise UpstreamFailed("The model's answer went on after its end.")
        self._close(frames)
        self._block = block
        self._index += 1

    def _close(self, frames: list[Frame]) -> None:
        if self._block != "":
            frames.append((b"contentBlockStop", b'{"contentBlockIndex":%d}' % self._index))
            self._block = ""

    def _stop(self, reason: str, frames: list[Frame]) -> None:
        stop_reason = STOP_REASONS.get(reason)
        if stop_reason is None:
            raise UpstreamFailed("The model backend broke the answer off.")
        if stop_reason == "end_turn" and self._asked_for_tools:
            stop_reason = "tool_use"  # some servers say `stop` after tool calls too
        self._close(frames)
        frames.append((b"messageStop", orjson.dumps({"stopReason": stop_reason})))
        self.is_stopped = True

    def _tell_usage(self, usage: Mapping[str, Any], frames: list[Frame]) -> None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        match usage.get("prompt_tokens"), usage.get("completion_tokens"), cached:
            case (int(asked), int(generated), int(cached)) if asked >= cached >= 0 and generated >= 0:
                pass
            case _:
                return  # as if there were none
        # OpenAI counts what came from its cache as input, Bedrock does not.
        told = {"inputTokens": asked - cached, "outputTokens": generated, "totalTokens": asked + generated}
        if cached:
            told["cacheReadInputTokens"] = cached
        metadata = {"usage": told, "metrics": {"latencyMs": self._latency_ms()}}
        frames.append((b"metadata", orjson.dumps(metadata)))
        self._usage_is_told = True


def _frame(event_type: bytes, index: int, member: str, value: Mapping[str, Any]) -> Frame:
    return event_type, orjson.dumps({"contentBlockIndex": index, member: value})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _is_object(pieces: Sequence[str]) -> bool:
    if not pieces or not pieces[-1].rstrip().endswith("}"):
        return False  # parsed at every piece, a long input would cost its square
    try:
        return isinstance(orjson.loads("".join(pieces)), dict)
    except orjson.JSONDecodeError:
        return False
