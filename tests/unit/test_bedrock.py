"""What becomes of Bedrock's answers: bytes are passed on; exceptions, refusals and damage as errors."""

import asyncio
import logging
from collections.abc import Sequence
from zlib import crc32

import pytest

from service.errors import (
    Fenced,
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models import Frame
from service.models.retries import RETRY_CEILINGS_S
from tests.bedrock import (
    FOREIGN,
    HEAD,
    OK,
    PROMPT,
    REQUEST,
    START,
    STOP,
    Pauses,
    answer,
    bedrock,
    events,
    in_turn,
    opened,
    refusal,
)
from tests.scripted_http import (
    END,
    chunk,
    exception,
    message,
    replies,
    scripted,
    sized,
)

Ending = tuple[type[UpstreamError], bool, list[Frame]]
"""The error of a call, whether it is billed, and what was delivered before it."""


async def endings(
    responses: Sequence[bytes], monkeypatch: pytest.MonkeyPatch, *, tries: int = 1, hang_up: bool = False
) -> list[Ending]:
    """Make a call for each response, which it gets at every try; return how they ended."""
    got: list[Ending] = []
    script = in_turn(*(response for response in responses for _ in range(tries)), hang_up=hang_up)
    async with bedrock(script, monkeypatch) as (model, server):
        for _ in responses:
            frames: list[Frame] = []
            with pytest.raises(UpstreamError) as caught:
                await model.converse(REQUEST, frames.extend)
            got.append((type(caught.value), caught.value.billed, frames))
    assert len(server.requests) == tries * len(responses)
    return got


# The answer.


@pytest.mark.promise("bytes-pass-through")
async def test_payloads_arrive_byte_for_byte_and_a_read_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    odd: list[Frame] = [
        START,
        (b"contentBlockDelta", b'{ "p":"abcdefghij" , "delta":{"text":"\\u00e9\\n"},"contentBlockIndex":0}'),
        (b"contentBlockDelta", b"not JSON at all"),
        (b"somethingNew", b""),
        STOP,
        (b"metadata", '{"usage":{"inputTokens":1},"é":true}'.encode()),
    ]
    batches: list[Sequence[Frame]] = []
    async with bedrock(replies(answer(events(*odd[:2]), events(*odd[2:]))), monkeypatch) as (model, _):
        await model.converse(REQUEST, batches.append)

    assert batches == [odd]


IN_STREAM: dict[str, type[UpstreamError]] = {
    "internalServerException": UpstreamFailed,
    "modelStreamErrorException": UpstreamFailed,
    "modelTimeoutException": UpstreamTimeout,
    "serviceUnavailableException": UpstreamUnavailable,
    "somethingNewException": UpstreamFailed,
    "throttlingException": UpstreamThrottled,
    "validationException": UpstreamRejected,
}


@pytest.mark.parametrize("before", [b"", events(START)], ids=["first", "later"])
async def test_an_exception_in_the_stream_is_billed_and_not_tried_again(
    before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = [answer(before + exception(kind, {"message": FOREIGN})) for kind in IN_STREAM]

    got = await endings(responses, monkeypatch)

    assert got == [(kind, True, [START] if before else []) for kind in IN_STREAM.values()]


async def test_an_unmodelled_error_in_the_stream_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    error = message(
        {":message-type": "error", ":error-code": "InternalError", ":error-message": FOREIGN}, b""
    )

    got = await endings([answer(events(START) + error)], monkeypatch)

    assert got == [(UpstreamFailed, True, [START])]


async def test_an_exception_is_raised_after_the_frames_before_it_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, taken = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        taken.set()
        await gate.wait()

    response = answer(events(START) + exception("throttlingException", {}))
    async with bedrock(replies(response), monkeypatch) as (model, _):
        task = asyncio.create_task(model.converse(REQUEST, lambda _: wait()))
        await taken.wait()
        early = task.done()
        gate.set()
        with pytest.raises(UpstreamThrottled):
            await task

    assert not early


BROKEN = events(STOP)[:-1] + b"\x00"
LENGTHS = (2**31).to_bytes(4, "big") + bytes(4)
OVERSIZED = LENGTHS + crc32(LENGTHS).to_bytes(4, "big")


NOT_WHOLE = {
    "bad checksum": answer(events(START) + BROKEN),
    "oversized": answer(events(START), OVERSIZED),
    "ends within a frame": answer(events(START), events(STOP)[:-1]),
    "ends without messageStop": answer(events(START)),
    "not HTTP any more": answer(events(START))[: -len(END)] + b"zz\r\n",
}


@pytest.mark.promise("truncation-is-failure")
async def test_an_answer_that_is_damaged_or_not_whole_is_a_billed_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got = await endings(list(NOT_WHOLE.values()), monkeypatch)

    assert dict(zip(NOT_WHOLE, got, strict=True)) == dict.fromkeys(NOT_WHOLE, (UpstreamFailed, True, [START]))


async def test_half_a_frame_after_message_stop_is_a_billed_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await endings([answer(events(START, STOP), events(STOP)[:20])], monkeypatch)

    assert got == [(UpstreamFailed, True, [START, STOP])]


async def test_a_200_that_is_no_event_stream_is_a_billed_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await endings([sized(200, b"<html>", content_type="text/html")], monkeypatch)

    assert got == [(UpstreamFailed, True, [])]


async def test_what_the_receiver_raises_is_not_taken_for_a_failure_of_the_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fence() -> None:
        raise Fenced

    async with bedrock(replies(OK), monkeypatch) as (model, _):
        with pytest.raises(Fenced):
            await model.converse(REQUEST, lambda _: fence())


async def test_a_fault_of_ours_is_not_taken_for_a_failure_of_the_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bedrock(replies(OK), monkeypatch) as (model, server):
        with pytest.raises(TypeError):
            await model.converse(
                REQUEST._replace(messages=[{"role": object(), "content": []}]), lambda _: None
            )

    assert server.requests == []


# Refusals.

FOR_GOOD: dict[tuple[int, str], tuple[type[UpstreamError], bool]] = {
    (403, "AccessDeniedException"): (UpstreamMisconfigured, False),
    (403, "UnrecognizedClientException"): (UpstreamMisconfigured, False),
    (403, "InvalidSignatureException"): (UpstreamMisconfigured, False),
    (400, "ExpiredTokenException"): (UpstreamMisconfigured, False),
    (404, "ResourceNotFoundException"): (UpstreamMisconfigured, False),
    (400, "ValidationException"): (UpstreamRejected, False),
    (400, "ServiceQuotaExceededException"): (UpstreamRejected, False),
    (408, "ModelTimeoutException"): (UpstreamTimeout, True),
    (424, "ModelErrorException"): (UpstreamFailed, True),
    (500, "InternalServerException"): (UpstreamFailed, True),
    (301, ""): (UpstreamFailed, True),
    (401, ""): (UpstreamMisconfigured, False),
    (413, ""): (UpstreamRejected, False),
    (418, "SomethingNewException"): (UpstreamRejected, False),
    (502, ""): (UpstreamFailed, True),
    (504, ""): (UpstreamTimeout, True),
    (599, "SomethingNewException"): (UpstreamFailed, True),
}
FOR_NOW: dict[tuple[int, str], tuple[type[UpstreamError], bool]] = {
    (429, "ThrottlingException"): (UpstreamThrottled, False),
    (429, "TooManyRequestsException"): (UpstreamThrottled, False),
    (429, "ModelNotReadyException"): (UpstreamThrottled, False),
    (429, ""): (UpstreamThrottled, False),
    (503, "ServiceUnavailableException"): (UpstreamUnavailable, False),
    (503, ""): (UpstreamUnavailable, False),
}


@pytest.mark.parametrize(("refusals", "tries"), [(FOR_GOOD, 1), (FOR_NOW, 3)], ids=["for good", "for now"])
async def test_each_refusal_is_the_error_of_its_code_or_else_of_its_status(
    refusals: dict[tuple[int, str], tuple[type[UpstreamError], bool]],
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got = await endings([refusal(*each) for each in refusals], monkeypatch, tries=tries)

    assert {each: (kind, billed) for each, (kind, billed, _) in zip(refusals, got, strict=True)} == refusals
    assert [frames for _, _, frames in got] == [[]] * len(refusals)


async def test_a_refusal_in_no_known_form_goes_by_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [
        b"",
        b"<html>403</html>",
        b"[]",
        b'"text"',
        b"\xff",
        b'{"__type":7}',
        b'{"message":{}}',
        b"null",
    ]

    got = await endings([sized(403, body) for body in bodies], monkeypatch)

    assert got == [(UpstreamMisconfigured, False, [])] * len(bodies)


@pytest.mark.promise("no-content-in-logs")
@pytest.mark.parametrize(
    "response",
    [
        refusal(400, "ValidationException"),
        answer(events(START) + exception("modelStreamErrorException", {"message": FOREIGN})),
    ],
    ids=["refused", "in stream"],
)
async def test_a_failure_is_logged_by_code_and_request_id_and_without_any_text(
    response: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with bedrock(replies(response), monkeypatch) as (model, _):
        with caplog.at_level(logging.INFO), pytest.raises(UpstreamError) as caught:
            await model.converse(REQUEST, lambda _: None)

    failure = caught.value
    (record,) = [each for each in caplog.records if each.name.startswith("service.")]
    logged = {
        name: getattr(record, name) for name in ("model_id", "problem", "billed", "upstream_request_id")
    }
    assert (record.levelname, record.getMessage()) == ("WARNING", "model call failed")
    assert logged == {
        "model_id": REQUEST.model_id,
        "problem": failure.code,
        "billed": failure.billed,
        "upstream_request_id": "req-7",
    }
    assert vars(record)["upstream_code"] in ("ValidationException", "modelStreamErrorException")
    everything = "".join(str(vars(each)) for each in caplog.records) + failure.detail + str(failure.problem())
    assert FOREIGN not in everything
    assert PROMPT not in everything


# Retries.


async def test_what_was_refused_for_now_is_tried_again_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, frames = Pauses(), list[Frame]()
    async with bedrock(in_turn(refusal(429), refusal(503), OK), monkeypatch, pacing=pauses.pacing()) as (
        model,
        _,
    ):
        await model.converse(REQUEST, frames.extend)

    assert (pauses, frames) == ([0.5 * ceiling_s for ceiling_s in RETRY_CEILINGS_S], [START, STOP])


async def test_two_retries_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bedrock(replies(*[refusal(429)] * 9), monkeypatch) as (model, server):
        with pytest.raises(UpstreamThrottled):
            await model.converse(REQUEST, lambda _: None)

    assert len(server.requests) == 3


async def test_where_another_model_can_be_asked_nothing_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    request = REQUEST._replace(has_successor=True)
    async with bedrock(replies(*[refusal(429)] * 9), monkeypatch) as (model, server):
        with pytest.raises(UpstreamThrottled):
            await model.converse(request, lambda _: None)

    assert len(server.requests) == 1


async def test_no_retry_begins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.7, 4.8])
    pacing = Pauses().pacing(now_s=lambda: next(times))
    async with bedrock(replies(*[refusal(429)] * 9), monkeypatch, pacing=pacing) as (model, server):
        with pytest.raises(UpstreamThrottled):
            await model.converse(REQUEST, lambda _: None)

    assert len(server.requests) == 2


async def test_a_call_that_may_have_been_processed_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = [b"", b"HTTP/1.1 200 ", HEAD, HEAD + chunk(events(START))]

    got = await endings(responses, monkeypatch, hang_up=True)

    assert [(kind, billed) for kind, billed, _ in got] == [(UpstreamFailed, True)] * len(responses)


async def test_a_connection_that_can_not_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(replies()) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
    pauses = Pauses()
    async with opened(pauses.pacing()) as model:
        with pytest.raises(UpstreamUnavailable) as caught:
            await model.converse(REQUEST, lambda _: None)

    assert (pauses, caught.value.billed) == ([0.5 * ceiling_s for ceiling_s in RETRY_CEILINGS_S], False)


async def test_the_environment_can_not_turn_botocores_own_retries_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    async with bedrock(replies(*[refusal(500)] * 9), monkeypatch) as (model, server):
        with pytest.raises(UpstreamFailed):
            await model.converse(REQUEST, lambda _: None)

    assert len(server.requests) == 1
