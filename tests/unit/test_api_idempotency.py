"""`Idempotency-Key` over HTTP: a retry attaches to what the first request started."""

import asyncio

import pytest

from service.errors import UpstreamRejected
from tests.clock import ManualClock
from tests.fakes import answer, start, stop, text
from tests.harness import INVOCATIONS, serving
from tests.sse import events_of, kinds_of

BODY = {"prompt": "What is a headrace?"}


@pytest.mark.promise("retry-attaches")
async def test_a_retry_while_the_first_runs_reads_the_same_events(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), text("A chan"), gate, text("nel."), stop()]) as served:
        async with served.post(BODY, idempotency_key="k-1") as first:
            await first.until(b"A chan")
            async with served.post(BODY, idempotency_key="k-1") as retry:
                await retry.until(b"A chan")
                gate.set()
                told, retold = await first.whole(), await retry.whole()

        assert events_of(told.body) == events_of(retold.body)
        assert told.headers["location"] == retold.headers["location"]
        assert len(served.model.requests) == 1


@pytest.mark.promise("retry-attaches")
async def test_a_retry_after_the_end_reads_the_whole_answer_again(clock: ManualClock) -> None:
    async with serving(clock, answer("A channel.")) as served:
        first = await served.submit(BODY, idempotency_key="k-1")
        retry = await served.submit(BODY, idempotency_key="k-1")
        detached = await served.submit(BODY, idempotency_key="k-1", prefer="respond-async")
        listed = (await served.get(INVOCATIONS)).json()["invocations"]

    assert events_of(retry.body) == events_of(first.body)
    assert (detached.status, detached.json()["state"]) == (202, "completed")
    assert len(listed) == 1


@pytest.mark.promise("retry-attaches")
async def test_parallel_tries_start_one_invocation(clock: ManualClock) -> None:
    async with serving(clock, answer("A channel.")) as served:
        tries = [served.submit(BODY, idempotency_key="k-1") for _ in range(10)]
        answers = await asyncio.gather(*tries)

        assert len({got.headers["location"] for got in answers}) == 1
        assert len(served.model.requests) == 1


async def test_a_retry_of_what_was_refused_reads_how_it_failed(clock: ManualClock) -> None:
    async with serving(clock, [UpstreamRejected()]) as served:
        first = await served.submit(BODY, idempotency_key="k-1")
        retry = await served.submit(BODY, idempotency_key="k-1")

    assert (first.status, retry.status) == (400, 200)
    assert kinds_of(retry.body) == ["invocationStarted", "invocationFailed"]


async def test_a_key_is_its_principals_and_its_runtimes_alone(clock: ManualClock) -> None:
    async with serving(clock, answer("A channel.")) as served:
        answers = [
            await served.submit(BODY, idempotency_key="k-1"),
            await served.submit(BODY, idempotency_key="k-1", as_user="somebody-else"),
            await served.submit(
                BODY | {"maxTokens": 100}, "/runtimes/reckoner/invocations", idempotency_key="k-1"
            ),
        ]

    assert [got.status for got in answers] == [200, 200, 200]
    assert len({got.headers["location"] for got in answers}) == 3


async def test_another_body_under_the_same_key_is_refused(clock: ManualClock) -> None:
    async with serving(clock, answer("A channel.")) as served:
        await served.submit(BODY, idempotency_key="k-1")
        refused = await served.submit({"prompt": "Another."}, idempotency_key="k-1")

    assert (refused.status, refused.json()["code"]) == (422, "idempotency-mismatch")


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "é", "a b"])
async def test_a_key_that_is_none_is_refused(clock: ManualClock, key: str) -> None:
    async with serving(clock) as served:
        refused = await served.submit(BODY, idempotency_key=key)

    assert (refused.status, refused.json()["code"]) == (400, "invalid-request")
