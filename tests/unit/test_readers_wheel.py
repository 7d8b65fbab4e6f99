"""The readers' wheel: looks at each when something is due for it, and not because it writes."""

from itertools import pairwise
from typing import Any

import pytest

from service.beat import until_beat_s
from service.readers_wheel import Wheel


def test_the_wheel_looks_at_a_reader_once_per_interval_however_much_it_writes() -> None:
    looks: list[float] = []
    now = 100.0

    class Counting:
        slot = -1
        beat_at = 110.0

        def due_at(self) -> float:
            return self.beat_at

        def look(self, at: float) -> None:
            looks.append(at)
            self.beat_at = at + 10

    wheel = Wheel(1.0, lambda: now)
    counting: Any = Counting()
    wheel.add(counting)
    for _ in range(1000):
        now += 0.1
        wheel.turn()

    assert len(looks) == 9
    assert all(10 <= later - earlier <= 11 for earlier, later in pairwise(looks))
    assert len(wheel) == 1


@pytest.mark.promise("heartbeat-before-first-token")
@pytest.mark.parametrize(("heartbeat_s", "tick_s"), [(10.0, 0.9), (0.5, 0.05), (30.0, 0.9)])
@pytest.mark.parametrize("written_after_s", [0.001, 0.3, 0.899])
def test_a_reader_is_looked_at_before_its_silence_is_as_long_as_a_heartbeat(
    heartbeat_s: float, tick_s: float, written_after_s: float
) -> None:
    now = 58_669.731
    wheel = Wheel(tick_s, lambda: now)
    looks: list[float] = []

    class Written:
        slot = -1

        def due_at(self) -> float:
            return (
                last_turn + heartbeat_s - tick_s
            )  # as a reader that has written since the wheel's last turn

        def look(self, at: float) -> None:
            looks.append(at)

    now += until_beat_s(tick_s, now)
    wheel.turn()
    last_turn = wheel.now
    written_at = now + written_after_s * tick_s
    written: Any = Written()
    wheel.add(written)
    while not looks:
        now += until_beat_s(tick_s, now)
        wheel.turn()

    assert heartbeat_s - 2 * tick_s < looks[0] - written_at < heartbeat_s
