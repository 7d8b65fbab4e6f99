"""The store's port against a model in a dict: random admissions, turns, endings, takeovers and clock moves.

Hypothesis drives both and compares every outcome and, after every step, every account and many records.
The model says what the port promises in the plainest way: no transactions, no SQL, no windows but a sum.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.config import Limits
from service.errors import Fenced, HeadraceError
from service.invocations import State, Usage
from service.stores.sqlite import SqliteStore
from tests.contracts.store_cases import DAY_MS, HOUR_MS, MINUTE_MS, NOW, ending, entry, hold, new, settlement

SUBS = ("user-1", "user-2")
LIMITS = Limits(daily_tokens=1_000, monthly_tokens=1_600, concurrent_invocations=3, invocation_tokens=700)
BUCKET_MS = 10 * MINUTE_MS
NOVEMBER_ENDS_MS = NOW + 9 * DAY_MS + 7 * HOUR_MS + 20 * MINUTE_MS
# Borders of buckets, the day and the month, one millisecond to each side.
MOVES_MS = (1, BUCKET_MS - 1, BUCKET_MS, 7 * HOUR_MS, DAY_MS - 1, DAY_MS, DAY_MS + BUCKET_MS - 1, 4 * DAY_MS)
COUNTS = st.integers(0, 200)


@dataclass
class Job:
    """An invocation in the model."""

    number: int
    sub: str
    attempt: int = 1
    turn: int = 1
    stored: int = 0
    state: State = State.RUNNING
    usage: Usage = Usage()
    holds: dict[tuple[int, int], int] = field(default_factory=dict)
    settled: set[tuple[int, int]] = field(default_factory=set)


class Books:
    """What the port promises, in a dict."""

    def __init__(self) -> None:
        self.now_ms = NOW
        self.jobs: list[Job] = []
        self.counted: list[tuple[str, int, int]] = []  # sub, when, tokens

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
        return sum(sum(job.holds.values()) for job in self.jobs if job.sub == sub)

    def running(self, sub: str) -> int:
        return sum(job.sub == sub and job.state is State.RUNNING for job in self.jobs)

    def refusal(self, sub: str, tokens: int) -> str | None:
        held = self.reserved(sub) + tokens
        fits = self.day(sub) + held <= LIMITS.daily_tokens and self.month(sub) + held <= LIMITS.monthly_tokens
        return None if fits else "quota-exceeded"

    def settle(self, job: Job, attempt: int, turn: int, usage: Usage) -> bool:
        job.holds.pop((attempt, turn), None)
        if (attempt, turn) in job.settled:
            return False
        job.settled.add((attempt, turn))
        if attempt == job.attempt:
            job.usage = job.usage.plus(usage)
            self.counted.append((job.sub, self.now_ms, usage.counted_tokens))
        return True


class StoreAgainstBooks(RuleBasedStateMachine):
    """Every rule does one decision on both and compares the outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.runner = asyncio.Runner()
        self.opening = SqliteStore.open(":memory:")
        self.store = self.runner.run(self.opening.__aenter__())

    def teardown(self) -> None:
        self.runner.run(self.opening.__aexit__(None, None, None))
        self.runner.close()

    def outcome(self, call: Any) -> Any:
        try:
            return self.runner.run(call)
        except HeadraceError as error:
            return error.code
        except Fenced:
            return "fenced"

    @rule(sub=st.sampled_from(SUBS), tokens=st.integers(0, 800))
    def submit(self, sub: str, tokens: int) -> None:
        books = self.books
        if tokens > LIMITS.invocation_tokens:
            expected: Any = "budget-exceeded"
        elif books.running(sub) >= LIMITS.concurrent_invocations:
            expected = "concurrency-exceeded"
        else:
            expected = books.refusal(sub, tokens)
        job = Job(len(books.jobs), sub, holds={(1, 1): tokens})
        created = self.outcome(
            self.store.create_invocation(new(job.number, tokens=tokens, sub=sub), LIMITS, books.now_ms)
        )
        if expected is None:
            books.jobs.append(job)
            expected = "running"
        assert getattr(created, "state", created) == expected

    @precondition(lambda self: self.books.jobs)
    @rule(choice=st.integers(0, 10**6), tokens=st.integers(0, 400))
    def reserve(self, choice: int, tokens: int) -> None:
        job = self.books.jobs[choice % len(self.books.jobs)]
        turn = job.turn + 1
        held = sum(size for (attempt, _), size in job.holds.items() if attempt == job.attempt)
        if job.state is not State.RUNNING:
            expected: str | None = "fenced"
        elif job.usage.counted_tokens + held + tokens > LIMITS.invocation_tokens:
            expected = "budget-exceeded"
        else:
            expected = self.books.refusal(job.sub, tokens)
        wanted = hold(job.number, turn, tokens, attempt=job.attempt, sub=job.sub)
        reserved = self.outcome(self.store.reserve(wanted, LIMITS, self.books.now_ms))
        if expected is None:
            job.turn = turn
            job.holds[job.attempt, turn] = tokens
        assert reserved == expected

    @precondition(lambda self: self.books.jobs)
    @rule(
        choice=st.integers(0, 10**6), counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), back=st.integers(0, 2)
    )
    def settle(self, choice: int, counts: tuple[int, int, int, int], back: int) -> None:
        """Settle a turn of now, of before, or again; also of an attempt that is dead."""
        job = self.books.jobs[choice % len(self.books.jobs)]
        attempt, turn = max(1, job.attempt - back // 2), max(1, job.turn - back % 2)
        usage = Usage(*counts, estimated=back == 2)
        wanted = settlement(job.number, turn, usage, attempt=attempt, sub=job.sub)
        settled = self.outcome(self.store.settle(wanted, self.books.now_ms))
        assert settled == self.books.settle(job, attempt, turn, usage)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=st.integers(0, 10**6), events=st.integers(1, 3))
    def append(self, choice: int, events: int) -> None:
        job = self.books.jobs[choice % len(self.books.jobs)]
        block = entry(job.stored + 1, job.stored + events, job.number, attempt=job.attempt)
        fenced = self.outcome(self.store.append_events([block], self.books.now_ms))
        if job.state is State.RUNNING:
            job.stored += events
        assert fenced == (frozenset() if job.state is State.RUNNING else {f"inv_{job.number}"})

    @precondition(lambda self: self.books.jobs)
    @rule(
        choice=st.integers(0, 10**6), counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), settles=st.booleans()
    )
    def finish(self, choice: int, counts: tuple[int, int, int, int], settles: bool) -> None:
        job = self.books.jobs[choice % len(self.books.jobs)]
        last = settlement(job.number, job.turn, Usage(*counts), attempt=job.attempt, sub=job.sub)
        end = ending(job.number, job.stored + 1, *([last] if settles else []), attempt=job.attempt)
        ended = self.outcome(self.store.finish(end, self.books.now_ms))
        if job.state is State.RUNNING:
            job.state = State.COMPLETED
            if settles:
                self.books.settle(job, job.attempt, job.turn, Usage(*counts))
            for (attempt, turn), tokens in list(job.holds.items()):
                self.books.settle(job, attempt, turn, Usage(tokens, estimated=True))
        assert (ended.state, ended.usage) == (job.state, job.usage)

    @rule(limit=st.integers(1, 3))
    def take_over(self, limit: int) -> None:
        """Let the owner of everything die; the next one is new."""
        alive = [job for job in self.books.jobs if job.state is State.RUNNING]
        owner = f"owner-{sum(job.attempt for job in self.books.jobs)}-{len(self.books.jobs)}"
        claims = self.outcome(self.store.claim_expired(owner, self.books.now_ms, limit=limit))
        claimed = {claim.invocation.invocation_id for claim in claims}
        assert len(claimed) == min(limit, len(alive))
        for job in alive:
            if f"inv_{job.number}" in claimed:
                job.attempt, job.turn, job.stored = job.attempt + 1, 0, 0

    @rule(move_ms=st.sampled_from(MOVES_MS))
    def pass_time(self, move_ms: int) -> None:
        if self.books.now_ms + move_ms < NOVEMBER_ENDS_MS + 20 * DAY_MS:
            self.books.now_ms += move_ms

    @invariant()
    def accounts_agree(self) -> None:
        for sub in SUBS:
            account = self.runner.run(self.store.account(sub, self.books.now_ms))
            shown = (
                *(window.used_tokens for window in account.windows),
                account.reserved_tokens,
                account.running,
            )
            books = self.books
            assert shown == (books.day(sub), books.month(sub), books.reserved(sub), books.running(sub))

    @invariant()
    def records_agree(self) -> None:
        for job in self.books.jobs[-4:]:
            record = self.runner.run(self.store.load_invocation(f"inv_{job.number}"))
            assert record is not None
            assert (record.state, record.attempt, record.usage) == (job.state, job.attempt, job.usage)


def test_any_sequence_of_decisions_leaves_the_books_that_the_model_keeps() -> None:
    run_state_machine_as_test(
        StoreAgainstBooks,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, database=None),
    )
