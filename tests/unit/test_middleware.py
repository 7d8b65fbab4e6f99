from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.errors import BodyTooLarge, Overloaded
from service.middleware import BodyLimit, Envelope, Paths, route_path
from tests.asgi import AsgiClient


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads its body and answers with the bytes that it got."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % len(body)})


async def shows_path(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


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
    assert route_path(raw_path) == path


async def test_a_stage_prefix_is_dropped_on_the_way() -> None:
    answer = await AsgiClient(Paths(shows_path)).request("GET", "/prod/usage")

    assert answer.body == b"/usage"


async def test_a_log_line_says_that_a_stage_was_in_the_path() -> None:
    lines: list[Mapping[str, Any]] = []
    client = AsgiClient(Envelope(Paths(shows_path), lines.append))

    for path in ("/prod/usage", "/usage"):
        await client.request("GET", path)

    assert [line.get("prefixed") for line in lines] == [True, None]


def limited(all_bytes: int = 100) -> AsgiClient:
    return AsgiClient(BodyLimit(reads_all, limit_of=lambda path: 10, all_bytes=all_bytes))


async def test_a_body_at_the_limit_is_read() -> None:
    answer = await limited().request("POST", "/", body=[b"12345", b"67890"])

    assert answer.body == b"10"


@pytest.mark.promise("body-limit-while-reading")
async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    async with limited().stream("POST", "/", headers={"content-length": "11"}, body=[b"1"] * 11) as exchange:
        with pytest.raises(BodyTooLarge):
            await exchange.whole()

        assert len(exchange._request) == 11


@pytest.mark.promise("body-limit-while-reading")
async def test_a_body_that_grows_too_large_is_refused_at_the_limit() -> None:
    async with limited().stream("POST", "/", body=[b"1234"] * 1000) as exchange:
        with pytest.raises(BodyTooLarge):
            await exchange.whole()

        assert len(exchange._request) == 997


async def test_bodies_in_reading_share_a_bound_that_is_given_back() -> None:
    client = limited(all_bytes=9)

    for _ in range(2):
        async with client.stream("POST", "/", body=[b"12345", b"67890"]) as exchange:
            with pytest.raises(Overloaded):
                await exchange.whole()
        answer = await client.request("POST", "/", body=[b"123456789"])
        assert answer.body == b"9"


async def test_every_answer_has_an_id_and_the_security_headers_and_one_line() -> None:
    lines: list[Mapping[str, Any]] = []
    client = AsgiClient(Envelope(reads_all, lines.append))

    answer = await client.request("POST", "/", body=b"123", headers={"X-Request-Id": "abc-12345"})

    assert answer.headers == {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "strict-transport-security": "max-age=63072000; includeSubDomains",
        "x-request-id": "abc-12345",
    }
    (line,) = lines
    assert {name: line[name] for name in ("request_id", "method", "status", "bytes_out")} == {
        "request_id": "abc-12345",
        "method": "POST",
        "status": 200,
        "bytes_out": 1,
    }


@pytest.mark.parametrize("given", ["", "short", "a b c d e f g h", "x" * 129, "line\x1fbreak1"])
async def test_a_request_id_that_could_spoil_a_log_is_replaced(given: str) -> None:
    answer = await AsgiClient(Envelope(reads_all, lambda line: None)).request(
        "POST", "/", headers={"X-Request-Id": given}
    )

    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_request_that_fails_has_its_line_too() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    lines: list[Mapping[str, Any]] = []

    async with AsgiClient(Envelope(fails, lines.append)).stream("GET", "/") as exchange:
        with pytest.raises(RuntimeError):
            await exchange.whole()

    assert [line["status"] for line in lines] == [0]


async def test_the_lifespan_passes_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await Envelope(Paths(BodyLimit(app, lambda path: 1, 1)), lambda line: None)(
        {"type": "lifespan"}, receive, send
    )

    assert seen == ["lifespan"]
