"""Timeouts that share a timer: each passes in its time, a little late and never early."""

import asyncio

import pytest

from service.timeouts import Timeouts
from tests.clock import START_S, ManualClock


class Patient:
    """Waits until `due_s`, whenever it is looked at before."""

    def __init__(self, timeouts: Timeouts, due_s: float) -> None:
        self.slot = -1
        self.due_s = due_s
        self.passed_at: float | None = None
        self.looks = 0
        timeouts.watch(self, due_s)

    def look(self, now_s: float) -> float | None:
        self.looks += 1
        if now_s < self.due_s:
            return self.due_s
        self.passed_at = now_s
        return None


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0, 59.99, 3600.5])
async def test_a_timeout_passes_at_most_a_tick_late_and_never_early(
    clock: ManualClock, after_s: float
) -> None:
    timeouts = Timeouts(0.5)
    early, late = Patient(timeouts, START_S + 5_000), Patient(timeouts, START_S + after_s)

    await clock.advance(after_s + 0.5)

    assert early.passed_at is None
    assert late.passed_at is not None
    assert 0 <= late.passed_at - late.due_s <= 0.5
    assert len(timeouts) == 1


async def test_what_is_due_later_than_it_was_is_looked_at_again(clock: ManualClock) -> None:
    timeouts = Timeouts(1.0)
    patient = Patient(timeouts, START_S + 10)

    patient.due_s += 5
    await clock.advance(100)

    assert (patient.passed_at, patient.looks) == (START_S + 15, 2)


async def test_what_is_cancelled_is_not_looked_at_even_by_the_look_that_cancels_it(
    clock: ManualClock,
) -> None:
    timeouts = Timeouts(1.0)

    class Rival(Patient):
        def look(self, now_s: float) -> float | None:
            for other in rivals:
                timeouts.cancel(other)
            return super().look(now_s)

    before = Patient(timeouts, START_S + 1)
    rivals = [Rival(timeouts, START_S + 2) for _ in range(3)]
    timeouts.cancel(before)
    timeouts.cancel(before)
    await clock.advance(10)

    assert (before.looks, sum(rival.looks for rival in rivals), len(timeouts)) == (0, 1, 0)


async def test_an_earlier_timeout_does_not_wait_for_a_later_one(clock: ManualClock) -> None:
    timeouts = Timeouts(1.0)
    late, early = Patient(timeouts, START_S + 900), Patient(timeouts, START_S + 3)

    await clock.advance(3)
    first = (early.passed_at, late.passed_at)
    await clock.advance(897)

    assert (first, late.passed_at) == ((START_S + 3, None), START_S + 900)


async def test_a_look_that_raises_does_not_stop_the_others(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: told.append(said["exception"]))
    timeouts = Timeouts(1.0)
    faulty, late = Patient(timeouts, START_S + 3), Patient(timeouts, START_S + 9)
    fault = ValueError("a fault of ours")
    monkeypatch.setattr(faulty, "look", lambda _: raising(fault))

    await clock.advance(9)

    assert (told, late.passed_at) == ([fault], START_S + 9)


def raising(error: Exception) -> None:
    raise error
