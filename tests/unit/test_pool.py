"""The pool over real sockets: reuse only of what is whole, nothing sent twice, fair waiting, TLS."""

import asyncio
import socket
import ssl

import pytest

from service.errors import UpstreamError, UpstreamFailed, UpstreamUnavailable
from service.models.connection import Connection, Silence
from service.models.pool import CONNECT_TIMEOUT_S, IDLE_S
from tests.clock import ManualClock
from tests.pooling import CHUNKED, OK, ask, begin, pooling
from tests.scripted_http import Peer, ScriptedServer, chunk, replies, scripted, sized


async def test_a_connection_is_used_again() -> None:
    async with scripted(replies(OK, OK, OK)) as server, pooling(server) as pool:
        answers = [await ask(pool), await ask(pool), await ask(pool)]

    assert (answers, server.connections) == ([(200, b"Hello")] * 3, 1)


async def test_the_request_is_sent_as_it_was_given() -> None:
    async with scripted(replies(OK)) as server, pooling(server) as pool:
        await ask(pool, b'{"a":"\xc3\xa9"}')

    (received,) = server.requests
    assert (received.method, received.target, received.body) == ("POST", "/model/x", b'{"a":"\xc3\xa9"}')
    assert received.headers == {"Host": "x", "Content-Length": "10"}


@pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "a\rb", "a\0b"])
async def test_a_header_that_would_become_two_is_not_sent(text: str) -> None:
    async with scripted(replies()) as server, pooling(server) as pool:
        with pytest.raises(ValueError, match="would become two"):
            await pool.begin("POST", "/", {"X": text}, b"", lambda *_: None)

    assert server.connections == 0


@pytest.mark.parametrize(
    "response", [sized(200, b"Hello", connection="close"), OK + b"garbage", OK + b"HTTP/1.1 200 OK\r\n"]
)
async def test_a_connection_that_is_not_clean_is_not_used_again(response: bytes) -> None:
    async with scripted(replies(response)) as server, pooling(server) as pool:
        answers = [await ask(pool), await ask(pool)]

    assert (answers, server.connections) == ([(200, b"Hello")] * 2, 2)


