"""A runtime with several models, over HTTP: what its caller sees, what is told, and what is metered."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.errors import UpstreamFailed, UpstreamRejected, UpstreamThrottled, UpstreamTimeout
from service.models.breaker import MIN_CALLS, OPEN_S
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, Step, answer, start, text, tool_call
from tests.harness import serving
from tests.sse import events_of

CATALOG = """
[upstreams.far]
kind = "bedrock"
[runtimes.pair]
kind = "converse"
model = [
    "bedrock/arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/near",
    "far/model-2",
]
instructions = "Be brief."
tools = ["tests.unit.test_converse:multiply"]
max_output_tokens = 1000
first_event_s = 5
"""
PAIR = "/runtimes/pair/invocations"
NEAR = "bedrock/arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/near"
THROTTLED = [UpstreamThrottled("Busy.")]
ANSWER = answer("Yes.", input_tokens=20, output_tokens=3)


def far(*calls: Sequence[Step]) -> dict[str, ScriptedModel]:
    return {"far": ScriptedModel(*(calls or [ANSWER]))}


def kinds_of(body: bytes) -> list[str]:
    return [kind for _, value in events_of(body) for kind in value]


def entries(store: Path) -> list[tuple[Any, ...]]:
    """Return the ledger: attempt, turn, model, tokens by kind, whether estimated and charged."""
    with closing(sqlite3.connect(store)) as db:
        return db.execute(
            "SELECT attempt, turn, model, input_tokens, output_tokens, estimated, charged FROM usage_records"
            " ORDER BY settled_at_ms, turn"
        ).fetchall()


@pytest.mark.promise("falls-over-before-first-event", "tried-is-told")
async def test_a_throttled_first_model_falls_over_unseen(clock: ManualClock, tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with serving(clock, THROTTLED, catalog=CATALOG, upstreams=far(), store=store) as served:
        got = await served.submit(path=PAIR)
        record = (await served.get(got.headers["location"])).json()

    first = events_of(got.body)[0][1]["invocationStarted"]
    assert (got.status, first["models"]) == (200, ["bedrock/near", "far/model-2"])
    assert kinds_of(got.body)[1:3] == ["messageStart", "contentBlockDelta"]
    assert (record["state"], record["models"]) == ("completed", ["bedrock/near", "far/model-2"])
    assert record["tried"] == [
        {"model": "bedrock/near", "code": "upstream-throttled", "calls": 1},
        {"model": "far/model-2", "calls": 1},
    ]
    assert [line["tried"] for line in served.lines.attempts] == [
        [
            {"model": NEAR, "code": "upstream-throttled", "calls": 1},
            {"model": "far/model-2", "code": "", "calls": 1},
        ]
    ]
    assert entries(store) == [(1, 1, "far/model-2", 20, 3, 0, 1)]
    assert b"123456789012" not in got.body


@pytest.mark.promise("given-up-calls-metered")
async def test_a_call_that_was_given_up_unanswered_is_charged_apart(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    silent = asyncio.Event()
    async with serving(clock, [silent], catalog=CATALOG, upstreams=far(), store=store) as served:
        got = await served.submit(path=PAIR, prefer="respond-async")
        await clock.advance(4)
        held = (await served.get("/usage")).json()["windows"][0]["reserved"]
        await clock.advance(2)
        record = (await served.get(got.headers["location"])).json()
        usage = (await served.get("/usage")).json()

    input_tokens = held - 1000
    assert entries(store) == [
        (1, 1, "far/model-2", 20, 3, 0, 1),
        (1, 1_000_001, NEAR, input_tokens, 0, 1, 1),
    ]
    assert record["usage"] == {
        "inputTokens": input_tokens + 20,
        "outputTokens": 3,
        "cacheReadInputTokens": 0,
        "cacheWriteInputTokens": 0,
        "estimated": True,
    }
    assert [(window["used"], window["reserved"]) for window in usage["windows"]] == [(held - 977, 0)] * 2
    assert record["tried"][0] == {"model": "bedrock/near", "code": "upstream-timeout", "calls": 1}


@pytest.mark.promise("given-up-calls-metered")
async def test_without_room_for_what_was_given_up_no_other_model_is_asked(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    # The hold fits, and a second input does not.
    limits = "[limits.writers]\ninvocation_tokens = 3000\n"
    others = far()
    async with serving(
        clock, [UpstreamTimeout("Late.")], catalog=CATALOG + limits, upstreams=others, store=store
    ) as served:
        got = await served.submit({"prompt": "x" * 200}, path=PAIR)
        await clock.advance(0)
        record = (await served.get(got.json()["instance"])).json()
        account = (await served.get("/usage")).json()["windows"][0]

    ((attempt, turn, model, used, _, estimated, charged),) = entries(store)
    assert (got.status, got.json()["code"], others["far"].requests) == (504, "upstream-timeout", [])
    assert (attempt, turn, model, estimated, charged) == (1, 1, NEAR, 1, 1)
    assert (record["usage"]["inputTokens"], account["used"], account["reserved"]) == (used, used, 0)
    assert record["tried"] == [{"model": "bedrock/near", "calls": 1}]


@pytest.mark.promise("given-up-calls-metered", "tried-is-told")
async def test_what_the_next_model_cant_take_fails_as_the_first_one_did_and_is_charged_once(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    others = far([UpstreamRejected("No documents here.")])
    async with serving(
        clock, [UpstreamTimeout("Late.")], catalog=CATALOG, upstreams=others, store=store
    ) as served:
        got = await served.submit(path=PAIR)
        await clock.advance(0)
        record = (await served.get(got.json()["instance"])).json()

    charged = [entry[:4] for entry in entries(store) if entry[3]]
    assert (got.status, got.json()["code"]) == (504, "upstream-timeout")
    assert record["tried"] == [
        {"model": "bedrock/near", "code": "upstream-timeout", "calls": 1},
        {"model": "far/model-2", "code": "upstream-rejected", "calls": 1},
    ]
    assert charged == [(1, 1_000_001, NEAR, record["usage"]["inputTokens"])]


async def test_each_turn_begins_with_the_first_model(clock: ManualClock) -> None:
    asks = tool_call("multiply", '{"a":6,"b":7}')
    async with serving(clock, THROTTLED, answer("42"), catalog=CATALOG, upstreams=far(asks, asks)) as served:
        got = await served.submit(path=PAIR)
        record = (await served.get(got.headers["location"])).json()

    assert record["tried"] == [
        {"model": "bedrock/near", "code": "upstream-throttled", "calls": 1},
        {"model": "far/model-2", "calls": 1},
        {"model": "bedrock/near", "calls": 1},
    ]
    assert record["result"] == {"text": "42"}


@pytest.mark.promise("half-answer-is-failure")
async def test_a_half_answer_ends_as_a_failure_with_what_was_produced(clock: ManualClock) -> None:
    others = far()
    half: list[Step] = [start(), text("Half an ans"), UpstreamFailed("Cut.")]
    async with serving(clock, half, catalog=CATALOG, upstreams=others) as served:
        got = await served.submit(path=PAIR)
        record = (await served.get(got.headers["location"])).json()

    assert kinds_of(got.body)[-1] == "invocationFailed"
    assert (record["state"], record["result"]) == ("failed", {"text": "Half an ans"})
    assert others["far"].requests == []


@pytest.mark.promise("breaker-leaves-alone", "refusal-becomes-status")
async def test_a_model_that_is_left_alone_is_a_status_and_costs_nothing(clock: ManualClock) -> None:
    async with serving(clock, THROTTLED) as served:
        for _ in range(MIN_CALLS):
            await served.submit()
        asked = len(served.model.requests)
        shed = await served.submit()
        usage = (await served.get("/usage")).json()["windows"][0]

    assert (shed.status, shed.json()["code"]) == (503, "upstream-unavailable")
    assert shed.headers["retry-after"] == str(int(OPEN_S))
    assert (len(served.model.requests), usage["used"], usage["reserved"]) == (asked, 0, 0)
    assert [(told["model"], told["state"]) for told in served.lines.breakers] == [("bedrock/model-1", "open")]


async def test_another_runtime_with_the_same_model_leaves_it_alone_too(clock: ManualClock) -> None:
    async with serving(clock, THROTTLED) as served:
        for _ in range(MIN_CALLS):
            await served.submit()
        asked = len(served.model.requests)
        shed = await served.submit(path="/runtimes/reckoner/invocations")

    assert (shed.status, len(served.model.requests)) == (503, asked)


@pytest.mark.promise("breaker-leaves-alone", "given-up-calls-metered")
async def test_a_call_that_finds_the_next_model_probed_by_another_is_charged_once(
    clock: ManualClock, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    alone = '[runtimes.alone]\nkind = "converse"\nmodel = "far/model-2"\n'
    others = far(THROTTLED)
    async with serving(
        clock, [UpstreamTimeout("Late.")], catalog=CATALOG + alone, upstreams=others, store=store
    ) as served:
        for _ in range(MIN_CALLS):
            await served.submit(path="/runtimes/alone/invocations")
        await clock.advance(OPEN_S)
        others["far"].play([asyncio.Event()])
        served.store.only = {"reserve"}
        served.store.answers.clear()
        got = await served.submit(path=PAIR, prefer="respond-async")
        await clock.advance(1)
        await served.submit(path="/runtimes/alone/invocations", prefer="respond-async")
        await clock.advance(1)
        served.store.answers.set()
        await clock.advance(1)
        record = (await served.get(got.headers["location"])).json()

    charged = [entry[:4] for entry in entries(store) if entry[3] and not entry[2].startswith("far")]
    assert record["terminalEvent"]["invocationFailed"]["problem"]["code"] == "upstream-timeout"
    assert record["tried"] == [{"model": "bedrock/near", "code": "upstream-timeout", "calls": 1}]
    assert charged == [(1, 1_000_001, NEAR, record["usage"]["inputTokens"])]


# -- cut short while it falls over


@pytest.mark.promise("given-up-calls-metered", "cancel-reaches-everything")
@pytest.mark.parametrize("method", ["reserve", "settle"])
async def test_a_call_that_is_cancelled_while_it_falls_over_is_charged_once(
    clock: ManualClock, tmp_path: Path, method: str
) -> None:
    store = tmp_path / "store.sqlite"
    others = far()
    async with serving(
        clock, [UpstreamTimeout("Late.")], catalog=CATALOG, upstreams=others, store=store
    ) as served:
        served.store.only = {method}
        served.store.answers.clear()
        got = await served.submit(path=PAIR, prefer="respond-async")
        location = got.headers["location"]
        await clock.advance(1)
        await served.submit(b"", f"{location}/cancel")
        await clock.advance(1)
        served.store.answers.set()
        await clock.advance(1)
        record = (await served.get(location)).json()
        account = (await served.get("/usage")).json()["windows"][0]

    charged = [entry for entry in entries(store) if entry[3]]
    assert (record["state"], others["far"].requests, len(charged)) == ("cancelled", [], 1)
    assert charged[0][1:3] == (1_000_001, NEAR)
    assert (account["used"], account["reserved"]) == (charged[0][3], 0)
