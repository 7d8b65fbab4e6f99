"""The local Bedrock endpoint speaks ConverseStream as AWS's own client understands it.

aioboto3 is the independent reader: what it makes of each script is what Bedrock's real stream would give it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import aiohttp
import pytest
from aiobotocore.config import AioConfig
from botocore.eventstream import ChecksumMismatch, InvalidPayloadLength
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, EventStreamError

from local.account import Call
from local.answers import REFUSALS, answer, delta, metadata, refusal, tool_call
from local.bedrock import BedrockEndpoint
from local.control import BedrockControl
from local.scripts import EXCEPTIONS, NEVER, Cut, Delay, Emit, Head, Raise, Raw, Script, Wait, Wire
from tests.clock import ManualClock

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
MESSAGES = [{"role": "user", "content": [{"text": "Hello"}]}]


@asynccontextmanager
async def client_of(endpoint: BedrockEndpoint) -> AsyncIterator[Any]:
    config = AioConfig(retries={"total_max_attempts": 1}, read_timeout=30)
    session = aioboto3.Session(region_name="us-east-1")
    async with session.client("bedrock-runtime", endpoint_url=endpoint.url, config=config) as client:
        yield client


async def events_of(endpoint: BedrockEndpoint, **request: Any) -> list[dict[str, Any]]:
    """Call once and return all events, padding left out."""
    async with client_of(endpoint) as client:
        response = await client.converse_stream(modelId=MODEL, **{"messages": MESSAGES, **request})
        return [event async for event in response["stream"]]


async def events_and_error(endpoint: BedrockEndpoint) -> tuple[list[dict[str, Any]], Exception]:
    """Call once and return the events up to the error in the stream, and the error."""
    events: list[dict[str, Any]] = []
    async with client_of(endpoint) as client:
        response = await client.converse_stream(modelId=MODEL, messages=MESSAGES)
        with pytest.raises(Exception) as caught:  # noqa: PT012 - which events came before it matters
            async for event in response["stream"]:
                events.append(event)  # noqa: PERF401 - kept up to the error
        response["stream"].close()
    return events, caught.value


def without_times(call: Call) -> dict[str, Any]:
    fields = {name: getattr(call, name) for name in Call.__slots__}
    return {name: value for name, value in fields.items() if not name.endswith(("_at_ms", "request_id"))}


HELLO = answer("Hello you", input_tokens=7)
HELLO_EVENTS: list[dict[str, Any]] = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "Hello "}}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "you"}}},
    {"contentBlockStop": {"contentBlockIndex": 0}},
    {"messageStop": {"stopReason": "end_turn"}},
    {
        "metadata": {
            "usage": {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9},
            "metrics": {"latencyMs": 100},
        }
    },
]


async def test_an_answer_arrives_as_the_events_of_converse_stream() -> None:
    async with BedrockEndpoint({MODEL: HELLO}) as endpoint:
        events = await events_of(endpoint)

        assert events == HELLO_EVENTS
        assert [without_times(call) for call in await endpoint.account.when(ended=1)] == [
            {
                "number": 1,
                "model_id": MODEL,
                "input_tokens": 7,
                "output_tokens": 2,
                "reported": True,
                "outcome": "finished",
                "waiting": None,
                "request_metadata": {},
            }
        ]
        assert endpoint.requests == ({"messages": MESSAGES},)


async def test_a_tool_call_arrives_with_its_input_in_pieces() -> None:
    script = tool_call("search", {"q": "rivers"}, tool_use_id="tooluse_9", text="Let me look.")
    async with BedrockEndpoint({MODEL: script}) as endpoint:
        events = await events_of(endpoint)

    assert events[1:-1] == [
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "Let me look."}}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {
            "contentBlockStart": {
                "contentBlockIndex": 1,
                "start": {"toolUse": {"toolUseId": "tooluse_9", "name": "search"}},
            }
        },
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"q":"r'}}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": 'ivers"}'}}}},
        {"contentBlockStop": {"contentBlockIndex": 1}},
        {"messageStop": {"stopReason": "tool_use"}},
    ]


async def test_reasoning_and_cached_usage_arrive() -> None:
    script = Script(
        (
            delta({"reasoningContent": {"text": "Hm."}}),
            delta({"reasoningContent": {"signature": "c2ln"}}),
            metadata(3, 2, usage={"cacheReadInputTokens": 5, "cacheWriteInputTokens": 6}),
        )
    )
    async with BedrockEndpoint({MODEL: script}) as endpoint:
        events = await events_of(endpoint)

    assert events[0]["contentBlockDelta"]["delta"] == {"reasoningContent": {"text": "Hm."}}
    assert events[1]["contentBlockDelta"]["delta"] == {"reasoningContent": {"signature": "c2ln"}}
    assert events[2]["metadata"]["usage"] == {
        "inputTokens": 3,
        "outputTokens": 2,
        "totalTokens": 5,
        "cacheReadInputTokens": 5,
        "cacheWriteInputTokens": 6,
    }


@pytest.mark.parametrize(
    "wire",
    [
        Wire(bytes_per_write=1),
        Wire(bytes_per_write=7),
        Wire(frames_per_write=4),
        Wire(frames_per_write=100),
        Wire(split_at=(1, 12, 13, 60, 200)),
        Wire(keep_alive=False),
    ],
    ids=str,
)
async def test_the_pieces_in_which_it_is_written_change_nothing(wire: Wire) -> None:
    async with BedrockEndpoint({MODEL: HELLO.over(wire)}) as endpoint:
        events = await events_of(endpoint)

    assert events == HELLO_EVENTS


@pytest.mark.parametrize("exception", EXCEPTIONS)
async def test_an_exception_in_the_stream_comes_after_what_was_sent(exception: str) -> None:
    script = HELLO.first(2).then(Raise(exception, "It broke."))
    async with BedrockEndpoint({MODEL: script}) as endpoint:
        events, error = await events_and_error(endpoint)

        assert events == HELLO_EVENTS[:2]
        assert isinstance(error, EventStreamError)
        assert (error.response["Error"]["Code"], error.response["Error"]["Message"]) == (
            exception,
            "It broke.",
        )
        assert [call.outcome for call in await endpoint.account.when(ended=1)] == ["failed"]


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_refusal_is_the_error_that_bedrock_would_give(error: str) -> None:
    async with BedrockEndpoint({MODEL: refusal(error, "Not now.", retry_after="3")}) as endpoint:
        with pytest.raises(ClientError) as caught:
            await events_of(endpoint)

        response = caught.value.response
        assert response["Error"] == {"Code": error, "Message": "Not now."}
        assert response["ResponseMetadata"]["HTTPStatusCode"] == REFUSALS[error]
        assert response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "3"
        assert [call.outcome for call in await endpoint.account.when(ended=1)] == ["refused"]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("after_bytes", [0, 1, 11, 12, 15, 100, len(HELLO.body()) - 1])
async def test_a_cut_in_the_body_is_an_error_of_the_connection(after_bytes: int, reset: bool) -> None:
    wire = Wire(cut_after_bytes=after_bytes, cut_by_reset=reset)
    async with BedrockEndpoint({MODEL: HELLO.over(wire)}) as endpoint:
        events, error = await events_and_error(endpoint)

        assert events == HELLO_EVENTS[: len(events)]
        assert isinstance(error, aiohttp.ClientError)
        (call,) = await endpoint.account.when(ended=1)
        assert (call.outcome, call.reported) == ("cut", False)


@pytest.mark.parametrize(
    ("reset", "expected"), [(True, EndpointConnectionError), (False, ConnectionClosedError)]
)
async def test_a_cut_before_the_headers_is_an_error_of_the_connection(
    reset: bool, expected: type[Exception]
) -> None:
    async with BedrockEndpoint({MODEL: Script((Cut(reset),))}) as endpoint, client_of(endpoint) as client:
        with pytest.raises(Exception) as caught:
            await client.converse_stream(modelId=MODEL, messages=MESSAGES)

    assert type(caught.value) is expected


async def test_a_stream_can_end_cleanly_without_its_message_stop() -> None:
    async with BedrockEndpoint({MODEL: HELLO.first(3)}) as endpoint:
        events = await events_of(endpoint)

    assert events == HELLO_EVENTS[:3]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("message-crc", ChecksumMismatch),
        ("prelude-crc", ChecksumMismatch),
        ("oversized", InvalidPayloadLength),
    ],
)
async def test_a_damaged_frame_is_found(fault: Any, expected: type[Exception]) -> None:
    damaged = Emit("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}}, fault)
    async with BedrockEndpoint({MODEL: HELLO.first(2).then(damaged)}) as endpoint:
        _, error = await events_and_error(endpoint)

    assert type(error) is expected


async def test_successive_calls_take_successive_scripts_and_the_last_repeats() -> None:
    scripts = [refusal("ThrottlingException"), answer("two"), answer("three")]
    async with BedrockEndpoint({MODEL: scripts}) as endpoint:
        with pytest.raises(ClientError):
            await events_of(endpoint)
        texts = [(await events_of(endpoint))[1] for _ in range(3)]

    deltas = [event["contentBlockDelta"]["delta"]["text"] for event in texts]
    assert deltas == ["two", "three", "three"]


async def test_a_function_can_choose_the_script() -> None:
    async with BedrockEndpoint(lambda request: answer(request.model_id)) as endpoint:
        events = await events_of(endpoint)

    assert events[1]["contentBlockDelta"]["delta"] == {"text": MODEL}


async def test_a_delay_passes_before_what_follows_it(clock: ManualClock) -> None:
    script = Script((Head(), Delay(20), *HELLO.steps))
    async with BedrockEndpoint({MODEL: script}) as endpoint:
        reading = asyncio.create_task(events_of(endpoint))
        await endpoint.account.when(started=1)
        await clock.advance(19.9)
        (call,) = await endpoint.account.when()
        generated_before = call.output_tokens
        await clock.advance(0.1)

        assert generated_before == 0
        assert await reading == HELLO_EVENTS


async def test_a_barrier_holds_the_stream_until_the_signal() -> None:
    script = HELLO.insert(2, Wait("go"))
    async with BedrockEndpoint({MODEL: script}) as endpoint, client_of(endpoint) as client:
        response = await client.converse_stream(modelId=MODEL, messages=MESSAGES)
        stream = aiter(response["stream"])
        before = [await anext(stream), await anext(stream)]
        (call,) = await endpoint.account.when(waiting="go")
        generated_before = call.output_tokens
        endpoint.release("go")
        after = [event async for event in stream]

    assert (before, generated_before) == (HELLO_EVENTS[:2], 1)
    assert after == HELLO_EVENTS[2:]


async def test_headers_can_come_long_before_the_first_frame() -> None:
    async with (
        BedrockEndpoint({MODEL: Script((Head(), Wait(NEVER)))}) as endpoint,
        client_of(endpoint) as client,
    ):
        response = await client.converse_stream(modelId=MODEL, messages=MESSAGES)
        (call,) = await endpoint.account.when(waiting=NEVER)
        response["stream"].close()

        assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert response["ResponseMetadata"]["RequestId"] == call.request_id


async def test_a_peer_that_hangs_up_is_noticed_and_what_was_generated_is_known() -> None:
    script = HELLO.insert(3, Wait(NEVER))
    async with BedrockEndpoint({MODEL: script}, now=lambda: 1.5) as endpoint, client_of(endpoint) as client:
        response = await client.converse_stream(modelId=MODEL, messages=MESSAGES)
        stream = response["stream"]
        await anext(aiter(stream))
        await endpoint.account.when(waiting=NEVER)
        stream.close()

        (call,) = await endpoint.account.when(ended=1)
        assert (call.outcome, call.ended_at_ms) == ("hung-up", 1500)
        assert (call.input_tokens, call.output_tokens, call.reported) == (7, 2, False)


async def test_a_connection_serves_one_call_after_the_other() -> None:
    async with BedrockEndpoint({MODEL: HELLO}) as endpoint, client_of(endpoint) as client:
        answers = []
        for _ in range(3):
            response = await client.converse_stream(modelId=MODEL, messages=MESSAGES)
            answers.append([event async for event in response["stream"]])

    assert answers == [HELLO_EVENTS] * 3


async def test_any_bytes_can_be_a_frame() -> None:
    script = Script((Raw.of(HELLO.body()),))
    async with BedrockEndpoint({MODEL: script}) as endpoint:
        events = await events_of(endpoint)

    assert events == HELLO_EVENTS


async def test_a_model_without_a_script_is_invalid() -> None:
    async with BedrockEndpoint() as endpoint:
        with pytest.raises(ClientError) as caught:
            await events_of(endpoint)

    assert caught.value.response["Error"] == {
        "Code": "ValidationException",
        "Message": "The provided model identifier is invalid.",
    }


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, "MissingAuthenticationTokenException"),
        ({"Authorization": "Bearer x"}, "IncompleteSignatureException"),
    ],
)
async def test_a_request_without_a_signature_is_forbidden(headers: dict[str, str], error: str) -> None:
    async with BedrockEndpoint({MODEL: HELLO}) as endpoint, aiohttp.ClientSession() as session:
        url = f"{endpoint.url}/model/{MODEL}/converse-stream"
        async with session.post(url, json={"messages": MESSAGES}, headers=headers) as response:
            error_type = response.headers["x-amzn-ErrorType"]

            assert (response.status, error_type.partition(":")[0]) == (403, error)
            assert len(await endpoint.account.when()) == 0


async def test_a_request_that_converse_would_refuse_is_refused() -> None:
    blank = [{"role": "user", "content": [{"text": " "}]}]
    async with BedrockEndpoint({MODEL: HELLO}) as endpoint:
        with pytest.raises(ClientError) as caught:
            await events_of(endpoint, messages=blank)

        assert caught.value.response["Error"]["Code"] == "ValidationException"
        assert len(await endpoint.account.when()) == 0


async def test_another_process_scripts_it_reads_its_account_and_releases_its_signals() -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
    async with (
        BedrockEndpoint() as endpoint,
        aiohttp.ClientSession() as session,
        client_of(endpoint) as client,
    ):
        control = BedrockControl(session, endpoint.url)
        await control.script(arn, HELLO.insert(1, Wait("a signal")))
        response = await client.converse_stream(
            modelId=arn, messages=MESSAGES, requestMetadata={"team": "search"}
        )
        await control.account(waiting="a signal")
        await control.release("a signal")
        events = [event async for event in response["stream"]]

        (call,) = await control.account(ended=1)
        assert events == HELLO_EVENTS
        assert call == (await endpoint.account.when())[0]
        assert (call.model_id, call.outcome, call.output_tokens) == (arn, "finished", 2)
        assert call.request_metadata == {"team": "search"}
        assert await control.requests() == [{"messages": MESSAGES, "requestMetadata": {"team": "search"}}]


async def test_a_script_that_is_none_is_refused_by_name() -> None:
    async with BedrockEndpoint() as endpoint, aiohttp.ClientSession() as session:
        body = [{"steps": [{"step": "dance"}]}]
        async with session.put(f"{endpoint.url}/scripts/{MODEL}", json=body) as response:
            message = (await response.json())["message"]

        assert (response.status, message.partition(":")[0]) == (400, "'dance' is not a step")
