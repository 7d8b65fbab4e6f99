"""The processes that share a store in `test_store_model`, and how they come to their ends.

A process has a clock of its own, a lease and, on DynamoDB, a store of its own: what that remembers dies with
it. Between every store and what it calls stands its `Fate`::

    Process.store ──call──> Fate ──call──> store thread | DynamoDB Local
                             │ the n-th call of a doomed decision is its last: it lands, or it never arrives;
                             │ nothing that the decision calls after it does, and its caller gets no answer
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

from service.errors import Fenced, HeadraceError, StoreUnavailable
from service.stores import Store
from service.stores.dynamodb import CONTENT_S, LEDGER_S, RETENTION_S, DynamoStore
from service.stores.dynamodb_accounts import Accounts
from service.stores.dynamodb_client import BATCH_WRITES, Call, DynamoClient, Item
from service.stores.dynamodb_records import Tables as StoreTables
from service.stores.dynamodb_values import unpack
from service.stores.sqlite import BUSY_TIMEOUT_S, SqliteStore
from service.stores.sqlite_schema import MEMORY, open_database
from service.stores.sqlite_thread import QUEUE_LIMIT, StoreThread
from tests.contracts.store_audit import Audit, audit_dynamodb, audit_sqlite
from tests.dynamodb import Tables

T = TypeVar("T")
NO_ANSWER: Final = "no answer"
_KEEP_ALL_S: Final = 10**9
_READS: Final = frozenset({"GetItem", "BatchGetItem", "TransactGetItems", "Query"})


class Doom(NamedTuple):
    """A decision's last call, counted from 1, and whether it lands."""

    call: int
    lands: bool


class _NoAnswer(StoreUnavailable):
    """What a store gets in place of an answer; none tries again."""


