"""What an invocation costs on SQLite: each statement is work of the one thread that all invocations share."""

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from service.invocations import Tried
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_schema import open_database
from service.stores.sqlite_thread import StoreThread
from tests.contracts.store_cases import LIMITS, NOW, ending, new, settlement


class Statements:
    """The statements of a store in memory, as far as they were noted."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def connect(self) -> sqlite3.Connection:
        db = open_database(":memory:", busy_timeout_s=5.0)
        db.set_trace_callback(self.noted.append)
        return db


@pytest.fixture
def statements() -> Statements:
    return Statements()


@pytest.fixture
async def store(statements: Statements) -> AsyncIterator[SqliteStore]:
    thread = await StoreThread.start(statements.connect, busy_timeout_s=5.0, queue_limit=10)
    opened = SqliteStore(thread)
    yield opened
    await opened.aclose()


async def test_an_invocation_of_one_turn_takes_two_transactions_and_16_statements(
    store: SqliteStore, statements: Statements
) -> None:
    statements.noted.clear()
    used = replace(settlement(), tried=(Tried("model-1"),))

    await store.create_invocation(new(), LIMITS, NOW)
    await store.finish(ending(1, 1, used), NOW)

    words = [statement.split()[0] for statement in statements.noted]
    assert (words.count("BEGIN"), words.count("COMMIT"), words.count("SAVEPOINT")) == (2, 2, 0)
    assert len(words) - 4 == 16
