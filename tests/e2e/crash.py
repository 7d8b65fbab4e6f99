"""Processes that are killed at a chosen point of an invocation, one after the other, while others go on.

`test_crash` calls it. Each lane is a `failing_service` of its own: it gets one submission, dies at its point,
and is started again for the next; meanwhile a service without failpoints takes over what it has left, and a
client of the drill reads that to its end. Jobs, upstream and tools are the drill's, and so is the audit.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp

from local.process import Process
from local.stack import Stack
from tests.e2e.drill.clients import DROPPED, Client, Reading, Wish
from tests.e2e.drill.drill import CHOOSE, ask, end
from tests.e2e.drill.entries import Entry, SseFeed
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.jobs import CATALOG, RUNTIME, Job
from tests.e2e.drill.stores import TABLES, StoreName, store_of
from tests.e2e.drill.tools import JOURNAL, read_journal
from tests.e2e.failing_service import STEP

FAILING: Final = "tests.e2e.failing_service"
USERS: Final = tuple(f"user-{number}" for number in range(100))
SEED: Final = 1
TURNS: Final = 2
FAULTLESS: Final = "none"
SESSION: Final = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
_JOURNAL: Final = "journal.jsonl"
_MIDDLE: Final = ("contentBlockDelta", 2)
DIES_S: Final = 20.0
START_S: Final = 30.0
READ_S: Final = 40.0
# Calls of DynamoDB that change nothing: to die after one is to die before the next.
READS: Final = frozenset({"GetItem", "Query", "BatchGetItem", "TransactGetItems"})


class Point(NamedTuple):
    """Where a process dies.

    Attributes:
        name: `failing_service`'s own, or what the test does.
        sees: The process is killed once its reader has so many events of this kind.
        told_to_stop: It gets a SIGTERM in the middle of the first turn.
    """

    name: str
    sees: tuple[str, int] | None = None
    told_to_stop: bool = False


SEEN: Final = tuple(
    Point(f"sees-{kind}-{count}", sees=(kind, count))
    for kind, count in (
        ("messageStart", 1),
        ("contentBlockDelta", 5),
        ("toolStarted", 1),
        ("messageStart", 2),
    )
)
"""The points at which the store is not called: while the model answers, and while a tool runs."""


def points_of(steps: Sequence[str], *, told_to_stop: bool = False) -> Iterator[Point]:
    """Return the failpoints of an invocation that took these steps without a fault."""
    for step in dict.fromkeys(steps):
        decision, *operation, count = step.split(":")
        if decision == "append_events" and count != "1":
            continue  # how many there are is the clock's doing
        yield Point(f"{step}:before", told_to_stop=told_to_stop)
        if not READS.intersection(operation):
            yield Point(f"{step}:after", told_to_stop=told_to_stop)


def steps_in(log: str) -> list[str]:
    """Return the steps that a process has logged."""
    lines = (json.loads(line) for line in log.splitlines())
    return [fields["step"] for fields in lines if fields["message"] == STEP]


@dataclass
class Crashes:
    """Submissions to processes that die, and what became of them.

    Attributes:
        died_at_ms: By job number: when its first process was known to be dead.
    """

    stack: Stack
    store: StoreName
    session: aiohttp.ClientSession
    tokens: Mapping[str, str]
    began_s: float
    wishes: list[Wish] = field(default_factory=list)
    died_at_ms: dict[int, int] = field(default_factory=dict)

    @property
    def survivor(self) -> Process:
        return self.stack.services[0]

    async def run(self, points: Sequence[Point]) -> None:
        """Let a process die at each point, in lanes; returns when all invocations have ended."""
        waiting = iter(points)
        async with asyncio.TaskGroup() as group:
            for victim in self.stack.services[1:]:
                group.create_task(self._lane(victim, waiting, group))

    async def _lane(self, victim: Process, waiting: Iterator[Point], group: asyncio.TaskGroup) -> None:
        for point in waiting:
            if not victim.running:
                await victim.start(timeout_s=START_S)
            wish = await self.die(victim, point)
            group.create_task(self.go_on(wish))

    async def die(self, victim: Process, point: Point) -> Wish:
        """Submit a job to a process, which dies of it."""
        wish = self._wish()
        await self._submit_to(victim, wish, point)
        await killed(victim, point.name)
        self.died_at_ms[wish.job.number] = time.time_ns() // 1_000_000
        return wish

    async def gather(self) -> Evidence:
        """End the survivor, and return what is known of it all."""
        incidents: list[str] = []
        told = await ask(self.stack, self.session, self.survivor.url, self.tokens, self.wishes, incidents)
        incidents += await end([self.survivor])
        stopped_at_ms = time.time_ns() // 1_000_000
        return Evidence(
            seed=SEED,
            wishes=self.wishes,
            books=await store_of(self.stack, self.store).read(),
            served=told.served,
            records=told.records,
            accounts=told.accounts,
            calls=told.calls,
            noted=read_journal(self.stack.directory / _JOURNAL),
            log_texts={process.name: process.log() for process in self.stack.processes},
            stopped_at_ms=stopped_at_ms,
            incidents=incidents,
            lasted_s=time.monotonic() - self.began_s,
        )

    async def record(self, *, told_to_stop: bool) -> list[str]:
        """Let an invocation run without a fault; returns its first process's steps."""
        victim = self.stack.services[1]
        if not victim.running:
            await victim.start(timeout_s=START_S)
        before, wish = len(victim.log()), self._wish()
        await self._submit_to(victim, wish, Point(FAULTLESS, told_to_stop=told_to_stop))
        if told_to_stop:
            await victim.ended(timeout_s=DIES_S)
        await self.go_on(wish)
        await victim.kill()
        return steps_in(victim.log()[before:])

    def _wish(self) -> Wish:
        number = len(self.wishes)
        job = Job(SEED, number, TURNS, wide=False)
        wish = Wish(job, list(self.tokens)[number], f"crash-{number}", readings=[Reading("sse")])
        self.wishes.append(wish)
        return wish

    async def _submit_to(self, victim: Process, wish: Wish, point: Point) -> None:
        """Submit to the process that is to die, and read until its end or the log's."""
        headers = {
            "Authorization": f"Bearer {self.tokens[wish.user]}",
            "Idempotency-Key": wish.key,
            SESSION: point.name,
        }
        url, body = f"{victim.url}/runtimes/{RUNTIME}/invocations", {"prompt": wish.job.prompt}
        try:
            async with (
                asyncio.timeout(DIES_S),
                self.session.post(url, headers=headers, json=body) as response,
            ):
                if response.status != 200:
                    raise AssertionError(f"{point.name}: {response.status} {await response.text()}")
                wish.location = response.headers["Location"]
                feed = SseFeed()
                async for piece in response.content.iter_any():
                    self._received(wish, feed, piece)
                    if _has(wish, point.sees):
                        await victim.kill()
                    if point.told_to_stop and _has(wish, _MIDDLE):
                        break  # an open response would hold the way out up
            if point.told_to_stop:
                victim.send(signal.SIGTERM)
        except DROPPED:
            pass  # as it must be: its process is dead

    def _received(self, wish: Wish, feed: SseFeed, piece: bytes) -> None:
        (reading,) = wish.readings
        reading.entries += [Entry(event_id, event) for event_id, event in feed.feed(piece) if event_id]

    async def go_on(self, wish: Wish) -> None:
        """Do what a client does: submit again with the same key, if need be, and follow to the end."""
        client = Client(wish.job.number, SEED, self.session, self.survivor.url, self.tokens)
        async with asyncio.timeout(READ_S):
            await client.submit(wish, detached=True)
            await client.follow(wish, wish.readings[0])


