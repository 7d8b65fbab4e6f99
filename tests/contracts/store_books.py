"""What the store's port promises, in the plainest way: dicts and sums, no transactions, no SQL, no indexes.

`test_store_model` makes every decision here and in a store. A decision returns what the port says it does:
the code of a refusal, or `fenced`, or None.
"""

from dataclasses import dataclass, field
from typing import Final

from service.config import Limits
from service.events import EventId
from service.invocations import Attempt, AttemptEnd, State, Usage
from service.stores import ORPHAN_AGE_S, RESERVATION_GRACE_MS, Turn
from tests.contracts.store_cases import DAY_MS, HOUR_MS, MINUTE_MS, NOW

LIMITS: Final = Limits(
    daily_tokens=1_000, monthly_tokens=1_600, concurrent_invocations=3, invocation_tokens=700
)
BUCKET_MS: Final = 10 * MINUTE_MS
NOVEMBER_ENDS_MS: Final = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * MINUTE_MS
HELD_UNTIL_MS: Final = NOW + 40 * DAY_MS
"""Longer than any test goes on; only the holds of resumed calls lapse."""


@dataclass
class Ran:
    """One attempt: how much it has stored, and what it was granted of that."""

    started_at_ms: int
    stored: int = 0
    granted: int | None = None
    end: AttemptEnd | None = None


@dataclass
class Wait:
    """A pause."""

    turn: int
    tokens: int
    paused_at_ms: int
    resumes_at_ms: int
    look_at_ms: int


@dataclass
class Job:
    """An invocation; `owner` is '' while nobody runs it."""

    number: int
    sub: str
    owner: str
    created_at_ms: int
    attempts: list[Ran]
    turn: int = 1
    state: State = State.RUNNING
    deadline_at_ms: int = NOW + HOUR_MS
    usage: Usage = Usage()
    holds: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    settled: set[tuple[int, int]] = field(default_factory=set)
    turns: dict[int, EventId] = field(default_factory=dict)
    cancel_at_ms: int | None = None
    wait: Wait | None = None

    @property
    def name(self) -> str:
        return f"inv_{self.number}"

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    @property
    def current(self) -> Ran:
        return self.attempts[-1]

    @property
    def writes(self) -> bool:
        return self.state is State.RUNNING and self.owner != ""

    def record(self) -> tuple[object, ...]:
        """Return what the record shows of it."""
        attempts = tuple(
            Attempt(
                number,
                ran.started_at_ms,
                None if ran.granted is None else EventId(number, ran.granted),
                ran.end,
            )
            for number, ran in enumerate(self.attempts, 1)
        )
        wait = (None, None) if self.wait is None else (self.wait.paused_at_ms, self.wait.resumes_at_ms)
        return self.state, attempts, self.usage, self.deadline_at_ms, self.cancel_at_ms, *wait

    def log(self) -> list[EventId]:
        """Return the ids of the events that readers get."""
        return [
            EventId(number, seq)
            for number, ran in enumerate(self.attempts, 1)
            for seq in range(1, 1 + (ran.stored if ran.granted is None else ran.granted))
        ]

    def left(self) -> tuple[Turn, ...]:
        """Return the turns that the next attempt gets."""
        return tuple(Turn(number, b"%d.%d" % place, place) for number, place in sorted(self.turns.items()))


