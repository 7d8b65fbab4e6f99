"""One decision in a store and in its model: the machine under `test_store_model`, and what time does to both.

A rule asks a process's store (`decide`) and says what the port allows; the books are kept of what fits the
outcome. Where an answer was lost, the store's tables say whether the decision was made: as a whole, or not at
all (but the events that a turn brings may be stored alone: they are granted with it). At the end of each
example everything that the store counts is compared (`store_audit`), and every log.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from copy import deepcopy
from itertools import count, product
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from service.events import START, EventId
from service.stores import Store
from tests.contracts.store_audit import differences
from tests.contracts.store_books import BUCKET_MS, NOVEMBER_ENDS_MS, Books
from tests.contracts.store_cases import DAY_MS, HOUR_MS, MINUTE_MS, NOW
from tests.contracts.store_jobs import Job
from tests.contracts.store_processes import NO_ANSWER, Doom, Fate, Ground, Opening, Process

SUBS: Final = ("user-1", "user-2")
PROCESSES: Final = 3
# Borders of buckets, the day and the month, one millisecond to each side.
MOVES_MS: Final = (
    1,
    MINUTE_MS,
    BUCKET_MS - 1,
    BUCKET_MS,
    7 * HOUR_MS,
    DAY_MS - 1,
    DAY_MS,
    DAY_MS + BUCKET_MS - 1,
    4 * DAY_MS,
)
TO_MONTH_MS: Final = tuple(NOVEMBER_ENDS_MS + step_ms for step_ms in (-1, 0, 90_000))
LAST_MS: Final = NOVEMBER_ENDS_MS + 20 * DAY_MS
OFFSETS_MS: Final = st.sampled_from((0, 0, -4 * MINUTE_MS, -3_000, 3_000, 3 * MINUTE_MS))
WHO: Final = st.integers(0, PROCESSES - 1)

Asked = Callable[[Store, int], Coroutine[Any, Any, Any]]
Decision = Callable[[Books], Any]


def nothing(_: object) -> None:
    """Take what was done for all that there is to compare."""


class StoreAndBooks(RuleBasedStateMachine):
    """A store, its processes, and the books."""

    def __init__(self, runner: asyncio.Runner, opening: Opening) -> None:
        super().__init__()
        self.run = runner.run
        self.opened = opening()
        self.ground: Ground = self.run(self.opened.__aenter__())
        self.numbers = count()
        self.incarnations = count(1)
        self.processes = [self.process(0) for _ in range(PROCESSES)]
        self.books = Books()
        self.now_ms = self.latest_ms = NOW
        self.doom: tuple[Doom, str] | None = None
        self.sound = True

    def process(self, offset_ms: int) -> Process:
        fate = Fate()
        return Process(f"owner-{next(self.incarnations)}", self.ground.store(fate), fate, offset_ms)

    def teardown(self) -> None:
        try:
            if self.sound:
                self.audited([self.books])
                for sub in {job.sub for job in self.books.jobs.values()}:
                    self.compare_account(self.processes[0], sub)
        finally:
            self.run(self.opened.__aexit__(None, None, None))

    # ------------------------------------------------------------ one decision in both

    def clock(self, who: Process) -> int:
        """Return what a process takes the time to be."""
        at_ms = self.now_ms + who.offset_ms
        self.latest_ms = max(self.latest_ms, at_ms)
        return at_ms

    def decide(
        self,
        who: Process,
        ask: Asked,
        *decisions: Decision,
        show: Callable[[Any], Any] = nothing,
        part: Decision | None = None,
        begins: bool = False,
    ) -> None:
        """Ask the store, and keep the books of a decision that has the same outcome.

        Args:
            who: The process that asks.
            ask: Asks its store.
            decisions: What the port allows, one or another.
            show: What is compared of a result; refusals are compared by their codes.
            part: What may have been done without the rest, by a process that got no answer.
            begins: It is an attempt's beginning, so a process that got no answer goes on without.
        """
        at_ms = self.clock(who)
        doom, then = self.doom or (None, "")
        self.doom, self.sound = None, False
        outcome = self.run(who.fate.outcome(_shown(ask(who.store, at_ms), show), doom))
        later = self.views(decisions, at_ms)
        if outcome != NO_ANSWER:
            self.books = _with_outcome(outcome, later)
        else:
            some = self.views([] if part is None else [part], at_ms)
            self.books = self.audited([self.books, *(books for _, books in (*later, *some))])
            if then == "dies":
                self.processes[self.processes.index(who)] = self.process(who.offset_ms)
            elif then == "retries" or not begins:
                self.decide(who, ask, *decisions, show=show, part=part)
        self.sound = True

    def views(self, decisions: Iterable[Decision], at_ms: int) -> Iterator[tuple[Any, Books]]:
        """Return what the decisions come to, as a store may see it."""
        for decision in decisions:
            for view_ms, lapsed_count in product({at_ms, self.latest_ms}, (False, True)):
                books = deepcopy(self.books)
                books.at_ms, books.view_ms, books.lapsed_count = at_ms, view_ms, lapsed_count
                yield decision(books), books

    def audited(self, candidates: Iterable[Books]) -> Books:
        """Return the books that agree with all that the store has."""
        audit = self.run(self.ground.audit())
        logs = {name: self.log(name) for name in audit.records}
        found = []
        for books in candidates:
            different = differences(audit, books, self.latest_ms)
            for job in books.jobs.values():
                if job.name in logs and logs[job.name] not in job.logs():
                    different += f"\nthe log of {job.name} has {logs[job.name]}, not {job.logs()}"
            if not different:
                return books
            found.append(different)
        raise AssertionError("the store has what no books say:\n" + "\n  or\n".join(found))

    def pick(self, choice: int) -> Job:
        return list(self.books.jobs.values())[choice % len(self.books.jobs)]

    def runner_of(self, job: Job) -> Process:
        """Return the process that runs an invocation, or else one that does not know that it may not."""
        run = (each for each in self.processes if each.owner == job.owner)
        return next(run, self.processes[job.number % PROCESSES])

    # ------------------------------------------------------------ clocks, deaths

    @initialize(offsets=st.tuples(OFFSETS_MS, OFFSETS_MS))
    def set_clocks(self, offsets: tuple[int, int]) -> None:
        for who, offset_ms in zip(self.processes[1:], offsets, strict=True):
            who.offset_ms = offset_ms

    @rule(move_ms=st.sampled_from(MOVES_MS))
    def pass_time(self, move_ms: int) -> None:
        self.now_ms = min(self.now_ms + move_ms, LAST_MS)

    @rule(to_ms=st.sampled_from(TO_MONTH_MS))
    def come_to_the_end_of_the_month(self, to_ms: int) -> None:
        self.now_ms = max(self.now_ms, to_ms)

    @precondition(lambda self: any(edge_ms > self.now_ms for edge_ms in self.books.edges()))
    @rule(choice=st.integers(0, 100), before=st.booleans())
    def come_to_an_edge(self, choice: int, before: bool) -> None:
        """Go on until something leaves the daily window, or a hold lapses, or to one millisecond before."""
        edges = [edge_ms for edge_ms in self.books.edges() if edge_ms > self.now_ms]
        self.now_ms = min(edges[choice % len(edges)], LAST_MS) - before

    @rule(choice=WHO, back_ms=st.integers(1, 5_000))
    def set_a_clock_back(self, choice: int, back_ms: int) -> None:
        self.processes[choice].offset_ms -= back_ms

    @rule(
        doom=st.builds(Doom, st.integers(1, 4), st.booleans()),
        then=st.sampled_from(("retries", "dies", "goes on")),
    )
    def lose_the_next_answer(self, doom: Doom, then: str) -> None:
        self.doom = doom, then

    @rule(choice=WHO)
    def die(self, choice: int) -> None:
        self.processes[choice] = self.process(self.processes[choice].offset_ms)

    @rule()
    def delete_what_is_over(self) -> None:
        """Do what time does; processes that live go on renewing their leases."""
        self.run(self.ground.expire(self.now_ms))
        for who in self.processes:
            self.renew(who, 15_000)

    def renew(self, who: Process, for_ms: int) -> None:
        until_ms = self.now_ms + for_ms
        self.decide(
            who,
            lambda store, _: store.renew_lease(who.owner, until_ms),
            lambda books: books.renew(who.owner, until_ms),
        )

    def compare_account(self, who: Process, sub: str) -> None:
        self.books.at_ms = at_ms = self.clock(who)
        account = self.run(who.store.account(sub, at_ms))
        self.books.view_ms = self.latest_ms
        least = self.books.reserved(sub)
        self.books.view_ms = at_ms
        daily, monthly = account.windows
        shown = daily.used_tokens, monthly.used_tokens, account.running
        assert shown == (self.books.day(sub), self.books.month(sub), self.books.running(sub))
        assert (daily.resets_at_ms, monthly.resets_at_ms) == self.books.resets(sub)
        assert least <= account.reserved_tokens <= self.books.reserved(sub)

    def log(self, name: str) -> list[EventId]:
        """Return the ids of the events that readers get."""
        blocks = self.run(self.processes[0].store.read_events(name, START, limit_bytes=10**6))
        return [
            EventId(piece.attempt, seq)
            for piece in blocks
            for seq, _ in enumerate(piece.events, piece.first_seq)
        ]


async def _shown(asked: Coroutine[Any, Any, Any], show: Callable[[Any], Any]) -> Any:
    return show(await asked)


def _with_outcome(outcome: Any, later: Iterable[tuple[Any, Books]]) -> Books:
    """Return the books whose decision came to this."""
    others = []
    for expected, books in later:
        if expected == outcome:
            return books
        others.append(expected)
    raise AssertionError(f"the store says {outcome!r}, the books {others!r}")
