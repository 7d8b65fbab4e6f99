"""The manual clock and its loop keep the promises that all time-dependent tests rest on."""

import asyncio
import socket
import threading
from datetime import UTC, datetime

import pytest

from tests import clock as clock_module
from tests.clock import ManualClock, ManualLoop, Stalled


async def test_time_begins_at_a_known_moment_and_stands_still(clock: ManualClock) -> None:
    await asyncio.sleep(0)

    assert datetime.fromtimestamp(clock.now_ms() / 1000, UTC).isoformat() == "2026-11-21T16:40:00+00:00"
    assert clock.monotonic_s() == asyncio.get_running_loop().time() == 1000.0


async def test_wall_and_monotonic_time_move_together(clock: ManualClock) -> None:
    before_ms = clock.now_ms()

    for _ in range(3):
        await clock.advance(0.1)

    assert clock.now_ms() - before_ms == 300
    assert clock.monotonic_s() == pytest.approx(1000.3)


async def test_timers_fire_at_their_own_times_in_order(clock: ManualClock) -> None:
    fired: list[tuple[str, float]] = []

    async def sleep_twice(name: str, first_s: float, second_s: float) -> None:
        for delay_s in (first_s, second_s):
            await asyncio.sleep(delay_s)
            fired.append((name, clock.monotonic_s() - 1000.0))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleep_twice("a", 1.0, 4.0))
        group.create_task(sleep_twice("b", 2.0, 2.0))
        await clock.advance(5.0)

        assert fired == [("a", 1.0), ("b", 2.0), ("b", 4.0), ("a", 5.0)]


async def test_a_timer_just_beyond_the_advance_does_not_fire(clock: ManualClock) -> None:
    sleeper = asyncio.create_task(asyncio.sleep(10.0))

    await clock.advance(9.999)
    slept_too_early = sleeper.done()
    await clock.advance(0.001)

    assert (slept_too_early, sleeper.done()) == (False, True)


async def test_a_timeout_fires_when_time_is_moved_past_it(clock: ManualClock) -> None:
    async def wait_for_ever() -> None:
        async with asyncio.timeout(30.0):
            await asyncio.Event().wait()

    waiter = asyncio.create_task(wait_for_ever())
    await clock.advance(30.0)

    assert isinstance(waiter.exception(), TimeoutError)


async def test_a_timer_days_away_is_reached(clock: ManualClock) -> None:
    sleeper = asyncio.create_task(asyncio.sleep(3 * 86_400))

    await clock.advance(3 * 86_400)

    assert sleeper.done()


async def test_advance_returns_when_every_task_waits_again(clock: ManualClock) -> None:
    steps: list[int] = []

    async def take_many_steps() -> None:
        for step in range(500):
            await asyncio.sleep(0)
            steps.append(step)
        await asyncio.sleep(1.0)

    walker = asyncio.create_task(take_many_steps())
    await clock.advance(0)

    assert (len(steps), walker.done()) == (500, False)
    walker.cancel()


async def test_loopback_sockets_are_part_of_coming_to_rest(clock: ManualClock) -> None:
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    echo_reader, echo_writer = await asyncio.open_connection(sock=there)

    async def echo_after_a_second() -> None:
        line = await echo_reader.readline()
        await asyncio.sleep(1.0)
        echo_writer.write(line)

    echo = asyncio.create_task(echo_after_a_second())
    writer.write(b"hello\n")
    answer = asyncio.create_task(reader.readline())
    await clock.advance(1.0)

    assert (echo.done(), await answer) == (True, b"hello\n")
    for stream in (writer, echo_writer):
        stream.close()
        await stream.wait_closed()


async def test_threads_work_in_real_time(clock: ManualClock) -> None:
    before_s = clock.monotonic_s()

    assert await asyncio.to_thread(sum, [1, 2, 3]) == 6
    assert clock.monotonic_s() == before_s


async def test_time_stands_still_while_declared_work_goes_on(clock: ManualClock) -> None:
    loop = asyncio.get_running_loop()
    answered, let_go = loop.create_future(), threading.Event()
    answered_at_s: list[float] = []
    answered.add_done_callback(lambda _: answered_at_s.append(clock.monotonic_s()))
    clock.wait_while(lambda: not answered.done())
    loop.call_soon(let_go.set)

    def answer() -> None:
        let_go.wait(timeout=10.0)
        loop.call_soon_threadsafe(answered.set_result, None)

    worker = threading.Thread(target=answer)
    worker.start()
    await clock.advance(60.0)
    worker.join()

    assert (answered_at_s, clock.monotonic_s()) == ([1000.0], 1060.0)


async def test_passed_time_fires_what_has_become_due(clock: ManualClock) -> None:
    sleeper = asyncio.create_task(asyncio.sleep(10.0))
    await clock.advance(0)

    clock.pass_time(10.0)
    await clock.advance(0)

    assert sleeper.done()


async def test_a_task_that_spins_fails_the_advance(clock: ManualClock) -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110 - the fault that the clock must name
            await asyncio.sleep(0)

    spinner = asyncio.create_task(spin())

    with pytest.raises(Stalled, match="a task spins"):
        await clock.advance(1.0)
    spinner.cancel()


async def test_a_cancelled_advance_leaves_the_clock_usable(clock: ManualClock) -> None:
    advance = asyncio.create_task(clock.advance(5.0))
    await asyncio.sleep(0)
    advance.cancel()
    await asyncio.gather(advance, return_exceptions=True)

    await clock.advance(1.0)

    assert clock.monotonic_s() == 1001.0


async def test_time_never_goes_back(clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="never goes back"):
        await clock.advance(-1.0)
    with pytest.raises(ValueError, match="never goes back"):
        clock.pass_time(-1.0)


@pytest.mark.parametrize(
    ("delay_s", "reason"), [(60.0, "the next timer is 60 s of `advance` away"), (None, "no timer waits")]
)
def test_a_loop_on_which_nothing_can_happen_fails(
    monkeypatch: pytest.MonkeyPatch, delay_s: float | None, reason: str
) -> None:
    monkeypatch.setattr(clock_module, "STALL_S", 0.0)

    async def wait_in_vain() -> None:
        if delay_s is not None:
            await asyncio.sleep(delay_s)
        await asyncio.Event().wait()

    with (
        asyncio.Runner(loop_factory=ManualLoop) as runner,
        pytest.raises(Stalled, match=reason),
    ):
        runner.run(wait_in_vain())


def test_a_test_without_a_loop_gets_a_clock_of_its_own(clock: ManualClock) -> None:
    clock.pass_time(600.0)

    assert datetime.fromtimestamp(clock.now_ms() / 1000, UTC).isoformat() == "2026-11-21T16:50:00+00:00"


async def test_advance_without_the_manual_loop_is_refused() -> None:
    def advance_on_an_ordinary_loop() -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(ManualClock().advance(1.0))

    with pytest.raises(TypeError, match="needs the manual loop"):
        await asyncio.to_thread(advance_on_an_ordinary_loop)
