from itertools import product

import pytest

from service.invocations import TRANSITIONS, State, Usage

ALLOWED = {
    ("running", "paused"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("paused", "running"),
    ("paused", "completed"),
    ("paused", "failed"),
    ("paused", "cancelled"),
}


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_every_pair_of_states_is_decided(before: State, after: State) -> None:
    assert (after in TRANSITIONS[before]) == ((str(before), str(after)) in ALLOWED)


def test_only_endings_are_terminal() -> None:
    assert {state for state in State if state.is_terminal} == {State.COMPLETED, State.FAILED, State.CANCELLED}


def test_cache_reads_do_not_count() -> None:
    assert Usage(10, 5, cache_read_tokens=1000, cache_write_tokens=3).counted_tokens == 18


def test_a_sum_with_an_estimate_is_an_estimate() -> None:
    total = Usage(1, 2, 3, 4).plus(Usage(10, 20, 30, 40, estimated=True))

    assert total == Usage(11, 22, 33, 44, estimated=True)
    assert total.as_json() == {
        "inputTokens": 11,
        "outputTokens": 22,
        "cacheReadInputTokens": 33,
        "cacheWriteInputTokens": 44,
        "estimated": True,
    }
