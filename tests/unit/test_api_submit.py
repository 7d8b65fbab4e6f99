"""Submitting: the answer as a stream in both formats, or as a record; paths, headers and browsers."""

import json
import re

import pytest

from tests.asgi import Answer
from tests.clock import ManualClock
from tests.fakes import answer
from tests.harness import INVOCATIONS, serving
from tests.sse import events_of, kinds_of

SESSION = "X_Amzn_Bedrock_AgentCore_Runtime_Session_Id"
KINDS = [
    "invocationStarted",
    "messageStart",
    "contentBlockDelta",
    "contentBlockDelta",
    "contentBlockStop",
    "messageStop",
    "metadata",
    "invocationCompleted",
]
USAGE = {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}


def ndjson_of(answer: Answer) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.body.splitlines()]


def invocation_id_of(answer: Answer) -> str:
    return answer.headers["location"].rpartition("/")[2]


@pytest.mark.promise("bytes-pass-through")
async def test_a_submission_is_answered_as_server_sent_events(clock: ManualClock) -> None:
    async with serving(clock, answer("A head", "race.")) as served:
        got = await served.submit()

    invocation_id = invocation_id_of(got)
    assert re.fullmatch(r"inv_[0-9A-HJKMNP-TV-Z]{26}", invocation_id)
    assert got.body.decode() == (
        ": connected\n"
        "id: 1.1\nevent: invocationStarted\n"
        f'data: {{"invocationStarted":{{"invocationId":"{invocation_id}",'
        '"runtimeId":"writer","attempt":1,"models":["bedrock/model-1"]}}\n\n'
        'id: 1.2\nevent: messageStart\ndata: {"messageStart":{"role":"assistant"}}\n\n'
        "id: 1.3\nevent: contentBlockDelta\n"
        'data: {"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"A head"}}}\n\n'
        "id: 1.4\nevent: contentBlockDelta\n"
        'data: {"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"race."}}}\n\n'
        'id: 1.5\nevent: contentBlockStop\ndata: {"contentBlockStop":{"contentBlockIndex":0}}\n\n'
        'id: 1.6\nevent: messageStop\ndata: {"messageStop":{"stopReason":"end_turn"}}\n\n'
        'id: 1.7\nevent: metadata\ndata: {"metadata":{"usage":{"inputTokens":10,"outputTokens":5,'
        '"totalTokens":15},"metrics":{"latencyMs":1}}}\n\n'
        'id: 1.8\nevent: invocationCompleted\ndata: {"invocationCompleted":{"stopReason":"end_turn","usage":'
        '{"inputTokens":10,"outputTokens":5,"cacheReadInputTokens":0,"cacheWriteInputTokens":0}}}\n\n'
    )


async def test_the_headers_of_a_stream_keep_proxies_and_browsers_from_spoiling_it(clock: ManualClock) -> None:
    async with serving(clock) as served:
        got = await served.submit(x_request_id="request-12345")

    assert (got.status, got.headers) == (
        200,
        {
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "location": f"{INVOCATIONS}/{invocation_id_of(got)}",
            "content-type": "text/event-stream",
            "vary": "Origin",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
            "strict-transport-security": "max-age=63072000; includeSubDomains",
            "x-request-id": "request-12345",
        },
    )


@pytest.mark.promise("two-encodings-one-log")
async def test_ndjson_has_the_events_of_the_event_stream_with_the_same_ids(clock: ManualClock) -> None:
    async with serving(clock) as served:
        submitted = await served.submit(accept="application/x-ndjson")
        async with served.follow(submitted.headers["location"]) as exchange:
            followed = await exchange.whole()

    connected, *lines = ndjson_of(submitted)
    assert submitted.headers["content-type"] == "application/x-ndjson"
    assert connected == {"heartbeat": {"phase": "connected"}}
    assert [(line.pop("id"), line) for line in lines] == events_of(followed.body)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/event-stream"),
        ("", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("TEXT/Event-Stream; charset=utf-8", "text/event-stream"),
        ("application/json, text/event-stream;q=0.5", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/x-ndjson, text/event-stream", "application/x-ndjson"),
        ("text/event-stream;q=0, application/x-ndjson;q=0.1", "application/x-ndjson"),
        ("application/*", "application/x-ndjson"),
    ],
)
async def test_accept_chooses_the_format(clock: ManualClock, accept: str, media_type: str) -> None:
    async with serving(clock) as served:
        got = await served.submit(accept=accept)

    assert (got.status, got.headers["content-type"]) == (200, media_type)


