"""Who is denied: gets 403, loses open streams and jobs, on every process, until allowed again."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.errors import Denied, StoreUnavailable
from service.policies import REFRESH_S, RETRY_S
from service.readers import DENIED_WRITE_S
from tests.asgi import Answer, Exchange
from tests.clock import ManualClock
from tests.fakes import Step, answer, start, text
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import CLAIMS, bearer
from tests.left_behind import USER
from tests.sse import events_of, kinds_of
from tests.unit.test_pause import later

MARY = f"sub:{USER}"
THIS_SIGN_IN = f"origin_jti:{CLAIMS['origin_jti']}"
OTHER_SIGN_IN = bearer({"origin_jti": "another sign-in"})
DENIED = Denied("Who runs this deployment has denied you access: ask there.")
REVOKED = Denied("This sign-in has been revoked: sign out, and sign in again.")


def never() -> list[Step]:
    return [start(), text("Half an "), asyncio.Event()]


async def deny(served: Served, subject: str, lasts_s: float | None = None) -> None:
    now_ms = served.clock.now_ms()
    until_ms = None if lasts_s is None else now_ms + int(lasts_s * 1000)
    await served.store.as_store.deny(subject, now_ms, until_ms)


async def ask_everything(served: Served, location: str, **headers: str) -> list[Answer]:
    """Ask each route that wants a token."""
    return [
        *[
            await served.get(path, **headers)
            for path in ("/runtimes", "/usage", INVOCATIONS, location, f"{location}/events")
        ],
        *[
            await served.submit(b"{}", path, **headers)
            for path in (INVOCATIONS, f"{location}/cancel", f"{location}/resume")
        ],
    ]


# ------------------------------------------------------------ requests


@pytest.mark.promise("denied-is-refused", "problem-documents-everywhere")
@pytest.mark.parametrize(("subject", "refusal"), [(MARY, DENIED), (THIS_SIGN_IN, REVOKED)])
async def test_who_is_denied_is_refused_everywhere_and_others_are_not(
    clock: ManualClock, subject: str, refusal: Denied
) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        await deny(served, subject)
        before = await served.get("/usage")
        await clock.advance(REFRESH_S)
        refused = await ask_everything(served, location)
        other = await served.get("/usage", authorization=bearer({"sub": "user-2", "origin_jti": "another"}))

    assert (before.status, other.status) == (200, 200)
    assert [(got.status, got.json()) for got in refused] == [(403, refusal.problem())] * len(refused)
    assert {line.get("code") for line in served.lines.requests[-1 - len(refused) : -1]} == {"denied"}
    assert {line["sub"] for line in served.lines.requests[:-1]} == {USER}


@pytest.mark.promise("denied-is-refused")
async def test_of_a_user_one_sign_in_is_denied_and_the_others_are_not(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await deny(served, THIS_SIGN_IN)
        await clock.advance(REFRESH_S)
        statuses = [
            (await served.get("/usage", authorization=token)).status
            for token in (bearer(), OTHER_SIGN_IN, bearer({"origin_jti": "another sign-in", "jti": "2"}))
        ]

    assert statuses == [403, 200, 200]


async def test_a_subs_denial_is_not_that_of_a_sign_in_with_its_name(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await deny(served, f"origin_jti:{USER}")
        await deny(served, f"sub:{CLAIMS['origin_jti']}")
        await clock.advance(REFRESH_S)

        assert (await served.get("/usage")).status == 200


async def test_a_denial_ends_when_it_is_taken_back_or_its_time_is_over(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await deny(served, MARY)
        await deny(served, "sub:user-2", lasts_s=60)
        await clock.advance(REFRESH_S)
        denied = [(await served.get("/usage", as_user=sub)).status for sub in (USER, "user-2")]
        await served.store.as_store.allow(MARY)
        await clock.advance(50 - REFRESH_S)
        one_allowed = [(await served.get("/usage", as_user=sub)).status for sub in (USER, "user-2")]
        await clock.advance(10 + REFRESH_S)
        allowed = [(await served.get("/usage", as_user=sub)).status for sub in (USER, "user-2")]

    assert (denied, one_allowed, allowed) == ([403, 403], [200, 403], [200, 200])


@pytest.mark.promise("denial-outlasts-outage")
async def test_a_denial_holds_while_the_store_is_away_and_is_looked_at_soon_after(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(clock) as served:
        await deny(served, MARY)
        await clock.advance(REFRESH_S)
        served.store.down = True
        await clock.advance(3600)
        held = await served.get("/usage", authorization=later(clock))
        ready = await served.client.request("GET", "/ready")
        served.store.down = False
        await served.store.as_store.allow(MARY)
        await clock.advance(RETRY_S)
        allowed = await served.get("/usage", authorization=later(clock))

    assert (held.status, ready.status, allowed.status) == (403, 200, 200)
    assert caplog.messages.count("denials and limits not read") == 1


@pytest.mark.promise("denial-outlasts-outage", "store-down-fails-closed")
async def test_nobody_is_let_in_before_it_is_known_who_is_denied(clock: ManualClock) -> None:
    async with serving(clock, store_is_down=True) as served:
        refused = await served.get("/runtimes")
        ready = await served.client.request("GET", "/ready")
        served.store.down = False
        await clock.advance(RETRY_S)
        let_in = await served.get("/runtimes")
        ready_later = await served.client.request("GET", "/ready")

    problem = StoreUnavailable("Who may call could not be read yet: try again.").problem()
    assert (refused.status, refused.json(), refused.headers["retry-after"]) == (503, problem, "1")
    assert (ready.status, let_in.status, ready_later.status) == (503, 200, 200)


# ------------------------------------------------------------ readers


@pytest.mark.promise("denied-ends-readers")
async def test_the_streams_of_who_is_denied_end_and_say_why(clock: ManualClock) -> None:
    async with serving(clock, never()) as served, AsyncExitStack() as stack:
        first = await stack.enter_async_context(served.post())
        await first.until(b"Half an ")
        location = first.headers["location"]
        second = await stack.enter_async_context(served.follow(location, accept="application/x-ndjson"))
        others = await stack.enter_async_context(served.post(as_user="user-2"))
        await others.until(b"Half an ")
        await deny(served, MARY)
        await clock.advance(35)
        bodies = [(await exchange.whole()).body for exchange in (first, second)]

        assert not others.complete

    problem = DENIED.problem(invocationId=location.rpartition("/")[2])
    event_id, event = events_of(bodies[0])[-1]
    assert (event_id, event) == ("1.3", {"streamEnded": {"problem": problem}})  # the id of the event before
    assert bodies[0].endswith(b"\n\n")
    assert b"id:" not in bodies[0].rpartition(b"event: streamEnded")[2]
    assert bodies[1].splitlines()[-1].startswith(b'{"streamEnded":{"problem":{"type":')
    assert [line["end"] for line in served.lines.requests if "end" in line][:2] == ["denied", "denied"]


@pytest.mark.promise("denied-ends-readers")
async def test_of_two_sign_ins_one_loses_its_stream_and_the_other_reads_on(clock: ManualClock) -> None:
    gate = asyncio.Event()
    script: list[Step] = [*answer("A head")[:-1], gate, *answer()[-1:]]
    async with serving(clock, script) as served, AsyncExitStack() as stack:
        mine = await stack.enter_async_context(served.post(authorization=OTHER_SIGN_IN))
        await mine.until(b"A head")
        lost = await stack.enter_async_context(served.follow(mine.headers["location"]))
        await lost.until(b"A head")
        await deny(served, THIS_SIGN_IN)
        await clock.advance(REFRESH_S)
        ended = await lost.whole()
        gate.set()
        whole = await mine.whole()

    assert kinds_of(ended.body)[-1] == "streamEnded"
    assert kinds_of(whole.body)[-1] == "invocationCompleted"


@pytest.mark.promise("denied-ends-readers")
async def test_who_follows_from_another_process_loses_the_stream_there(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "db"
    async with serving(clock, never(), store=path) as owner, serving(clock, store=path) as other:
        location = (await owner.submit(prefer="respond-async")).headers["location"]
        await clock.advance(1)
        async with other.follow(location) as exchange:
            await clock.advance(1)
            owner.store.only, owner.store.down = {"policies"}, True  # the owner does not learn it
            await deny(other, MARY)
            await clock.advance(REFRESH_S)
            got = await exchange.whole()

    assert kinds_of(got.body)[-1] == "streamEnded"
    assert "invocationCancelled" not in kinds_of(got.body)


async def blocked(served: Served, exchange: Exchange) -> None:
    """Let the peer take nothing more while a piece is being sent."""
    await exchange.until(b"Half an ")
    exchange.block()
    await served.clock.advance(REFRESH_S + 1)  # a heartbeat is stuck


@pytest.mark.promise("denied-ends-readers")
async def test_a_denied_peer_that_takes_nothing_is_cut_off(clock: ManualClock) -> None:
    catalog = "[service]\nwrite_timeout_s = 60"
    async with serving(clock, never(), catalog=catalog) as served, served.post() as exchange:
        await blocked(served, exchange)
        await deny(served, MARY)
        await clock.advance(REFRESH_S + DENIED_WRITE_S + 2)

        assert exchange.aborted
        assert b"streamEnded" not in exchange.body


async def test_a_denied_peer_that_is_slow_is_told_when_it_takes_bytes_again(clock: ManualClock) -> None:
    async with serving(clock, never()) as served, served.post() as exchange:
        await blocked(served, exchange)
        await deny(served, MARY)
        await clock.advance(REFRESH_S + 2)
        exchange.unblock()
        got = await exchange.whole()

    assert kinds_of(got.body)[-1] == "streamEnded"


async def test_a_denial_comes_before_a_reconnect_that_waits_for_its_peer(clock: ManualClock) -> None:
    async with serving(clock, never()) as served:
        async with served.post() as exchange:
            await blocked(served, exchange)
            draining = asyncio.ensure_future(served.drain())
            await deny(served, MARY)
            await clock.advance(REFRESH_S + 2)
            exchange.unblock()
            got = await exchange.whole()
        await draining

    assert kinds_of(got.body)[-1] == "streamEnded"
