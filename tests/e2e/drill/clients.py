"""The clients of a drill: each submits one job after the other and reads it to its end, whatever happens.

Written from docs/api.md alone, above all from "Never lose an event"; the numbers in comments are its rules.
They hang up in the middle, read slowly, give up on a submission before its answer, let a second reader
follow the same job. `drill` runs them; what they wanted and what they received is the audit's evidence.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.e2e.drill.entries import ACCEPT, FEEDS, TERMINAL, Encoding, Entry, Id
from tests.e2e.drill.jobs import HEARTBEAT_S, JOBS_PER_CLIENT, RUNTIME, Job, seeded

SILENCE_S: Final = 6 * HEARTBEAT_S  # (7)
HEAD_S: Final = 6.0
BACKOFF_S: Final = (0.1, 1.5)  # (5), as much shorter as the drill's leases are
AGAIN: Final = frozenset({401, 429, 500, 502, 503, 504})  # (6)
REST_S: Final = 1.5

DROPPED: Final = (aiohttp.ClientError, TimeoutError, OSError)


class Refused(Exception):
    """The service answered what no client of this drill should get."""


@dataclass
class Reading:
    """What one reader received of a job, in order, as it came."""

    encoding: Encoding
    entries: list[Entry] = field(default_factory=list)

    @property
    def cursor(self) -> Id | None:
        return self.entries[-1].id if self.entries else None

    @property
    def ended(self) -> bool:
        return bool(self.entries) and self.entries[-1].kind in TERMINAL


@dataclass
class Wish:
    """A job that a client wanted, and what its readers received."""

    job: Job
    user: str
    key: str
    location: str = ""
    readings: list[Reading] = field(default_factory=list)

    @property
    def invocation_id(self) -> str:
        return self.location.rpartition("/")[2]


class Client:
    """One client of a user: its habits are the seed's."""

    def __init__(
        self,
        number: int,
        seed: int,
        session: aiohttp.ClientSession,
        url: str,
        tokens: Mapping[str, str],
    ) -> None:
        self.wishes: list[Wish] = []
        self.happened: Counter[str] = Counter()
        self._number = number
        self._seed = seed
        self._rng = seeded(seed, "client", number)
        self._session = session
        self._url = url
        self._user = list(tokens)[number % len(tokens)]
        self._token = tokens[self._user]

    async def run(self, enough: asyncio.Event) -> None:
        """Do one job after the other until it is enough, and the last one to its end."""
        await self._rest(enough)
        while not enough.is_set():
            number = self._number * JOBS_PER_CLIENT + len(self.wishes)
            job = Job.drawn(self._rng, self._seed, number)
            wish = Wish(job, self._user, f"drill-{self._rng.getrandbits(128):032x}")
            self.wishes.append(wish)
            await self._fulfil(wish)
            await self._rest(enough)

    async def _fulfil(self, wish: Wish) -> None:
        encodings: list[Encoding] = ["sse", "ndjson"]
        self._rng.shuffle(encodings)
        wish.readings.append(Reading(encodings[0]))
        detached = self._rng.random() < 0.2
        watched = self._rng.random() < 0.15
        await self.submit(wish, detached=detached)
        async with asyncio.TaskGroup() as reading:
            reading.create_task(self.follow(wish, wish.readings[0]))
            if watched:
                wish.readings.append(Reading(encodings[1]))
                reading.create_task(self.follow(wish, wish.readings[1]))

    async def submit(self, wish: Wish, *, detached: bool) -> None:
        """Submit, with the same key and body, until it is known where the job is (1); read what comes."""
        reading = wish.readings[0]
        headers = {"Idempotency-Key": wish.key, "Content-Type": "application/json"}
        headers |= {"Prefer": "respond-async"} if detached else {}
        wait_s = BACKOFF_S[0]
        head_s = self._rng.uniform(0.0, 0.4) if self._rng.random() < 0.2 else HEAD_S
        while not wish.location:
            retry_after_s = 0.0
            try:
                async with self._asked(
                    "POST", f"/runtimes/{RUNTIME}/invocations", reading, headers, {"prompt": wish.job.prompt}
                ) as asked:
                    response = await asked.head(head_s)
                    if response.status in (200, 202):
                        wish.location = response.headers["Location"]
                        if response.status == 200:
                            await self._read(reading, response)
                    else:
                        retry_after_s, wish.location = await _problem(response)
            except DROPPED:
                self.happened["drops"] += 1
            if not wish.location:
                self.happened["submissions again"] += 1
                await asyncio.sleep(max(retry_after_s, self._rng.uniform(0, wait_s)))
            wait_s, head_s = min(2 * wait_s, BACKOFF_S[1]), HEAD_S

    async def follow(self, wish: Wish, reading: Reading) -> None:
        """Follow with the cursor, again and again, until the terminal event is there (5, 9)."""
        wait_s = BACKOFF_S[0]
        while not reading.ended:
            had, retry_after_s, told = len(reading.entries), 0.0, ""
            headers = {"Last-Event-ID": str(reading.cursor)} if reading.cursor else {}
            try:
                async with self._asked("GET", f"{wish.location}/events", reading, headers) as asked:
                    response = await asked.head(HEAD_S)
                    if response.status == 200:
                        told = await self._read(reading, response)
                    else:
                        retry_after_s, _ = await _problem(response)
            except DROPPED:
                self.happened["drops"] += 1
            wait_s = BACKOFF_S[0] if len(reading.entries) > had else min(2 * wait_s, BACKOFF_S[1])
            if not reading.ended:
                self.happened["reconnects"] += 1
                if told != "segment-end":
                    await asyncio.sleep(max(retry_after_s, self._rng.uniform(0, wait_s)))

    async def _read(self, reading: Reading, response: aiohttp.ClientResponse) -> str:
        """Read a response to its end, or hang up before; returns the reason of its `reconnect`, or ''.

        Events are taken whole: what a drop cut off is left in the feed (3).
        """
        feed = FEEDS[reading.encoding]()
        leaves_after = self._rng.randint(1, 60) if self._rng.random() < 0.25 else None
        slow = self._rng.random() < 0.15
        told, begun = "", len(reading.entries)
        while True:
            async with asyncio.timeout(SILENCE_S):
                piece = await response.content.readany()
            if not piece:
                return told
            for event_id, event in feed.feed(piece):
                if event_id is not None:
                    reading.entries.append(Entry(event_id, event))  # (4): the cursor is the last one's id
                else:
                    told = Entry(Id(0, 0), event).value.get("reason", "")
                    self.happened[f"told to reconnect: {told}"] += 1
            if leaves_after is not None and len(reading.entries) - begun >= leaves_after:
                self.happened["hang-ups"] += 1
                return told
            if slow:
                await asyncio.sleep(self._rng.uniform(0, 0.3))

    def _asked(
        self,
        method: str,
        path: str,
        reading: Reading,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
    ) -> "_Asked":
        async def ask() -> aiohttp.ClientResponse:
            own = {"Authorization": f"Bearer {self._token}", "Accept": ACCEPT[reading.encoding]}
            return await self._session.request(
                method, self._url + path, headers={**own, **headers}, json=body
            )

        return _Asked(ask)

    async def _rest(self, enough: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._rng.uniform(0, REST_S)):
                await enough.wait()
        except TimeoutError:
            return


class _Asked:
    """A request and its response, which is hung up on at the end, read or not."""

    def __init__(self, ask: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> None:
        self._ask = ask
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> "_Asked":
        return self

    async def head(self, within_s: float) -> aiohttp.ClientResponse:
        async with asyncio.timeout(within_s):
            self._response = await self._ask()
        return self._response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()


async def _problem(response: aiohttp.ClientResponse) -> tuple[float, str]:
    """Return how long to wait and, if the refusal has an invocation, where it is.

    Raises:
        Refused: It is final.
    """
    async with asyncio.timeout(SILENCE_S):
        problem = await response.json(content_type=None)
    if response.status not in AGAIN:
        raise Refused(f"{response.status} {problem}")
    started = problem.get("instance", "") if "invocationId" in problem else ""
    return float(response.headers.get("Retry-After", 0)), started
