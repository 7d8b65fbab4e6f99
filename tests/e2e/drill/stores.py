"""The two stores under a drill: where the tables come from, how the store fails, what is in it at the end.

`drill` and `tests/e2e/test_crash.py` choose one; `faults` lets it fail. SQLite's file can't go away: it stays
locked for longer. Of DynamoDB all connections are cut, with what is under way: it may have happened, and
nobody is told.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from local.stack import Stack
from tests.dynamodb import STACK_TABLES
from tests.e2e.drill.books import Books
from tests.e2e.drill.dynamodb_books import read_dynamodb
from tests.e2e.drill.sqlite_books import read_sqlite

StoreName = Literal["sqlite", "dynamodb"]

LOCK_S: Final = 10.0


class StoreUnderDrill(Protocol):
    """A stack's store."""

    def stalled(self) -> AbstractAsyncContextManager[str]:
        """Answer nobody while the block runs; yields what was done."""
        ...

    def out(self) -> AbstractAsyncContextManager[str]:
        """Be away while the block runs; yields what was done."""
        ...

    async def read(self) -> Books:
        """Return what is in it, once nobody writes any more."""
        ...


TABLES: Final[Mapping[StoreName, Mapping[str, Mapping[str, Any]] | None]] = {
    "sqlite": None,
    "dynamodb": STACK_TABLES,
}
"""What a `Stack` is told."""


def store_of(stack: Stack, name: StoreName) -> StoreUnderDrill:
    """Return the store of a stack that was given `TABLES[name]`."""
    return SqliteUnderDrill(stack) if name == "sqlite" else DynamoUnderDrill(stack)


class SqliteUnderDrill:
    """The file that the services share."""

    def __init__(self, stack: Stack) -> None:
        self._path: Path = stack.directory / "headrace.db"

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[str]:
        """Keep the write lock."""
        db = sqlite3.connect(self._path, timeout=LOCK_S, isolation_level=None, check_same_thread=False)
        try:
            await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            yield "the store is kept locked by another"
        else:
            yield "the store is locked"
        finally:
            db.close()

    def out(self) -> AbstractAsyncContextManager[str]:
        """Keep the write lock."""
        return self.stalled()

    async def read(self) -> Books:
        """Read the file."""
        return read_sqlite(self._path)


class DynamoUnderDrill:
    """DynamoDB Local; the stack must still run when it is read."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[str]:
        """Let no bytes through; they arrive later."""
        self._stack.emulator.stall()
        try:
            yield "the store is stalled"
        finally:
            self._stack.emulator.resume()

    @asynccontextmanager
    async def out(self) -> AsyncIterator[str]:
        """Cut all connections, and refuse new ones."""
        self._stack.emulator.cut()
        try:
            yield "the store is cut off"
        finally:
            self._stack.emulator.mend()

    async def read(self) -> Books:
        """Read both tables, and what the upstream was asked."""
        usage, invocations = [
            await asyncio.to_thread(self._items, str(definition["TableName"]))
            for definition in STACK_TABLES.values()
        ]
        return read_dynamodb(usage, invocations, await self._stack.bedrock.requests())

    def _items(self, table: str) -> list[Mapping[str, Any]]:
        items: list[Mapping[str, Any]] = []
        page: dict[str, Any] = {"TableName": table, "ConsistentRead": True}
        while True:
            answer = self._stack.emulator.call("Scan", page)
            items += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return items
            page["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
