from itertools import product

import pytest

from service.events import EventId
from service.invocations import TRANSITIONS, Attempt, AttemptEnd, Invocation, State, Usage

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


LOST, HANDED_OVER, PAUSED = AttemptEnd.LOST, AttemptEnd.HANDED_OVER, AttemptEnd.PAUSED


@pytest.mark.promise("attempts-limit")
@pytest.mark.parametrize(
    ("ended", "lost"),
    [
        ([], 0),
        ([(LOST, 1)], 1),
        ([(LOST, 1), (LOST, 0), (LOST, 1)], 3),
        ([(LOST, 1), (HANDED_OVER, 1), (LOST, 1)], 2),
        ([(LOST, 1), (LOST, 1), (LOST, 7)], 0),
        ([(LOST, 1), (LOST, 7), (LOST, 1)], 1),
        ([(LOST, 1), (LOST, 1), (HANDED_OVER, 7), (LOST, 1)], 1),
        ([(LOST, 1), (PAUSED, 7), (LOST, 1), (LOST, 1)], 2),
    ],
)
def test_an_attempt_that_has_stored_a_turn_makes_up_for_those_that_were_lost_before(
    ended: list[tuple[AttemptEnd, int]], lost: int
) -> None:
    attempts = [Attempt(number, 0, EventId(number, seq), end) for number, (end, seq) in enumerate(ended, 1)]
    current = Attempt(len(ended) + 1, 0)
    invocation = Invocation("inv_1", "writer", "user-1", None, State.RUNNING, (*attempts, current), 0, 0, 0)

    assert invocation.lost_attempts == lost
