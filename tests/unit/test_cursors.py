"""Every cursor has a defined answer, wherever the invocation runs: "Ids and cursors" of docs/api.md."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import pytest

from service.errors import InvalidCursor
from tests.asgi import Exchange
from tests.clock import ManualClock
from tests.fakes import Step, start, stop, text
from tests.harness import Served, serving
from tests.id_tokens import bearer
from tests.sse import events_of
from tests.stories import Story

NO_CURSOR: Final = [
    *("x", "1", "1.", ".1", "1.1.1", "1,1", "1 1", "1. 1", "+1.1", "1e1.1", "0x1.1", "٣.١"),
    *("-1", "-1.1", "1.-1", "0", "0.0", "0.1", "1.0", "01.1", "1.01"),
    *("1.1234567890", "1234567890.1", "9" * 4300, "9" * 4300 + ".1"),
    *("null", "undefined", "NaN", "1.1\n", " ", "\N{NULL}"),
]
FORM = "A cursor is the id of an event, such as 1.42: send the last id that you received."

Expected = list[str] | str
"""The ids that follow, or what the newest event is said to be in a refusal."""


@dataclass
class Asked:
    """A service that is asked for an invocation."""

    served: Served
    location: str

    async def get(self, cursor: str, *, in_header: bool) -> tuple[int, Expected | None, bool]:
        """Return the status, what the answer says, and whether it has ended."""
        path, headers = f"{self.location}/events", {"authorization": bearer()}
        if in_header:
            headers["last-event-id"] = cursor
        else:
            path += f"?after={quote(cursor)}"
        async with self.served.client.stream("GET", path, headers=headers) as exchange:
            await self.served.clock.advance(0)
            return exchange.status, _said(exchange), exchange.complete


def _said(exchange: Exchange) -> Expected | None:
    if exchange.status == 200:
        return [event_id for event_id, _ in events_of(exchange.body)]
    problem = json.loads(exchange.body)
    detail: str = problem["detail"]
    if problem != InvalidCursor(detail).problem():
        return None
    return detail.partition(":")[0].removeprefix("The newest event has the id ")


@asynccontextmanager
async def running_here(clock: ManualClock) -> AsyncIterator[Asked]:
    """1.1 to 1.3, and more to come."""
    script: list[Step] = [start(), text("A head"), asyncio.Event(), stop()]
    async with serving(clock, script) as served, served.post() as exchange:
        await exchange.until(b"A head")
        yield Asked(served, exchange.headers["location"])


@asynccontextmanager
async def told(clock: ManualClock, *chapters: str) -> AsyncIterator[Asked]:
    """1.1 to 1.6, of which a takeover makes 1.4 to 1.6 void, 2.1 and 2.2; then what is asked for."""
    async with serving(clock) as served:
        story = Story(served.store.as_store, clock.now_ms)
        await story.begin()
        await story.write(5)
        if "taken over" in chapters:
            await story.lose(granted=3)
            await story.write(1)
        if "paused" in chapters:
            await story.pause()
        if "ended" in chapters:
            await story.end()
        yield Asked(served, story.location)


GRANTED = ["1.1", "1.2", "1.3"]
WHERE: Final[Mapping[str, tuple[tuple[str, ...], Mapping[str, Expected]]]] = {
    "runs here": (
        (),
        {
            "": GRANTED,
            "1.1": ["1.2", "1.3"],
            "1.3": [],
            "1.4": "1.3",
            "1.999999999": "1.3",
            "2.1": "1.3",
            "999999999.999999999": "1.3",
        },
    ),
    "runs elsewhere": (
        ("begun",),
        {
            "": ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"],
            "1.4": ["1.5", "1.6"],
            "1.6": [],
            "1.7": [],
            "1.999999999": [],
            "2.1": "1.x",
            "999999999.999999999": "1.x",
        },
    ),
    "was taken over elsewhere": (
        ("taken over",),
        {
            "": [*GRANTED, "2.1", "2.2"],
            "1.1": ["1.2", "1.3", "2.1", "2.2"],
            "1.3": ["2.1", "2.2"],
            "1.4": ["2.1", "2.2"],
            "1.6": ["2.1", "2.2"],
            "1.999999999": ["2.1", "2.2"],
            "2.1": ["2.2"],
            "2.2": [],
            "2.3": [],
            "2.999999999": [],
            "3.1": "2.x",
            "999999999.999999999": "2.x",
        },
    ),
    "waits for quota": (
        ("taken over", "paused"),
        {
            "": [*GRANTED, "2.1", "2.2", "2.3"],
            "1.6": ["2.1", "2.2", "2.3"],
            "2.2": ["2.3"],
            "2.3": [],
            "2.4": "2.3",
            "3.1": "2.3",
        },
    ),
    "has ended": (
        ("taken over", "ended"),
        {
            "": [*GRANTED, "2.1", "2.2", "2.3"],
            "1.1": ["1.2", "1.3", "2.1", "2.2", "2.3"],
            "1.3": ["2.1", "2.2", "2.3"],
            "1.6": ["2.1", "2.2", "2.3"],
            "1.999999999": ["2.1", "2.2", "2.3"],
            "2.2": ["2.3"],
            "2.3": [],
            "2.4": "2.3",
            "2.999999999": "2.3",
            "3.1": "2.3",
            "999999999.999999999": "2.3",
        },
    ),
}


@pytest.mark.promise("reattach-exactly-once", "bad-input-refused")
@pytest.mark.parametrize("where", WHERE)
async def test_every_cursor_has_its_answer(clock: ManualClock, where: str) -> None:
    chapters, answers = WHERE[where]
    asking = told(clock, *chapters) if chapters else running_here(clock)
    async with asking as asked:
        got = {
            cursor: [await asked.get(cursor, in_header=in_header) for in_header in (True, False)]
            for cursor in answers
        }

    ends = where == "has ended"
    assert got == {
        cursor: [(400, said, True) if isinstance(said, str) else (200, said, ends)] * 2
        for cursor, said in answers.items()
    }


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize("where", ["runs here", "was taken over elsewhere", "has ended"])
async def test_what_has_not_the_form_of_an_id_is_refused(clock: ManualClock, where: str) -> None:
    chapters, _ = WHERE[where]
    asking = told(clock, *chapters) if chapters else running_here(clock)
    async with asking as asked:
        got = [await asked.get(cursor, in_header=False) for cursor in NO_CURSOR]
        got += [await asked.get(cursor, in_header=True) for cursor in NO_CURSOR if cursor.isascii()]

    assert {answer for answer in got if isinstance(answer[1], str)} == {(400, FORM.partition(":")[0], True)}
    assert all(isinstance(answer[1], str) for answer in got)


async def test_the_header_counts_more_than_the_query_and_an_empty_one_does_not_count(
    clock: ManualClock,
) -> None:
    async with told(clock, "taken over", "ended") as asked:
        path = f"{asked.location}/events?after=2.1"
        got = [
            [event_id for event_id, _ in events_of((await asked.served.get(path, **headers)).body)]
            for headers in ({}, {"last_event_id": ""}, {"last_event_id": "1.6"})
        ]

    assert got == [["2.2", "2.3"], ["2.2", "2.3"], ["2.1", "2.2", "2.3"]]
