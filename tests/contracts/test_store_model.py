"""The store's port against `store_books`: random sequences of decisions, deaths and clock moves.

Hypothesis drives both and compares every outcome and, after every step, every account, many records and logs,
and what the polls find.
"""

import asyncio
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

from service.errors import Fenced, HeadraceError
from service.events import START, EventId
from service.invocations import Usage
from service.stores import HandOver, Turn
from service.stores.sqlite import SqliteStore
from tests.contracts.store_books import BUCKET_MS, LIMITS, NOVEMBER_ENDS_MS, Books, Job
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    block,
    ending,
    entry,
    hold,
    new,
    pausing,
    settlement,
)

SUBS = ("user-1", "user-2")
OWNERS = ("owner-1", "owner-2", "owner-3")
# Borders of buckets, the day and the month, one millisecond to each side.
MOVES_MS = (1, BUCKET_MS - 1, BUCKET_MS, 7 * HOUR_MS, DAY_MS - 1, DAY_MS, DAY_MS + BUCKET_MS - 1, 4 * DAY_MS)
COUNTS = st.integers(0, 200)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
CHOICES = st.integers(0, 10**6)


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
        """Return a decision's result, the code of a refusal, or `fenced`."""
        try:
            return self.runner.run(call)
        except HeadraceError as error:
            return error.code
        except Fenced:
            return "fenced"

    def refusal(self, call: Any) -> Any:
        """Return the code of a refusal, `fenced`, or None: it was done."""
        outcome = self.outcome(call)
        return outcome if isinstance(outcome, str) else None

    def pick(self, choice: int) -> Job:
        return self.books.jobs[choice % len(self.books.jobs)]

    # ------------------------------------------------------------ admission, turns, endings

    @rule(sub=st.sampled_from(SUBS), owner=st.sampled_from(OWNERS), tokens=st.integers(0, 800))
    def submit(self, sub: str, owner: str, tokens: int) -> None:
        wanted = new(len(self.books.jobs), tokens=tokens, sub=sub, owner=owner)
        refused = self.refusal(self.store.create_invocation(wanted, LIMITS, self.books.now_ms))
        assert refused == self.books.submit(sub, owner, tokens)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, tokens=st.integers(0, 400))
    def reserve(self, choice: int, tokens: int) -> None:
        job = self.pick(choice)
        turn = job.turn + 1
        wanted = hold(job.number, turn, tokens, attempt=job.attempt, sub=job.sub)
        refused = self.refusal(self.store.reserve(wanted, LIMITS, self.books.now_ms))
        assert refused == self.books.reserve(job, turn, tokens)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES, back=st.integers(0, 2))
    def settle(self, choice: int, usage: Usage, back: int) -> None:
        """Settle a turn of now, of before, or again; also of an attempt that is dead."""
        job = self.pick(choice)
        attempt, turn = max(1, job.attempt - back // 2), max(1, job.turn - back % 2)
        wanted = settlement(job.number, turn, usage, attempt=attempt, sub=job.sub)
        settled = self.outcome(self.store.settle(wanted, self.books.now_ms))
        assert settled == self.books.settle(job, attempt, turn, usage)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES, events=st.integers(1, 3))
    def settle_with_messages(self, choice: int, usage: Usage, events: int) -> None:
        job = self.pick(choice)
        turn, stored = max(1, job.turn), job.current.stored
        place = EventId(job.attempt, stored + events)
        wanted = settlement(
            job.number,
            turn,
            usage,
            attempt=job.attempt,
            sub=job.sub,
            messages=b"%d.%d" % place,
            boundary=place,
        )
        written = block(stored + 1, place.seq, attempt=job.attempt)
        settled = self.outcome(self.store.settle(wanted, self.books.now_ms, written))
        expected = self.books.settle(job, job.attempt, turn, usage)
        assert settled == (self.books.write(job, events, turn) or expected)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, events=st.integers(1, 3), later=st.booleans())
    def complete_turn(self, choice: int, events: int, later: bool) -> None:
        """Complete a turn of this attempt, or the last one that was left to it."""
        job = self.pick(choice)
        turn = max(job.turns, default=1) if later else max(1, job.turn)
        place = EventId(job.attempt, job.current.stored + events)
        written = block(job.current.stored + 1, place.seq, attempt=job.attempt)
        completed = Turn(turn, b"%d.%d" % place, place)
        call = self.store.complete_turn(job.name, job.attempt, completed, self.books.now_ms, written)
        assert self.refusal(call) == self.books.write(job, events, turn)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, events=st.integers(1, 3))
    def append(self, choice: int, events: int) -> None:
        job = self.pick(choice)
        stored = job.current.stored
        written = entry(stored + 1, stored + events, job.number, attempt=job.attempt)
        fenced = self.outcome(self.store.append_events([written], self.books.now_ms))
        assert fenced == ({job.name} if self.books.write(job, events) else frozenset())

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=st.none() | USAGES)
    def finish(self, choice: int, usage: Usage | None) -> None:
        job = self.pick(choice)
        settled = (
            []
            if usage is None
            else [settlement(job.number, job.turn, usage, attempt=job.attempt, sub=job.sub)]
        )
        seq = job.current.granted if job.state.is_terminal else job.current.stored + 1
        end = ending(job.number, seq or 0, *settled, attempt=job.attempt)
        assert self.refusal(self.store.finish(end, self.books.now_ms)) == self.books.finish(job, usage)

    # ------------------------------------------------------------ hand-over, takeover, pauses, cancellation

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES)
    def hand_over(self, choice: int, usage: Usage) -> None:
        job = self.pick(choice)
        used = settlement(job.number, job.turn, usage, attempt=job.attempt, sub=job.sub, charged=False)
        given = HandOver(job.name, job.attempt, (used,))
        refused = self.refusal(self.store.hand_over(given, self.books.now_ms))
        assert refused == self.books.hand_over(job, usage)

    @rule(owner=st.sampled_from(OWNERS), limit=st.integers(1, 3), runs_nothing=st.booleans())
    def take_over(self, owner: str, limit: int, runs_nothing: bool) -> None:
        """Let an owner look for what the others, who have no leases, have left, and for its own orphans."""
        running = () if runs_nothing else None
        claims = self.outcome(
            self.store.claim_expired(owner, self.books.now_ms, limit=limit, running=running)
        )
        claimed = self.books.take_over(owner, limit, runs_nothing=runs_nothing)
        assert [(one.invocation.invocation_id, one.turns) for one in claims] == [
            (job.name, job.left()) for job in claimed
        ]

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, tokens=st.integers(0, 400), wait_ms=st.sampled_from(MOVES_MS))
    def pause(self, choice: int, tokens: int, wait_ms: int) -> None:
        job = self.pick(choice)
        resumes_at_ms = self.books.now_ms + wait_ms
        wanted = pausing(
            job.number,
            job.current.stored + 1,
            attempt=job.attempt,
            turn=job.turn + 1,
            tokens=tokens,
            resumes_at_ms=resumes_at_ms,
        )
        refused = self.refusal(self.store.pause(wanted, self.books.now_ms))
        assert refused == self.books.pause(job, tokens, resumes_at_ms)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, wait_ms=st.sampled_from(MOVES_MS))
    def postpone(self, choice: int, wait_ms: int) -> None:
        job = self.pick(choice)
        look_at_ms = self.books.now_ms + wait_ms
        self.outcome(self.store.postpone(job.name, job.attempt, look_at_ms))
        self.books.postpone(job, look_at_ms)

    @precondition(lambda self: any(job.wait for job in self.books.jobs))
    @rule(choice=CHOICES, owner=st.sampled_from(OWNERS), limited=st.booleans())
    def resume(self, choice: int, owner: str, limited: bool) -> None:
        waiting = [job for job in self.books.jobs if job.wait is not None]
        job = waiting[choice % len(waiting)]
        call = self.store.resume(
            job.name, job.attempt, owner, self.books.now_ms, limits=LIMITS if limited else None
        )
        resumed = self.outcome(call)
        refused = self.books.resume(job, owner, limited=limited)
        assert refused == (resumed if isinstance(resumed, str) else None)
        assert refused or resumed.turns == job.left()

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES)
    def request_cancel(self, choice: int) -> None:
        job = self.pick(choice)
        self.outcome(self.store.request_cancel(job.name, self.books.now_ms))
        self.books.request_cancel(job)

    @rule(move_ms=st.sampled_from(MOVES_MS))
    def pass_time(self, move_ms: int) -> None:
        if self.books.now_ms + move_ms < NOVEMBER_ENDS_MS + 20 * DAY_MS:
            self.books.now_ms += move_ms

    # ------------------------------------------------------------ what must agree after every step

    @invariant()
    def accounts_agree(self) -> None:
        for sub in SUBS:
            account = self.runner.run(self.store.account(sub, self.books.now_ms))
            used = (window.used_tokens for window in account.windows)
            assert (*used, account.reserved_tokens, account.running) == self.books.account(sub)

    @invariant()
    def records_and_logs_agree(self) -> None:
        for job in self.books.jobs[-4:]:
            record = self.runner.run(self.store.load_invocation(job.name))
            assert record is not None
            shown = (record.state, record.attempts, record.usage, record.deadline_at_ms)
            waits = (record.cancel_requested_at_ms, record.paused_at_ms, record.resumes_at_ms)
            assert (*shown, *waits) == job.record()
            blocks = self.runner.run(self.store.read_events(job.name, START, limit_bytes=10**6))
            log = [
                EventId(piece.attempt, seq)
                for piece in blocks
                for seq, _ in enumerate(piece.events, piece.first_seq)
            ]
            assert log == job.log()

    @invariant()
    def polls_agree(self) -> None:
        due = self.runner.run(self.store.list_paused(self.books.now_ms, limit=100))
        assert [one.invocation.invocation_id for one in due] == self.books.due()
        for owner in OWNERS:
            assert self.runner.run(self.store.owned(owner)) == self.books.owned(owner)
            assert self.runner.run(self.store.cancel_requests(owner)) == self.books.to_cancel(owner)


def test_any_sequence_of_decisions_leaves_the_books_that_the_model_keeps() -> None:
    run_state_machine_as_test(
        StoreAgainstBooks,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, database=None),
    )
