"""Who may see an invocation: its owner, through its runtime, while the owner may call that runtime."""

import asyncio

import pytest

from service.errors import NotFound
from tests.clock import ManualClock
from tests.fakes import start, stop
from tests.harness import INVOCATIONS, Served, serving
from tests.id_tokens import bearer

EDITOR = "/runtimes/editor/invocations"
NEVER_ISSUED = "inv_01M7ZFN7R0DEKQPPYYZEATJKX8"
NO_INVOCATION = NotFound(
    "No invocation with this id is yours: it may be older than records are kept."
).problem()
NO_RUNTIME = NotFound(
    "No runtime with this id is yours to call: GET /runtimes lists those that are."
).problem()


async def check_not_found(served: Served, location: str, **headers: str) -> None:
    """Neither the record nor the events are there, whichever cursor is sent."""
    for path in (
        location,
        f"{location}/events",
        f"{location}/events?after=1.1",
        f"{location}/events?after=x",
    ):
        got = await served.get(path, **headers)
        assert (got.status, got.json()) == (404, NO_INVOCATION)
        assert "location" not in got.headers


@pytest.mark.promise("owner-only")
async def test_anothers_invocation_can_not_be_told_from_one_that_is_not_there(clock: ManualClock) -> None:
    gate = asyncio.Event()
    async with serving(clock, [start(), stop()], [start(), gate, stop()]) as served:
        ended = (await served.submit()).headers["location"]
        async with served.post() as exchange:
            await exchange.until(b"messageStart")
            running = exchange.headers["location"]

            for location in (ended, running, f"{INVOCATIONS}/{NEVER_ISSUED}"):
                await check_not_found(served, location, as_user="user-2")


@pytest.mark.promise("owner-only")
async def test_anothers_invocations_are_not_listed_and_end_no_page(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await served.submit(as_user="user-2")
        await clock.advance(1)
        invocation_id = (await served.submit()).headers["location"].rpartition("/")[2]
        listed = await served.get(INVOCATIONS, as_user="user-3")
        usage = await served.get("/usage", as_user="user-3")
        pages = [
            await served.get(f"{INVOCATIONS}?before={before}", as_user="user-2")
            for before in (invocation_id, NEVER_ISSUED)
        ]
        own = await served.get(INVOCATIONS)

    assert [page.json() for page in (listed, *pages)] == [{"invocations": []}] * 3
    assert [window["used"] for window in usage.json()["windows"]] == [0, 0]
    assert [record["invocationId"] for record in own.json()["invocations"]] == [invocation_id]


@pytest.mark.promise("owner-only")
async def test_a_path_must_name_the_runtime_of_its_invocation(clock: ManualClock) -> None:
    async with serving(clock) as served:
        invocation_id = (await served.submit()).headers["location"].rpartition("/")[2]

        await check_not_found(served, f"/runtimes/reckoner/invocations/{invocation_id}")
        listed = await served.get("/runtimes/reckoner/invocations")
        assert listed.json() == {"invocations": []}


@pytest.mark.promise("group-only")
async def test_a_runtime_of_a_group_is_there_for_its_members_only(clock: ManualClock) -> None:
    member = bearer({"cognito:groups": ["writers", "editors"]})
    async with serving(clock) as served:
        got = await served.submit(path=EDITOR, authorization=member)
        location = got.headers["location"]
        record = await served.get(location, authorization=member)
        runtimes = await served.get("/runtimes", authorization=member)
        left = [
            await served.get(path) for path in (location, f"{location}/events", EDITOR)
        ]  # the owner, who is no editor any more

    assert (got.status, record.json()["runtimeId"]) == (200, "editor")
    assert [runtime["runtimeId"] for runtime in runtimes.json()["runtimes"]] == [
        "writer",
        "editor",
        "reckoner",
    ]
    assert [(answer.status, answer.json()) for answer in left] == [(404, NO_RUNTIME)] * 3


@pytest.mark.parametrize(
    "invocation_id",
    [
        "x",
        "inv_",
        NEVER_ISSUED.lower(),
        NEVER_ISSUED + "0",
        NEVER_ISSUED.replace("0", "I"),
        "inv_%00" + "0" * 25,
    ],
)
async def test_what_is_no_invocation_id_is_404_without_a_look_into_the_store(
    clock: ManualClock, invocation_id: str
) -> None:
    async with serving(clock) as served:
        await check_not_found(served, f"{INVOCATIONS}/{invocation_id}")

        assert "load_invocation" not in served.store.calls
