"""The one thread that talks to SQLite: it groups what was called meanwhile into one transaction.

    event loop                              store thread
    read(op), write(op) ──queue──>  take all that is there
       awaits a future              BEGIN; every read; COMMIT                                ──> their futures
                                    BEGIN IMMEDIATE; every write; COMMIT                     ──> their futures

`stores.sqlite` calls it; an operation is a plain function of the connection. So an fsync never stalls the
event loop, and calls that wait for the same fsync share it. What is called in one iteration of the loop is
handed over together, when the iteration ends: of 32 callers on one core 10 share a commit, where 4 did.

Invariants: a future is resolved only after its transaction was committed; a write that raises undoes itself
and nothing else; if the transaction fails, every write of the group fails with `StoreUnavailable`. A group
is undone and run again if it met another process's lock, or if a write raised after it had changed something:
then each has a savepoint, which else nobody pays for. An operation has no effect but on the connection.

Reads go first, in a snapshot of their own. They miss nothing: a write that a reader has seen done is in an
earlier group. They wait neither for their group's fsync nor for another process's lock, only for the group
before theirs. A second connection would spare them that, but `:memory:` has only one, and one thread keeps
both alike. A cancelled caller stops waiting; what it called may still be done.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Self, TypeVar

from service.errors import StoreUnavailable
from service.stores.sqlite_schema import primary_code

logger = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 4096
_RETRY_S: Final = 1.0

# The environment's faults; any other error of SQLite is a fault of ours and keeps its type.
_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)

P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    operation: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    writes: bool


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class _HalfDone(Exception):
    """A call raised after it had changed something."""


class StoreThread:
    """Runs operations on one connection; made by `start`, ended by `aclose`, used from one event loop."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], busy_timeout_s: float, queue_limit: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._called: list[_Call] = []
        self._groups: SimpleQueue[list[_Call] | None] = SimpleQueue()
        self._unresolved = 0
        self._busy_timeout_s = busy_timeout_s
        self._queue_limit = queue_limit
        self._closing = False
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # A daemon: to end without `aclose` is to be killed, and leaves the file as consistent.
        self._thread = threading.Thread(target=self._run, args=(connect,), name="store", daemon=True)

    @classmethod
    async def start(
        cls, connect: Callable[[], sqlite3.Connection], *, busy_timeout_s: float, queue_limit: int
    ) -> Self:
        """Start the thread and open the connection in it; whatever `connect` raises is raised here."""
        started = cls(connect, busy_timeout_s, queue_limit)
        started._thread.start()
        try:
            await asyncio.shield(started._opened)
        except BaseException:
            await started.aclose()
            raise
        return started

    @property
    def waiting(self) -> int:
        """How many calls have no answer yet."""
        return self._unresolved

    async def read(
        self, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation that only reads, in a snapshot.

        Raises:
            StoreUnavailable: The queue is full, the thread is closed, or SQLite can't do it now.
        """
        return await self._call(lambda db: operation(db, *args, **kwargs), writes=False)

    async def write(
        self, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation as one decision: it is durable when this returns, and undone when it raised.

        Raises:
            StoreUnavailable: As `read`; if the commit failed the decision may or may not be durable.
        """
        return await self._call(lambda db: operation(db, *args, **kwargs), writes=True)

    async def _call(self, operation: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        if self._closing:
            raise StoreUnavailable("The store is closed.", retry_after_s=_RETRY_S)
        if self._unresolved >= self._queue_limit:
            raise StoreUnavailable("Too many calls wait for the store.", retry_after_s=_RETRY_S)
        future: asyncio.Future[T] = self._loop.create_future()
        self._unresolved += 1
        if not self._called:
            self._loop.call_soon(self._hand_over)
        self._called.append(_Call(operation, future, writes))
        return await future

    def _hand_over(self) -> None:
        calls, self._called = self._called, []
        if calls:
            self._groups.put(calls)

    async def aclose(self) -> None:
        """Finish what was called, then close the connection and end the thread; harmless when repeated."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._groups.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()  # `_ended` was its last act

    # ------------------------------------------------------------ on the event loop, called by the thread

    def _settle(self, outcomes: Iterable[_Outcome]) -> None:
        for future, value, error in outcomes:
            self._unresolved -= 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _open(self, error: Exception | None) -> None:
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    # ------------------------------------------------------------ in the thread

    def _run(self, connect: Callable[[], sqlite3.Connection]) -> None:
        # The loop refuses when it has been closed without `aclose`: then nobody waits for any of this.
        with suppress(RuntimeError):
            try:
                db = connect()
            except Exception as error:  # noqa: BLE001 - the edge of the thread: it belongs to whoever awaits `start`
                self._loop.call_soon_threadsafe(self._open, error)
            else:
                try:
                    self._loop.call_soon_threadsafe(self._open, None)
                    self._serve(db)
                finally:
                    db.close()
            self._loop.call_soon_threadsafe(self._ended.set_result, None)

    def _serve(self, db: sqlite3.Connection) -> None:
        while True:
            calls: list[_Call] = []
            group = self._groups.get()
            while group is not None:
                calls += group
                if self._groups.empty():
                    break
                group = self._groups.get()
            if reads := [call for call in calls if not call.writes]:
                self._loop.call_soon_threadsafe(self._settle, self._transact(db, "BEGIN", reads))
            if writes := [call for call in calls if call.writes]:
                self._loop.call_soon_threadsafe(self._settle, self._transact(db, "BEGIN IMMEDIATE", writes))
            if group is None:
                return

    def _transact(self, db: sqlite3.Connection, begin: str, calls: list[_Call]) -> list[_Outcome]:
        """Run calls in one transaction; whatever stops the transaction stops all of them."""
        give_up_at = time.monotonic() + self._busy_timeout_s
        decide = _decide
        while True:
            try:
                db.execute(begin)
                outcomes = [decide(db, call) for call in calls]
                db.execute("COMMIT")
            except Exception as error:  # noqa: BLE001 - the edge of the thread: nobody may wait for ever
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                if isinstance(error, _HalfDone):
                    decide = _decide_apart
                    continue
                if _is_busy(error) and time.monotonic() < give_up_at:
                    continue  # undone; SQLite has waited a little for the lock
                _report(error, len(calls))
                return [_Outcome(call.future, None, _unavailable(error)) for call in calls]
            else:
                return outcomes


def _decide(db: sqlite3.Connection, call: _Call) -> _Outcome:
    """Run one call; a refusal that changed nothing (they all should) leaves the transaction as it was."""
    changes = db.total_changes
    try:
        value = call.operation(db)
    except Exception as error:  # the edge of the thread: it belongs to the caller
        if _stops_all(error):
            raise
        if db.total_changes != changes:
            raise _HalfDone from error
        return _Outcome(call.future, None, error)
    return _Outcome(call.future, value, None)


def _decide_apart(db: sqlite3.Connection, call: _Call) -> _Outcome:
    """Run one call; if it raises, undo what it did and keep the rest of the transaction."""
    db.execute("SAVEPOINT decision")
    try:
        value = call.operation(db)
    except Exception as error:  # the edge of the thread: it belongs to the caller
        if _stops_all(error):
            raise
        db.execute("ROLLBACK TO decision")
        db.execute("RELEASE decision")
        return _Outcome(call.future, None, error)
    db.execute("RELEASE decision")
    return _Outcome(call.future, value, None)


def _stops_all(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and primary_code(error) in _UNAVAILABLE


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_BUSY


def _report(error: Exception, calls: int) -> None:
    busy = _is_busy(error)
    logger.log(
        logging.WARNING if busy else logging.ERROR,
        "store transaction failed",
        exc_info=None if busy else error,
        extra={"sqlite_error": getattr(error, "sqlite_errorname", type(error).__name__), "calls": calls},
    )


def _unavailable(error: Exception) -> StoreUnavailable:
    unavailable = StoreUnavailable("The store can't be written or read now.", retry_after_s=_RETRY_S)
    unavailable.__cause__ = error
    return unavailable
