"""Turns: one at a time, in order, and whoever gives up keeps them from nobody."""

import asyncio

import pytest

from service.errors import StoreUnavailable
from service.stores.dynamodb_turns import Turns
from tests.clock import ManualClock


class Decision:
    """Waits for its turn and has it until it is told to end."""

    def __init__(self, turns: Turns, name: str = "sub") -> None:
        self.begun = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._decide(turns, name))

    async def _decide(self, turns: Turns, name: str) -> None:
        async with turns.turn(name):
            self.begun = True
            await self.end.wait()


async def begun(*decisions: Decision) -> list[bool]:
    """Let everything happen that can, then say which of these have their turn."""
    for _ in range(10):
        await asyncio.sleep(0)
    return [decision.begun for decision in decisions]


async def test_a_turn_goes_to_whoever_has_waited_longest() -> None:
    turns = Turns(5.0)
    decisions = [Decision(turns) for _ in range(3)]
    seen = [await begun(*decisions)]
    for decision in decisions:
        decision.end.set()
        seen.append(await begun(*decisions))

    assert seen == [[True, False, False], [True, True, False], [True, True, True], [True, True, True]]


async def test_turns_of_other_names_are_not_waited_for() -> None:
    turns = Turns(5.0)
    decisions = [Decision(turns), Decision(turns, "another")]

    assert await begun(*decisions) == [True, True]
    for decision in decisions:
        decision.end.set()
        await decision.task


async def test_a_decision_that_fails_passes_its_turn_on() -> None:
    turns = Turns(5.0)
    with pytest.raises(ValueError, match="wrong"):
        async with turns.turn("sub"):
            raise ValueError("wrong")
    after = Decision(turns)

    assert await begun(after) == [True]
    after.end.set()
    await after.task


async def test_who_is_cancelled_while_waiting_keeps_the_turn_from_nobody() -> None:
    turns = Turns(5.0)
    first, second, third = (Decision(turns) for _ in range(3))
    await begun()
    second.task.cancel()
    await begun()
    first.end.set()

    assert await begun(first, second, third) == [True, False, True]
    third.end.set()
    await third.task


async def test_who_is_cancelled_as_the_turn_comes_keeps_it_from_nobody() -> None:
    turns = Turns(5.0)
    first, second, third = (Decision(turns) for _ in range(3))
    await begun()
    first.task.cancel()  # it passes the turn on to the second ...
    await asyncio.sleep(0)
    second.task.cancel()  # ... which has not gone on yet

    assert await begun(first, second, third) == [True, False, True]
    third.end.set()
    await third.task


async def test_who_waits_for_too_long_is_told_so_and_the_next_one_has_the_turn(clock: ManualClock) -> None:
    turns = Turns(5.0)
    first, second = Decision(turns), Decision(turns)
    await begun()
    await clock.advance(4)
    third = Decision(turns)
    await clock.advance(2)
    with pytest.raises(StoreUnavailable):
        await second.task
    first.end.set()

    assert await begun(third) == [True]
    third.end.set()
    await third.task