async def test_the_record_of_a_finished_invocation_shows_how_it_went(clock: ManualClock) -> None:
    async with serving(clock) as served:
        submitted = await served.submit(**{SESSION: "session-1"})
        got = await served.get(submitted.headers["location"])

    invocation_id = invocation_id_of(submitted)
    assert (got.status, got.headers["content-type"], got.headers["cache-control"]) == (
        200,
        "application/json",
        "no-store",
    )
    assert got.json() == {
        "invocationId": invocation_id,
        "runtimeId": "writer",
        "sessionId": "session-1",
        "state": "completed",
        "attempts": [
            {"attempt": 1, "startedAt": "2026-11-21T16:40:00.000Z", "lastEventId": "1.8", "end": "finished"}
        ],
        "createdAt": "2026-11-21T16:40:00.000Z",
        "updatedAt": "2026-11-21T16:40:00.000Z",
        "deadlineAt": "2026-11-21T16:50:00.000Z",
        "finishedAt": "2026-11-21T16:40:00.000Z",
        "usage": USAGE,
        "models": ["bedrock/model-1"],
        "tried": [{"model": "bedrock/model-1", "calls": 1}],
        "events": f"{INVOCATIONS}/{invocation_id}/events",
        "terminalEvent": {
            "id": "1.8",
            "invocationCompleted": {"stopReason": "end_turn", "usage": USAGE},
        },
        "result": {"text": "A headrace carries water."},
    }


async def test_respond_async_answers_with_the_record_and_the_job_can_be_followed(clock: ManualClock) -> None:
    async with serving(clock) as served:
        submitted = await served.submit(
            prefer="wait=10, respond-async", accept="text/html", **{SESSION: "session-1"}
        )
        async with served.follow(submitted.headers["location"]) as exchange:
            followed = await exchange.whole()

    location = submitted.headers["location"]
    assert (submitted.status, submitted.headers["content-type"]) == (202, "application/json")
    assert submitted.headers["preference-applied"] == "respond-async"
    assert submitted.headers["x-amzn-bedrock-agentcore-runtime-session-id"] == "session-1"
    assert submitted.json() == {
        "invocationId": location.rpartition("/")[2],
        "runtimeId": "writer",
        "sessionId": "session-1",
        "state": "running",
        "attempts": [
            {"attempt": 1, "startedAt": "2026-11-21T16:40:00.000Z", "lastEventId": None, "end": None}
        ],
        "createdAt": "2026-11-21T16:40:00.000Z",
        "updatedAt": "2026-11-21T16:40:00.000Z",
        "deadlineAt": "2026-11-21T16:50:00.000Z",
        "finishedAt": None,
        "usage": dict.fromkeys(USAGE, 0),
        "models": ["bedrock/model-1"],
        "tried": [],
        "events": f"{location}/events",
    }
    assert kinds_of(followed.body) == KINDS


async def test_the_session_id_is_echoed_and_absent_where_none_was_given(clock: ManualClock) -> None:
    async with serving(clock) as served:
        with_session = await served.submit(**{SESSION: "a.b:c_d-e"})
        without = await served.submit()

    assert with_session.headers["x-amzn-bedrock-agentcore-runtime-session-id"] == "a.b:c_d-e"
    assert "x-amzn-bedrock-agentcore-runtime-session-id" not in without.headers


@pytest.mark.parametrize(
    "path",
    [
        "/prod/runtimes/writer/invocations",
        "/runtimes/arn%3Aaws%3Abedrock-agentcore%3Aeu-west-1%3A1%3Aruntime%2Fwriter/invocations?qualifier=DEFAULT",
        "/prod/runtimes/arn%3Aaws%3Ax%3A%3Aruntime%2Fwriter/invocations",
    ],
)
async def test_a_stage_and_an_encoded_arn_lead_to_the_runtime(clock: ManualClock, path: str) -> None:
    async with serving(clock) as served:
        got = await served.submit(path=path)
        record = await served.get(f"/prod{got.headers['location']}")

    assert (got.status, record.status, record.json()["runtimeId"]) == (200, 200, "writer")


async def test_the_prompt_limit_and_metadata_reach_the_model(clock: ManualClock) -> None:
    async with serving(clock) as served:
        job = {"prompt": "Hi", "maxTokens": 7, "requestMetadata": {"team": "search"}}
        submitted = await served.submit(job)

    (request,) = served.model.requests
    assert list(request.messages) == [{"role": "user", "content": [{"text": "Hi"}]}]
    assert (request.model_id, request.system, request.max_tokens) == ("model-1", "Be brief.", 7)
    call_id = f"{invocation_id_of(submitted)}:1:1"
    assert dict(request.request_metadata) == {"team": "search", "headrace:call": call_id}


