"""Bad input: each kind gets its problem document, before anything is admitted or held."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import (
    BodyTooLarge,
    HeadraceError,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    Unauthenticated,
    UnsupportedMediaType,
)
from tests.asgi import Answer
from tests.clock import ManualClock
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import ABSENT, NOW_S, SECOND_KEY, bearer, rs256

LARGEST = """
[runtimes.archivist]
kind = "converse"
model = "bedrock/model-1"
body_limit_bytes = 10_000_000
"""
NO_TOKENS = {"inputTokens": 0, "outputTokens": 0, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}
NOTHING_USED = {
    "windows": [
        {
            "name": "daily",
            "windowSeconds": 86_400,
            "limit": 20_000,
            "used": 0,
            "usage": NO_TOKENS,
            "reserved": 0,
            "remaining": 20_000,
            "resetsAt": "2026-11-21T16:40:00.000Z",
        },
        {
            "name": "monthly",
            "windowSeconds": 30 * 86_400,
            "limit": 100_000,
            "used": 0,
            "usage": NO_TOKENS,
            "reserved": 0,
            "remaining": 100_000,
            "resetsAt": "2026-12-01T00:00:00.000Z",
        },
    ],
    "runningInvocations": 0,
    "concurrentInvocations": 3,
}
NO_RUNTIME = NotFound("No runtime with this id is yours to call: GET /runtimes lists those that are.")


@pytest.fixture
async def served(clock: ManualClock) -> AsyncIterator[Served]:
    async with serving(clock, catalog=LARGEST) as served:
        yield served


async def check_refused(served: Served, answer: Answer, error: HeadraceError) -> None:
    """The answer is this error's problem document, and the caller's account is as it was."""
    assert (answer.status, answer.json()) == (error.status, error.problem())
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "create_invocation" not in served.store.calls
    assert served.model.requests == []
    assert (await served.get("/usage")).json() == NOTHING_USED


async def test_a_problem_document_has_these_members_and_no_other(served: Served) -> None:
    answer = await served.submit({"prompt": ""})

    assert answer.json() == {
        "type": "urn:headrace:problem:invalid-request",
        "title": "The request is not valid",
        "status": 400,
        "code": "invalid-request",
        "detail": "/prompt must be a string that is not blank.",
    }


@pytest.mark.promise("id-token-only", "problem-documents-everywhere")
@pytest.mark.parametrize(
    ("authorization", "detail"),
    [
        pytest.param(
            "",
            "There is no Authorization header; send 'Authorization: Bearer' and the ID token.",
            id="none",
        ),
        pytest.param(
            "Basic bWFyeTpwYXNz",
            "The Authorization header must be 'Bearer', one space and the ID token.",
            id="basic",
        ),
        pytest.param(
            bearer({"token_use": "access", "aud": ABSENT, "client_id": "1example23456789"}),
            "This is not an ID token; send the ID token of the sign-in, not the access token.",
            id="access token",
        ),
        pytest.param(
            bearer({"iat": NOW_S - 3700, "exp": NOW_S - 100}),
            "The token has expired; get a new ID token by refreshing or signing in again.",
            id="expired",
        ),
        pytest.param(
            bearer({"aud": "another-client"}),
            "The token is for another app client; sign in through one of this deployment's.",
            id="another audience",
        ),
        pytest.param(
            bearer({"iss": "https://issuer.example.com"}),
            "The token comes from another issuer; sign in to this deployment's user pool.",
            id="another issuer",
        ),
        pytest.param(
            bearer(sign=rs256(SECOND_KEY)),
            "The token's signature is wrong; send the ID token exactly as it was issued.",
            id="forged signature",
        ),
        pytest.param(
            bearer(header={"kid": "key-9"}),
            "The token is signed with a key that its issuer does not publish; get a new ID token.",
            id="unknown key",
        ),
    ],
)
async def test_a_token_that_is_not_a_good_id_token_is_401(
    served: Served, authorization: str, detail: str
) -> None:
    answer = await served.submit(authorization=authorization)

    await check_refused(served, answer, Unauthenticated(detail))
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    [
        "/runtimes",
        "/usage",
        INVOCATIONS,
        f"{INVOCATIONS}/inv_01M7ZFN7R0DEKQPPYYZEATJKX8",
        f"{INVOCATIONS}/inv_01M7ZFN7R0DEKQPPYYZEATJKX8/events",
        "/runtimes/unknown/invocations",
    ],
)
async def test_every_route_asks_for_a_token_before_it_says_anything(served: Served, path: str) -> None:
    answer = await served.client.request("GET", path)

    detail = "There is no Authorization header; send 'Authorization: Bearer' and the ID token."
    assert (answer.status, answer.json()) == (401, Unauthenticated(detail).problem())
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.promise("bad-input-refused", "problem-documents-everywhere")
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        pytest.param(
            b'{"prompt": ',
            "The body is not valid JSON: the parser stopped at line 1, column 12. Send UTF-8 without a byte "
            "order mark, NaN, Infinity or unpaired surrogates, nested at most 64 deep.",
            id="invalid JSON",
        ),
        pytest.param(b'["prompt"]', "The body must be an object.", id="a list"),
        pytest.param({"prompt": 7}, "/prompt must be a string that is not blank.", id="a number"),
        pytest.param({"prompt": " \n"}, "/prompt must be a string that is not blank.", id="a blank prompt"),
        pytest.param(
            {"prompt": "Hi", "temperature": 1},
            "/temperature is not accepted: the members known there are prompt, messages, maxTokens, "
            "requestMetadata.",
            id="an unknown member",
        ),
        pytest.param(
            {}, "Send exactly one of /prompt (text) and /messages (a conversation).", id="nothing to do"
        ),
        pytest.param(
            {"prompt": "Hi", "maxTokens": 1001},
            "/maxTokens must be a whole number from 1 to 1000.",
            id="maxTokens over the limit",
        ),
        pytest.param(
            {"prompt": "Hi", "maxTokens": "10"},
            "/maxTokens must be a whole number from 1 to 1000.",
            id="maxTokens as text",
        ),
        pytest.param(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"image": {"format": "png", "source": {"s3Location": {}}}}],
                    }
                ]
            },
            "/messages/0/content/0/image/source/s3Location is not accepted: send the content itself, in "
            "base64, as bytes.",
            id="an S3 location",
        ),
        pytest.param(
            {"prompt": "Hi", "requestMetadata": {"headrace:sub": "me"}},
            "/requestMetadata/headrace:sub is not accepted: names that begin with headrace are ours.",
            id="metadata that is ours",
        ),
    ],
)
async def test_a_body_that_is_not_documented_is_400(served: Served, body: Any, detail: str) -> None:
    answer = await served.submit(body)

    await check_refused(served, answer, InvalidRequest(detail))


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("headers", "error"),
    [
        (
            {"content_type": "text/plain"},
            UnsupportedMediaType("Send the job as JSON with Content-Type: application/json."),
        ),
        (
            {"accept": "application/json"},
            NotAcceptable("Accept text/event-stream or application/x-ndjson, or send Prefer: respond-async."),
        ),
        (
            {"X_Amzn_Bedrock_AgentCore_Runtime_Session_Id": "no spaces"},
            InvalidRequest(
                "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id must have 1 to 256 letters, digits, or any of"
                " . _ : -"
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_header_that_is_not_documented_is_refused(
    served: Served, headers: dict[str, str], error: HeadraceError
) -> None:
    answer = await served.submit(**headers)

    await check_refused(served, answer, error)


@pytest.mark.promise("group-only")
@pytest.mark.parametrize("runtime_id", ["unknown", "editor"])
async def test_a_runtime_that_is_not_there_and_one_of_other_groups_are_the_same_404(
    served: Served, runtime_id: str
) -> None:
    for answer in (
        await served.submit(path=f"/runtimes/{runtime_id}/invocations"),
        await served.get(f"/runtimes/{runtime_id}/invocations"),
        await served.get(f"/runtimes/{runtime_id}/invocations/inv_01M7ZFN7R0DEKQPPYYZEATJKX8/events"),
    ):
        await check_refused(served, answer, NO_RUNTIME)


@pytest.mark.promise("body-limit-while-reading")
@pytest.mark.parametrize(("runtime_id", "limit_bytes"), [("writer", 256 * 1024), ("archivist", 10_000_000)])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_a_body_one_byte_over_its_runtimes_limit_is_413(
    served: Served, runtime_id: str, limit_bytes: int, declared: bool
) -> None:
    head, tail = b'{"prompt":"', b'"}'
    body = head + b"a" * (limit_bytes + 1 - len(head) - len(tail)) + tail
    headers = {"content_length": str(len(body))} if declared else {}

    answer = await served.submit(body, f"/runtimes/{runtime_id}/invocations", **headers)

    error = BodyTooLarge(f"This path takes bodies of at most {limit_bytes} bytes.")
    await check_refused(served, answer, error)
    assert "connection" not in answer.headers  # cut off in mid-body, many clients would never read the answer


async def test_a_client_that_waits_to_send_a_body_that_is_too_large_is_hung_up_on(served: Served) -> None:
    answer = await served.submit(b"a" * 300_000, content_length="300000", expect="100-continue")

    assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_a_body_at_the_limit_passes_the_limit(served: Served) -> None:
    body = b'{"prompt":"' + b"a" * (256 * 1024 - 13) + b'"}'

    answer = await served.submit(body)

    assert (answer.status, answer.json()["code"]) == (422, "budget-exceeded")


async def test_bodies_in_reading_share_a_limit_beyond_which_the_service_sheds(clock: ManualClock) -> None:
    async with serving(clock, catalog="[service]\nbodies_being_read_bytes = 10") as served:
        answer = await served.submit()

    assert (answer.status, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.promise("problem-documents-everywhere")
async def test_a_path_that_is_no_route_is_404(served: Served) -> None:
    for path in ("/", "/runtimes/writer", "/usage/", f"{INVOCATIONS}/x/y"):
        answer = await served.get(path)

        await check_refused(served, answer, NotFound("No route has this path."))


@pytest.mark.promise("problem-documents-everywhere")
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", INVOCATIONS, "GET, HEAD, POST"),
        ("OPTIONS", INVOCATIONS, "GET, HEAD, POST"),
        ("POST", "/usage", "GET, HEAD"),
        ("HEAD", f"{INVOCATIONS}/inv_01M7ZFN7R0DEKQPPYYZEATJKX8/events", "GET"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_405_and_told_those_it_has(
    served: Served, method: str, path: str, allowed: str
) -> None:
    answer = await served.client.request(method, path)

    await check_refused(served, answer, MethodNotAllowed())
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("limit", ["0", "101", "x", "-1", "٣", "", "9" * 5000])
async def test_a_page_size_that_is_not_from_1_to_100_is_400(served: Served, limit: str) -> None:
    answer = await served.get(f"{INVOCATIONS}?limit={limit}")

    await check_refused(served, answer, InvalidRequest("limit must be a number from 1 to 100."))


async def test_a_page_begins_before_an_invocation_id(served: Served) -> None:
    answer = await served.get(f"{INVOCATIONS}?before=yesterday")

    error = InvalidRequest("before must be an invocation id: the last one of the page before.")
    await check_refused(served, answer, error)


async def test_a_caller_that_leaves_while_it_sends_its_body_starts_nothing(served: Served) -> None:
    async with served.client.stream(
        "POST", INVOCATIONS, headers={"authorization": bearer()}, body=[]
    ) as exchange:
        exchange._request.clear()
        await served.clock.advance(0)

    assert "create_invocation" not in served.store.calls
    assert served.lines.requests[-1]["code"] == "invalid-request"


async def test_a_body_that_does_not_arrive_gives_its_room_back(clock: ManualClock) -> None:
    async with serving(clock, catalog="[service]\nbodies_being_read_bytes = 60") as served:
        slow = served.client.stream(
            "POST", INVOCATIONS, body=[b'{"prompt":', asyncio.Event()], headers={"authorization": bearer()}
        )
        async with slow as exchange:
            await clock.advance(30)
            answer = await exchange.whole()
        after = await served.submit()

    assert (answer.status, answer.json()["detail"]) == (400, "The body did not arrive within 30 s.")
    assert after.status == 200
