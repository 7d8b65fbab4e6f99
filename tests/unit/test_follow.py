"""Following over HTTP: cursors, the two formats, and what ends a reader before the log ends."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from service.errors import Draining, InvalidCursor, Overloaded, TooManyReaders
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, stop, text
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import NOW_S, bearer
from tests.sse import events_of, kinds_of

FORM = "A cursor is the id of an event, such as 1.42: send the last id that you received."


def halves(gate: asyncio.Event) -> list[Step]:
    """An answer of which 1.1 to 1.3 come at once, and 1.4 to 1.8 when the gate opens."""
    return [start(), text("A head"), gate, text("race."), stop()]


@pytest.mark.promise("reattach-exactly-once", "same-events-every-cursor")
async def test_from_every_cursor_of_an_ended_invocation_follow_the_same_bytes(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        whole = (await served.get(f"{location}/events")).body.removeprefix(b": connected\n")

        for seq in range(1, 9):
            for after in ({"last_event_id": f"1.{seq}"}, {}):
                path = f"{location}/events" + ("" if after else f"?after=1.{seq}")
                got = await served.get(path, **after)
                begin = whole.find(b"id: 1.%d\n" % (seq + 1)) if seq < 8 else len(whole)
                assert got.body == b": connected\n" + whole[begin:]


async def test_last_event_id_counts_more_than_after(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        got = await served.get(f"{location}/events?after=1.2", last_event_id="1.7")

    assert [event_id for event_id, _ in events_of(got.body)] == ["1.8"]


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("cursor", "detail"),
    [
        ("x", FORM),
        ("1", FORM),
        ("1.0", FORM),
        ("-1.2", FORM),
        ("1.2.3", FORM),
        (" 1.2", FORM),
        ("1.9999999999", FORM),
        ("1.9", "The newest event has the id 1.8: send the last id that you received."),
        ("2.1", "The newest event has the id 1.8: send the last id that you received."),
    ],
)
async def test_a_cursor_that_was_never_issued_is_400(clock: ManualClock, cursor: str, detail: str) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        for got in (
            await served.get(f"{location}/events", last_event_id=cursor),
            await served.get(f"{location}/events?after={cursor}"),
        ):
            assert (got.status, got.json()) == (400, InvalidCursor(detail).problem())
            assert got.headers["content-type"] == "application/problem+json"


async def test_a_cursor_beyond_what_a_running_invocation_has_issued_is_400(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        got = await served.get(f"{exchange.headers['location']}/events", last_event_id="1.4")

    assert got.json()["detail"] == "The newest event has the id 1.3: send the last id that you received."


@pytest.mark.promise("two-encodings-one-log", "any-client-parses")
async def test_readers_of_a_running_invocation_get_the_same_events_in_both_formats(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        location = exchange.headers["location"]
        async with (
            served.follow(location) as sse,
            served.follow(location, accept="application/x-ndjson", last_event_id="1.2") as ndjson,
        ):
            await clock.advance(20)
            gate.set()
            submitted, whole, rest = [await each.whole() for each in (exchange, sse, ndjson)]

    lines = [json.loads(line) for line in rest.body.splitlines()]
    assert events_of(submitted.body) == events_of(whole.body)
    assert [(line.pop("id"), line) for line in lines if "id" in line] == events_of(whole.body)[2:]
    assert [beat["heartbeat"]["phase"] for beat in lines if "heartbeat" in beat] == [
        "connected",
        "model",
        "model",
    ]


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_follower_gets_the_replay_then_the_tail_while_others_come_and_go(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        async with served.follow(exchange.headers["location"], last_event_id="1.1") as following:
            replay = (await following.until(b"A head"))[:]
            async with served.follow(exchange.headers["location"]) as left:
                await left.until(b"A head")
            gate.set()
            got = await following.whole()

    assert [event_id for event_id, _ in events_of(replay)] == ["1.2", "1.3"]
    assert [event_id for event_id, _ in events_of(got.body)] == [f"1.{seq}" for seq in range(2, 9)]
    assert sorted((line["end"], line["events"]) for line in served.lines.requests) == [
        ("disconnect", 3),
        ("terminal", 7),
        ("terminal", 8),
    ]


@pytest.mark.promise("segment-ends-with-reconnect")
async def test_a_response_ends_with_reconnect_before_the_gateway_would_cut_it(clock: ManualClock) -> None:
    gate = asyncio.Event()
    catalog = '[runtimes.long]\nkind = "converse"\nmodel = "bedrock/model-1"'
    async with serving(clock, halves(gate), catalog=catalog) as served:
        async with served.post(path="/runtimes/long/invocations") as exchange:
            await clock.advance(839)
            assert not exchange.complete
            await clock.advance(2)
            got = await exchange.whole()
        reconnect = events_of(got.body)[-1]
        gate.set()
        async with served.follow(got.headers["location"], last_event_id="1.3") as following:
            rest = await following.whole()

    assert reconnect == ("1.3", {"reconnect": {"after": "1.3", "reason": "segment-end"}})
    last_frame = got.body.split(b"\n\n")[-2].splitlines()
    assert [line.partition(b":")[0] for line in last_frame if line[0:1] != b":"] == [b"event", b"data"]
    assert [event_id for event_id, _ in events_of(rest.body)] == [f"1.{seq}" for seq in range(4, 9)]


@pytest.mark.promise("token-expiry-ends-reader")
async def test_an_expired_token_ends_its_readers_after_the_grace_and_never_the_job(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    short = bearer({"iat": NOW_S, "exp": NOW_S + 300})
    async with serving(clock, halves(gate)) as served, served.post(authorization=short) as exchange:
        await exchange.until(b"A head")
        async with served.follow(exchange.headers["location"], authorization=bearer()) as other:
            await clock.advance(359)
            assert not exchange.complete
            await clock.advance(2)
            ended = await exchange.whole()
            refused = await served.get(exchange.headers["location"], authorization=short)
            gate.set()
            rest = await other.whole()

    assert events_of(ended.body)[-1] == ("1.3", {"reconnect": {"after": "1.3", "reason": "token-expired"}})
    assert (refused.status, refused.json()["code"]) == (401, "unauthenticated")
    assert kinds_of(rest.body)[-1] == "invocationCompleted"


# -- limits of readers


async def check_refused_without_a_trace(served: Served, error: Any, retry_after: str) -> None:
    """Submissions are refused before they are admitted, and followers before they are read for."""
    (record,) = (await served.get(INVOCATIONS)).json()["invocations"]
    calls = served.store.calls.count("create_invocation")
    for got in (await served.submit(), await served.get(f"{record['events']}")):
        assert (got.status, got.json()) == (error.status, error.problem())
        assert got.headers["retry-after"] == retry_after
    assert served.store.calls.count("create_invocation") == calls


@pytest.mark.promise("sheds-before-work")
async def test_a_principal_opens_no_more_readers_than_its_limit(clock: ManualClock) -> None:
    gate = asyncio.Event()
    catalog = "[service]\nreaders_per_principal = 2"
    async with serving(clock, halves(gate), catalog=catalog) as served, AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(served.post())
        await exchange.until(b"A head")
        async with served.follow(exchange.headers["location"]) as second:
            await second.until(b"A head")
            error = TooManyReaders("Close one of your streams, then try again.")
            await check_refused_without_a_trace(served, error, "5")
            other = await served.get("/usage", as_user="user-2")
        detached = await served.submit(prefer="respond-async")
        again = await stack.enter_async_context(served.follow(exchange.headers["location"]))
        await again.until(b"A head")

        assert (other.status, detached.status, again.status) == (200, 202, 200)


async def test_a_process_opens_no_more_readers_than_its_limit(clock: ManualClock) -> None:
    gate = asyncio.Event()
    catalog = "[service]\nopen_readers = 1"
    async with serving(clock, halves(gate), catalog=catalog) as served:
        async with served.post() as exchange:
            await exchange.until(b"A head")
            error = Overloaded("Too many streams are open here: try again.")
            await check_refused_without_a_trace(served, error, "1")
        gate.set()
        got = await served.get(f"{exchange.headers['location']}/events")

    assert kinds_of(got.body)[-1] == "invocationCompleted"


@pytest.mark.promise("sheds-before-work")
@pytest.mark.parametrize("key", ["the-same", ""])
@pytest.mark.parametrize(
    ("limits", "code"),
    [("readers_per_principal = 2", "too-many-readers"), ("open_readers = 2", "overloaded")],
)
async def test_submissions_at_the_same_moment_open_no_more_readers_than_the_limit(
    clock: ManualClock, limits: str, code: str, key: str
) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate), catalog=f"[service]\n{limits}") as served:
        served.store.only = {"create_invocation"}
        served.store.answers.clear()
        keys = [key or str(number) for number in range(8)]
        answers = [asyncio.ensure_future(served.submit(idempotency_key=each)) for each in keys]
        await clock.advance(0)
        served.store.answers.set()
        await clock.advance(2)
        refused = [each.result().json()["code"] for each in answers if each.done()]
        admitted = served.store.calls.count("create_invocation")
        gate.set()
        got = [await each for each in answers]

    assert (refused, admitted) == ([code] * 6, 2)
    assert [kinds_of(each.body)[-1] for each in got if each.status == 200] == ["invocationCompleted"] * 2


# -- the drain


@pytest.mark.promise("sigterm-reconnects-readers")
async def test_a_drain_ends_readers_with_reconnect_spread_over_three_seconds(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(served.post())
        await exchange.until(b"A head")
        location = exchange.headers["location"]
        readers = [await stack.enter_async_context(served.follow(location)) for _ in range(5)]
        for reader in readers:
            await reader.until(b"A head")

        draining = asyncio.ensure_future(served.drain())
        complete = []
        for seconds in (0.25, 0.5, 0.5, 0.5, 0.5, 0.5):
            await clock.advance(seconds)
            complete.append(sum(reader.complete for reader in (exchange, *readers)))
        gate.set()
        await draining

        assert complete == [1, 2, 3, 4, 5, 6]
        for reader in (exchange, *readers):
            got = await reader.whole()
            assert events_of(got.body)[-1] == ("1.3", {"reconnect": {"after": "1.3", "reason": "drain"}})
        record = (await served.get(location)).json()
        assert (record["state"], record["result"]) == ("completed", {"text": "A headrace."})


@pytest.mark.promise("sigterm-reconnects-readers")
async def test_a_draining_process_admits_nothing_and_opens_no_reader(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, halves(gate)) as served, served.post() as exchange:
        await exchange.until(b"A head")
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(0)
        location = exchange.headers["location"]
        submitted = await served.submit()
        followed = await served.get(f"{location}/events")
        record = await served.get(location)
        ready, ping = [await served.client.request("GET", path) for path in ("/ready", "/ping")]
        gate.set()
        await clock.advance(5)
        await draining

        assert (submitted.status, submitted.json()) == (
            503,
            Draining("Submit again in a moment: another process answers.").problem(),
        )
        assert (followed.status, followed.json()) == (
            503,
            Draining("Follow again in a moment: another process answers.").problem(),
        )
        assert submitted.headers["retry-after"] == followed.headers["retry-after"] == "1"
        assert served.store.calls.count("create_invocation") == 1
        assert (record.status, ready.status, ready.json()) == (200, 503, {"ready": False})
        assert (ping.status, ping.json()["status"]) == (200, "HealthyBusy")


@pytest.mark.promise("sigterm-reconnects-readers", "job-survives-reader")
async def test_a_submission_in_its_grace_when_the_drain_begins_is_told_where_to_go_on(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [gate, *answer("Late.")]) as served, served.post() as exchange:
        await clock.advance(0.5)
        draining = asyncio.ensure_future(served.drain())
        await clock.advance(0.5)
        got = await exchange.whole()
        gate.set()
        await clock.advance(5)
        await draining
        record = (await served.get(got.headers["location"])).json()

    assert (got.status, events_of(got.body)) == (200, [("", {"reconnect": {"reason": "drain"}})])
    assert record["state"] == "completed"
