"""The SQLite file: made, migrated, and refused when it is not ours."""

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.events import EventId
from service.invocations import Attempt, AttemptEnd
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_schema import APPLICATION_ID, MIGRATIONS, Migrations, open_database
from tests.contracts.store_cases import FAILED, NOW

FIRST = (("CREATE TABLE first (n INTEGER) STRICT", "INSERT INTO first VALUES (1)"),)
SECOND = (*FIRST, ("ALTER TABLE first ADD COLUMN m INTEGER NOT NULL DEFAULT 7",))


def values(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def migrate(path: Path, migrations: Migrations = MIGRATIONS) -> None:
    open_database(str(path), busy_timeout_s=5.0, migrations=migrations).close()


def refusal(path: Path, migrations: Migrations = MIGRATIONS) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        migrate(path, migrations)
    return refused.value.faults


def test_a_new_file_is_durable_private_and_has_the_newest_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(open_database(str(path), busy_timeout_s=5.0)) as db:
        names = (
            "journal_mode",
            "synchronous",
            "foreign_keys",
            "temp_store",
            "user_version",
            "application_id",
        )
        found = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
        wal_mode = (tmp_path / "store.sqlite-wal").stat().st_mode

    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "temp_store": 2,  # MEMORY
        "user_version": len(MIGRATIONS),
        "application_id": APPLICATION_ID,
    }
    assert [stat.S_IMODE(mode) for mode in (path.stat().st_mode, wal_mode)] == [0o600, 0o600]


def test_every_table_is_strict() -> None:
    with closing(open_database(":memory:", busy_timeout_s=5.0)) as db:
        strict = db.execute(
            "SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()

    assert len(strict) == 12
    assert {flag for _, flag in strict} == {1}


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    for migrations in (FIRST, FIRST, SECOND, SECOND):
        migrate(path, migrations)

    assert values(path, "SELECT n, m FROM first") == [(1, 7)]
    assert values(path, "PRAGMA user_version") == [(2,)]


async def test_what_schema_2_has_written_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    migrate(path, MIGRATIONS[:2])
    write_as_schema_2(path)

    async with SqliteStore.open(path) as store:
        ended = await store.load_invocation("inv_1")
        held = await store.account("user-1", NOW)
        early = await store.claim_expired("owner-1", NOW + 59_999, limit=2, running=[])
        orphans = await store.claim_expired("owner-1", NOW + 60_000, limit=2, running=[])
        settled = await store.account("user-1", NOW + 60_000)

    assert ended is not None
    assert ended.attempts == (
        Attempt(1, NOW, EventId(1, 1), AttemptEnd.LOST),
        Attempt(2, NOW, EventId(2, 3), AttemptEnd.FINISHED),
    )
    assert (ended.cancel_requested_at_ms, ended.paused_at_ms, ended.resumes_at_ms) == (None, None, None)
    assert (held.reserved_tokens, settled.reserved_tokens) == (50, 0)
    assert early == []
    assert [claim.invocation.attempts for claim in orphans] == [
        (Attempt(1, NOW, EventId(1, 1), AttemptEnd.LOST), Attempt(2, NOW + 60_000))
    ]


def write_as_schema_2(path: Path) -> None:
    """Write an invocation that was claimed and has ended, and one that runs."""
    invocations = (
        "INSERT INTO invocations (invocation_id, runtime_id, sub, state, owner, attempt, stored_seq,"
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(
            f"{invocations} created_at_ms, updated_at_ms, deadline_at_ms, finished_at_ms, terminal)"
            " VALUES ('inv_1', 'writer', 'user-1', 'failed', 'owner-1', 2, 3, ?1, ?1, ?1, ?1, ?2),"
            " ('inv_2', 'writer', 'user-1', 'running', 'owner-1', 1, 1, ?1, ?1, ?1, NULL, NULL)",
            (NOW, FAILED),
        )
        db.execute("INSERT INTO inputs VALUES ('inv_1', x'7b7d'), ('inv_2', x'7b7d')")
        db.execute(
            "INSERT INTO reservations (invocation_id, attempt, turn, sub, tokens, expires_at_ms)"
            " VALUES ('inv_2', 1, 1, 'user-1', 50, ?)",
            (NOW + 90_000,),
        )
        db.execute("INSERT INTO attempts VALUES ('inv_1', 1, 1), ('inv_1', 2, 3), ('inv_2', 1, NULL)")


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    migrate(path, FIRST)

    faults = refusal(path, (*FIRST, ("DELETE FROM first", "CREATE TABLE first (n INTEGER)")))

    assert faults == [f"the store {path} can't be used: SQLITE_ERROR"]
    assert values(path, "SELECT n FROM first") == [(1,)]
    assert values(path, "PRAGMA user_version") == [(1,)]


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    together = Barrier(6)

    def opened() -> int:
        together.wait(10)
        with closing(open_database(str(path), busy_timeout_s=20.0, migrations=SECOND)) as db:
            return int(db.execute("SELECT count(*) FROM first").fetchone()[0])

    with ThreadPoolExecutor(6) as pool:
        counts = [running.result(30) for running in [pool.submit(opened) for _ in range(6)]]

    assert counts == [1] * 6


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    migrate(path, SECOND)
    before = path.read_bytes()

    assert refusal(path, FIRST) == [
        f"the store {path} has schema version 2 and this service knows 1: run a newer one"
    ]
    assert path.read_bytes() == before


def test_a_file_that_is_not_sqlite_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear reader, " * 100)

    assert refusal(path) == [f"the store {path} is not an SQLite database"]
    assert path.read_bytes() == b"Dear reader, " * 100


def test_another_applications_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (n INTEGER)")
    before = path.read_bytes()

    assert refusal(path) == [f"the store {path} is another application's database"]
    assert path.read_bytes() == before


def test_a_path_that_can_not_be_a_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "store.sqlite"
    deep = tmp_path.joinpath(*["x" * 200] * 3)  # over SQLite's 512 bytes, not over the system's 4096
    deep.parent.mkdir(parents=True)

    assert refusal(tmp_path) == [f"the store {tmp_path} can't be opened: is a directory"]
    assert refusal(missing) == [f"the store {missing} can't be opened: no such file or directory"]
    assert refusal(deep) == [f"the store {deep} can't be opened: SQLITE_CANTOPEN"]


def test_a_file_that_stays_locked_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    migrate(path, FIRST)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable) as refused:
            open_database(str(path), busy_timeout_s=0.05, migrations=SECOND)

    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
    migrate(path, SECOND)


async def test_what_the_file_is_refused_for_is_raised_where_the_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear reader, " * 100)

    with pytest.raises(ConfigError) as refused:
        async with SqliteStore.open(path):
            raise AssertionError("it must not open")

    assert refused.value.faults == [f"the store {path} is not an SQLite database"]
