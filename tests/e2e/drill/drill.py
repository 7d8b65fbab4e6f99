"""One drill: a deployment of three services, many clients, forty seconds of faults, and the evidence.

`__main__` and `test_drill` call `drill`. It starts the local stack and the proxy, lets clients and saboteur
work at the same time, waits until every job has ended, asks the API, ends the services, and reads what is
left: store, journal, logs. What goes wrong on the way and is no fault of the schedule is an incident.
"""

import asyncio
import base64
import json
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from local.account import Call
from local.process import Process
from local.stack import Stack
from tests.e2e.drill.clients import Client, Wish
from tests.e2e.drill.entries import Entry, parse
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.faults import END_S, Saboteur, schedule
from tests.e2e.drill.jobs import CATALOG, USERS, seeded
from tests.e2e.drill.proxy import listening
from tests.e2e.drill.stores import TABLES, StoreName, store_of
from tests.e2e.drill.tools import JOURNAL, read_journal

CHOOSE: Final = "tests.e2e.drill.script:choose"
CLIENTS: Final[Mapping[StoreName, int]] = {"sqlite": 50, "dynamodb": 20}
"""As many as two cores can serve, the emulator beside them."""
JOBS_END_S: Final = 45.0
CALLS_END_S: Final = 10.0
ASK_S: Final = 15.0
ASKED_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A drill's seed and size."""

    seed: int
    services: int = 3
    clients: int = 50
    seconds_s: float = 40.0
    store: StoreName = "sqlite"


@dataclass(frozen=True, slots=True)
class Told:
    """What the API and the upstream say once all jobs have ended."""

    served: Mapping[str, Sequence[Entry]]
    records: Mapping[str, Mapping[str, Any]]
    accounts: Mapping[str, Mapping[str, Any]]
    calls: Sequence[Call]


async def drill(plan: Plan, directory: Path) -> Evidence:
    """Run one drill in `directory` and return what is known at its end."""
    began_s = time.monotonic()
    journal = directory / "journal.jsonl"
    stack = Stack(
        directory,
        catalog=CATALOG,
        answers="scripts",
        services=plan.services,
        tables=TABLES[plan.store],
        environ={JOURNAL: str(journal)},
        choose=CHOOSE,
        gateway=None,  # what is cut and stalled here are the service's own connections
    )
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(
        limit=0, force_close=True
    )  # every request takes the proxy's next service
    async with (
        stack,
        listening([each.url for each in stack.services], seeded(plan.seed, "proxy")) as proxy,
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
    ):
        tokens = {user: await stack.token(user) for user in USERS}
        store = store_of(stack, plan.store)
        saboteur = Saboteur(stack.services, store, proxy)
        clients = [Client(number, plan.seed, session, proxy.url, tokens) for number in range(plan.clients)]
        incidents = await _work(plan, clients, saboteur)
        wishes = [wish for client in clients for wish in client.wishes]
        told = await ask(stack, session, proxy.url, tokens, wishes, incidents)
        incidents += await end(stack.services)
        stopped_at_ms = time.time_ns() // 1_000_000
        books = await store.read()
    return Evidence(
        seed=plan.seed,
        wishes=wishes,
        books=books,
        served=told.served,
        records=told.records,
        accounts=told.accounts,
        calls=told.calls,
        noted=read_journal(journal),
        log_texts={process.name: process.log() for process in stack.processes},
        stopped_at_ms=stopped_at_ms,
        incidents=incidents + saboteur.incidents,
        deeds=saboteur.deeds,
        counts=saboteur.counts,
        happened=sum((client.happened for client in clients), Counter()),
        cuts=proxy.cuts,
        lasted_s=time.monotonic() - began_s,
    )


async def _work(plan: Plan, clients: Sequence[Client], saboteur: Saboteur) -> list[str]:
    """Let clients and saboteur work until all jobs have ended; returns what should not have happened."""
    enough = asyncio.Event()
    asyncio.get_running_loop().call_later(plan.seconds_s, enough.set)
    working = {asyncio.create_task(client.run(enough)): client for client in clients}
    try:
        faults = schedule(plan.seed, services=plan.services, seconds_s=plan.seconds_s, store=plan.store)
        await saboteur.run(faults)
        await enough.wait()
        saboteur.proxy.calm()
        done, late = await asyncio.wait(working, timeout=JOBS_END_S)
    finally:
        for task in working:
            task.cancel()
        ends = await asyncio.gather(*working, return_exceptions=True)
    incidents = [
        f"a client gave up: {type(end).__name__} {end}"
        for task, end in zip(working, ends, strict=True)
        if task in done and end is not None
    ]
    return incidents + [
        f"job {working[task].wishes[-1].job.number} has not ended {JOBS_END_S:g} s after the last fault:"
        f" {working[task].wishes[-1].invocation_id}"
        for task in late
    ]


async def ask(
    stack: Stack,
    session: aiohttp.ClientSession,
    url: str,
    tokens: Mapping[str, str],
    wishes: Sequence[Wish],
    incidents: list[str],
) -> Told:
    """Ask the API for everything that it has, and the upstream for its account."""
    slots = asyncio.Semaphore(ASKED_AT_ONCE)
    served: dict[str, Sequence[Entry]] = {}
    records: dict[str, Mapping[str, Any]] = {}

    async def get(path: str, user: str) -> bytes:
        headers = {"Authorization": f"Bearer {tokens[user]}"}
        async with slots, asyncio.timeout(ASK_S), session.get(url + path, headers=headers) as response:
            if response.status != 200:
                raise aiohttp.ClientError(f"{path}: {response.status}")
            return await response.read()

    async def ask(wish: Wish) -> None:
        try:
            records[wish.invocation_id] = json.loads(await get(wish.location, wish.user))
            events = await get(f"{wish.location}/events", wish.user)
            served[wish.invocation_id] = parse(events, "sse")
        except (aiohttp.ClientError, TimeoutError) as error:
            incidents.append(f"the API could not be asked: {type(error).__name__} {error}")

    await asyncio.gather(*(ask(wish) for wish in wishes if wish.location))
    accounts = {_subject(token): json.loads(await get("/usage", user)) for user, token in tokens.items()}
    calls = await stack.bedrock.account()
    try:  # what still runs now runs for nobody
        calls = await stack.bedrock.account(ended=len(calls), timeout_s=CALLS_END_S)
    except TimeoutError:
        incidents.append(f"model calls still run {CALLS_END_S:g} s after the last job has ended")
    return Told(served, records, accounts, calls)


async def end(services: Sequence[Process]) -> list[str]:
    """End services in an orderly way, and say which of them could not."""
    for service in services:
        service.send(signal.SIGTERM)
    incidents = []
    for service in services:
        try:
            status = await service.ended(timeout_s=END_S)
        except TimeoutError as error:
            incidents.append(str(error))
            continue
        if status != 0:
            incidents.append(str(service.death()))
    return incidents


def _subject(token: str) -> str:
    """Return the `sub` of a token."""
    claims = token.split(".")[1]
    subject: str = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    return subject
