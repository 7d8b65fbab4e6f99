"""One response over one connection: any cut, any ending, one sink call per read, pauses, silence."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from service.errors import UpstreamError, UpstreamTimeout
from service.models.connection import (
    COLLECTED_LIMIT_BYTES,
    HEAD_LIMIT_BYTES,
    Exchange,
    OnHead,
    Silence,
    Sink,
)
from tests.clock import ManualClock
from tests.scripted_http import END, chunk, head, sized

CHUNKED = head(transfer_encoding="chunked", x_id="7")
ANSWER = CHUNKED + chunk(b"Hel") + chunk(b"lo") + END
SILENCE_S = 900.0


@dataclass
class Flow:
    """Stands for the transport: notes pauses."""

    calls: list[str] = field(default_factory=list)

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


@dataclass
class Taken:
    """An exchange and what came of it."""

    exchange: Exchange
    flow: Flow
    bodies: list[bytes]
    reusable: list[bool]

    def feed(self, *reads: bytes) -> None:
        for read in reads:
            self.exchange.feed(memoryview(read))

    async def outcome(self) -> tuple[int, bytes, bytes, bool] | str:
        """Finish and close; return status, what the sink and the exchange took, reusability, or the error."""
        try:
            await self.exchange.head()
            collected = await self.exchange.finish()
        except UpstreamError as error:
            return error.code
        finally:
            self.exchange.close()
        return self.exchange.status, b"".join(self.bodies), collected, self.reusable == [True]


def begun(
    sink: Callable[[bytes], Awaitable[None] | None] | None = None, *, on_head: OnHead | None = None
) -> Taken:
    """Begin an exchange whose body goes to `sink` if its status is 200."""
    flow, bodies, reusable = Flow(), list[bytes](), list[bool]()

    def take(body: bytes) -> Awaitable[None] | None:
        bodies.append(body)
        return sink(body) if sink else None

    def choose(status: int, headers: Mapping[str, str]) -> Sink | None:
        return take if status == 200 else None

    exchange = Exchange(cast(asyncio.Transport, flow), on_head or choose, Silence(SILENCE_S), reusable.append)
    return Taken(exchange, flow, bodies, reusable)


async def outcome_of(*reads: bytes) -> tuple[int, bytes, bytes, bool] | str:
    taken = begun()
    taken.feed(*reads)
    return await taken.outcome()


async def outcome_of_connection(*reads: bytes, cause: Exception | None = None) -> tuple[Any, ...] | str:
    """The same, for a connection that ends after the last read."""
    taken = begun()
    taken.feed(*reads)
    taken.exchange.connection_lost(cause)
    return await taken.outcome()


def cuts(response: bytes) -> Iterable[tuple[bytes, bytes]]:
    return ((response[:at], response[at:]) for at in range(1, len(response)))


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        pytest.param(ANSWER, (200, b"Hello", b"", True), id="chunked"),
        pytest.param(sized(200, b"Hello"), (200, b"Hello", b"", True), id="sized"),
        pytest.param(sized(200, b""), (200, b"", b"", True), id="empty"),
        pytest.param(sized(429, b"slow down"), (429, b"", b"slow down", True), id="a refusal is collected"),
        pytest.param(
            sized(200, b"Hello", connection="close"),
            (200, b"Hello", b"", False),
            id="the last on its connection",
        ),
        pytest.param(
            head(100) + head(103, link="x") + ANSWER, (200, b"Hello", b"", True), id="after interim responses"
        ),
        pytest.param(
            CHUNKED + b"5;a=b\r\nHello\r\n0\r\nX-Sum: 1\r\n\r\n", (200, b"Hello", b"", True), id="trailers"
        ),
        pytest.param(
            head(200, content_length="1", transfer_encoding="chunked"), "upstream-failed", id="two lengths"
        ),
        pytest.param(CHUNKED + chunk(b"Hel") + b"zz\r\n", "upstream-failed", id="a chunk that is none"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", "upstream-failed", id="not HTTP"),
        pytest.param(head(101, upgrade="x", connection="upgrade"), "upstream-failed", id="an upgrade"),
    ],
)
async def test_every_cut_of_a_response_has_the_same_outcome(response: bytes, outcome: Any) -> None:
    whole = await outcome_of(response)
    by_bytes = await outcome_of(*(response[at : at + 1] for at in range(len(response))))
    cut_anywhere = {await outcome_of(*pieces) for pieces in cuts(response)}

    assert (whole, by_bytes, cut_anywhere) == (outcome, outcome, {outcome})


async def test_the_head_has_lower_case_names_and_joined_values() -> None:
    heads: list[tuple[int, Mapping[str, str]]] = []
    taken = begun(on_head=lambda status, headers: heads.append((status, dict(headers))))

    taken.feed(b"HTTP/1.1 200 OK\r\nX-Amzn-RequestId: 7\r\nVia: a\r\nvia: b\r\nContent-Length: 0\r\n\r\n")

    assert heads == [(200, {"x-amzn-requestid": "7", "via": "a, b", "content-length": "0"})]
    taken.exchange.close()


async def test_the_chunks_of_one_read_are_one_call_of_the_sink() -> None:
    taken = begun()

    taken.feed(CHUNKED + chunk(b"a") + chunk(b"b"), chunk(b"c"), chunk(b"d") + chunk(b"e") + END)

    assert taken.bodies == [b"ab", b"c", b"de"]
    taken.exchange.close()


async def test_a_head_is_known_before_its_body_comes() -> None:
    taken = begun()
    taken.feed(CHUNKED)

    await taken.exchange.head()

    assert (taken.exchange.status, taken.exchange.headers["x-id"], taken.exchange.streams) == (200, "7", True)
    taken.exchange.close()


@pytest.mark.parametrize("size", range(len(ANSWER)))
async def test_a_connection_that_ends_early_is_a_failure(size: int) -> None:
    assert await outcome_of_connection(ANSWER[:size]) == "upstream-failed"


async def test_a_sized_body_that_is_cut_is_a_failure() -> None:
    assert await outcome_of_connection(sized(200, b"Hello")[:-1]) == "upstream-failed"


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    response = head() + b"Hello"

    assert await outcome_of_connection(response) == (200, b"Hello", b"", False)
    assert await outcome_of_connection(response, cause=ConnectionResetError()) == "upstream-failed"


async def test_a_connection_that_ends_after_the_response_changes_nothing() -> None:
    assert await outcome_of_connection(ANSWER) == (200, b"Hello", b"", True)


@pytest.mark.parametrize("rest", [sized(200, b"next"), b"HTTP/1.1 200 OK\r\n", b"junk", b"\0"])
async def test_bytes_beyond_the_response_spoil_the_connection_and_not_the_response(rest: bytes) -> None:
    expected = (200, b"Hello", b"", False)

    assert await outcome_of(ANSWER + rest) == expected
    assert await outcome_of(ANSWER, rest) == expected


async def test_what_came_before_broken_bytes_is_handed_on() -> None:
    taken = begun()

    taken.feed(CHUNKED + chunk(b"Hel") + b"zz\r\n")

    assert (taken.bodies, await taken.outcome()) == ([b"Hel"], "upstream-failed")


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT_BYTES, id="head"),
        pytest.param(CHUNKED + b"0\r\nX: " + b"x" * HEAD_LIMIT_BYTES, id="trailers"),
        pytest.param(CHUNKED + b"5;" + b"x" * HEAD_LIMIT_BYTES, id="chunk extension"),
        pytest.param(
            head(500, transfer_encoding="chunked") + chunk(bytes(COLLECTED_LIMIT_BYTES + 1)), id="error"
        ),
    ],
)
async def test_what_is_kept_is_limited(response: bytes) -> None:
    assert (
        await outcome_of(*(response[at : at + 1024] for at in range(0, len(response), 1024)))
        == "upstream-failed"
    )


async def test_a_body_of_any_size_goes_to_the_sink() -> None:
    taken = begun()

    taken.feed(CHUNKED, *[chunk(bytes(1000))] * 200, END)

    assert await taken.outcome() == (200, bytes(200_000), b"", True)


async def test_reading_rests_while_the_sink_waits(clock: ManualClock) -> None:
    gates: list[asyncio.Future[None]] = []

    def sink(_: bytes) -> Awaitable[None]:
        gates.append(asyncio.get_running_loop().create_future())
        return gates[-1]

    taken = begun(sink)
    task = asyncio.create_task(taken.outcome())
    taken.feed(CHUNKED + chunk(b"Hel"))
    await clock.advance(0)
    paused = list(taken.flow.calls)
    gates[0].set_result(None)
    await clock.advance(0)
    taken.feed(chunk(b"lo") + END)
    gates[1].set_result(None)

    assert (paused, taken.flow.calls) == (["pause"], ["pause", "resume"])
    assert await task == (200, b"Hello", b"", True)


async def test_the_end_waits_for_the_sink_too(clock: ManualClock) -> None:
    gate = asyncio.get_running_loop().create_future()
    taken = begun(lambda _: gate)
    task = asyncio.create_task(taken.outcome())

    taken.feed(ANSWER)
    await clock.advance(0)
    waited = not task.done()
    gate.set_result(None)

    assert (waited, await task) == (True, (200, b"Hello", b"", True))


async def test_a_connection_lost_while_the_sink_waits_is_a_failure(clock: ManualClock) -> None:
    gate = asyncio.get_running_loop().create_future()
    taken = begun(lambda _: gate)
    task = asyncio.create_task(taken.outcome())

    taken.feed(CHUNKED + chunk(b"Hel"))
    await clock.advance(0)
    taken.exchange.connection_lost(ConnectionResetError())
    gate.set_result(None)

    assert await task == "upstream-failed"


class Boom(Exception):
    """What a sink may raise."""


@pytest.mark.parametrize("where", ["head", "sink", "awaitable"])
async def test_what_the_receiver_raises_ends_the_exchange_and_it_is_called_no_more(where: str) -> None:
    calls: list[str] = []

    def fail(place: str) -> None:
        calls.append(place)
        if place == where:
            raise Boom

    async def wait() -> None:
        fail("awaitable")

    def sink(_: bytes) -> Awaitable[None]:
        fail("sink")
        return wait()

    def on_head(status: int, headers: Mapping[str, str]) -> Sink:
        fail("head")
        return sink

    taken = begun(on_head=on_head)
    taken.feed(CHUNKED + chunk(b"Hel"))
    with pytest.raises(Boom):
        await taken.exchange.finish()
    taken.exchange.close()

    assert calls == ["head", "sink", "awaitable"][: ["head", "sink", "awaitable"].index(where) + 1]
    assert taken.reusable == [False]


async def test_after_a_failure_nothing_is_handed_on() -> None:
    def sink(body: bytes) -> None:
        raise Boom

    taken = begun(sink)

    taken.feed(CHUNKED + chunk(b"Hel"), chunk(b"lo"), END)

    assert taken.bodies == [b"Hel"]
    with pytest.raises(Boom):
        await taken.exchange.finish()
    taken.exchange.close()


async def test_closing_twice_gives_the_connection_back_once() -> None:
    taken = begun()
    taken.feed(ANSWER)

    taken.exchange.close()
    taken.exchange.close()

    assert taken.reusable == [True]


async def test_closing_within_a_response_gives_nothing_back_and_leaves_no_coroutine_behind() -> None:
    taken = begun(lambda _: asyncio.sleep(0))
    taken.feed(CHUNKED + chunk(b"Hel"))

    taken.exchange.close()

    assert taken.reusable == [False]


@pytest.mark.parametrize("reads", [[], [CHUNKED], [CHUNKED, chunk(b"Hel")]])
async def test_silence_is_measured_from_the_last_byte(clock: ManualClock, reads: list[bytes]) -> None:
    taken = begun()
    task = asyncio.create_task(taken.outcome())

    for read in reads:
        await clock.advance(SILENCE_S - 1)
        taken.feed(read)
    await clock.advance(SILENCE_S - 0.001)
    patient = not task.done()
    await clock.advance(0.001)

    assert (patient, await task) == (True, UpstreamTimeout.code)


@pytest.mark.parametrize(("limit_s", "late_s"), [(900.0, 1.0), (1.6, 0.1)])
async def test_silence_is_told_at_most_a_second_or_a_sixteenth_late_and_never_early(
    clock: ManualClock, limit_s: float, late_s: float
) -> None:
    silence, looks = Silence(limit_s), list[float]()

    class Looked:
        slot = -1

        def look(self, now_s: float) -> None:
            looks.append(now_s)

    due_s = clock.monotonic_s() + limit_s + 0.033
    silence.watch(Looked(), due_s)
    await clock.advance(limit_s + 2)

    assert [0 <= look - due_s <= late_s for look in looks] == [True]


async def test_time_in_which_the_sink_waits_is_no_silence(clock: ManualClock) -> None:
    gate = asyncio.get_running_loop().create_future()
    taken = begun(lambda _: gate)
    task = asyncio.create_task(taken.outcome())

    taken.feed(CHUNKED + chunk(b"Hel"))
    await clock.advance(10 * SILENCE_S)
    gate.set_result(None)
    await clock.advance(SILENCE_S - 1)
    patient = not task.done()
    await clock.advance(SILENCE_S)

    assert (patient, await task) == (True, UpstreamTimeout.code)


async def test_a_closed_exchange_leaves_no_timer(clock: ManualClock) -> None:
    taken = begun()
    taken.feed(ANSWER)

    await taken.outcome()
    await clock.advance(10 * SILENCE_S)

    assert taken.reusable == [True]
