"""The store's port against `store_books`: random decisions, lost answers, deaths, clocks that are off.

Hypothesis drives a store and the books (`store_machine`), and compares every outcome and all that is counted.

    make test     500 examples for each store, always the same ones
    make drill    5,000 for each, new ones every time

Their coverage is not measured: it would take three times as long, and the contract suite runs the same code.
"""

import asyncio
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.config import Limits
from service.events import EventId
from service.invocations import Usage
from service.stores import HandOver, Idempotency, NewInvocation, Turn
from tests.contracts.store_books import BUCKET_MS, LIMITS, Books, Submission, bucket_ms
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    block,
    ending,
    entry,
    hold,
    pausing,
    settlement,
)
from tests.contracts.store_jobs import Held, messages
from tests.contracts.store_machine import MOVES_MS, SUBS, WHO, StoreAndBooks
from tests.contracts.store_processes import (
    DynamoGround,
    Opening,
    Process,
    SqliteGround,
)
from tests.dynamodb import Tables

ONLY_QUOTAS: Final = replace(LIMITS, concurrent_invocations=10**6, invocation_tokens=10**6)
HELD_FOR_MS: Final = (2 * HOUR_MS, 2 * DAY_MS, 40 * DAY_MS)
COUNTS: Final = st.integers(0, 200)
USAGES: Final = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
CHOICES: Final = st.integers(0, 10**6)


