"""The contract of the `Model` port, over every implementation and over the double that stands for them.

An upstream of the contract plays answers in steps: frames that arrive together, a barrier, an error said in
its own way (a refusal, if it is the first step), silence until the model has hung up. What only one of them
does is elsewhere.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTimeout,
)
from service.models import Frame, Model
from tests.clock import ManualClock
from tests.contracts.model_wires import (
    BLOCK_STOP,
    HELLO,
    METADATA,
    REQUEST,
    SILENCE_S,
    START,
    STOP,
    WIRES,
    Playing,
    Said,
    Wire,
    delta,
    playing_double,
    playing_on,
)
from tests.scripted_http import Peer, scripted


@pytest.fixture(params=[*WIRES, "double"])
def playing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Playing:
    return playing_on(WIRES[request.param], monkeypatch) if request.param in WIRES else playing_double()


class Receiver:
    """A `Deliver` that keeps what it got; holds the upstream back if it has gates left."""

    def __init__(self, *gates: asyncio.Event) -> None:
        self.batches: list[Said] = []
        self.arrived = asyncio.Semaphore(0)
        self._gates = list(gates)

    def __call__(self, batch: Sequence[Frame]) -> Awaitable[Any] | None:
        self.batches.append([(event_type.decode(), json.loads(value)) for event_type, value in batch])
        self.arrived.release()
        return self._gates.pop(0).wait() if self._gates else None

    @property
    def frames(self) -> Said:
        return [frame for batch in self.batches for frame in batch]


async def test_an_answer_is_delivered_in_order_and_as_it_arrives(playing: Playing) -> None:
    receiver = Receiver()
    async with playing([[START, delta("Hel")], [delta("lo")], [BLOCK_STOP, STOP], [METADATA]]) as upstream:
        await upstream.model.converse(REQUEST, receiver)

    assert receiver.batches == [[START, delta("Hel")], [delta("lo")], [BLOCK_STOP, STOP], [METADATA]]


async def test_a_frame_is_delivered_while_the_next_is_not_there_yet(playing: Playing) -> None:
    receiver, barrier = Receiver(), asyncio.Event()
    async with playing([[START], barrier, HELLO[1:]]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await receiver.arrived.acquire()
        early = list(receiver.frames)
        barrier.set()
        await task

    assert (early, receiver.frames) == ([START], HELLO)


async def test_one_call_after_another_gets_its_own_answer(playing: Playing) -> None:
    first, second = Receiver(), Receiver()
    async with playing([HELLO], [[START, STOP]]) as upstream:
        await upstream.model.converse(REQUEST, first)
        await upstream.model.converse(REQUEST, second)

    assert (first.frames, second.frames) == (HELLO, [START, STOP])


@pytest.mark.promise("lapsed-lease-spends-nothing")
async def test_nothing_is_sent_that_may_not_be_sent_any_more_until_it_may_again(playing: Playing) -> None:
    receiver, asked = Receiver(), list[str]()
    may = iter([False, False, True])

    async def before_try() -> None:
        asked.append("before")

    def may_send() -> bool:
        asked.append("send?")
        return next(may)

    async with playing([HELLO]) as upstream:
        request = REQUEST._replace(before_try=before_try, may_send=may_send)
        await upstream.model.converse(request, receiver)

    assert (asked, receiver.frames) == (["before", "send?"] * 3, HELLO)


@pytest.mark.promise("truncation-is-failure")
async def test_an_answer_that_ends_without_message_stop_is_a_failure(playing: Playing) -> None:
    receiver = Receiver()
    async with playing([HELLO[:3]]) as upstream:
        with pytest.raises(UpstreamFailed) as caught:
            await upstream.model.converse(REQUEST, receiver)

    assert (receiver.frames, caught.value.billed) == (HELLO[:3], True)


async def test_a_failure_comes_after_the_frames_before_it(playing: Playing) -> None:
    receiver = Receiver()
    async with playing([HELLO[:3], UpstreamFailed()]) as upstream:
        with pytest.raises(UpstreamFailed):
            await upstream.model.converse(REQUEST, receiver)

    assert receiver.frames == HELLO[:3]


@pytest.mark.parametrize("refusal", [UpstreamRejected(), UpstreamMisconfigured()])
async def test_a_refusal_delivers_nothing_and_costs_nothing(playing: Playing, refusal: UpstreamError) -> None:
    receiver = Receiver()
    async with playing([refusal]) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await upstream.model.converse(REQUEST, receiver)

    assert (caught.value.code, caught.value.billed, receiver.frames) == (refusal.code, False, [])


async def test_what_deliver_awaits_holds_the_next_batch_back(playing: Playing, clock: ManualClock) -> None:
    gate = asyncio.Event()
    receiver = Receiver(gate)
    async with playing([[START], HELLO[1:]]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await receiver.arrived.acquire()
        await clock.advance(10 * SILENCE_S)
        held = list(receiver.frames)
        gate.set()
        await task

    assert (held, receiver.frames) == ([START], HELLO)


async def test_the_call_does_not_end_before_its_last_batch_was_taken(
    playing: Playing, clock: ManualClock
) -> None:
    gate = asyncio.Event()
    receiver = Receiver(gate)
    async with playing([HELLO]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await receiver.arrived.acquire()
        await clock.advance(0)
        early = task.done()
        gate.set()
        await task

    assert not early


@pytest.mark.parametrize("said", [[], [START], HELLO[:3], HELLO], ids=["asked", "began", "spoke", "finished"])
async def test_a_cancelled_call_hangs_up_and_delivers_no_more(
    playing: Playing, clock: ManualClock, said: Said
) -> None:
    receiver = Receiver()
    async with playing([*([said] if said else []), None], [HELLO]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await clock.advance(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.hung_up.acquire()
        kept = list(receiver.frames)
        await upstream.model.converse(REQUEST, Receiver())

    assert (kept, receiver.frames) == (list(said), kept)


async def test_a_call_cancelled_while_it_is_held_back_hangs_up(playing: Playing, clock: ManualClock) -> None:
    receiver = Receiver(asyncio.Event())
    async with playing([[START], [delta("Hel")], None]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await clock.advance(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.hung_up.acquire()

    assert receiver.frames == [START]


# From here on: upstreams on a wire.


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


@asynccontextmanager
async def answering(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, *sendings: Sequence[bytes], hang_up: bool = False
) -> AsyncIterator[Model]:
    """Send these bytes, each read before the next is sent, to one request after another."""
    waiting = list(sendings)

    async def script(peer: Peer) -> None:
        while waiting:
            await peer.request()
            await peer.send(*waiting.pop(0))
            if hang_up:
                return

    async with scripted(script) as server, wire.opened(server.url, monkeypatch) as model:
        yield model


def whole_answer(wire: Wire) -> bytes:
    return wire.answer(HELLO[:1], HELLO[1:3], HELLO[3:])


async def test_an_answer_that_comes_byte_by_byte_is_the_same(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, sent = Receiver(), whole_answer(wire)
    async with answering(wire, monkeypatch, [sent[at : at + 1] for at in range(len(sent))]) as model:
        await model.converse(REQUEST, receiver)

    assert receiver.frames == HELLO


async def test_an_answer_that_comes_in_two_pieces_is_the_same_for_every_cut(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = whole_answer(wire)
    cuts = [(sent[:at], sent[at:]) for at in range(1, len(sent))]
    outcomes = []
    async with answering(wire, monkeypatch, *cuts) as model:
        for _ in cuts:
            receiver = Receiver()
            await model.converse(REQUEST, receiver)
            outcomes.append(receiver.frames)

    assert outcomes == [HELLO] * len(cuts)


@pytest.mark.promise("truncation-is-failure")
async def test_an_answer_that_breaks_off_anywhere_is_a_failure(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = whole_answer(wire)
    sizes = range(len(sent))
    outcomes = []
    async with answering(wire, monkeypatch, *([sent[:size]] for size in sizes), hang_up=True) as model:
        for _ in sizes:
            receiver = Receiver()
            with pytest.raises(UpstreamFailed) as caught:
                await model.converse(REQUEST, receiver)
            outcomes.append((caught.value.billed, HELLO[: len(receiver.frames)] == receiver.frames))

    assert outcomes == [(True, True)] * len(sizes)


@pytest.mark.promise("truncation-is-failure")
@pytest.mark.parametrize("said", [[], [START], HELLO[:5]], ids=["asked", "began", "finished"])
async def test_silence_is_a_timeout_that_may_have_cost_tokens(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, clock: ManualClock, said: Said
) -> None:
    receiver = Receiver()
    async with playing_on(wire, monkeypatch)([*([said] if said else []), None]) as upstream:
        task = asyncio.create_task(upstream.model.converse(REQUEST, receiver))
        await clock.advance(SILENCE_S - 0.001)
        patient = not task.done()
        await clock.advance(0.001)
        with pytest.raises(UpstreamTimeout) as caught:
            await task
        await upstream.hung_up.acquire()

    assert (patient, caught.value.billed, receiver.frames) == (True, True, list(said))
