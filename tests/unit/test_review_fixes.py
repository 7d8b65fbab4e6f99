"""What a review found, each held by the outcome that a caller sees."""

import asyncio
from pathlib import Path

import pytest

from service.config import ConfigError, Limits, Settings
from service.errors import Fenced
from service.events import Block, encode
from service.invocations import State
from service.stores import Ending, NewInvocation
from service.stores.sqlite import SqliteStore
from service.wire import SSE
from tests.clock import ManualClock
from tests.fakes import answer, frame, start, stop, text, tool_call
from tests.harness import serving
from tests.sse import events_of, kinds_of
from tests.unit.test_readers import Reading, delta, reading

__all__ = ["reading"]  # a fixture

RECKONER = "/runtimes/reckoner/invocations"
CALL = tool_call("multiply", '{"a":2,"b":3}')


@pytest.mark.parametrize("call", ["settle", "reserve"])
async def test_a_deadline_that_cuts_a_decision_short_still_ends_the_log_with_every_event(
    clock: ManualClock, call: str
) -> None:
    async with serving(clock, CALL, answer("6")) as served:
        served.store.only = {call}
        served.store.down = True
        async with served.post(path=RECKONER) as exchange:
            await clock.advance(5)
            seen = [event_id for event_id, _ in events_of(exchange.body)]
            location = exchange.headers["location"]
        await clock.advance(3600)
        served.store.down = False
        await clock.advance(10)
        async with served.follow(location) as exchange:
            stored = await exchange.whole()
        record = (await served.get(location)).json()

    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "deadline-exceeded"
    assert kinds_of(stored.body)[-1] == "invocationFailed"
    ids = [event_id for event_id, _ in events_of(stored.body)]
    assert ids == [f"1.{seq}" for seq in range(1, len(ids) + 1)]
    assert ids[: len(seen)] == seen


async def test_a_turn_whose_call_was_never_made_costs_nothing(clock: ManualClock) -> None:
    async with serving(clock, CALL, answer("6")) as served:
        served.store.only = {"reserve"}
        served.store.deaf = True  # the hold is there, and nobody hears of it
        async with served.post(path=RECKONER) as exchange:
            await clock.advance(3610)
            location = exchange.headers["location"]
        record = (await served.get(location)).json()
        usage = (await served.get("/usage")).json()

    assert len(served.model.requests) == 1
    assert (record["usage"]["inputTokens"], record["usage"]["outputTokens"]) == (10, 5)
    assert [(window["used"], window["reserved"]) for window in usage["windows"]] == [(15, 0), (15, 0)]


