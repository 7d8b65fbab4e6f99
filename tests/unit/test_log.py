import asyncio
from collections.abc import AsyncIterator

import pytest

from service.errors import StoreUnavailable
from service.events import START, Block, EventId
from service.log import COMMIT_AT_BYTES, TAIL_LIMIT_BYTES, UNSTORED_LIMIT_BYTES, AttemptLog, GroupCommit, Log
from service.models import Frame
from service.stores import EventBlock
from tests.clock import ManualClock


def event(size_bytes: int = 20) -> bytes:
    return b'{"x":"' + b"a" * (size_bytes - 8) + b'"}'


class Store:
    """The one method of the store that the group commit calls, with a switch for each way it can go."""

    def __init__(self) -> None:
        self.commits: list[list[EventBlock]] = []
        self.down = False
        self.fenced: frozenset[str] = frozenset()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append_events(self, blocks: list[EventBlock], now_ms: int) -> frozenset[str]:
        await self.gate.wait()
        if self.down:
            raise StoreUnavailable
        self.commits.append(list(blocks))
        return self.fenced


class Writing:
    """A group commit over a `Store`, running."""

    def __init__(self, clock: ManualClock) -> None:
        self.store = Store()
        self.fenced: list[tuple[str, int]] = []
        self.commit = GroupCommit(
            self.store,  # type: ignore[arg-type]
            clock.now_ms,
            lambda *fenced: self.fenced.append(fenced),
        )
        self.task = asyncio.ensure_future(self.commit.run())

    def pen(self, invocation_id: str = "a", attempt: int = 1) -> AttemptLog:
        return AttemptLog(Log(), invocation_id, attempt, self.commit)


@pytest.fixture
async def writing(clock: ManualClock) -> AsyncIterator[Writing]:
    writing = Writing(clock)
    yield writing
    writing.task.cancel()
    await asyncio.wait([writing.task])


def test_a_log_gives_what_follows_a_cursor() -> None:
    log = Log()
    for seq in range(1, 4):
        log.publish(1, seq, (b'{"n":%d}' % seq,))

    assert log.after(START, limit_bytes=10**6) == [Block(1, 1, (b'{"n":1}', b'{"n":2}', b'{"n":3}'))]
    assert log.after(EventId(1, 2), limit_bytes=10**6) == [Block(1, 3, (b'{"n":3}',))]
    assert log.after(EventId(1, 3), limit_bytes=10**6) == []
    assert log.after(START, limit_bytes=1) == [Block(1, 1, (b'{"n":1}',))]


def test_a_log_that_starts_later_sends_older_cursors_to_the_store() -> None:
    log = Log(head=EventId(1, 40))
    log.publish(2, 1, (event(),))

    assert log.after(EventId(1, 39), limit_bytes=1) is None
    assert log.after(EventId(1, 40), limit_bytes=1) == [Block(2, 1, (event(),))]