class StoreAgainstBooks(StoreAndBooks):
    """Every rule makes one decision in both and compares the outcome."""

    # ------------------------------------------------------------ admission, turns, endings

    @rule(
        choice=WHO,
        sub=st.sampled_from(SUBS),
        tokens=st.integers(1, 800),
        held_for_ms=st.sampled_from(HELD_FOR_MS),
        key=st.sampled_from((None, None, "key-1")),
        body=st.sampled_from(("body-1", "body-1", "body-2")),
    )
    def submit(
        self, choice: int, sub: str, tokens: int, held_for_ms: int, key: str | None, body: str
    ) -> None:
        wanted = Submission(next(self.numbers), sub, tokens, held_for_ms, key, body)
        self.submitted(self.processes[choice], wanted, LIMITS)

    @rule(choice=WHO, sub=st.sampled_from(SUBS), over=st.booleans())
    def submit_at_the_edge(self, choice: int, sub: str, over: bool) -> None:
        """Ask for all that there is room for, or for one token more."""
        self.submit_all(self.processes[choice], sub, over=over)

    @precondition(lambda self: any(charge.at_ms > self.now_ms - DAY_MS for charge in self.books.counted))
    @rule(choice=CHOICES)
    def follow_the_window(self, choice: int) -> None:
        """Ask shortly before a bucket that counts leaves the daily window, and again at its last moment."""
        counting = [charge for charge in self.books.counted if charge.at_ms > self.now_ms - DAY_MS]
        charge = counting[choice % len(counting)]
        edge_ms = bucket_ms(charge.at_ms) + BUCKET_MS + DAY_MS
        for moment_ms in (edge_ms - 3 * BUCKET_MS, edge_ms - 1):
            self.now_ms = max(self.now_ms, moment_ms)
            self.submit_all(self.processes[0], charge.sub, over=True)

    def submit_all(self, who: Process, sub: str, *, over: bool) -> None:
        self.books.at_ms = self.books.view_ms = self.clock(who)
        tokens = max(1, self.books.room(sub) + over)
        self.submitted(who, Submission(next(self.numbers), sub, tokens, 2 * HOUR_MS), ONLY_QUOTAS)

    def submitted(self, who: Process, wanted: Submission, limits: Limits) -> None:
        self.decide(
            who,
            lambda store, at_ms: store.create_invocation(_new(wanted, who.owner, at_ms), limits, at_ms),
            lambda books: books.submit(wanted, who.owner, limits),
            show=lambda record: record.invocation_id,
            begins=True,
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, tokens=st.integers(1, 400), held_for_ms=st.sampled_from(HELD_FOR_MS))
    def reserve(self, choice: int, tokens: int, held_for_ms: int) -> None:
        job = self.pick(choice)
        number, attempt, turn, sub = job.number, job.attempt, job.turn + 1, job.sub
        held = Held(tokens, self.now_ms + held_for_ms)
        wanted = hold(number, turn, tokens, attempt=attempt, sub=sub, expires_at_ms=held.until_ms)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.reserve(wanted, LIMITS, at_ms),
            lambda books: books.reserve(number, attempt, turn, held),
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES, back=st.integers(0, 2))
    def settle(self, choice: int, usage: Usage, back: int) -> None:
        """Settle a turn of now, of before, or again; also of an attempt that is dead."""
        job = self.pick(choice)
        number, attempt, turn = job.number, max(1, job.attempt - back // 2), max(1, job.turn - back % 2)
        wanted = settlement(number, turn, usage, attempt=attempt, sub=job.sub)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.settle(wanted, at_ms),
            lambda books: books.settle(number, attempt, turn, usage),
            show=bool,
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES, events=st.integers(1, 3))
    def settle_with_messages(self, choice: int, usage: Usage, events: int) -> None:
        job = self.pick(choice)
        number, turn, stored = job.number, max(1, job.turn), job.current.stored
        place = EventId(job.attempt, stored + events)
        wanted = settlement(
            number,
            turn,
            usage,
            attempt=job.attempt,
            sub=job.sub,
            messages=messages(place),
            boundary=place,
        )
        written = block(stored + 1, place.seq, attempt=job.attempt)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.settle(wanted, at_ms, written),
            lambda books: books.settle_turn(number, place, turn, usage),
            show=bool,
            part=lambda books: books.write(number, place),
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, events=st.integers(1, 3), later=st.booleans())
    def complete_turn(self, choice: int, events: int, later: bool) -> None:
        """Complete a turn of this attempt, or the last one that was left to it."""
        job = self.pick(choice)
        number, turn = job.number, max(job.turns, default=1) if later else max(1, job.turn)
        place = EventId(job.attempt, job.current.stored + events)
        written = block(job.current.stored + 1, place.seq, attempt=job.attempt)
        completed = Turn(turn, messages(place), place)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.complete_turn(job.name, place.attempt, completed, at_ms, written),
            lambda books: books.write(number, place, turn),
            part=lambda books: books.write(number, place),
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, events=st.integers(1, 3), late=st.booleans())
    def append(self, choice: int, events: int, late: bool) -> None:
        """Store events; of the attempt before, whose process does not know yet that it is over."""
        job = self.pick(choice)
        number, attempt = job.number, max(1, job.attempt - late)
        if not (job.current.wrote or job.owner):
            return  # the first event counts if it is there by the claim
        wrote = job.attempts[attempt - 1].wrote
        place = EventId(attempt, wrote + events)
        written = entry(wrote + 1, place.seq, number, attempt=attempt)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.append_events([written], at_ms),
            lambda books: books.write(number, place),
            show=lambda fenced: "fenced" if fenced == {job.name} else fenced or None,
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=st.none() | USAGES)
    def finish(self, choice: int, usage: Usage | None) -> None:
        job = self.pick(choice)
        number, turn, attempt = job.number, job.turn, job.attempt
        used = [] if usage is None else [settlement(number, turn, usage, attempt=attempt, sub=job.sub)]
        seq = job.current.granted if job.state.is_terminal else job.current.stored + 1
        end = ending(number, seq or 0, *used, attempt=attempt)
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.finish(end, at_ms),
            lambda books: books.finish(number, end.block.last, turn, usage),
        )

    # ------------------------------------------------------------ leases, takeover, pauses, cancellation

    @rule(choice=WHO, for_ms=st.sampled_from((-1, 15_000, HOUR_MS, 2 * DAY_MS)))
    def renew_lease(self, choice: int, for_ms: int) -> None:
        self.renew(self.processes[choice], for_ms)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, usage=USAGES)
    def hand_over(self, choice: int, usage: Usage) -> None:
        job = self.pick(choice)
        number, attempt, turn = job.number, job.attempt, job.turn
        used = settlement(number, turn, usage, attempt=attempt, sub=job.sub, charged=False)
        given = HandOver(job.name, attempt, (used,))
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.hand_over(given, at_ms),
            lambda books: books.hand_over(number, attempt, turn, usage),
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=WHO, limit=st.integers(1, 2), runs_nothing=st.booleans())
    def take_over(self, choice: int, limit: int, runs_nothing: bool) -> None:
        """Look for what the dead have left, and for one's own orphans; the store says which it takes."""
        who = self.processes[choice]
        running = () if runs_nothing else None
        there = deepcopy(self.books)
        there.at_ms = self.clock(who)
        left = [job.number for job in there.claimable(who.owner, runs_nothing=runs_nothing)]
        sizes = range(min(limit, len(left)), -1 if self.doom else min(limit, len(left)) - 1, -1)
        self.decide(
            who,
            lambda store, at_ms: store.claim_expired(who.owner, at_ms, limit=limit, running=running),
            *(
                partial(Books.take_over, owner=who.owner, numbers=numbers)
                for size in sizes
                for numbers in combinations(left, size)
            ),
            show=lambda claims: sorted((each.invocation.invocation_id, each.turns) for each in claims),
            begins=True,
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, tokens=st.integers(1, 400), wait_ms=st.sampled_from(MOVES_MS))
    def pause(self, choice: int, tokens: int, wait_ms: int) -> None:
        job = self.pick(choice)
        number, turn, resumes_at_ms = job.number, job.turn + 1, self.now_ms + wait_ms
        wanted = pausing(
            number,
            job.current.stored + 1,
            attempt=job.attempt,
            turn=turn,
            tokens=tokens,
            resumes_at_ms=resumes_at_ms,
        )
        self.decide(
            self.runner_of(job),
            lambda store, at_ms: store.pause(wanted, at_ms),
            lambda books: books.pause(number, wanted.block.last, turn, tokens, resumes_at_ms),
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, wait_ms=st.sampled_from(MOVES_MS))
    def postpone(self, choice: int, wait_ms: int) -> None:
        job = self.pick(choice)
        number, attempt, look_at_ms = job.number, job.attempt, self.now_ms + wait_ms
        self.decide(
            self.runner_of(job),
            lambda store, _: store.postpone(job.name, attempt, look_at_ms),
            lambda books: books.postpone(number, attempt, look_at_ms),
        )

    @precondition(lambda self: any(job.wait for job in self.books.jobs.values()))
    @rule(choice=CHOICES, by=WHO, limited=st.booleans())
    def resume(self, choice: int, by: int, limited: bool) -> None:
        waiting = [job for job in self.books.jobs.values() if job.wait is not None]
        job = waiting[choice % len(waiting)]
        who, number, attempt = self.processes[by], job.number, job.attempt
        limits = LIMITS if limited else None
        self.decide(
            who,
            lambda store, at_ms: store.resume(job.name, attempt, who.owner, at_ms, limits=limits),
            lambda books: books.resume(number, attempt, who.owner, limited=limited),
            show=lambda claim: claim.turns,
            begins=True,
        )

    @precondition(lambda self: self.books.jobs)
    @rule(choice=CHOICES, by=WHO)
    def request_cancel(self, choice: int, by: int) -> None:
        job = self.pick(choice)
        number = job.number
        self.decide(
            self.processes[by],
            lambda store, at_ms: store.request_cancel(job.name, at_ms),
            lambda books: books.request_cancel(number),
            show=lambda record: record.cancel_requested_at_ms,
        )

    # ------------------------------------------------------------ what is read

    @precondition(lambda self: self.books.jobs)
    @rule(sub=st.sampled_from(SUBS), choice=WHO)
    def read_account(self, sub: str, choice: int) -> None:
        self.compare_account(self.processes[choice], sub)

    @precondition(lambda self: self.books.jobs)
    @rule(choice=WHO)
    def poll(self, choice: int) -> None:
        who = self.processes[choice]
        self.books.at_ms = at_ms = self.clock(who)
        due = self.run(who.store.list_paused(at_ms, limit=100))
        assert [one.invocation.invocation_id for one in due] == self.books.due()
        assert self.run(who.store.owned(who.owner)) == self.books.owned(who.owner)
        assert self.run(who.store.cancel_requests(who.owner)) == self.books.to_cancel(who.owner)