async def test_a_tool_turn_whose_text_came_in_half_characters_goes_on(clock: ManualClock) -> None:
    halves = [
        [frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": half}})]
        for half in ("\ud83d", "\ude00")
    ]
    async with serving(clock, [CALL[0], *halves, *CALL[1:]], answer("6")) as served:
        streamed = await served.submit(path=RECKONER)

    assert kinds_of(streamed.body)[-1] == "invocationCompleted"
    assert served.model.requests[1].messages[1]["content"][0] == {"text": "\U0001f600"}


async def test_a_reader_of_the_lost_attempt_that_leaves_takes_no_events_from_others(
    clock: ManualClock, tmp_path: Path
) -> None:
    file, gate = tmp_path / "store.db", asyncio.Event()
    async with (
        serving(clock, [start(), text("a"), gate, stop()], store=file) as served,
        served.post() as first,
    ):
        await first.until(b'"a"')
        await clock.advance(1)
        location = first.headers["location"]
        served.store.only, served.store.broken = {"finish"}, Fenced()
        gate.set()
        await clock.advance(1)
        async with served.follow(location) as second:
            await second.until(b'"a"')
            first.hang_up()
            await first.task
            async with SqliteStore.open(file) as store:  # another process takes over
                (claim,) = await store.claim_expired("other", clock.now_ms() + 60_000, limit=1)
                failed = encode("invocationFailed", {"problem": {}})
                ending = Ending(claim.invocation.invocation_id, 2, State.FAILED, Block(2, 1, (failed,)))
                await store.finish(ending, clock.now_ms())
            await clock.advance(1)
            streamed = await second.whole()

    assert kinds_of(streamed.body)[-1] == "invocationFailed"


async def test_a_response_that_fails_ends_its_reader_and_not_the_job(
    reading: Reading, clock: ManualClock
) -> None:
    async with reading.read() as broken, reading.read() as whole:

        async def refuse(message: object) -> None:
            raise OSError("the server says that the peer has gone")

        reading.readers[0]._send = refuse
        reading.publish(delta(1))
        await clock.advance(0)

        assert (broken.aborted, reading.readers[0].end) == (True, "failed")
        assert b"id: 1.1\n" in whole.body


async def test_a_replay_that_breaks_cuts_its_response_instead_of_falling_silent(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        served.store.only, served.store.broken = {"read_events"}, ValueError("a fault of ours")
        async with served.follow(location) as exchange:
            await clock.advance(1)

    assert (exchange.aborted, exchange.body) == (True, SSE.connected)
    assert served.lines.requests[-1]["end"] == "failed"


async def test_heartbeats_go_on_while_a_replay_waits_for_a_stalled_store(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        served.store.only = {"read_events"}
        served.store.gate.clear()
        async with served.follow(location) as exchange:
            await clock.advance(25)
            silent = exchange.body
            served.store.gate.set()
            whole = await exchange.whole()

    assert silent.count(b": heartbeat phase=replay turn=0 elapsed_s=") == 2
    assert kinds_of(whole.body)[-1] == "invocationCompleted"


async def test_a_peer_that_is_slow_all_the_time_is_sent_on_when_its_token_expires(
    reading: Reading, clock: ManualClock
) -> None:
    async with reading.read(deadline=(clock.monotonic_s() + 60, "token-expired")) as exchange:
        exchange.block()
        for number in range(20):
            reading.publish(delta(number, 70_000))
        for _ in range(4):
            await reading.turn(20)
            exchange.unblock()  # for one piece
            exchange.block()
            await clock.advance(0)

        assert reading.readers[0].end == "token-expired"


async def test_a_response_that_is_cancelled_as_it_falls_behind_leaves_nothing_unawaited(
    reading: Reading, clock: ManualClock
) -> None:
    async with reading.read() as exchange:
        exchange.block()
        exchange.task.cancel()
        reading.publish(delta(1))
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        await clock.advance(0)  # an unawaited coroutine would be a warning, and a warning an error

    assert reading.log.attached == 0


async def test_all_that_a_dead_process_left_is_ended_in_one_round(clock: ManualClock, tmp_path: Path) -> None:
    file, ids = tmp_path / "store.db", [f"inv_{number:026}" for number in range(40)]
    async with SqliteStore.open(file) as store:
        for invocation_id in ids:
            new = NewInvocation(invocation_id, "writer", "user-1", None, b"{}", 1, "dead", 10**15, 10**15)
            await store.create_invocation(new, Limits(concurrent_invocations=40), clock.now_ms())

        async with serving(clock, store=file):
            await clock.advance(1)
            records = [await store.load_invocation(invocation_id) for invocation_id in ids]

    assert {record.state for record in records if record is not None} == {State.FAILED}


@pytest.mark.parametrize("name", ["ISSUER", "JWKS_URL", "CORS_ORIGINS"])
def test_a_setting_that_is_no_url_at_all_is_a_fault_and_not_a_crash(name: str) -> None:
    good = {"ISSUER": "https://issuer", "AUDIENCES": "app", "STORE": "sqlite::memory:"}
    environ = {f"HEADRACE_{key}": value for key, value in (good | {name: "https://["}).items()}

    with pytest.raises(ConfigError) as failure:
        Settings.from_env(environ)

    assert failure.value.faults[0].startswith(f"HEADRACE_{name}")