@pytest.mark.promise("slow-reader-bounded")
def test_the_tail_keeps_only_so_much_of_what_is_stored() -> None:
    log = Log()
    for seq in range(1, 101):
        log.publish(1, seq, (event(10_000),))
        log.mark_stored(EventId(1, seq))

    kept = log.after(EventId(1, 80), limit_bytes=10**9)
    assert kept == [Block(1, 81, (event(10_000),) * 20)]
    assert log.after(EventId(1, 100 - TAIL_LIMIT_BYTES // 10_000), limit_bytes=1) is None


def test_the_tail_of_a_log_that_is_followed_elsewhere_may_hold_several_attempts() -> None:
    log = Log()
    for attempt in (1, 2):
        for seq in range(1, 21):
            log.publish(attempt, seq, (event(10_000),))

    before = log.after(EventId(1, 19), limit_bytes=20_000)
    log.mark_stored(EventId(2, 20))
    part = log.after(EventId(2, 18), limit_bytes=10**9)

    assert before == [Block(1, 20, (event(10_000),)), Block(2, 1, (event(10_000),))]
    assert (part, log.after(EventId(1, 14), limit_bytes=1)) == ([Block(2, 19, (event(10_000),) * 2)], None)
    assert log.after(EventId(1, 20), limit_bytes=1) == [Block(2, 1, (event(10_000),))]


def test_the_tail_keeps_all_that_is_not_stored() -> None:
    log = Log()
    for seq in range(1, 101):
        log.publish(1, seq, (event(10_000),))

    kept = log.after(START, limit_bytes=10**9)

    assert kept == [Block(1, 1, (event(10_000),) * 100)]


def test_listeners_get_blocks_while_they_are_attached() -> None:
    log, got = Log(), list[Block]()
    first, second, third = (Block(1, seq, (event(),)) for seq in (1, 2, 3))

    def note(attempt: int, first_seq: int, events: tuple[bytes, ...]) -> None:
        got.append(Block(attempt, first_seq, events))

    log.publish(*first)
    log.attach(note)
    log.attach(note)  # once is enough

    log.publish(*second)
    log.detach(note)
    log.publish(*third)

    assert got == [second]


async def test_events_of_all_invocations_are_stored_together(writing: Writing, clock: ManualClock) -> None:
    a, b = writing.pen("a"), writing.pen("b")
    a.append([event()])
    b.append([event(), event()])
    a.append([event()])

    await clock.advance(0.25)

    assert writing.store.commits == [
        [EventBlock("a", Block(1, 1, (event(),) * 2)), EventBlock("b", Block(1, 1, (event(),) * 2))]
    ]
    assert (a.log.stored, b.log.stored) == (EventId(1, 2), EventId(1, 2))


async def test_nothing_is_stored_before_its_time_unless_it_is_much(
    writing: Writing, clock: ManualClock
) -> None:
    pen = writing.pen()
    pen.append([event()])
    await clock.advance(0.2)
    early = len(writing.store.commits)

    pen.append([event(70_000)])
    await clock.advance(0)

    assert (early, len(writing.store.commits)) == (0, 1)


async def test_what_is_much_of_one_invocation_hurries_no_other(writing: Writing, clock: ManualClock) -> None:
    others = [writing.pen(f"other-{number}") for number in range(10)]
    for other in others:
        other.append([event(COMMIT_AT_BYTES - 1)])
    await clock.advance(0.1)
    before = list(writing.store.commits)
    writing.pen("a").append([event(COMMIT_AT_BYTES)])

    await clock.advance(0.01)

    assert (before, [[one.invocation_id for one in each] for each in writing.store.commits]) == ([], [["a"]])


async def test_the_longer_an_answer_the_more_of_it_is_stored_at_once(
    writing: Writing, clock: ManualClock
) -> None:
    """A process on another host sees a first delta soon; of a long answer every commit costs money."""
    long, late = writing.pen("long"), writing.pen("late")
    stored_at: list[float] = []
    for tenth in range(80):
        long.append([event()])
        before = len(writing.store.commits)
        await clock.advance(0.1)
        stored_at += [(tenth + 1) / 10] * (len(writing.store.commits) - before)
    late.append([event()])

    await clock.advance(0.3)

    assert len(stored_at) in range(7, 11)  # 0.25 s, 0.5 s, then every second
    assert EventBlock("late", Block(1, 1, (event(),))) in writing.store.commits[-1]


async def test_a_store_that_is_down_gets_everything_later_in_order(
    writing: Writing, clock: ManualClock
) -> None:
    pen = writing.pen()
    writing.store.down = True
    pen.append([event(20)])
    await clock.advance(0.3)
    pen.append([event(30)])
    await clock.advance(2)

    writing.store.down = False
    await clock.advance(5)

    assert writing.store.commits == [[EventBlock("a", Block(1, 1, (event(20), event(30))))]]
    assert pen.log.stored == EventId(1, 2)


async def test_an_upstream_far_ahead_of_the_store_is_held_back(writing: Writing, clock: ManualClock) -> None:
    pen = writing.pen()
    writing.store.down = True
    batch: list[Frame] = [(b"contentBlockDelta", event(300_000))]

    waits = [pen.deliver(batch) for _ in range(UNSTORED_LIMIT_BYTES // 300_000 + 1)]
    held = asyncio.ensure_future(waits[-1]) if waits[-1] is not None else None
    assert held is not None
    assert waits[:-1] == [None] * 3
    await clock.advance(10)
    assert not held.done()
    writing.store.down = False
    await clock.advance(10)

    assert held.done()
    assert pen.deliver(batch) is None


async def test_taking_waits_for_a_write_under_way(writing: Writing, clock: ManualClock) -> None:
    pen = writing.pen()
    writing.store.gate.clear()
    pen.append([event(20)])
    await clock.advance(1)
    pen.append([event(30)])
    taking = asyncio.ensure_future(pen.take())
    await clock.advance(1)
    assert not taking.done()

    writing.store.gate.set()

    assert await taking == Block(1, 2, (event(30),))
    assert writing.store.commits == [[EventBlock("a", Block(1, 1, (event(20),)))]]
    assert await pen.take() is None


async def test_a_fenced_attempt_is_told(writing: Writing, clock: ManualClock) -> None:
    writing.store.fenced = frozenset({"a"})
    a, b = writing.pen("a"), writing.pen("b")
    a.append([event()])
    b.append([event()])

    await clock.advance(1)

    assert writing.fenced == [("a", 1)]
    assert (a.log.stored, b.log.stored) == (START, EventId(1, 1))


async def test_of_two_attempts_at_one_invocation_the_later_ones_events_are_stored(
    writing: Writing, clock: ManualClock
) -> None:
    first, third = writing.pen(attempt=1), writing.pen(attempt=3)
    held = first.append([event(UNSTORED_LIMIT_BYTES)])
    third.append([event(20)])
    late = first.append([event(30)])
    assert held is not None
    await asyncio.wait_for(held, 1)
    taken = await first.take()

    await clock.advance(1)

    assert (late, taken) == (None, None)
    assert writing.store.commits == [[EventBlock("a", Block(3, 1, (event(20),)))]]
    assert (first.log.stored, third.log.stored) == (START, EventId(3, 1))


@pytest.mark.parametrize("attempts", [(1, 2), (2, 1)], ids=["the later one comes", "the earlier one comes"])
async def test_a_write_that_is_interrupted_while_another_attempt_writes_keeps_the_later_ones_events(
    writing: Writing, clock: ManualClock, attempts: tuple[int, int]
) -> None:
    pens = [writing.pen(attempt=attempt) for attempt in attempts]
    writing.store.gate.clear()
    pens[0].append([event(20)])
    await clock.advance(1)
    pens[1].append([event(20)])

    writing.task.cancel()
    await asyncio.wait([writing.task])

    taken = {attempt: await pen.take() for attempt, pen in zip(attempts, pens, strict=True)}
    assert taken == {1: None, 2: Block(2, 1, (event(20),))}


async def test_an_interrupted_write_loses_nothing(writing: Writing, clock: ManualClock) -> None:
    pen = writing.pen()
    writing.store.gate.clear()
    pen.append([event(20)])
    await clock.advance(1)
    pen.append([event(30)])

    writing.task.cancel()
    await asyncio.wait([writing.task])

    assert await pen.take() == Block(1, 1, (event(20), event(30)))


async def test_the_first_frame_is_reported_once(writing: Writing) -> None:
    pen, reported = writing.pen(), list[str]()
    pen.on_first_frame(lambda: reported.append("first"))
    pen.append([event()])

    before = list(reported)
    pen.deliver([(b"messageStart", b'{"role":"assistant"}')])
    pen.deliver([(b"messageStop", b"{}")])

    assert (before, reported) == ([], ["first"])


@pytest.mark.promise("lapsed-lease-sends-nothing")
async def test_what_is_held_back_is_never_overtaken_and_gets_its_ids_when_it_is_let_go(
    writing: Writing,
) -> None:
    may_publish = False
    log = Log()
    pen = AttemptLog(log, "a", 1, writing.commit, lambda: may_publish)
    waiting = [pen.append([b"1"]), pen.append([b"2", b"3"])]
    may_publish = True
    waiting.append(pen.append([b"4"]))  # the lease is held again, but what it means is not known yet
    held_at = log.head
    pen.catch_up()
    pen.append([b"5"])

    assert all(each is not None for each in waiting)
    for each in waiting:
        await each  # type: ignore[misc]
    assert (held_at, log.after(START, limit_bytes=10**6)) == (
        START,
        [Block(1, 1, (b"1", b"2", b"3", b"4", b"5"))],
    )
