"""The beat: whose times are multiples of each other's wake up together, and once."""

import pytest

from service.beat import until_beat_s


@pytest.mark.parametrize("now_s", [0.0, 0.2, 58_669.004, 58_669.5, 58_669.731, 12_345_678.901])
def test_times_that_are_multiples_of_each_other_meet(now_s: float) -> None:
    slow = now_s + until_beat_s(2.0, now_s)

    quick_s = now_s
    while quick_s < slow - 0.001:
        quick_s += until_beat_s(0.5, quick_s)

    assert quick_s == pytest.approx(slow)


@pytest.mark.parametrize("now_s", [0.0, 7.3, 58_669.731])
def test_a_beat_comes_after_the_moment_and_within_its_time(now_s: float) -> None:
    beat_s = now_s + until_beat_s(1.0, now_s)

    assert 0 < beat_s % 1.0 < 0.01
    assert 0 < beat_s - now_s <= 1.01


def test_a_timer_that_fires_a_little_early_has_fired_for_its_beat() -> None:
    beat_s = 100.0 + until_beat_s(1.0, 100.0)

    assert until_beat_s(1.0, beat_s - 0.002) == pytest.approx(1.002)
