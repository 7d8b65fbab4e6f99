"""What the store's port promises, in the plainest way: dicts and sums, no transactions, no SQL, no indexes.

`test_store_model` makes every decision here and in a store, and `store_audit` compares what they have come
to. A decision returns what the port says it does: its result, the code of a refusal, or `fenced`. Each may be
made again, as by a caller that got no answer.

Processes' clocks differ: `at_ms` is that of the one that decides, and `view_ms` the time that counts for its
quotas and holds, which may be as late as any process has been: what has aged out for one may be gone for all.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from service.config import Limits
from service.events import EventId
from service.invocations import AttemptEnd, State, Usage
from service.stores import ORPHAN_AGE_S, RESERVATION_GRACE_MS, Turn
from tests.contracts.store_cases import DAY_MS, HOUR_MS, MINUTE_MS, NOW, settlement
from tests.contracts.store_jobs import NOBODY, Call, Held, Job, Line, Ran, Wait

LIMITS: Final = Limits(
    daily_tokens=1_000, monthly_tokens=1_600, concurrent_invocations=3, invocation_tokens=700
)
MODEL: Final = settlement().model
BUCKET_MS: Final = 10 * MINUTE_MS
NOVEMBER_ENDS_MS: Final = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * MINUTE_MS


class Charge(NamedTuple):
    """What was counted."""

    sub: str
    at_ms: int
    usage: Usage


class Taken(NamedTuple):
    """Who took an idempotency key."""

    body: str
    name: str
    until_ms: int


class Submission(NamedTuple):
    """What is submitted."""

    number: int
    sub: str
    tokens: int
    held_for_ms: int
    key: str | None = None
    body: str = ""


@dataclass
class Books:
    """All invocations, and what was counted.

    `lapsed_count`: holds that have lapsed count against their invocation's budget; a store may do either.
    """

    at_ms: int = NOW
    view_ms: int = NOW
    lapsed_count: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    counted: list[Charge] = field(default_factory=list)
    keys: dict[str, Taken] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)

    # ------------------------------------------------------------ what an account shows

    def day(self, sub: str) -> int:
        return sum(
            charge.usage.counted_tokens
            for charge in self.counted
            if charge.sub == sub and bucket_ms(charge.at_ms) + BUCKET_MS + DAY_MS > self.view_ms
        )

    def month(self, sub: str) -> int:
        return sum(
            charge.usage.counted_tokens
            for charge in self.counted
            if charge.sub == sub and in_november(charge.at_ms) == in_november(self.view_ms)
        )

    def reserved(self, sub: str) -> int:
        return sum(self._held(job) for job in self.jobs.values() if job.sub == sub)

    def running(self, sub: str) -> int:
        return sum(job.sub == sub and job.state is State.RUNNING for job in self.jobs.values())

    def room(self, sub: str) -> int:
        """Return the largest hold that fits."""
        day, month = LIMITS.daily_tokens - self.day(sub), LIMITS.monthly_tokens - self.month(sub)
        return min(day, month) - self.reserved(sub)

    def edges(self) -> list[int]:
        """Return when buckets leave the daily window, and when holds lapse."""
        ages_out = {bucket_ms(charge.at_ms) + BUCKET_MS + DAY_MS for charge in self.counted}
        lapses = {held.until_ms for job in self.jobs.values() for held in job.holds.values()}
        return sorted(ages_out | lapses)

    def resets(self, sub: str) -> tuple[int, int]:
        """Return when each window falls next."""
        buckets = [
            bucket_ms(charge.at_ms)
            for charge in self.counted
            if charge.sub == sub and charge.usage.counted_tokens
        ]
        ages_out = [begin_ms + BUCKET_MS + DAY_MS for begin_ms in buckets]
        day_ms = min((at_ms for at_ms in ages_out if at_ms > self.view_ms), default=self.view_ms)
        return day_ms, NOVEMBER_ENDS_MS + (0 if in_november(self.view_ms) else 31 * DAY_MS)

    def holds(self, until_ms: int) -> dict[Call, int]:
        """Return the holds that have not lapsed by then."""
        return {
            (job.name, *place): held.tokens
            for job in self.jobs.values()
            for place, held in job.holds.items()
            if held.until_ms > until_ms
        }

    def ledger(self) -> dict[Call, Line]:
        return {(job.name, *place): line for job in self.jobs.values() for place, line in job.ledger.items()}

    # ------------------------------------------------------------ what polls find

    def due(self) -> list[str]:
        """Return which paused ones are to be looked at, in order."""
        waiting = [
            (0 if job.cancel_at_ms is not None else job.wait.look_at_ms, job.name)
            for job in self.jobs.values()
            if job.wait is not None
        ]
        return [name for look_at_ms, name in sorted(waiting) if look_at_ms <= self.at_ms]

    def owned(self, owner: str) -> dict[str, int]:
        return {job.name: job.attempt for job in self._run_by(owner)}

    def to_cancel(self, owner: str) -> frozenset[str]:
        return frozenset(job.name for job in self._run_by(owner) if job.cancel_at_ms is not None)

    def claimable(self, owner: str, *, runs_nothing: bool) -> list[Job]:
        """Return what nobody runs, or whoever did is gone."""
        orphaned_ms = self.at_ms - ORPHAN_AGE_S * 1000 if runs_nothing else -1
        running = [job for job in self.jobs.values() if job.state is State.RUNNING]
        own = [job for job in running if job.owner == owner and job.current.started_at_ms <= orphaned_ms]
        gone = [job for job in running if job.owner != owner and self.leases.get(job.owner, 0) <= self.at_ms]
        return own + gone

    def _run_by(self, owner: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.admits(job.attempt) and job.owner == owner]

    # ------------------------------------------------------------ admission, turns, endings

    def submit(self, wanted: Submission, owner: str, limits: Limits = LIMITS) -> str:
        if wanted.number in self.jobs:
            return self.jobs[wanted.number].name
        taken = self.keys.get(wanted.key or "")
        if taken is not None and taken.until_ms > self.at_ms:
            return taken.name if taken.body == wanted.body else "idempotency-mismatch"
        refused = self._refusal(wanted.sub, wanted.tokens, limits)
        if refused is not None:
            return refused
        deadline_ms = self.at_ms + HOUR_MS
        job = Job(wanted.number, wanted.sub, owner, self.at_ms, deadline_ms, [Ran(self.at_ms)])
        job.holds[1, 1] = Held(wanted.tokens, self.at_ms + wanted.held_for_ms)
        self.jobs[job.number] = job
        if wanted.key is not None:
            self.keys[wanted.key] = Taken(wanted.body, job.name, self.at_ms + DAY_MS)
        return job.name

    def reserve(self, number: int, attempt: int, turn: int, held: Held) -> str | None:
        job = self.jobs[number]
        if not job.admits(attempt):
            return "fenced"
        if (attempt, turn) in job.holds:
            return None
        holds = (
            each.tokens for each in job.holds.values() if self.lapsed_count or each.until_ms > self.view_ms
        )
        if job.usage.counted_tokens + sum(holds) + held.tokens > LIMITS.invocation_tokens:
            return "budget-exceeded"
        if not self._fits(job.sub, held.tokens):
            return "quota-exceeded"
        job.turn = turn
        job.holds[attempt, turn] = held
        return None

    def settle(self, number: int, attempt: int, turn: int, usage: Usage) -> bool:
        return self._settle(self.jobs[number], attempt, turn, usage)

    def settle_turn(self, number: int, boundary: EventId, turn: int, usage: Usage) -> bool | str:
        settled = self.settle(number, boundary.attempt, turn, usage)
        return self.write(number, boundary, turn) or settled

    def write(self, number: int, last: EventId, turn: int | None = None) -> str | None:
        """Store events up to `last`, and what a turn has added by then."""
        job = self.jobs[number]
        if not job.admits(last.attempt):
            return "fenced"
        job.current.wrote = job.current.stored = max(job.current.stored, last.seq)
        if turn is not None:
            job.turns[turn] = max(last, job.turns.get(turn, last))
        return None

    def finish(self, number: int, last: EventId, turn: int, usage: Usage | None) -> str | None:
        job = self.jobs[number]
        if job.state.is_terminal:
            return None if EventId(job.attempt, job.current.granted or 0) == last else "fenced"
        if self.write(number, last) == "fenced":
            return "fenced"
        if usage is not None:
            self._settle(job, last.attempt, turn, usage)
        self._close(job, job.current.stored, AttemptEnd.FINISHED, charged=True)
        job.state, job.owner, job.finished_at_ms = State.COMPLETED, NOBODY, self.at_ms
        return None

    # ------------------------------------------------------------ hand-over, takeover, pauses, cancellation

    def renew(self, owner: str, until_ms: int) -> None:
        self.leases[owner] = until_ms

    def hand_over(self, number: int, attempt: int, turn: int, usage: Usage) -> str | None:
        job = self.jobs[number]
        if not job.admits(attempt):
            return None if job.attempts[attempt - 1].end is AttemptEnd.HANDED_OVER else "fenced"
        self._settle(job, attempt, turn, usage, charged=False)
        job.owner, job.current.end = NOBODY, AttemptEnd.HANDED_OVER
        return None

    def take_over(self, owner: str, numbers: tuple[int, ...]) -> list[tuple[str, tuple[Turn, ...]]]:
        for job in (self.jobs[number] for number in numbers):
            if job.attempt == 1 and not job.current.stored:
                job.current.stored = 1
            self._close(job, job.grant(), AttemptEnd.LOST, charged=False)
            self._begin_next(job, owner)
        return sorted((self.jobs[number].name, self.jobs[number].left()) for number in numbers)

    def pause(self, number: int, last: EventId, turn: int, tokens: int, resumes_at_ms: int) -> str | None:
        job = self.jobs[number]
        if self.write(number, last) == "fenced":
            was = job.attempts[last.attempt - 1]
            return None if (was.end, was.granted) == (AttemptEnd.PAUSED, last.seq) else "fenced"
        self._close(job, job.current.stored, AttemptEnd.PAUSED, charged=True)
        job.wait = Wait(turn, tokens, self.at_ms, resumes_at_ms, resumes_at_ms)
        job.state, job.owner = State.PAUSED, NOBODY
        return None

    def postpone(self, number: int, attempt: int, look_at_ms: int) -> None:
        job = self.jobs[number]
        if job.wait is not None and job.attempt == attempt:
            job.wait.look_at_ms = look_at_ms

    def resume(self, number: int, attempt: int, owner: str, *, limited: bool) -> tuple[Turn, ...] | str:
        job = self.jobs[number]
        wait = job.wait
        if wait is None or job.attempt != attempt:
            return "fenced"
        used = job.usage.counted_tokens
        if limited and (refused := self._refusal(job.sub, wait.tokens, LIMITS, used=used)):
            return refused
        job.deadline_at_ms += max(0, self.at_ms - wait.paused_at_ms)
        self._begin_next(job, owner)
        job.state, job.wait = State.RUNNING, None
        if limited:
            job.turn = wait.turn
            until_ms = job.deadline_at_ms + RESERVATION_GRACE_MS
            job.holds[job.attempt, wait.turn] = Held(wait.tokens, until_ms)
        return job.left()

    def request_cancel(self, number: int) -> int | None:
        """Return since when its end is asked for; None: it has ended."""
        job = self.jobs[number]
        if not job.state.is_terminal and job.cancel_at_ms is None:
            job.cancel_at_ms = self.at_ms
        return job.cancel_at_ms

    # ------------------------------------------------------------ their parts

    def _refusal(self, sub: str, tokens: int, limits: Limits, *, used: int = 0) -> str | None:
        if used + tokens > limits.invocation_tokens:
            return "budget-exceeded"
        if self.running(sub) >= limits.concurrent_invocations:
            return "concurrency-exceeded"
        return None if self._fits(sub, tokens) else "quota-exceeded"

    def _fits(self, sub: str, tokens: int) -> bool:
        return tokens <= self.room(sub)

    def _held(self, job: Job) -> int:
        return sum(held.tokens for held in job.holds.values() if held.until_ms > self.view_ms)

    def _settle(
        self, job: Job, attempt: int, turn: int, usage: Usage, *, model: str = MODEL, charged: bool = True
    ) -> bool:
        job.holds.pop((attempt, turn), None)
        if (attempt, turn) in job.ledger:
            return False
        charged = charged and attempt == job.attempt
        job.ledger[attempt, turn] = Line(usage, charged, model)
        if charged:
            job.usage = job.usage.plus(usage)
            self.counted.append(Charge(job.sub, self.at_ms, usage))
        return True

    def _close(self, job: Job, granted: int, end: AttemptEnd, *, charged: bool) -> None:
        for (attempt, turn), held in list(job.holds.items()):
            usage = Usage(held.tokens, estimated=True)
            self._settle(job, attempt, turn, usage, model="", charged=charged)
        job.current.granted = granted
        job.current.end = job.current.end or end

    def _begin_next(self, job: Job, owner: str) -> None:
        job.attempts.append(Ran(self.at_ms))
        job.turn, job.owner = 0, owner


def bucket_ms(at_ms: int) -> int:
    """Return when the bucket of a moment begins."""
    return at_ms // BUCKET_MS * BUCKET_MS


def in_november(at_ms: int) -> bool:
    return at_ms < NOVEMBER_ENDS_MS
