"""`OpenAICompatModel`: batches, what is tried again, what a refusal means and what the log may hold."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models import Frame
from service.models.openai_compat_errors import MAX_RETRY_AFTER_S
from service.models.retries import RETRY_CEILINGS_S
from tests.bedrock import FOREIGN, PROMPT, Pauses, in_turn
from tests.clock import ManualClock
from tests.openai_compat import (
    BEGIN,
    DONE,
    FINISH,
    HEAD,
    KEY,
    OK,
    REQUEST,
    START,
    STOP,
    answer,
    opened,
    refusal,
    said,
    serving,
)
from tests.scripted_http import END, certify, chunk, head, replies, scripted, sized

Ending = tuple[type[UpstreamError], bool, list[Frame]]


def says(text: str) -> Any:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def delta(text: str) -> Frame:
    return b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"%b"}}' % text.encode()


BLOCK_STOP: Frame = (b"contentBlockStop", b'{"contentBlockIndex":0}')


async def endings(responses: Sequence[bytes], *, tries: int = 1, hang_up: bool = False) -> list[Ending]:
    """Make a call for each response, and tell how it ends."""
    got: list[Ending] = []
    sent = [response for response in responses for _ in range(tries)]
    async with serving(in_turn(*sent, hang_up=hang_up)) as (model, server):
        for _ in responses:
            frames: list[Frame] = []
            with pytest.raises(UpstreamError) as caught:
                await model.converse(REQUEST, frames.extend)
            got.append((type(caught.value), caught.value.billed, frames))
    assert len(server.requests) == len(sent)
    return got


# -- what arrives


async def test_a_read_is_one_batch_of_all_that_it_completes() -> None:
    batches: list[Sequence[Frame]] = []
    parts = [
        said(BEGIN, says("Hel"), says("lo")) + b'data: {"choices":[{"index":0,"de',
        b'lta":{"content":"!"}}]}\n\n',
        b": ping\n\n",
        said(FINISH) + DONE,
    ]
    async with serving(replies([HEAD, *map(chunk, parts), END])) as (model, _):
        await model.converse(REQUEST, batches.append)

    assert batches == [[START, delta("Hel"), delta("lo")], [delta("!")], [BLOCK_STOP, STOP]]


async def test_what_is_generated_is_passed_on_in_utf8() -> None:
    frames: list[Frame] = []
    async with serving(replies(answer(said(BEGIN, says('日本 "q" \n'), FINISH) + DONE))) as (model, _):
        await model.converse(REQUEST, frames.extend)

    assert frames[1] == delta('日本 \\"q\\" \\n')


async def test_a_failure_in_the_stream_is_raised_after_the_frames_before_it_were_taken() -> None:
    happened: list[str] = []

    async def take() -> None:
        await asyncio.sleep(0)
        happened.append("taken")

    async with serving(replies(answer(said(BEGIN, {"error": {"code": 500}})))) as (model, _):
        with pytest.raises(UpstreamFailed):
            await model.converse(REQUEST, lambda _: take())
        happened.append("raised")

    assert happened == ["taken", "raised"]


@pytest.mark.promise("truncation-is-failure")
async def test_an_answer_that_is_damaged_or_not_whole_is_a_billed_failure() -> None:
    responses = [
        answer(),
        answer(said(BEGIN)),
        answer(said(BEGIN), DONE),
        answer(said(BEGIN, FINISH)),
        answer(said(BEGIN, FINISH), b"data: [DONE]\n"),
        answer(said(BEGIN), b"data: nonsense\n\n"),
        answer(said(BEGIN), b"data: " + b"x" * 2_000_000),
        answer(said(BEGIN, {"error": {"code": "rate_limit_exceeded"}})),
        sized(200, said(BEGIN, FINISH) + DONE, content_type="application/json"),
        sized(200, said(BEGIN, FINISH) + DONE),
        sized(202, b"{}"),
    ]

    got = await endings(responses)

    expected = [UpstreamFailed] * 7 + [UpstreamThrottled] + [UpstreamFailed] * 3
    assert [(kind, billed) for kind, billed, _ in got] == [(kind, True) for kind in expected]
    assert [frames for _, _, frames in got] == [
        *([], [START], [START], [START, STOP], [START, STOP], [START], [START], [START]),
        *([], [], []),
    ]


async def test_a_body_that_ends_with_its_connection_is_whole_with_done_and_not_without() -> None:
    unframed = head(content_type="text/event-stream", connection="close")
    frames: list[Frame] = []
    async with serving(in_turn(unframed + said(BEGIN, FINISH) + DONE, hang_up=True)) as (model, _):
        await model.converse(REQUEST, frames.extend)

    cut = await endings([unframed + said(BEGIN, FINISH)], hang_up=True)

    assert (frames, cut) == ([START, STOP], [(UpstreamFailed, True, [START, STOP])])


async def test_the_time_that_a_call_took_is_in_its_metadata() -> None:
    times = iter([0.0, 10.0, 10.25])
    frames: list[Frame] = []
    counts = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    pacing = Pauses().pacing(now_s=lambda: next(times))
    async with serving(replies(answer(said(BEGIN, FINISH, counts) + DONE)), pacing=pacing) as (model, _):
        await model.converse(REQUEST, frames.extend)

    assert json.loads(frames[-1][1])["metrics"] == {"latencyMs": 250}


# -- refusals

FOR_GOOD: dict[tuple[int, str], tuple[type[UpstreamError], bool]] = {
    (302, ""): (UpstreamMisconfigured, False),
    (400, ""): (UpstreamRejected, False),
    (400, "context_length_exceeded"): (UpstreamRejected, False),
    (400, "unsupported_parameter"): (UpstreamMisconfigured, False),
    (401, "invalid_api_key"): (UpstreamMisconfigured, False),
    (402, ""): (UpstreamMisconfigured, False),
    (403, ""): (UpstreamMisconfigured, False),
    (404, "model_not_found"): (UpstreamMisconfigured, False),
    (404, ""): (UpstreamMisconfigured, False),
    (408, ""): (UpstreamTimeout, True),
    (413, ""): (UpstreamRejected, False),
    (422, ""): (UpstreamRejected, False),
    (429, "insufficient_quota"): (UpstreamMisconfigured, False),
    (500, ""): (UpstreamFailed, True),
    (502, ""): (UpstreamFailed, True),
    (504, ""): (UpstreamTimeout, True),
}
FOR_NOW: dict[tuple[int, str], tuple[type[UpstreamError], bool]] = {
    (429, ""): (UpstreamThrottled, False),
    (429, "rate_limit_exceeded"): (UpstreamThrottled, False),
    (503, ""): (UpstreamUnavailable, False),
    (503, "unavailable_error"): (UpstreamUnavailable, False),
}


@pytest.mark.parametrize(("refusals", "tries"), [(FOR_GOOD, 1), (FOR_NOW, 3)], ids=["for good", "for now"])
async def test_each_refusal_is_the_error_of_its_code_or_else_of_its_status(
    refusals: dict[tuple[int, str], tuple[type[UpstreamError], bool]], tries: int
) -> None:
    responses = [refusal(status, {"code": code or None}) for status, code in refusals]

    got = await endings(responses, tries=tries)

    codes = {each: (kind.code, billed) for each, (kind, billed, _) in zip(refusals, got, strict=True)}
    assert codes == {each: (kind.code, billed) for each, (kind, billed) in refusals.items()}
    assert [frames for _, _, frames in got] == [[]] * len(refusals)


async def test_a_refusal_in_no_known_form_goes_by_its_status() -> None:
    bodies = [b"", b"<html>403</html>", b"[]", b'"text"', b"\xff", b'{"error":7}', b'{"error":{"code":[]}}']

    got = await endings([sized(403, body) for body in bodies])

    assert got == [(UpstreamMisconfigured, False, [])] * len(bodies)


async def test_the_type_of_llama_cpps_errors_counts_as_a_code() -> None:
    long = {"code": 400, "message": FOREIGN, "type": "exceed_context_size_error"}
    unable = {"code": 500, "message": FOREIGN, "type": "not_supported_error"}

    got = await endings([refusal(400, long), refusal(500, unable)])

    assert got == [(UpstreamRejected, False, []), (UpstreamMisconfigured, False, [])]


async def test_a_document_is_refused_before_anything_is_sent() -> None:
    document = {"document": {"format": "pdf", "name": "a", "source": {"bytes": "AAAA"}}}
    request = REQUEST._replace(messages=[{"role": "user", "content": [document]}])
    async with serving(replies(OK)) as (model, server):
        with pytest.raises(UpstreamRejected, match="no documents") as caught:
            await model.converse(request, lambda _: None)

    assert (caught.value.billed, server.connections) == (False, 0)


# -- retries


async def test_what_was_refused_for_now_is_tried_again_with_jitter() -> None:
    pauses, frames = Pauses(), list[Frame]()
    responses = [refusal(429, retry_after="0"), refusal(503), OK]
    async with serving(in_turn(*responses), pacing=pauses.pacing()) as (model, server):
        await model.converse(REQUEST, frames.extend)

    assert (pauses, frames) == ([0.5 * ceiling_s for ceiling_s in RETRY_CEILINGS_S], [START, STOP])
    assert len({request.body for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("header", "retry_after_s"),
    [("20", 20.0), ("1.5", 1.5), ("999999", MAX_RETRY_AFTER_S)],
)
async def test_an_upstream_that_wants_to_be_left_alone_is_not_asked_again(
    header: str, retry_after_s: float
) -> None:
    async with serving(replies(*[refusal(429, retry_after=header)] * 9)) as (model, server):
        with pytest.raises(UpstreamThrottled) as caught:
            await model.converse(REQUEST, lambda _: None)

    assert (len(server.requests), caught.value.retry_after_s) == (1, retry_after_s)


@pytest.mark.parametrize("header", ["soon", "-1", "1e9", "", "Sat, 21 Nov 2026 20:00:00 GMT"])
async def test_a_time_that_can_not_be_read_is_none(header: str) -> None:
    async with serving(replies(*[refusal(429, retry_after=header)] * 9)) as (model, server):
        with pytest.raises(UpstreamThrottled) as caught:
            await model.converse(REQUEST, lambda _: None)

    assert (len(server.requests), caught.value.retry_after_s) == (3, None)


async def test_a_call_that_may_have_been_processed_is_sent_once() -> None:
    responses = [b"", b"HTTP/1.1 200 ", HEAD, HEAD + chunk(said(BEGIN)), refusal(500)]

    got = await endings(responses, hang_up=True)

    assert [(kind, billed) for kind, billed, _ in got] == [(UpstreamFailed, True)] * len(responses)


async def test_a_connection_that_can_not_be_made_is_tried_again() -> None:
    async with scripted(replies()) as server:
        pass
    pauses = Pauses()
    async with opened(server.url, pacing=pauses.pacing()) as model:
        with pytest.raises(UpstreamUnavailable) as caught:
            await model.converse(REQUEST, lambda _: None)

    assert (pauses, caught.value.billed) == ([0.5 * ceiling_s for ceiling_s in RETRY_CEILINGS_S], False)


async def test_a_connection_is_used_again_and_closed_before_the_server_would(clock: ManualClock) -> None:
    async with serving(in_turn(OK, OK, OK)) as (model, server):
        await model.converse(REQUEST, lambda _: None)
        await clock.advance(3.9)
        await model.converse(REQUEST, lambda _: None)
        soon = server.connections
        await clock.advance(4.1)
        await model.converse(REQUEST, lambda _: None)

    assert (soon, server.connections) == (1, 2)


# -- what nobody may see


@pytest.mark.promise("keys-stay-private")
@pytest.mark.promise("no-content-in-logs")
@pytest.mark.parametrize(
    ("response", "code"),
    [
        (refusal(400, {"code": "context_length_exceeded"}), "context_length_exceeded"),
        (refusal(400, {"code": FOREIGN}), "invalid_request_error"),
        (refusal(400, {"code": FOREIGN, "type": FOREIGN}), "400"),
        (answer(said(BEGIN, {"error": {"message": FOREIGN, "code": 500}})), "500"),
        (answer(said(BEGIN, {"error": {"message": FOREIGN, "code": FOREIGN}})), ""),
        (answer(said(BEGIN), b"data: " + FOREIGN.encode() + b"\n\n"), "JSONDecodeError"),
    ],
)
async def test_a_failure_is_logged_by_code_and_request_id_and_without_any_text(
    response: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(replies(response), key=KEY) as (model, server):
        with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamError) as caught:
            await model.converse(REQUEST, lambda _: None)

    failure = caught.value
    (record,) = [each for each in caplog.records if each.name.startswith("service.")]
    fields = ("upstream", "model_id", "problem", "billed", "upstream_code", "upstream_request_id")
    assert (record.levelname, record.getMessage()) == ("WARNING", "model call failed")
    assert {name: getattr(record, name) for name in fields} == {
        "upstream": "vllm",
        "model_id": "qwen",
        "problem": failure.code,
        "billed": failure.billed,
        "upstream_code": code,
        "upstream_request_id": "req-7",
    }
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    everything = "".join(str(vars(each)) for each in caplog.records) + failure.detail + str(failure.problem())
    assert not [secret for secret in (FOREIGN, PROMPT, KEY) if secret in everything]


async def test_a_request_id_that_is_no_id_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(replies(sized(400, b"", x_request_id=FOREIGN))) as (model, _):
        with pytest.raises(UpstreamRejected):
            await model.converse(REQUEST, lambda _: None)

    assert [vars(record)["upstream_request_id"] for record in caplog.records] == [""]


# -- TLS


async def test_the_certificate_of_an_https_server_must_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_tls, ca_file = certify(tmp_path)
    frames: list[Frame] = []
    async with scripted(replies(OK), tls=server_tls) as server:
        async with opened(server.url) as model:
            with pytest.raises(UpstreamMisconfigured) as caught:
                await model.converse(REQUEST, lambda _: None)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        async with opened(server.url) as model:
            await model.converse(REQUEST, frames.extend)

    assert (caught.value.billed, frames) == (False, [START, STOP])
