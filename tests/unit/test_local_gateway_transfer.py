"""Answers through the local gateway: streamed or buffered, cut at the times of API Gateway, at its pace."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.clock import ManualClock
from tests.edge import SUBMISSION, Answers, Edge, edge, extract, fine, listening, method_of

INVOCATIONS = "/runtimes/writer/invocations"
MINUTE_S = 60.0
KB = 1024


class Story:
    """A service that answers with what a test tells it, when the test tells it."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.written = 0
        self.left = asyncio.Event()

    async def answers(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send the headers once there is a first piece, then each piece; an empty one is the end."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            piece = await self.pieces.get()
            await response.prepare(request)
            while piece:
                await response.write(piece)
                self.written += len(piece)
                piece = await self.pieces.get()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with as much as is read."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * KB)


@asynccontextmanager
async def submitted(api: Edge) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open the stream of a submission."""
    async with await api.ask("POST", INVOCATIONS, json={}) as response:
        yield response


async def test_a_streamed_answer_arrives_piece_by_piece() -> None:
    story = Story()
    async with edge(story.answers) as api:
        story.pieces.put_nowait(b"one")
        async with submitted(api) as response:
            first = await response.content.readany()
            story.pieces.put_nowait(b"two")
            second = await response.content.readany()
            story.pieces.put_nowait(b"")
            rest = await response.content.read()

    assert (first, second, rest) == (b"one", b"two", b"")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    assert (api.lines[0]["end"], api.lines[0]["bytes"]) == ("whole", 6)


async def test_a_buffered_answer_arrives_whole_and_at_its_end(clock: ManualClock) -> None:
    story = Story()
    changed = extract()
    method_of(changed, *SUBMISSION)["integration"]["mode"] = "BUFFERED"
    async with edge(story.answers, api=changed) as api:
        story.pieces.put_nowait(b"one")
        asking = asyncio.create_task(api.ask("POST", INVOCATIONS, json={}))
        await clock.advance(28)
        waits = not asking.done()
        story.pieces.put_nowait(b"two")
        story.pieces.put_nowait(b"")
        async with await asking as response:
            body = await response.read()

    assert (waits, body, response.headers["Content-Length"]) == (True, b"onetwo", "6")


@pytest.mark.parametrize("begun", [False, True], ids=["silent", "begun"])
async def test_a_buffered_answer_that_takes_more_than_29_s_is_none(clock: ManualClock, begun: bool) -> None:
    story = Story()
    async with edge(story.answers) as api:
        if begun:
            story.pieces.put_nowait(b"{")
        asking = asyncio.create_task(api.status_and_document("GET", "/usage"))
        await clock.advance(28.9)
        waits = not asking.done()
        await clock.advance(0.1)
        status, problem = await asking
        await story.left.wait()

    assert waits
    assert (status, problem["code"], api.lines[0]["end"]) == (504, "edge-timeout", "INTEGRATION_TIMEOUT")


async def test_a_buffered_answer_over_the_limit_is_none() -> None:
    changed = extract()
    changed["limits"]["buffered_body_bytes"] = 10
    async with edge(api=changed) as api:
        status, problem = await api.status_and_document("GET", "/usage")

    assert (status, problem["code"], api.lines[0]["end"]) == (502, "edge-failed", "INTEGRATION_FAILURE")


async def test_a_stream_whose_headers_never_come_is_a_status_after_15_minutes(clock: ManualClock) -> None:
    story = Story()
    async with edge(story.answers) as api:
        asking = asyncio.create_task(api.status_and_document("POST", INVOCATIONS, json={}))
        await clock.advance(15 * MINUTE_S)
        status, problem = await asking

    assert (status, problem["code"]) == (504, "edge-timeout")


async def test_a_stream_that_is_silent_for_5_minutes_is_cut(clock: ManualClock) -> None:
    story = Story()
    async with edge(story.answers) as api:
        story.pieces.put_nowait(b"one")
        async with submitted(api) as response:
            reading = asyncio.create_task(cut_off(response))
            await clock.advance(5 * MINUTE_S - 1)
            story.pieces.put_nowait(b"two")
            await clock.advance(5 * MINUTE_S - 1)
            before = len(api.lines)
            await clock.advance(1)
            body = await reading
        await story.left.wait()

    assert (before, body, api.lines[0]["end"]) == (0, b"onetwo", "cut-idle")


@pytest.mark.parametrize(
    ("timeout_ms", "scale", "total_s"), [(900_000, 1, 900), (29_000, 1, 29), (900_000, 0.01, 9)]
)
async def test_a_stream_that_lasts_is_cut_at_its_time(
    clock: ManualClock, timeout_ms: int, scale: float, total_s: float
) -> None:
    story = Story()
    changed = extract()
    method_of(changed, *SUBMISSION)["integration"]["timeout_ms"] = timeout_ms
    async with edge(story.answers, api=changed, scale=scale) as api:
        story.pieces.put_nowait(b".")
        async with submitted(api) as response:
            reading = asyncio.create_task(cut_off(response))
            for _ in range(9):
                await clock.advance(total_s / 10)
                story.pieces.put_nowait(b".")
            await clock.advance(total_s / 10 - 0.01)
            before = len(api.lines)
            await clock.advance(0.02)
            body = await reading
        await story.left.wait()

    assert (before, body, api.lines[0]["end"]) == (0, b"." * 10, "cut-total")


async def cut_off(response: aiohttp.ClientResponse) -> bytes:
    """Read what there is of a body that does not end as it should."""
    body = b""
    try:
        while piece := await response.content.readany():
            body += piece
    except aiohttp.ClientPayloadError:
        return body
    raise AssertionError(f"the body ended in order: {body!r}")


async def test_a_service_that_dies_in_the_middle_is_seen_as_a_cut() -> None:
    async def dies(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        assert request.transport is not None
        request.transport.close()
        return response

    async with edge(dies) as api:
        async with submitted(api) as response:
            streamed = await cut_off(response)
        status, problem = await api.status_and_document("GET", "/usage")

    assert (streamed, api.lines[0]["end"]) == (b"one", "broke")
    assert (status, problem["code"], api.lines[1]["end"]) == (502, "edge-failed", "INTEGRATION_FAILURE")


async def test_what_is_over_10_mb_comes_slower(clock: ManualClock) -> None:
    changed = extract()
    changed["limits"] |= {"stream_free_bytes": 100 * KB, "stream_bytes_per_s": 20 * KB}

    async def long(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * 300 * KB)

    async with edge(long, api=changed) as api, submitted(api) as response:
        reading = asyncio.create_task(response.read())
        await clock.advance(9.9)
        early = reading.done()
        await clock.advance(0.1)
        body = await reading

    assert (early, len(body)) == (False, 300 * KB)


async def test_a_client_that_does_not_read_stops_the_reading_of_the_service(clock: ManualClock) -> None:
    read = 0

    async def counted(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal read
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 64 * KB)
            read += 64 * KB

    changed = extract()
    changed["limits"]["stream_free_bytes"] = 1024**3
    async with edge(counted, api=changed) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.split(":")[2].split("/")[0]))
        head = f"GET /dev{INVOCATIONS}/inv_1/events HTTP/1.1\r\nHost: h\r\n"
        writer.write(f"{head}Authorization: {api.issuer.id_token()}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await clock.advance(0)
        held = read
        await clock.advance(60)
        still_held = read
        writer.transport.abort()

    assert 0 < held == still_held < 32 * 1024 * KB


async def test_a_client_that_hangs_up_ends_the_request_to_the_service() -> None:
    story = Story()
    async with edge(story.answers) as api:
        story.pieces.put_nowait(b"one")
        async with submitted(api) as response:
            await response.content.readany()
            response.close()
        await story.left.wait()

    assert (api.lines[0]["end"], api.lines[0]["bytes"]) == ("hung-up", 3)


async def test_an_answer_is_read_on_for_nobody_if_the_gateway_is_told_so(clock: ManualClock) -> None:
    story = Story()
    async with edge(story.answers, reads_on=True) as api:
        story.pieces.put_nowait(b"one")
        async with submitted(api) as response:
            await response.content.readany()
            response.close()
        for _ in range(3):
            await clock.advance(1)
            story.pieces.put_nowait(b"more")
        await clock.advance(1)
        written, left = story.written, story.left.is_set()
        story.pieces.put_nowait(b"")
        await clock.advance(1)

    assert (written, left, api.lines[0]["end"]) == (15, False, "hung-up")


async def test_a_process_that_can_not_be_reached_is_a_page_of_the_load_balancer() -> None:
    async def hangs_up(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    said: list[Any] = []
    for answers, options in (
        (fine, {"services": ["http://127.0.0.1:9"]}),
        (fine, {"services": []}),
        (hangs_up, {}),
    ):
        async with edge(answers, **options) as api:
            async with await api.ask("POST", INVOCATIONS, json={}) as response:
                said.append((response.status, response.content_type, api.lines[0]["end"]))
            assert response.headers["x-amzn-Remapped-Server"] == "awselb/2.0"

    assert said == [(status, "text/html", "no-answer") for status in (502, 503, 502)]


def named(name: str) -> Answers:
    """Return a service that says its name, and stays busy for whoever asks for events."""

    async def answers(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(name.encode())
        if request.raw_path.endswith("/events"):
            await asyncio.Event().wait()
        return response

    return answers


async def test_requests_go_to_the_process_that_has_the_fewest() -> None:
    async with listening(named("a")) as a, listening(named("b")) as b, edge(services=[a, b]) as api:
        told = []
        async with await api.ask("GET", f"{INVOCATIONS}/inv_1/events") as busy:
            told.append(await busy.content.readany())
            for _ in range(3):
                async with await api.ask("GET", "/usage") as response:
                    told.append(await response.read())
        for _ in range(2):
            async with await api.ask("GET", "/usage") as response:
                told.append(await response.read())

    assert told[:4] == [b"a", b"b", b"b", b"b"]


async def test_a_process_that_is_not_ready_gets_no_requests(clock: ManualClock) -> None:
    statuses = [200]

    async def drains(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=statuses[-1], text="a")

    async with (
        listening(drains) as a,
        listening(named("b")) as b,
        edge(services=[a, b, "http://127.0.0.1:9"], watches=True) as api,
    ):
        told = []
        for status in (200, 503, 200):
            statuses.append(status)
            await clock.advance(2)
            for _ in range(2):
                async with await api.ask("GET", "/usage") as response:
                    told.append(await response.read())

    assert [sorted(told[:2]), told[2:4], sorted(told[4:])] == [[b"a", b"b"], [b"b"] * 2, [b"a", b"b"]]
