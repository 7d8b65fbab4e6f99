"""Metering over HTTP: what is held, what is counted, and what is refused when nothing is left."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.errors import StoreUnavailable, UpstreamFailed, UpstreamThrottled
from tests.asgi import Answer
from tests.clock import ManualClock
from tests.fakes import answer, start, stop, text, tool_call
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import bearer
from tests.sse import events_of

RECKONER = "/runtimes/reckoner/invocations"
# `writer` and the prompt of the harness: request 64, "Be brief." 9, message 16, prompt 19, maxTokens 1000.
HOLD_TOKENS = 64 + 9 + 16 + 19 + 1000


async def used_and_reserved(served: Served) -> tuple[list[int], int, int]:
    """Return used tokens by window, what is reserved, and how many invocations run."""
    usage = (await served.get("/usage")).json()
    return (
        [window["used"] for window in usage["windows"]],
        usage["windows"][0]["reserved"],
        usage["runningInvocations"],
    )


def reported(body: bytes) -> dict[str, int]:
    """Sum the usage of all `metadata` events of a stream."""
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    usages = [value["metadata"]["usage"] for _, value in events_of(body) if "metadata" in value]
    return {name: sum(usage.get(name, 0) for usage in usages) for name in names}


@pytest.mark.promise("usage-equals-metadata")
async def test_usage_equals_the_metadata_of_all_turns_to_the_token(clock: ManualClock) -> None:
    asks = tool_call("multiply", '{"a":6,"b":7}')[:-1]
    first = [*asks, stop("tool_use", input_tokens=321, output_tokens=45, cacheWriteInputTokens=200)]
    last = [start(), stop(input_tokens=17, output_tokens=3, cacheReadInputTokens=200)]
    async with serving(clock, first, last) as served:
        got = await served.submit({"prompt": "6 times 7?", "maxTokens": 100}, RECKONER)
        record = (await served.get(got.headers["location"])).json()

        total = {
            "inputTokens": 338,
            "outputTokens": 48,
            "cacheReadInputTokens": 200,
            "cacheWriteInputTokens": 200,
        }
        assert reported(got.body) == total
        assert record["usage"] == record["terminalEvent"]["invocationCompleted"]["usage"] == total
        assert await used_and_reserved(served) == ([586, 586], 0, 0)  # cache reads cost no quota


@pytest.mark.promise("usage-equals-metadata")
async def test_usage_is_summed_over_invocations_and_windows_move_on(clock: ManualClock) -> None:
    async with serving(clock, answer("Yes.", input_tokens=100, output_tokens=11)) as served:
        await served.submit()
        clock.pass_time(24 * 3600)
        await clock.advance(0)  # the lease is renewed
        await served.submit(authorization=fresh_token(clock))
        usage = (await served.get("/usage", authorization=fresh_token(clock))).json()
        clock.pass_time(600)
        later = (await served.get("/usage", authorization=fresh_token(clock))).json()

    assert [window["used"] for window in usage["windows"]] == [222, 222]
    assert [window["used"] for window in later["windows"]] == [111, 222]


def fresh_token(clock: ManualClock) -> str:
    now_s = clock.now_ms() // 1000
    return bearer({"iat": now_s, "exp": now_s + 3600})


async def test_what_a_running_call_may_cost_is_reserved_until_it_is_settled(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate, stop()]) as served, served.post() as exchange:
        await exchange.until(b"messageStart")
        while_running = await used_and_reserved(served)
        windows = (await served.get("/usage")).json()["windows"]
        gate.set()
        await exchange.whole()

        assert while_running == ([0, 0], HOLD_TOKENS, 1)
        assert [window["remaining"] for window in windows] == [20_000 - HOLD_TOKENS, 100_000 - HOLD_TOKENS]
        assert await used_and_reserved(served) == ([15, 15], 0, 0)


async def test_what_is_reserved_outlives_the_deadline_until_it_is_settled(clock: ManualClock) -> None:
    never = asyncio.Event()
    async with serving(clock, [start(), never]) as served:
        served.store.only, served.store.down = {"finish"}, True
        await served.submit(prefer="respond-async")
        await clock.advance(700)
        waiting = await used_and_reserved(served)
        served.store.down = False
        await clock.advance(6)

        assert waiting == ([0, 0], HOLD_TOKENS, 1)
        assert await used_and_reserved(served) == ([HOLD_TOKENS - 1000] * 2, 0, 0)


@pytest.mark.promise("usage-after-hangup", "job-survives-reader", "reattach-exactly-once")
async def test_an_answer_whose_caller_hung_up_is_finished_settled_and_readable_once(
    clock: ManualClock,
) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), text("A head"), gate, text("race."), stop()]) as served:
        async with served.post() as exchange:
            await exchange.until(b"A head")
        location = exchange.headers["location"]
        gate.set()
        async with served.follow(location, last_event_id="1.3") as following:
            rest = await following.whole()
        async with served.follow(location) as following:
            whole = await following.whole()

        assert not exchange.complete
        assert [event_id for event_id, _ in events_of(exchange.body)] == ["1.1", "1.2", "1.3"]
        assert events_of(exchange.body) + events_of(rest.body) == events_of(whole.body)
        assert events_of(whole.body)[-1][0] == "1.8"
        assert await used_and_reserved(served) == ([15, 15], 0, 0)


@pytest.mark.promise("unreported-usage-estimated")
async def test_a_call_that_broke_off_is_counted_as_an_estimate_within_its_hold(clock: ManualClock) -> None:
    delta = text("Half an ans")
    async with serving(clock, [start(), delta, UpstreamFailed()]) as served:
        got = await served.submit()
        record = (await served.get(got.headers["location"])).json()

        estimate = {"inputTokens": HOLD_TOKENS - 1000, "outputTokens": len(delta[0][1])}
        assert record["usage"] == estimate | {
            "cacheReadInputTokens": 0,
            "cacheWriteInputTokens": 0,
            "estimated": True,
        }
        assert sum(estimate.values()) <= HOLD_TOKENS
        assert await used_and_reserved(served) == ([sum(estimate.values())] * 2, 0, 0)


async def test_a_call_that_was_refused_costs_nothing(clock: ManualClock) -> None:
    async with serving(clock, [UpstreamThrottled()]) as served:
        await served.submit()

        assert await used_and_reserved(served) == ([0, 0], 0, 0)


@pytest.mark.promise("settle-exactly-once")
async def test_a_settlement_whose_answer_was_lost_counts_once(clock: ManualClock) -> None:
    async with serving(clock, tool_call("multiply", '{"a":6,"b":7}'), answer("42")) as served:
        served.store.only, served.store.deaf = {"settle"}, True
        async with served.post({"prompt": "6 times 7?", "maxTokens": 100}, RECKONER) as exchange:
            await clock.advance(3)
            served.store.deaf = False
            await clock.advance(5)
            got = await exchange.whole()

        assert served.store.calls.count("settle") > 2
        assert reported(got.body) == {
            "inputTokens": 20,
            "outputTokens": 10,
            "cacheReadInputTokens": 0,
            "cacheWriteInputTokens": 0,
        }
        assert await used_and_reserved(served) == ([30, 30], 0, 0)


# -- refusals


@pytest.mark.promise("quota-exact-under-concurrency", "problem-documents-everywhere")
async def test_of_many_submissions_at_the_edge_of_the_quota_those_that_fit_are_admitted(
    clock: ManualClock,
) -> None:
    never = asyncio.Event()
    limits = f"[limits.writers]\ndaily_tokens = {4 * HOLD_TOKENS + 7}\nconcurrent_invocations = 100"
    async with serving(clock, [start(), never], catalog=limits) as served, AsyncExitStack() as stack:
        exchanges = [await stack.enter_async_context(served.post()) for _ in range(10)]
        await clock.advance(0)

        assert sorted(exchange.status for exchange in exchanges) == [200] * 4 + [429] * 6
        assert await used_and_reserved(served) == ([0, 0], 4 * HOLD_TOKENS, 4)
        refused = next(exchange for exchange in exchanges if exchange.status == 429)
        check_refused_by_quota(await refused.whole())


def check_refused_by_quota(got: Answer) -> None:
    limit = 4 * HOLD_TOKENS + 7
    assert got.json() == {
        "type": "urn:headrace:problem:quota-exceeded",
        "title": "The token quota is used up",
        "status": 429,
        "code": "quota-exceeded",
        "detail": f"The daily quota is {limit:,} tokens: 0 are used, {4 * HOLD_TOKENS:,} are held by running "
        f"calls and this call needs up to {HOLD_TOKENS:,}. There is room again when running calls have used "
        "less than they hold.",
        "retryable": True,
        "quota": {
            "name": "daily",
            "limit": limit,
            "used": 0,
            "reserved": 4 * HOLD_TOKENS,
            "requested": HOLD_TOKENS,
            "resetsAt": None,
        },
    }
    assert {name: got.headers[name] for name in ("retry-after", "ratelimit-policy", "ratelimit")} == {
        "retry-after": "5",
        "ratelimit-policy": f'"daily";q={limit}',
        "ratelimit": '"daily";r=7;t=5',
    }


async def test_a_quota_that_was_used_says_when_there_is_room(clock: ManualClock) -> None:
    limits = "[limits.writers]\ndaily_tokens = 1200"
    async with serving(clock, answer("Yes.", input_tokens=600, output_tokens=0), catalog=limits) as served:
        await served.submit()
        got = await served.submit()

    assert (got.status, got.json()["quota"]["resetsAt"]) == (429, "2026-11-22T16:50:00Z")
    assert got.headers["retry-after"] == str(24 * 3600 + 600)
    assert got.headers["ratelimit"] == f'"daily";r=600;t={24 * 3600 + 600}'


@pytest.mark.promise("concurrency-limit")
async def test_a_principal_runs_no_more_at_once_than_its_limit(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), gate, stop()]) as served, AsyncExitStack() as stack:
        running = [await stack.enter_async_context(served.post()) for _ in range(3)]
        await clock.advance(0)
        refused = await served.submit()
        other = await stack.enter_async_context(served.post(as_user="user-2"))
        await other.until(b"messageStart")
        gate.set()
        for exchange in running:
            await exchange.whole()
        admitted = await served.submit()

    assert (refused.status, admitted.status) == (429, 200)
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {
        "type": "urn:headrace:problem:concurrency-exceeded",
        "title": "Too many invocations of yours are running",
        "status": 429,
        "code": "concurrency-exceeded",
        "detail": "3 of your invocations are running and the limit is 3: wait until one has ended.",
        "retryable": True,
        "limit": 3,
        "running": 3,
    }


@pytest.mark.promise("budget-per-invocation")
async def test_a_first_call_that_the_budget_does_not_cover_is_not_admitted(clock: ManualClock) -> None:
    async with serving(clock, catalog="[limits.writers]\ninvocation_tokens = 1107") as served:
        got = await served.submit()

        assert (got.status, got.json()) == (
            422,
            {
                "type": "urn:headrace:problem:budget-exceeded",
                "title": "The token budget of this invocation does not allow the next model call",
                "status": 422,
                "code": "budget-exceeded",
                "detail": "The next model call needs up to 1,108 tokens and this invocation has used or "
                "holds 0: that is over its budget of 1,107.",
                "budget": {"limit": 1107, "used": 0, "requested": 1108},
            },
        )
        assert await used_and_reserved(served) == ([0, 0], 0, 0)


@pytest.mark.promise("store-down-fails-closed")
async def test_while_the_store_is_down_nothing_is_admitted_and_everything_says_so(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        served.store.down = True
        refused = [
            await served.submit(),
            *[await served.get(path) for path in (location, f"{location}/events", INVOCATIONS, "/usage")],
        ]
        served.store.down = False
        admitted = await served.submit()

        assert [(got.status, got.json()) for got in refused] == [(503, StoreUnavailable().problem())] * 5
        assert {got.headers["retry-after"] for got in refused} == {"1"}
        assert (admitted.status, len(served.model.requests)) == (200, 2)


@pytest.mark.promise("problem-documents-everywhere")
async def test_a_store_that_breaks_its_contract_is_a_500_without_foreign_text(clock: ManualClock) -> None:
    async with serving(clock) as served:
        served.store.only, served.store.broken = {"account"}, RuntimeError("no such table: at 0x7f2c")
        got = await served.get("/usage")

    assert (got.status, got.headers["content-type"]) == (500, "application/problem+json")
    assert got.json() == {
        "type": "urn:headrace:problem:internal-error",
        "title": "Something went wrong inside the service",
        "status": 500,
        "code": "internal-error",
        "detail": "The failure has been logged with the id in X-Request-Id.",
    }
