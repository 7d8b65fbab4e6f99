"""What every request meets: its route, its id and log line, security headers, limits of its body."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.edge_answer import Answer
from service.edge_request import Bodies, Request, segments_of
from service.errors import BodyTooLarge, InternalError, Overloaded
from tests.asgi import AsgiClient
from tests.routing import edge


async def reads_all(request: Request) -> Answer:
    """Answer with the number of bytes that were read."""
    body = await request.body(1000, Bodies(1000))
    return Answer(200, [], b"%d" % len(body))


async def shows_ids(request: Request) -> Answer:
    return Answer(200, [], ",".join(request.segments[1::2]).encode())


def reading(lines: list[Mapping[str, Any]] | None = None) -> AsgiClient:
    return AsgiClient(edge({"/usage": {"POST": reads_all}}, [] if lines is None else lines))


# -- paths


@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        ("/runtimes/writer/invocations", "/runtimes/writer/invocations"),
        ("/prod/runtimes/writer/invocations", "/runtimes/writer/invocations"),
        ("/prod/usage", "/usage"),
        ("/usage", "/usage"),
        ("/", "/"),
        ("/runtimes", "/runtimes"),
        ("/runtimes/usage", "/runtimes/usage"),
        ("/usage/runtimes/x", "/usage/runtimes/x"),
        ("/prod/other", "/prod/other"),
        (
            "/runtimes/arn%3Aaws%3Abedrock-agentcore%3Aeu-west-1%3A1%3Aruntime%2Fwriter/invocations?qualifier=DEFAULT",
            "/runtimes/writer/invocations",
        ),
        (
            "/v1/runtimes/arn%3Aaws%3Ax%2Fwriter/invocations/inv_1/events",
            "/runtimes/writer/invocations/inv_1/events",
        ),
        ("/runtimes/writer/invocations/inv%5F1", "/runtimes/writer/invocations/inv_1"),
    ],
)
def test_paths_come_in_the_form_that_the_routes_know(raw_path: str, path: str) -> None:
    segments, _ = segments_of(raw_path)

    assert "/" + "/".join(segments) == path


async def test_a_stage_prefix_is_dropped_on_the_way() -> None:
    routes = {"/runtimes/{runtime_id}/invocations/{invocation_id}": {"GET": shows_ids}}

    answer = await AsgiClient(edge(routes, [])).request("GET", "/prod/runtimes/writer/invocations/inv_1")

    assert answer.body == b"writer,inv_1"


async def test_a_log_line_says_that_a_stage_was_in_the_path() -> None:
    lines: list[Mapping[str, Any]] = []
    client = AsgiClient(edge({"/usage": {"GET": shows_ids}}, lines))

    for path in ("/prod/usage", "/usage"):
        await client.request("GET", path)

    assert [line.get("prefixed") for line in lines] == [True, None]


@pytest.mark.parametrize("path", ["/runtimes//invocations", "/runtimes/writer/invocations/", "/usage/"])
async def test_an_id_that_is_empty_is_no_route(path: str) -> None:
    routes = {
        template: {"GET": shows_ids}
        for template in (
            "/usage",
            "/runtimes/{runtime_id}/invocations",
            "/runtimes/{runtime_id}/invocations/{invocation_id}",
        )
    }

    answer = await AsgiClient(edge(routes, [])).request("GET", path)

    assert answer.status == 404


# -- bodies


async def read(pieces: list[bytes], bodies: Bodies, **headers: str) -> tuple[bytes, int]:
    """Read a body of at most ten bytes; gives it, and how many pieces were left unread."""
    left = list(pieces)

    async def receive() -> Message:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": "/usage", "query_string": b"", "headers": named}
    try:
        return await Request(scope, receive).body(10, bodies), len(left)
    except BodyTooLarge as refusal:
        return refusal.code.encode(), len(left)


async def test_a_body_at_the_limit_is_read() -> None:
    assert await read([b"12345", b"67890"], Bodies(100)) == (b"1234567890", 0)


@pytest.mark.promise("body-limit-while-reading")
async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    assert await read([b"1"] * 11, Bodies(100), content_length="11") == (b"body-too-large", 11)


@pytest.mark.promise("body-limit-while-reading")
async def test_a_body_that_grows_too_large_is_refused_at_the_limit() -> None:
    assert await read([b"1234"] * 1000, Bodies(100)) == (b"body-too-large", 997)


async def test_bodies_in_reading_share_a_bound_that_is_given_back() -> None:
    bodies = Bodies(9)

    for _ in range(2):
        with pytest.raises(Overloaded):
            await read([b"12345", b"67890"], bodies)
        assert await read([b"123456789"], bodies) == (b"123456789", 0)


# -- what every answer has


async def test_every_answer_has_an_id_and_the_security_headers_and_one_line() -> None:
    lines: list[Mapping[str, Any]] = []

    answer = await reading(lines).request(
        "POST", "/usage", body=b"123", headers={"X-Request-Id": "abc-12345"}
    )

    assert answer.headers == {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "strict-transport-security": "max-age=63072000; includeSubDomains",
        "vary": "Origin",
        "x-request-id": "abc-12345",
    }
    (line,) = lines
    assert {name: line[name] for name in ("request_id", "method", "status", "bytes_out", "operation")} == {
        "request_id": "abc-12345",
        "method": "POST",
        "status": 200,
        "bytes_out": 1,
        "operation": "reads_all",
    }


@pytest.mark.parametrize("given", ["", "short", "a b c d e f g h", "x" * 129, "line\x1fbreak1"])
async def test_a_request_id_that_could_spoil_a_log_is_replaced(given: str) -> None:
    answer = await reading().request("POST", "/usage", headers={"X-Request-Id": given})

    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_request_that_fails_is_answered_logged_once_and_has_its_line_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(_: Request) -> Answer:
        raise RuntimeError

    lines: list[Mapping[str, Any]] = []

    answer = await AsgiClient(edge({"/usage": {"GET": fails}}, lines, ["https://app"])).request(
        "GET", "/usage", headers={"origin": "https://app"}
    )

    assert (answer.status, answer.json()["code"]) == (500, InternalError.code)
    assert answer.headers["access-control-allow-origin"] == "https://app"
    assert [(line["status"], line["code"]) for line in lines] == [(500, "internal-error")]
    assert [record.getMessage() for record in caplog.records] == ["request failed"]


async def test_a_request_that_is_cancelled_has_its_line_too() -> None:
    async def waits(_: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    lines: list[Mapping[str, Any]] = []
    client = AsgiClient(edge({"/usage": {"GET": waits}}, lines))

    async with client.stream("GET", "/usage") as exchange:
        await asyncio.sleep(0)
        exchange.task.cancel()

    assert [line["status"] for line in lines] == [0]


async def test_while_an_answer_streams_nothing_holds_what_its_request_said() -> None:
    seen: list[Any] = []

    class Shows(Answer):
        def write(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            headers = scope["headers"]

            async def written() -> None:
                seen.append((dict(scope), list(headers)))
                await send({"type": "http.response.body", "body": b""})

            return written()

    async def streams(request: Request) -> Answer:
        seen.append(request.header(b"authorization"))
        return Shows(200, [])

    client = AsgiClient(edge({"/usage": {"GET": streams}}, []))

    await client.request("GET", "/usage", headers={"authorization": "Bearer token"})

    assert seen == ["Bearer token", ({"method": "GET"}, [])]


async def test_the_lifespan_passes_through() -> None:
    seen: list[str] = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await edge({}, [], lifespan=lifespan)({"type": "lifespan"}, receive, send)

    assert seen == ["lifespan"]
