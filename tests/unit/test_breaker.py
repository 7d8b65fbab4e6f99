"""The breaker of a model: when it opens, what it lets through, how it closes."""

from contextlib import suppress
from typing import Any

import pytest

from service.errors import (
    HeadraceError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models.breaker import (
    MIN_CALLS,
    OPEN_S,
    PROBE_S,
    PROBED_AGAIN_S,
    REMEMBERED_CALLS,
    WINDOW_S,
    Breaker,
    BreakerState,
)
from tests.clock import ManualClock

FAILURES = [UpstreamThrottled, UpstreamUnavailable, UpstreamTimeout, UpstreamFailed]


class Watcher:
    """A breaker, and the changes that it told."""

    def __init__(self, clock: ManualClock) -> None:
        self.told: list[dict[str, Any]] = []
        self.breaker = Breaker(clock.monotonic_s, self.told.append)

    def fails(self, times: int = 1, kind: type[HeadraceError] = UpstreamThrottled) -> None:
        for _ in range(times):
            with pytest.raises(kind), self.breaker.watch():
                raise kind

    def answers(self, times: int = 1) -> None:
        for _ in range(times):
            with self.breaker.watch() as call:
                call.answered()

    def breaks_off(self) -> None:
        with suppress(UpstreamFailed), self.breaker.watch() as call:
            call.answered()
            raise UpstreamFailed

    @property
    def states(self) -> list[str]:
        return [told["state"] for told in self.told]


@pytest.fixture
def watched() -> tuple[Watcher, ManualClock]:
    clock = ManualClock()
    return Watcher(clock), clock


@pytest.mark.parametrize("kind", FAILURES)
def test_a_breaker_opens_when_half_of_enough_calls_have_failed(
    watched: tuple[Watcher, ManualClock], kind: type[HeadraceError]
) -> None:
    model, _ = watched
    model.answers(MIN_CALLS // 2)
    model.fails(MIN_CALLS // 2 - 1, kind)
    before = model.breaker.state

    model.fails(1, kind)

    assert (before, model.breaker.state, model.breaker.admits) == (
        BreakerState.CLOSED,
        BreakerState.OPEN,
        False,
    )
    assert model.told == [{"state": "open", "calls": MIN_CALLS, "failures": MIN_CALLS // 2, "opened": 1}]
    assert model.breaker.retry_after_s == OPEN_S


def test_a_few_failures_open_nothing(watched: tuple[Watcher, ManualClock]) -> None:
    model, _ = watched

    model.fails(MIN_CALLS - 1)

    assert (model.breaker.state, model.told) == (BreakerState.CLOSED, [])


def test_a_model_that_mostly_answers_stays_closed(watched: tuple[Watcher, ManualClock]) -> None:
    model, _ = watched

    for _ in range(20):
        model.answers(2)
        model.fails()

    assert model.told == []


def test_failures_are_forgotten_with_the_window(watched: tuple[Watcher, ManualClock]) -> None:
    model, clock = watched
    model.fails(MIN_CALLS - 1)
    clock.pass_time(WINDOW_S)

    model.fails(MIN_CALLS - 1)

    assert model.breaker.state is BreakerState.CLOSED


def test_a_breaker_remembers_a_bounded_number_of_calls(watched: tuple[Watcher, ManualClock]) -> None:
    model, _ = watched
    model.answers(2 * REMEMBERED_CALLS)

    model.fails(REMEMBERED_CALLS // 2)

    assert model.told[0]["calls"] == REMEMBERED_CALLS


@pytest.mark.parametrize("kind", [UpstreamRejected, UpstreamMisconfigured])
def test_what_is_the_callers_or_the_deployments_fault_counts_for_nothing(
    watched: tuple[Watcher, ManualClock], kind: type[HeadraceError]
) -> None:
    model, _ = watched

    model.fails(3 * MIN_CALLS, kind)

    assert model.told == []


def test_an_answer_that_breaks_off_counts_as_good_and_as_bad(watched: tuple[Watcher, ManualClock]) -> None:
    model, _ = watched

    for _ in range(MIN_CALLS // 2):
        model.breaks_off()

    assert model.told == [{"state": "open", "calls": MIN_CALLS, "failures": MIN_CALLS // 2, "opened": 1}]


def test_a_long_answer_counts_from_its_first_event(watched: tuple[Watcher, ManualClock]) -> None:
    model, _ = watched
    running = [model.breaker.watch() for _ in range(MIN_CALLS)]
    for call in running:
        call.__enter__().answered()

    model.fails(MIN_CALLS - 1)
    still = model.breaker.state
    for call in running:
        call.__exit__(None, None, None)

    assert (still, model.told) == (BreakerState.CLOSED, [])


# -- half-open


def opened(model: Watcher, clock: ManualClock) -> None:
    model.fails(MIN_CALLS)
    clock.pass_time(OPEN_S)


@pytest.mark.promise("breaker-leaves-alone")
def test_after_a_while_one_call_probes_and_the_others_wait(watched: tuple[Watcher, ManualClock]) -> None:
    model, clock = watched
    opened(model, clock)
    before = model.breaker.state

    with model.breaker.watch() as probe:
        meanwhile = (model.breaker.admits, model.breaker.retry_after_s)
        probe.answered()
        after = model.breaker.state

    assert (before, meanwhile, after) == (
        BreakerState.HALF_OPEN,
        (False, PROBED_AGAIN_S),
        BreakerState.CLOSED,
    )
    assert model.states == ["open", "half-open", "closed"]
    assert model.breaker.retry_after_s == 0


def test_after_a_good_probe_a_model_begins_with_a_clean_slate(watched: tuple[Watcher, ManualClock]) -> None:
    model, clock = watched
    opened(model, clock)
    model.answers()

    model.fails(MIN_CALLS - 2)

    assert model.breaker.state is BreakerState.CLOSED


def test_a_probe_that_fails_opens_again(watched: tuple[Watcher, ManualClock]) -> None:
    model, clock = watched
    opened(model, clock)

    model.fails()

    assert model.states == ["open", "half-open", "open"]
    assert (model.told[-1]["opened"], model.breaker.retry_after_s) == (2, OPEN_S)


@pytest.mark.parametrize("kind", [UpstreamRejected, KeyboardInterrupt])
def test_a_probe_that_says_nothing_leaves_the_next_call_to_probe(
    watched: tuple[Watcher, ManualClock], kind: type[BaseException]
) -> None:
    model, clock = watched
    opened(model, clock)

    with pytest.raises(kind), model.breaker.watch():
        raise kind

    assert (model.breaker.state, model.states) == (BreakerState.HALF_OPEN, ["open", "half-open"])


def test_a_call_from_before_neither_closes_a_breaker_nor_keeps_it_open(
    watched: tuple[Watcher, ManualClock],
) -> None:
    model, clock = watched
    early, late = model.breaker.watch(), model.breaker.watch()
    first, second = early.__enter__(), late.__enter__()
    opened(model, clock)

    first.answered()
    early.__exit__(None, None, None)
    failure = UpstreamFailed()
    assert late.__exit__(UpstreamFailed, failure, None) is False

    assert second is not first
    assert (model.breaker.state, model.states) == (BreakerState.HALF_OPEN, ["open"])


@pytest.mark.promise("breaker-leaves-alone")
def test_a_probe_that_stays_silent_lets_one_more_call_probe_after_a_while(
    watched: tuple[Watcher, ManualClock],
) -> None:
    model, clock = watched
    opened(model, clock)
    silent = model.breaker.watch()
    silent.__enter__()
    clock.pass_time(PROBE_S)
    before = model.breaker.state

    with model.breaker.watch() as probe:
        meanwhile = model.breaker.state
        probe.answered()

    assert (before, meanwhile) == (BreakerState.HALF_OPEN, BreakerState.OPEN)
    assert (model.breaker.state, model.states) == (
        BreakerState.CLOSED,
        ["open", "half-open", "half-open", "closed"],
    )


@pytest.mark.parametrize("is_back", [False, True])
def test_the_end_of_a_probe_after_which_another_one_began_decides_nothing(
    watched: tuple[Watcher, ManualClock], is_back: bool
) -> None:
    model, clock = watched
    opened(model, clock)
    silent = [model.breaker.watch() for _ in range(MIN_CALLS)]
    for call in silent:
        call.__enter__()
        clock.pass_time(PROBE_S)
    with model.breaker.watch() as last:
        if is_back:
            last.answered()
        told = len(model.told)

        for call in silent:
            assert call.__exit__(UpstreamTimeout, UpstreamTimeout(), None) is False
        meanwhile = model.breaker.admits

    assert (meanwhile, model.states[told:]) == (is_back, [] if is_back else ["closed"])


def test_an_answer_that_comes_after_the_breaker_closed_is_one_like_any_other(
    watched: tuple[Watcher, ManualClock],
) -> None:
    model, clock = watched
    opened(model, clock)
    slow = model.breaker.watch()
    probe = slow.__enter__()
    clock.pass_time(PROBE_S)
    model.answers()
    model.fails(MIN_CALLS - 2)

    probe.answered()
    slow.__exit__(None, None, None)
    model.fails()

    assert model.told[-1] == {"state": "open", "calls": MIN_CALLS + 1, "failures": MIN_CALLS - 1, "opened": 2}
