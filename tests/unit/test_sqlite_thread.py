"""The store thread: what it groups, what it undoes, and whom it tells."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from service.errors import QuotaExceeded, StoreUnavailable
from service.stores.sqlite_thread import StoreThread

SCHEMA = (
    "CREATE TABLE rows (n INTEGER PRIMARY KEY) STRICT",
    # A violation of this one is found by COMMIT, not by the statement.
    "CREATE TABLE children (n INTEGER REFERENCES rows (n) DEFERRABLE INITIALLY DEFERRED) STRICT",
)


def insert(db: sqlite3.Connection, n: int) -> int:
    db.execute("INSERT INTO rows VALUES (?)", (n,))
    return n


def insert_orphan(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO children VALUES (99)")


def refuse(db: sqlite3.Connection, n: int) -> None:
    insert(db, n)
    raise QuotaExceeded("no room")


def rows(db: sqlite3.Connection) -> list[int]:
    return [n for (n,) in db.execute("SELECT n FROM rows ORDER BY n")]


class Traced:
    """A connection to a file whose statements are kept."""

    def __init__(self, path: Path, *pragmas: str, timeout_s: float = 0.01) -> None:
        self.path = path
        self.statements: list[str] = []
        self._pragmas = pragmas
        self._timeout_s = timeout_s

    def connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=self._timeout_s)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA foreign_keys = ON", *SCHEMA, *self._pragmas):
            db.execute(statement).fetchall()
        db.set_trace_callback(self.statements.append)
        return db

    def count(self, statement: str) -> int:
        return self.statements.count(statement)


@asynccontextmanager
async def started(
    connect: Callable[[], sqlite3.Connection], *, busy_timeout_s: float = 5.0, queue_limit: int = 1000
) -> AsyncIterator[StoreThread]:
    thread = await StoreThread.start(connect, busy_timeout_s=busy_timeout_s, queue_limit=queue_limit)
    try:
        yield thread
    finally:
        await thread.aclose()


class Gate:
    """An operation that keeps the thread at work until it is opened."""

    def __init__(self, thread: StoreThread) -> None:
        self._entered = threading.Event()
        self._opened = threading.Event()
        self.passing = asyncio.ensure_future(thread.read(self._stand))

    @classmethod
    async def closed(cls, thread: StoreThread) -> Self:
        """Return a gate at which the thread stands."""
        gate = cls(thread)
        await asyncio.to_thread(gate._entered.wait, 10)
        return gate

    def _stand(self, db: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._opened.wait(10)

    def open(self) -> None:
        self._opened.set()


async def called(*calls: Any) -> list["asyncio.Future[Any]"]:
    """Make calls, in order, and return their futures once all are queued."""
    futures = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return futures


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the thread does."""
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep the file's write lock, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    return Traced(tmp_path / "store.sqlite")


# ------------------------------------------------------------ groups