async def killed(victim: Process, where: str) -> None:
    """Wait until a process is dead by SIGKILL."""
    try:
        status = await victim.ended(timeout_s=DIES_S)
    except TimeoutError:
        raise AssertionError(f"{where}: never reached") from None
    if status != -signal.SIGKILL:
        raise AssertionError(f"{where}: {victim.death()}")


@asynccontextmanager
async def crashing(
    directory: Path, store: StoreName, *, lanes: int, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Crashes]:
    """Run a survivor and, in lanes, those that die."""
    began_s = time.monotonic()
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        Stack(
            directory,
            catalog=CATALOG,
            answers="scripts",
            services=["service"] + [FAILING] * lanes,
            tables=TABLES[store],
            environ={JOURNAL: str(directory / _JOURNAL), **(environ or {})},
            choose=CHOOSE,
            gateway=None,  # each job is given to the process that will die of it
        ) as stack,
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
    ):
        tokens = {user: await stack.token(user) for user in USERS}
        yield Crashes(stack, store, session, tokens, began_s)


def _has(wish: Wish, sees: tuple[str, int] | None) -> bool:
    """Tell whether a wish's reader has so many events of a kind."""
    if sees is None:
        return False
    kind, count = sees
    return sum(entry.kind == kind for entry in wish.readings[0].entries) >= count