def _new(wanted: Submission, owner: str, at_ms: int) -> NewInvocation:
    key = None if wanted.key is None else Idempotency(wanted.key, wanted.body, at_ms + DAY_MS)
    return NewInvocation(
        f"inv_{wanted.number}",
        "writer",
        wanted.sub,
        "session-1",
        b"{}",
        wanted.tokens,
        owner,
        at_ms + HOUR_MS,
        at_ms + wanted.held_for_ms,
        key,
    )


def check(runner: asyncio.Runner, opening: Opening, *, steps: int) -> None:
    """Run the examples: the same ones every time, but for the profile `drill` (`conftest.py`)."""
    drill = settings.get_current_profile_name() == "drill"
    made: Any = partial(StoreAgainstBooks, runner, opening)  # a class is asked for, and called
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=settings().max_examples if drill else 500,
            stateful_step_count=steps,
            derandomize=not drill,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.no_cover
@pytest.mark.timeout(3600)
def test_any_sequence_of_decisions_leaves_the_books_that_the_model_keeps_in_sqlite() -> None:
    with asyncio.Runner() as runner:
        check(runner, SqliteGround.open, steps=30)


@pytest.mark.no_cover
@pytest.mark.timeout(3600)
def test_any_sequence_of_decisions_leaves_the_books_that_the_model_keeps_in_dynamodb(tables: Tables) -> None:
    with asyncio.Runner() as runner:
        connected = DynamoGround.connect(tables)
        ground = runner.run(connected.__aenter__())
        try:
            check(runner, ground.emptied, steps=12)
        finally:
            runner.run(connected.__aexit__(None, None, None))