async def test_calls_that_wait_together_share_one_commit(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        traced.statements.clear()

        futures = await called(*(thread.write(insert, n) for n in range(50)))
        gate.open()

        assert await asyncio.gather(*futures) == list(range(50))
        assert (traced.count("BEGIN IMMEDIATE"), traced.count("COMMIT")) == (1, 2)  # the gate's, then theirs


async def test_calls_of_one_iteration_of_the_loop_share_one_commit(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        traced.statements.clear()

        await asyncio.gather(*(thread.write(insert, n) for n in range(50)))

        assert (traced.count("BEGIN IMMEDIATE"), traced.count("COMMIT")) == (1, 1)


async def test_a_refusal_that_changed_nothing_costs_the_others_nothing(traced: Traced) -> None:
    def refuse_at_once(_: sqlite3.Connection) -> None:
        raise QuotaExceeded("no room")

    async with started(traced.connect) as thread:
        traced.statements.clear()

        calls = thread.write(insert, 1), thread.write(refuse_at_once), thread.write(insert, 2)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [int, QuotaExceeded, int]
        assert [statement.split()[0] for statement in traced.statements] == [
            "BEGIN",
            "INSERT",
            "INSERT",
            "COMMIT",
        ]


async def test_the_loop_goes_on_while_the_thread_waits_for_the_disk(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)

        for _ in range(100):
            await asyncio.sleep(0)
        assert not gate.passing.done()
        gate.open()

        await gate.passing


async def test_a_refused_decision_undoes_itself_and_nothing_else(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        futures = await called(thread.write(insert, 1), thread.write(refuse, 2), thread.write(insert, 3))
        gate.open()

        outcomes = await asyncio.gather(*futures, return_exceptions=True)

        assert (outcomes[0], outcomes[2]) == (1, 3)
        assert isinstance(outcomes[1], QuotaExceeded)
        assert await thread.read(rows) == [1, 3]


async def test_a_fault_of_ours_keeps_its_type_and_hurts_nobody_else(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        futures = await called(
            thread.write(insert, 1),
            thread.write(insert, 1),
            thread.write(lambda db: db.execute("SELECT nothing")),
            thread.write(insert, 2),
        )
        gate.open()

        outcomes = await asyncio.gather(*futures, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [
            int,
            sqlite3.IntegrityError,
            sqlite3.OperationalError,
            int,
        ]
        assert await thread.read(rows) == [1, 2]


async def test_reads_wait_neither_for_their_groups_writes_nor_for_another_processs_lock(
    traced: Traced,
) -> None:
    async with started(traced.connect, busy_timeout_s=30.0) as thread:
        await thread.write(insert, 1)
        gate = await Gate.closed(thread)
        write, read = await called(thread.write(insert, 2), thread.read(rows))
        with locked(traced.path):
            gate.open()

            assert await read == [1]
            assert not write.done()

        assert await write == 2


# ------------------------------------------------------------ when SQLite can't


async def test_a_commit_that_fails_fails_all_of_its_group(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        futures = await called(thread.write(insert, 1), thread.write(insert_orphan), thread.write(insert, 2))
        gate.open()

        outcomes = await asyncio.gather(*futures, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3
        assert isinstance(outcomes[0].__cause__, sqlite3.IntegrityError)
        assert await thread.read(rows) == []
        assert await thread.write(insert, 3) == 3
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "store transaction failed")
    ]


async def test_a_full_disk_fails_the_group_and_reads_go_on(tmp_path: Path) -> None:
    full = Traced(tmp_path / "store.sqlite", "PRAGMA max_page_count = 1")
    async with started(full.connect) as thread:

        def grow(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE more (blob BLOB) STRICT")
            db.execute("INSERT INTO more VALUES (zeroblob(100000))")

        with pytest.raises(StoreUnavailable) as refused:
            await thread.write(grow)

        assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
        assert refused.value.__cause__.sqlite_errorcode == sqlite3.SQLITE_FULL
        assert (refused.value.code, refused.value.retry_after_s) == ("store-unavailable", 1.0)
        assert await thread.read(rows) == []


async def test_a_database_that_stays_locked_is_unavailable_to_writers_only(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(traced.connect, busy_timeout_s=0.05) as thread:
        with locked(traced.path):
            with pytest.raises(StoreUnavailable) as refused:
                await thread.write(insert, 1)
            assert await thread.read(rows) == []

        assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
        assert refused.value.__cause__.sqlite_errorcode == sqlite3.SQLITE_BUSY
        assert await thread.write(insert, 1) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_lock_that_is_given_up_in_time_only_delays(traced: Traced) -> None:
    async with started(traced.connect, busy_timeout_s=30.0) as thread:
        with locked(traced.path):
            (write,) = await called(thread.write(insert, 1))
            await until(lambda: traced.count("BEGIN IMMEDIATE") > 1)

        assert await write == 1


async def test_a_full_queue_refuses_at_once(traced: Traced) -> None:
    async with started(traced.connect, queue_limit=3) as thread:
        gate = await Gate.closed(thread)
        futures = await called(thread.write(insert, 1), thread.write(insert, 2))

        with pytest.raises(StoreUnavailable) as refused:
            await thread.read(rows)
        gate.open()
        await asyncio.gather(gate.passing, *futures)

        assert refused.value.detail == "Too many calls wait for the store."
        assert (await thread.read(rows), thread.waiting) == ([1, 2], 0)


# ------------------------------------------------------------ beginning and end


async def test_what_a_cancelled_caller_called_may_still_be_done(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        (write,) = await called(thread.write(insert, 1))
        write.cancel()
        gate.open()

        with pytest.raises(asyncio.CancelledError):
            await write

        await thread.write(insert, 2)  # groups go in order
        assert (await thread.read(rows), thread.waiting) == ([1, 2], 0)


async def test_a_close_waits_for_what_was_called_and_refuses_what_comes_after(traced: Traced) -> None:
    async with started(traced.connect) as thread:
        gate = await Gate.closed(thread)
        (write,) = await called(thread.write(insert, 1))
        closings = await called(thread.aclose(), thread.aclose())
        with pytest.raises(StoreUnavailable) as refused:
            await thread.read(rows)
        gate.open()
        await asyncio.gather(*closings)

        assert write.result() == 1
        assert refused.value.detail == "The store is closed."
        assert not [running for running in threading.enumerate() if running.name == "store"]


async def test_a_connection_that_does_not_open_is_told_to_who_starts_the_thread(tmp_path: Path) -> None:
    missing = Traced(tmp_path / "no" / "store.sqlite")

    with pytest.raises(sqlite3.OperationalError):
        await StoreThread.start(missing.connect, busy_timeout_s=1.0, queue_limit=1)

    assert not [running for running in threading.enumerate() if running.name == "store"]


async def test_a_start_that_is_cancelled_leaves_no_thread(traced: Traced) -> None:
    opening, may_open = threading.Event(), threading.Event()

    def connect() -> sqlite3.Connection:
        opening.set()
        assert may_open.wait(10)
        return traced.connect()

    start = asyncio.ensure_future(StoreThread.start(connect, busy_timeout_s=1.0, queue_limit=1))
    await asyncio.to_thread(opening.wait, 10)
    start.cancel()
    may_open.set()

    with pytest.raises(asyncio.CancelledError):
        await start
    assert not [running for running in threading.enumerate() if running.name == "store"]


def test_a_loop_that_ends_without_a_close_ends_the_thread_with_its_next_answer(traced: Traced) -> None:
    async def leave() -> Gate:
        thread = await StoreThread.start(traced.connect, busy_timeout_s=1.0, queue_limit=9)
        return await Gate.closed(thread)

    with asyncio.Runner() as runner:
        gate = runner.run(leave())
    gate.open()

    (abandoned,) = [running for running in threading.enumerate() if running.name == "store"]
    abandoned.join(10)
    assert not abandoned.is_alive()