async def test_the_callers_invocations_are_listed_newest_first_in_pages(clock: ManualClock) -> None:
    async with serving(clock) as served:
        ids = []
        for _ in range(3):
            ids.append(invocation_id_of(await served.submit()))
            await clock.advance(1)
        first = (await served.get(f"{INVOCATIONS}?limit=2")).json()
        second = (await served.get(first["next"])).json()

    assert [record["invocationId"] for record in first["invocations"]] == [ids[2], ids[1]]
    assert first["next"] == f"{INVOCATIONS}?limit=2&before={ids[1]}"
    assert [record["invocationId"] for record in second["invocations"]] == [ids[0]]
    assert second.keys() == {"invocations"}


async def test_a_result_that_is_too_long_for_a_record_is_cut_and_says_so(clock: ManualClock) -> None:
    half = "é" * (600 * 1024)
    async with serving(clock, answer(half, half)) as served:
        submitted = await served.submit()
        result = (await served.get(submitted.headers["location"])).json()["result"]

    assert result == {"text": "é" * (512 * 1024), "truncated": True}


async def test_a_character_that_the_model_sent_in_two_halves_is_whole_in_the_record(
    clock: ManualClock,
) -> None:
    async with serving(clock, answer("a \ud83d", "\udca7 and \ud83d", " half")) as served:
        submitted = await served.submit()
        record = await served.get(submitted.headers["location"])

    assert record.json()["result"] == {"text": "a 💧 and \ufffd half"}


# -- browsers


async def test_a_preflight_needs_no_token(clock: ManualClock) -> None:
    async with serving(clock, settings={"cors_origins": ("https://app.example.com",)}) as served:
        got = await served.client.request(
            "OPTIONS",
            INVOCATIONS,
            headers={
                "origin": "https://app.example.com",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type,last-event-id,prefer",
            },
        )

    assert got.status == 200
    assert got.headers["access-control-allow-origin"] == "https://app.example.com"
    assert got.headers["access-control-allow-methods"] == "GET, POST"
    assert got.headers["access-control-max-age"] == "600"
    assert got.headers["access-control-allow-headers"] == (
        "Accept, Accept-Language, Authorization, Content-Language, Content-Type, Idempotency-Key, "
        "Last-Event-ID, Prefer, X-Amzn-Bedrock-AgentCore-Runtime-Session-Id, X-Request-Id"
    )


@pytest.mark.parametrize("origins", [(), ("https://app.example.com",)], ids=["no origins", "another"])
async def test_a_preflight_from_an_origin_that_is_not_configured_is_refused(
    clock: ManualClock, origins: tuple[str, ...]
) -> None:
    async with serving(clock, settings={"cors_origins": origins}) as served:
        headers = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
        got = await served.client.request("OPTIONS", INVOCATIONS, headers=headers)

    assert got.status == 400
    assert "access-control-allow-origin" not in got.headers


async def test_a_page_of_a_configured_origin_may_read_the_headers_it_needs(clock: ManualClock) -> None:
    async with serving(clock, settings={"cors_origins": ("https://app.example.com",)}) as served:
        for got in (
            await served.submit(origin="https://app.example.com"),
            await served.submit({}, origin="https://app.example.com"),
        ):
            assert got.headers["access-control-allow-origin"] == "https://app.example.com"
            assert got.headers["access-control-expose-headers"] == (
                "Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id, "
                "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
            )
            assert got.headers["vary"] == "Origin"


# -- what else can be asked


async def test_runtimes_lists_what_the_callers_groups_may_invoke(clock: ManualClock) -> None:
    async with serving(clock) as served:
        listed = (await served.get("/runtimes")).json()

    assert listed == {
        "runtimes": [
            {
                "runtimeId": runtime_id,
                "kind": "converse",
                "maxOutputTokens": max_output_tokens,
                "deadlineSeconds": deadline_s,
                "invocations": f"/runtimes/{runtime_id}/invocations",
            }
            for runtime_id, max_output_tokens, deadline_s in (
                ("writer", 1000, 600),
                ("reckoner", 4096, 3600),
            )
        ]
    }


async def test_the_health_checks_need_no_token(clock: ManualClock) -> None:
    async with serving(clock) as served:
        ping, ready = [await served.client.request("GET", path) for path in ("/ping", "/ready")]

    assert (ping.status, ping.json()) == (200, {"status": "Healthy", "time_of_last_update": 1795279200})
    assert (ready.status, ready.json()) == (200, {"ready": True})