class Fate:
    """What a process's store calls goes through here."""

    def __init__(self) -> None:
        self._doom: Doom | None = None
        self._calls = 0
        self._flying: list[asyncio.Future[Any]] = []

    async def outcome(self, decision: Awaitable[T], doom: Doom | None = None) -> T | str:
        """Return a decision's result, the code of a refusal, `fenced`, or `NO_ANSWER`."""
        self._doom, self._calls = doom, 0
        try:
            return await decision
        except _NoAnswer:
            return NO_ANSWER
        except HeadraceError as error:
            return error.code
        except Fenced:
            return "fenced"
        finally:
            # Of calls at once the others are still under way when one has got no answer.
            await asyncio.gather(*self._flying, return_exceptions=True)
            self._doom = None
            self._flying.clear()

    async def meet(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a call, or not."""
        if self._doom is None:
            return await call()
        self._calls += 1
        if self._calls < self._doom.call or (self._calls == self._doom.call and self._doom.lands):
            made = asyncio.ensure_future(call())
            self._flying.append(made)
            answer = await asyncio.shield(made)
            if self._calls < self._doom.call:
                return answer
        raise _NoAnswer("No answer.", retry_after_s=1)


@dataclass
class Process:
    """Who decides: its lease's name, its store, and how far its clock is off."""

    owner: str
    store: Store
    fate: Fate = field(repr=False)
    offset_ms: int = 0


class Ground(Protocol):
    """What processes share: an empty store, for one example."""

    def store(self, fate: Fate) -> Store:
        """Give a new process its store."""
        ...

    async def audit(self) -> Audit:
        """Read all of it."""
        ...

    async def expire(self, now_ms: int) -> None:
        """Delete what is to be deleted by now."""
        ...


Opening = Callable[[], AbstractAsyncContextManager[Ground]]


# ---------------------------------------------------------------- SQLite


class _Line:
    """The store thread as one process has it."""

    def __init__(self, thread: StoreThread, fate: Fate) -> None:
        self._thread = thread
        self._fate = fate

    async def read(self, operation: Any, *args: Any) -> Any:
        return await self._fate.meet(partial(self._thread.read, operation, *args))

    async def write(self, operation: Any, *args: Any) -> Any:
        return await self._fate.meet(partial(self._thread.write, operation, *args))


class SqliteGround:
    """A database in memory: processes share its thread."""

    def __init__(self, thread: StoreThread) -> None:
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["SqliteGround"]:
        connect = partial(open_database, MEMORY, busy_timeout_s=BUSY_TIMEOUT_S)
        thread = await StoreThread.start(connect, busy_timeout_s=BUSY_TIMEOUT_S, queue_limit=QUEUE_LIMIT)
        try:
            yield cls(thread)
        finally:
            await thread.aclose()

    def store(self, fate: Fate) -> Store:
        return SqliteStore(cast(StoreThread, _Line(self._thread, fate)))

    async def audit(self) -> Audit:
        return await self._thread.read(audit_sqlite)

    async def expire(self, now_ms: int) -> None:
        await SqliteStore(self._thread).purge(now_ms, _KEEP_ALL_S)


# ---------------------------------------------------------------- DynamoDB


class DynamoGround:
    """Two tables, used by one example after the other."""

    def __init__(self, tables: Tables, call: Call) -> None:
        self._tables = tables
        self._call = call
        self._found: list[list[Item]] = []  # by the last audit, if nothing was written after it

    @classmethod
    @asynccontextmanager
    async def connect(cls, tables: Tables) -> AsyncIterator["DynamoGround"]:
        """Connect as the service does; the connections stay for all examples."""
        calls: list[Call] = []

        def note(call: Call) -> Call:
            calls.append(call)
            return call

        async with DynamoStore.open(
            usage_table=tables.usage, invocations_table=tables.invocations, wrap=note
        ):
            yield cls(tables, calls[0])

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator["DynamoGround"]:
        """Leave the tables empty for the next example."""
        try:
            yield self
        finally:
            usage, invocations = self._found or await self._scan_both()
            self._found = []
            await self._delete(
                [
                    *((self._tables.usage, _key(item, "user_id", "period_id")) for item in usage),
                    *((self._tables.invocations, _key(item, "pk", "sk")) for item in invocations),
                ]
            )

    @property
    def _names(self) -> tuple[str, str]:
        return self._tables.usage, self._tables.invocations

    def store(self, fate: Fate) -> Store:
        async def through(operation: str, parameters: dict[str, Any]) -> Any:
            if operation not in _READS:
                self._found = []

            async def call() -> Any:
                return await self._call(operation, parameters)

            return await fate.meet(call)

        client = DynamoClient(through)
        accounts = Accounts(client, *self._names)
        return DynamoStore(
            # What has ended is shown for ever.
            StoreTables(client, *self._names, accounts, RETENTION_S, CONTENT_S, LEDGER_S, now_ms=lambda: 0)
        )

    async def audit(self) -> Audit:
        self._found = await self._scan_both()
        usage, invocations = self._found
        return audit_dynamodb([unpack(item) for item in usage], [unpack(item) for item in invocations])

    async def expire(self, now_ms: int) -> None:
        """Do what time to live does, and what the service's own purge."""
        gone = [item for item in await self._scan(self._tables.usage) if _is_over(item, now_ms)]
        await self._delete([(self._tables.usage, _key(item, "user_id", "period_id")) for item in gone])
        await self.store(Fate()).purge(now_ms, _KEEP_ALL_S)

    async def _scan_both(self) -> list[list[Item]]:
        return await asyncio.gather(*map(self._scan, self._names))

    async def _scan(self, table: str) -> list[Item]:
        answer = await self._call("Scan", {"TableName": table, "ConsistentRead": True})
        assert "LastEvaluatedKey" not in answer, "an example does not fill a page"
        items: list[Item] = answer["Items"]
        return items

    async def _delete(self, keys: list[tuple[str, Item]]) -> None:
        for begin in range(0, len(keys), BATCH_WRITES):
            asked: dict[str, list[Item]] = {}
            for table, key in keys[begin : begin + BATCH_WRITES]:
                asked.setdefault(table, []).append({"DeleteRequest": {"Key": key}})
            answer = await self._call("BatchWriteItem", {"RequestItems": asked})
            assert not answer.get("UnprocessedItems")


def _key(item: Item, *names: str) -> Item:
    return {name: item[name] for name in names}


def _is_over(item: Item, now_ms: int) -> bool:
    return "ttl" in item and int(item["ttl"]["N"]) <= now_ms // 1000
