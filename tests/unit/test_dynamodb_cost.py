"""What a typical invocation costs on DynamoDB: the whole service on manual time, its calls metered.

200 deltas over 10 s, in one turn or in two with a tool between them, for a caller that reads along.
"""

import asyncio
import random
from typing import Final

import pytest

from service.stores.dynamodb import DynamoStore
from tests.clock import ManualClock
from tests.dynamodb import Tables
from tests.dynamodb_meter import Meter
from tests.fakes import Step, answer, frame, start, stop, tool_call
from tests.harness import serving

CATALOG: Final = """
[runtimes.agent]
kind = "converse"
model = "bedrock/model-1"
instructions = "Be brief."
max_output_tokens = 2000
tools = ["tests.unit.test_converse:multiply"]
"""
OF_AN_INVOCATION: Final = (
    "create_invocation",
    "append_events",
    "settle",
    "complete_turn",
    "reserve",
    "finish",
    "note_read",
)
# Measured. One turn buys: its admission 10, its events 1 for each commit, its ending 13.
AT_MOST: Final = {"one-turn": (34, 6), "two-turns-and-a-tool": (58, 10)}
EVERY_S: Final = 0.05
WORDS: Final = (
    "water",
    "runs",
    "from",
    "the",
    "dam",
    "along",
    "a",
    "race",
    "to",
    "our",
    "wheel",
    "each",
    "day",
)
PADDING: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def paced(count: int, dice: random.Random, due: list[asyncio.Event]) -> list[Step]:
    """Return deltas as Bedrock sends them, with padding of any length, each after an event of its own."""
    steps: list[Step] = []
    for _ in range(count):
        text = " ".join(dice.choices(WORDS, k=4))
        delta = {"contentBlockIndex": 0, "delta": {"text": text}, "p": PADDING[: dice.randrange(3, 63)]}
        due.append(asyncio.Event())
        steps += [due[-1], [frame("contentBlockDelta", delta)]]
    return steps


@pytest.mark.parametrize("kind", AT_MOST)
async def test_a_typical_invocation_stays_within_its_units(
    kind: str, clock: ManualClock, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(7)  # noqa: S311 - not a secret
    due: list[asyncio.Event] = []
    deltas = (200,) if kind == "one-turn" else (20, 180)
    turns = [[start(), *paced(count, dice, due)] for count in deltas]
    for turn in turns[:-1]:
        turn += tool_call("multiply", '{"a": 6, "b": 7}')[1:]
    turns[-1].append(stop(input_tokens=900, output_tokens=800))
    meter = Meter(tables.usage, tables.invocations)
    opening = DynamoStore.open(
        usage_table=tables.usage,
        invocations_table=tables.invocations,
        now_ms=clock.now_ms,
        wrap=meter.wrap,
    )

    async with serving(
        clock, answer("Now you are known."), *turns, catalog=CATALOG, store=meter.named(opening)
    ) as served:
        await served.submit()
        meter.spent.clear()
        asked = {"prompt": "What does six times seven turn? " * 8}
        answering = asyncio.create_task(
            served.submit(asked, "/runtimes/agent/invocations", idempotency_key="key-1")
        )
        for event in due:
            await clock.advance(EVERY_S)
            event.set()
        await clock.advance(1)
        told = await answering

    others = sorted(meter.spent.keys() - set(OF_AN_INVOCATION))
    with capsys.disabled():
        print(f"\n{kind}:\n{meter.table(OF_AN_INVOCATION)}")
        print(f"of the process, in 11 s:\n{meter.table(others)}")
    assert b"invocationCompleted" in told.body
    assert told.body.count(b'"p":') == sum(deltas)
    spent = [meter.spent[name] for name in OF_AN_INVOCATION]
    write_units, read_units = AT_MOST[kind]
    assert sum(each.write_units for each in spent) <= write_units
    assert sum(each.read_units for each in spent) <= read_units
