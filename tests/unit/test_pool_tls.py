"""The pool over TLS, on the loop that tests use and on the one that serves."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from service.errors import UpstreamMisconfigured
from tests.pooling import CHUNKED, OK, ask, pooling
from tests.scripted_http import END, certify, chunk, replies, scripted

LOOPS = [asyncio.SelectorEventLoop, uvloop.new_event_loop]


def run_on(loop_factory: Callable[[], asyncio.AbstractEventLoop], story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story)


def trusting(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_large_answers_arrive_whole_over_tls(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    server_tls, ca_file = certify(tmp_path)
    body = bytes(range(256)) * 4096
    got = bytearray()
    pauses = 0

    def sink(part: bytes) -> asyncio.Future[None] | None:
        nonlocal pauses
        got.extend(part)
        if len(got) % 3:
            return None
        pauses += 1
        gate = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(gate.set_result, None)
        return gate

    async def story() -> None:
        answer = CHUNKED + chunk(body[:500_000]) + chunk(body[500_000:]) + END
        async with (
            scripted(replies(answer, [answer[:70_000], answer[70_000:]]), tls=server_tls) as server,
            pooling(server, tls=trusting(ca_file)) as pool,
        ):
            for _ in range(2):
                assert await ask(pool, on_head=lambda *_: sink) == (200, b"")
            assert server.connections == 1

    run_on(loop_factory, story())

    assert bytes(got) == body * 2
    assert pauses


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("fault", ["unknown CA", "other name"])
def test_a_certificate_that_does_not_hold_is_a_misconfiguration(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, fault: str
) -> None:
    server_tls, ca_file = certify(tmp_path, "example.com" if fault == "other name" else "127.0.0.1")
    client_tls = ssl.create_default_context() if fault == "unknown CA" else trusting(ca_file)
    codes: list[str] = []

    async def story() -> None:
        async with scripted(replies(OK), tls=server_tls) as server, pooling(server, tls=client_tls) as pool:
            with pytest.raises(UpstreamMisconfigured) as caught:
                await ask(pool)
            codes.append(caught.value.code)
            assert not caught.value.billed

    run_on(loop_factory, story())

    assert codes == ["upstream-misconfigured"]
