"""Chat completion chunks, the ConverseStream frames that they become, and the way from one to the other."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from service.errors import UpstreamError
from service.models import Frame
from service.models.openai_compat_frames import Translation
from service.models.sse import Decoder

Said = tuple[str, Any]

START: Said = ("messageStart", {"role": "assistant"})


def text(said: str, index: int = 0) -> Said:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": {"text": said}}


def reasoning(said: str, index: int = 0) -> Said:
    delta = {"reasoningContent": {"text": said}}
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta}


def tool(tool_use_id: str, name: str, index: int) -> Said:
    start = {"toolUse": {"toolUseId": tool_use_id, "name": name}}
    return "contentBlockStart", {"contentBlockIndex": index, "start": start}


def arguments(piece: str, index: int) -> Said:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": {"toolUse": {"input": piece}}}


def end(index: int = 0) -> Said:
    return "contentBlockStop", {"contentBlockIndex": index}


def stop(reason: str) -> Said:
    return "messageStop", {"stopReason": reason}


def usage(input_tokens: int, output_tokens: int, cached: int = 0) -> Said:
    told = {
        "inputTokens": input_tokens,
        "outputTokens": output_tokens,
        "totalTokens": input_tokens + cached + output_tokens,
    }
    cache = {"cacheReadInputTokens": cached} if cached else {}
    return "metadata", {"usage": told | cache, "metrics": {"latencyMs": 1234}}


class Translated:
    """What came out of a stream: its frames, whether it is whole, what ended it."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.error: UpstreamError | None = None
        frames: list[Frame] = []
        decoder, translation = Decoder(), Translation(lambda: "made-up", lambda: 1234)
        try:
            for piece in pieces:
                for event in decoder.feed(piece):
                    translation.take(event, frames)
        except UpstreamError as error:
            self.error = error
        self.is_whole = translation.is_whole
        self.frames: Sequence[Said] = [(kind.decode(), json.loads(payload)) for kind, payload in frames]

    @property
    def outcome(self) -> tuple[Sequence[Said], bool, type[UpstreamError] | None]:
        return self.frames, self.is_whole, type(self.error) if self.error else None


def translated(*chunks: Any, done: bool = True) -> Translated:
    events = [json.dumps(each).encode() if not isinstance(each, bytes) else each for each in chunks]
    return Translated(b"data: " + each + b"\n\n" for each in [*events, *([b"[DONE]"] if done else [])])


def choice(delta: Any = None, reason: Any = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason}]}


def call(**call: Any) -> dict[str, Any]:
    return choice({"tool_calls": [call]})