async def test_a_connection_that_its_peer_closed_while_idle_is_replaced(clock: ManualClock) -> None:
    async def one_answer(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    answers = []
    async with scripted(one_answer) as server, pooling(server) as pool:
        for _ in range(3):
            answers.append(await ask(pool))
            await clock.advance(0)

    assert (answers, server.connections, len(server.requests)) == ([(200, b"Hello")] * 3, 3, 3)


async def test_an_end_that_the_loop_has_not_seen_yet_is_seen_before_reuse() -> None:
    loop = asyncio.get_running_loop()
    connections = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with pooling(ScriptedServer(port=listener.getsockname()[1])) as pool:
            for _ in range(2):
                task = asyncio.create_task(ask(pool))
                connection, _ = await loop.sock_accept(listener)
                connections += 1
                await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(connection, OK)
                await task
                connection.close()

    assert connections == 2


async def test_bytes_that_nobody_asked_for_are_never_an_answer(clock: ManualClock) -> None:
    spoken = asyncio.Event()

    async def speaks_again(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await spoken.wait()
        await peer.send(sized(200, b"forged"))
        await peer.gone()

    async with scripted(speaks_again) as server, pooling(server) as pool:
        first = await ask(pool)
        spoken.set()
        await clock.advance(0)
        second = await ask(pool)

    assert (first, second, server.connections) == ((200, b"Hello"), (200, b"Hello"), 2)


async def test_a_request_on_a_used_connection_that_dies_is_not_sent_again() -> None:
    async def dies_at_the_second(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async with scripted(dies_at_the_second) as server, pooling(server) as pool:
        await ask(pool)
        with pytest.raises(UpstreamFailed) as caught:
            await ask(pool)

    assert (caught.value.billed, server.connections, len(server.requests)) == (True, 1, 2)


async def test_an_idle_connection_is_closed_before_its_peer_would(clock: ManualClock) -> None:
    gone: list[float] = []

    async def notes_the_end(peer: Peer) -> None:
        try:
            while True:
                await peer.request()
                await peer.send(OK)
        finally:
            gone.append(clock.monotonic_s())

    async with scripted(notes_the_end) as server, pooling(server) as pool:
        started_s = clock.monotonic_s()
        await asyncio.gather(ask(pool), ask(pool))
        await clock.advance(IDLE_S / 2)
        await ask(pool)
        await clock.advance(2 * IDLE_S)

    assert [at_s - started_s for at_s in gone] == [IDLE_S, 1.5 * IDLE_S]


async def test_exchanges_over_the_limit_wait_and_go_first_come_first_served(clock: ManualClock) -> None:
    order: list[bytes] = []

    async def answers(peer: Peer) -> None:
        while True:
            order.append((await peer.request()).body)
            await peer.send(OK)

    async with scripted(answers) as server, pooling(server, limit=1) as pool:
        first = await begin(pool, b"1")
        waiting = [asyncio.create_task(ask(pool, body)) for body in (b"2", b"3", b"4")]
        await clock.advance(0)
        before = list(order)
        waiting[1].cancel()
        await first.finish()
        first.close()
        await asyncio.gather(*waiting, return_exceptions=True)

    assert (before, order, server.connections) == ([b"1"], [b"1", b"2", b"4"], 1)


@pytest.mark.parametrize("sent", [[], [CHUNKED], [CHUNKED, chunk(b"Hel")]], ids=["asked", "head", "body"])
async def test_a_cancelled_exchange_closes_its_connection_and_frees_its_slot(
    clock: ManualClock, sent: list[bytes]
) -> None:
    gone = asyncio.Event()
    bodies: list[bytes] = []

    async def stalls(peer: Peer) -> None:
        await peer.request()
        await peer.send(*sent)
        await peer.gone()
        gone.set()

    async with scripted(stalls) as server, pooling(server, limit=1) as pool:
        for _ in range(2):
            gone.clear()
            task = asyncio.create_task(ask(pool, on_head=lambda *_: bodies.append))
            await clock.advance(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()

    assert (bodies, server.connections) == ([b"Hel"] * 2 if len(sent) == 2 else [], 2)


async def test_a_cancelled_connect_hangs_up_and_frees_its_slot(clock: ManualClock) -> None:
    gone = asyncio.Event()

    async def never_shakes_hands(peer: Peer) -> None:
        await peer.gone()
        gone.set()

    tls = ssl.create_default_context()
    async with scripted(never_shakes_hands) as server, pooling(server, limit=1, tls=tls) as pool:
        for _ in range(2):
            gone.clear()
            task = asyncio.create_task(ask(pool))
            await clock.advance(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()

    assert server.connections == 2


async def test_a_connect_that_takes_too_long_is_given_up(clock: ManualClock) -> None:
    async def never_shakes_hands(peer: Peer) -> None:
        await peer.gone()

    tls = ssl.create_default_context()
    async with scripted(never_shakes_hands) as server, pooling(server, tls=tls) as pool:
        task = asyncio.create_task(ask(pool))
        await clock.advance(CONNECT_TIMEOUT_S - 0.001)
        patient = not task.done()
        await clock.advance(0.001)
        with pytest.raises(UpstreamUnavailable) as caught:
            await task

    assert (patient, caught.value.billed) == (True, False)


async def test_a_refused_connect_is_not_billed() -> None:
    async with scripted(replies()) as server:
        pass
    async with pooling(server) as pool:
        with pytest.raises(UpstreamUnavailable) as caught:
            await ask(pool)

    assert not caught.value.billed


async def test_closing_ends_idle_and_busy_connections_and_refuses_new_ones(clock: ManualClock) -> None:
    ended = 0

    async def answers_small_questions(peer: Peer) -> None:
        nonlocal ended
        if (await peer.request()).body == b"small":
            await peer.send(OK)
        await peer.gone()
        ended += 1

    async with scripted(answers_small_questions) as server, pooling(server, limit=2) as pool:
        busy = [asyncio.create_task(ask(pool, body)) for body in (b"small", b"big", b"waits for a slot")]
        await clock.advance(0)
        await pool.aclose()
        outcomes = await asyncio.gather(*busy, return_exceptions=True)
        with pytest.raises(UpstreamUnavailable):
            await ask(pool)
        await clock.advance(0)

    codes = [outcome.code if isinstance(outcome, UpstreamError) else outcome for outcome in outcomes]
    assert codes == [(200, b"Hello"), "upstream-failed", "upstream-failed"]
    assert ended == server.connections


async def test_a_connection_that_is_made_while_the_pool_closes_is_not_used() -> None:
    async with scripted(replies(OK)) as server, pooling(server) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        await pool.aclose()
        with pytest.raises(UpstreamUnavailable) as caught:
            await task

    assert (caught.value.billed, server.requests) == (False, [])


async def test_an_answer_that_comes_before_the_question_was_sent_ends_the_connection() -> None:
    async def answers_at_once(peer: Peer) -> None:
        await peer.send(sized(413, b"too large"))
        await peer.gone()

    async with scripted(answers_at_once) as server, pooling(server) as pool:
        question = bytes(20_000_000)
        answers = [await ask(pool, question), await ask(pool, question)]

    assert (answers, server.connections) == ([(413, b"too large")] * 2, 2)


async def test_a_connection_is_kept_alive_and_sends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lost: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(memoryview(bytearray(100)), Silence(900.0), lambda _: None, lost.set_result),
            *listener.getsockname(),
        )
        sock = transport.get_extra_info("socket")
        options = [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
        ]
        # Linux and macOS name it differently; both must probe before 350 s, when NAT gateways forget a flow.
        name = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
        idle_s = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        connection.abort()

        with pytest.raises(UpstreamUnavailable) as caught:
            connection.begin((b"", b""), lambda *_: None)
        assert await lost is connection

    assert all(options)
    assert idle_s <= 60
    assert not caught.value.billed