class Books:
    """All invocations, and what was counted."""

    def __init__(self) -> None:
        self.now_ms = NOW
        self.jobs: list[Job] = []
        self.counted: list[tuple[str, int, int]] = []  # sub, when, tokens

    # ------------------------------------------------------------ what an account shows

    def day(self, sub: str) -> int:
        return sum(
            tokens
            for owner, at_ms, tokens in self.counted
            if owner == sub and at_ms // BUCKET_MS * BUCKET_MS + BUCKET_MS + DAY_MS > self.now_ms
        )

    def month(self, sub: str) -> int:
        return sum(
            tokens
            for owner, at_ms, tokens in self.counted
            if owner == sub and (at_ms < NOVEMBER_ENDS_MS) == (self.now_ms < NOVEMBER_ENDS_MS)
        )

    def reserved(self, sub: str) -> int:
        return sum(self._held(job) for job in self.jobs if job.sub == sub)

    def running(self, sub: str) -> int:
        return sum(job.sub == sub and job.state is State.RUNNING for job in self.jobs)

    def account(self, sub: str) -> tuple[int, ...]:
        return self.day(sub), self.month(sub), self.reserved(sub), self.running(sub)

    def due(self) -> list[str]:
        """Return which paused ones are to be looked at, in order."""
        waiting = [
            (0 if job.cancel_at_ms is not None else job.wait.look_at_ms, job.name)
            for job in self.jobs
            if job.wait is not None
        ]
        return [name for look_at_ms, name in sorted(waiting) if look_at_ms <= self.now_ms]

    def owned(self, owner: str) -> dict[str, int]:
        return {job.name: job.attempt for job in self.jobs if job.writes and job.owner == owner}

    def to_cancel(self, owner: str) -> set[str]:
        return {
            job.name
            for job in self.jobs
            if job.writes and job.owner == owner and job.cancel_at_ms is not None
        }

    # ------------------------------------------------------------ decisions

    def submit(self, sub: str, owner: str, tokens: int) -> str | None:
        refused = self._refusal(sub, tokens, used=0)
        if refused is None:
            job = Job(len(self.jobs), sub, owner, self.now_ms, [Ran(self.now_ms)])
            job.holds[1, 1] = tokens, HELD_UNTIL_MS
            self.jobs.append(job)
        return refused

    def reserve(self, job: Job, turn: int, tokens: int) -> str | None:
        if not job.writes:
            return "fenced"
        if job.usage.counted_tokens + self._held(job) + tokens > LIMITS.invocation_tokens:
            return "budget-exceeded"
        if not self._fits(job.sub, tokens):
            return "quota-exceeded"
        job.turn = turn
        job.holds[job.attempt, turn] = tokens, HELD_UNTIL_MS
        return None

    def settle(self, job: Job, attempt: int, turn: int, usage: Usage, *, charged: bool = True) -> bool:
        job.holds.pop((attempt, turn), None)
        if (attempt, turn) in job.settled:
            return False
        job.settled.add((attempt, turn))
        if charged and attempt == job.attempt:
            job.usage = job.usage.plus(usage)
            self.counted.append((job.sub, self.now_ms, usage.counted_tokens))
        return True

    def write(self, job: Job, events: int, turn: int | None = None) -> str | None:
        """Store events of the current attempt, and what a turn has added by the last of them."""
        if not job.writes:
            return "fenced"
        job.current.stored += events
        if turn is not None:
            job.turns[turn] = EventId(job.attempt, job.current.stored)
        return None

    def finish(self, job: Job, usage: Usage | None) -> str | None:
        if job.state.is_terminal:
            return None
        if self.write(job, 1) == "fenced":
            return "fenced"
        if usage is not None:
            self.settle(job, job.attempt, job.turn, usage)
        self._close(job, job.current.stored, AttemptEnd.FINISHED, charged=True)
        job.state = State.COMPLETED
        return None

    def hand_over(self, job: Job, usage: Usage) -> str | None:
        if not job.writes:
            return None if job.current.end is AttemptEnd.HANDED_OVER else "fenced"
        self.settle(job, job.attempt, job.turn, usage, charged=False)
        job.owner, job.current.end = "", AttemptEnd.HANDED_OVER
        return None

    def pause(self, job: Job, tokens: int, resumes_at_ms: int) -> str | None:
        if self.write(job, 1) == "fenced":
            return "fenced"
        self._close(job, job.current.stored, AttemptEnd.PAUSED, charged=True)
        job.wait = Wait(job.turn + 1, tokens, self.now_ms, resumes_at_ms, resumes_at_ms)
        job.state, job.owner = State.PAUSED, ""
        return None

    def postpone(self, job: Job, look_at_ms: int) -> None:
        if job.wait is not None:
            job.wait.look_at_ms = look_at_ms

    def resume(self, job: Job, owner: str, *, limited: bool) -> str | None:
        wait = job.wait
        if wait is None:
            return "fenced"
        if limited and (refused := self._refusal(job.sub, wait.tokens, used=job.usage.counted_tokens)):
            return refused
        job.deadline_at_ms += self.now_ms - wait.paused_at_ms
        self._begin_next(job, owner)
        job.state, job.wait = State.RUNNING, None
        if limited:
            job.turn = wait.turn
            job.holds[job.attempt, wait.turn] = wait.tokens, job.deadline_at_ms + RESERVATION_GRACE_MS
        return None

    def request_cancel(self, job: Job) -> None:
        if not job.state.is_terminal and job.cancel_at_ms is None:
            job.cancel_at_ms = self.now_ms

    def take_over(self, owner: str, limit: int, *, runs_nothing: bool) -> list[Job]:
        """Let all owners but this one be dead."""
        orphaned_ms = self.now_ms - ORPHAN_AGE_S * 1000 if runs_nothing else -1
        left = [
            job
            for job in self.jobs
            if job.state is State.RUNNING and (job.owner != owner or job.current.started_at_ms <= orphaned_ms)
        ]
        claimed = sorted(left, key=lambda job: (job.created_at_ms, job.name))[:limit]
        for job in claimed:
            if job.attempt == 1 and not job.current.stored:
                job.current.stored = 1
            boundary = max(job.turns.values(), default=EventId(0, 0))
            last = boundary.seq if boundary.attempt == job.attempt else min(1, job.current.stored)
            self._close(job, last, AttemptEnd.LOST, charged=False)
            self._begin_next(job, owner)
        return claimed

    # ------------------------------------------------------------ their parts

    def _refusal(self, sub: str, tokens: int, *, used: int) -> str | None:
        if used + tokens > LIMITS.invocation_tokens:
            return "budget-exceeded"
        if self.running(sub) >= LIMITS.concurrent_invocations:
            return "concurrency-exceeded"
        return None if self._fits(sub, tokens) else "quota-exceeded"

    def _fits(self, sub: str, tokens: int) -> bool:
        held = self.reserved(sub) + tokens
        return self.day(sub) + held <= LIMITS.daily_tokens and self.month(sub) + held <= LIMITS.monthly_tokens

    def _held(self, job: Job) -> int:
        return sum(tokens for tokens, until_ms in job.holds.values() if until_ms > self.now_ms)

    def _close(self, job: Job, granted: int, end: AttemptEnd, *, charged: bool) -> None:
        for (attempt, turn), (tokens, _) in list(job.holds.items()):
            self.settle(job, attempt, turn, Usage(tokens, estimated=True), charged=charged)
        job.current.granted = granted
        job.current.end = job.current.end or end

    def _begin_next(self, job: Job, owner: str) -> None:
        job.attempts.append(Ran(self.now_ms))
        job.turn, job.owner = 0, owner
