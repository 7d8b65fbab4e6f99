"""The SQLite file: its tables, its migrations, and how a connection to it is opened.

`stores.sqlite` opens its store thread's connection here. A file carries our application id and the version of
its schema (`PRAGMA user_version`); `MIGRATIONS[n]` leads from version n to n + 1, in one transaction under an
exclusive lock, so that any number of processes may start on one file at once. Change the schema by adding a
migration, never by editing one.

    invocations ─┬─ inputs         what was submitted, opaque
                 ├─ attempts       granted_seq: the last event that a closed attempt is granted; `ended`: why
                 ├─ turns          settled and completed turns, what a takeover goes on from
                 ├─ events         blocks of events, `codec` 0: as joined, 1: zlib
                 └─ idempotency_keys   which request took a key
    leases                         one per process
    usage                          per principal: 10-minute buckets and months, keyed as in DynamoDB
    reservations                   open holds
    usage_records                  the ledger: append-only, outlives its invocations
    denials, limit_overrides       what operators have decided about principals

Sources: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous (FULL: what is
committed survives a loss of power), https://www.sqlite.org/stricttables.html,
https://www.sqlite.org/rescode.html
"""

import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Final

from service.config import ConfigError
from service.errors import StoreUnavailable

MEMORY: Final = ":memory:"
APPLICATION_ID: Final = 0x48524143  # "HRAC"
# A log that one large input has grown is cut back to this at the next checkpoint.
_WAL_LIMIT_BYTES: Final = 16 * 1024 * 1024
# SQLite's own wait for a lock polls ever more rarely (up to every 100 ms), so a busy process would starve the
# others: let it wait this long and begin again.
_POLL_S: Final = 0.02

_VERSION_1: Final = (
    """
    CREATE TABLE invocations (
        invocation_id  TEXT NOT NULL PRIMARY KEY,
        runtime_id     TEXT NOT NULL,
        sub            TEXT NOT NULL,
        session_id     TEXT,
        state          TEXT NOT NULL,
        owner          TEXT NOT NULL,
        attempt        INTEGER NOT NULL,            -- the current one: the fencing number
        stored_seq     INTEGER NOT NULL DEFAULT 0,  -- the last event that the current attempt stored
        created_at_ms  INTEGER NOT NULL,
        updated_at_ms  INTEGER NOT NULL,
        deadline_at_ms INTEGER NOT NULL,
        finished_at_ms INTEGER,
        terminal       BLOB,
        input_tokens       INTEGER NOT NULL DEFAULT 0,
        output_tokens      INTEGER NOT NULL DEFAULT 0,
        cache_read_tokens  INTEGER NOT NULL DEFAULT 0,
        cache_write_tokens INTEGER NOT NULL DEFAULT 0,
        estimated          INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX invocations_listed ON invocations (sub, runtime_id, created_at_ms, invocation_id)",
    "CREATE INDEX invocations_running ON invocations (sub) WHERE state = 'running'",
    "CREATE INDEX invocations_owned ON invocations (owner) WHERE state = 'running'",
    "CREATE INDEX invocations_finished ON invocations (finished_at_ms) WHERE finished_at_ms IS NOT NULL",
    """
    CREATE TABLE inputs (
        invocation_id TEXT NOT NULL UNIQUE REFERENCES invocations ON DELETE CASCADE,
        body          BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE attempts (
        invocation_id TEXT NOT NULL REFERENCES invocations ON DELETE CASCADE,
        number        INTEGER NOT NULL,
        granted_seq   INTEGER,
        PRIMARY KEY (invocation_id, number)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE turns (
        invocation_id    TEXT NOT NULL REFERENCES invocations ON DELETE CASCADE,
        number           INTEGER NOT NULL,
        messages         BLOB NOT NULL,
        boundary_attempt INTEGER NOT NULL,
        boundary_seq     INTEGER NOT NULL,
        UNIQUE (invocation_id, number)
    ) STRICT
    """,
    """
    CREATE TABLE events (
        invocation_id TEXT NOT NULL REFERENCES invocations ON DELETE CASCADE,
        attempt       INTEGER NOT NULL,
        first_seq     INTEGER NOT NULL,
        last_seq      INTEGER NOT NULL,
        codec         INTEGER NOT NULL,
        blob          BLOB NOT NULL,
        UNIQUE (invocation_id, attempt, last_seq)
    ) STRICT
    """,
    """
    CREATE TABLE leases (
        owner         TEXT NOT NULL PRIMARY KEY,
        expires_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE usage (
        user_id            TEXT NOT NULL,
        period_id          TEXT NOT NULL,
        input_tokens       INTEGER NOT NULL,
        output_tokens      INTEGER NOT NULL,
        cache_read_tokens  INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        PRIMARY KEY (user_id, period_id)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX usage_by_period ON usage (period_id)",
    """
    CREATE TABLE reservations (
        invocation_id TEXT NOT NULL,
        attempt       INTEGER NOT NULL,
        turn          INTEGER NOT NULL,
        sub           TEXT NOT NULL,
        tokens        INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (invocation_id, attempt, turn)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX reservations_held ON reservations (sub, expires_at_ms, tokens)",
    """
    CREATE TABLE usage_records (
        invocation_id      TEXT NOT NULL,
        attempt            INTEGER NOT NULL,
        turn               INTEGER NOT NULL,
        sub                TEXT NOT NULL,
        runtime_id         TEXT NOT NULL,
        model              TEXT NOT NULL,  -- '': a hold that nobody settled, at its full size
        input_tokens       INTEGER NOT NULL,
        output_tokens      INTEGER NOT NULL,
        cache_read_tokens  INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        estimated          INTEGER NOT NULL,
        charged            INTEGER NOT NULL,
        settled_at_ms      INTEGER NOT NULL,
        PRIMARY KEY (invocation_id, attempt, turn)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TRIGGER usage_records_stay BEFORE DELETE ON usage_records
    BEGIN SELECT raise(ABORT, 'usage records are append-only'); END
    """,
    """
    CREATE TRIGGER usage_records_stand BEFORE UPDATE ON usage_records
    BEGIN SELECT raise(ABORT, 'usage records are append-only'); END
    """,
)
_VERSION_2: Final = (
    """
    CREATE TABLE idempotency_keys (
        key           TEXT NOT NULL PRIMARY KEY,
        body          TEXT NOT NULL,
        invocation_id TEXT NOT NULL REFERENCES invocations ON DELETE CASCADE,
        expires_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX idempotency_keys_of ON idempotency_keys (invocation_id)",
)
# Takeover, cancellation, pauses. What is polled for is rare, so its indexes hold nothing else. What NULL
# means in the attempts of older rows, `sqlite_records` says.
_VERSION_3: Final = (
    "ALTER TABLE invocations ADD COLUMN cancel_requested_at_ms INTEGER",
    "ALTER TABLE invocations ADD COLUMN read_at_ms INTEGER",
    "ALTER TABLE invocations ADD COLUMN paused_at_ms INTEGER",  # this and the following: only while paused
    "ALTER TABLE invocations ADD COLUMN resumes_at_ms INTEGER",
    "ALTER TABLE invocations ADD COLUMN look_at_ms INTEGER",
    "ALTER TABLE invocations ADD COLUMN paused_turn INTEGER",
    "ALTER TABLE invocations ADD COLUMN paused_tokens INTEGER",
    "ALTER TABLE attempts ADD COLUMN started_at_ms INTEGER",
    "ALTER TABLE attempts ADD COLUMN ended TEXT",
    """
    CREATE INDEX invocations_to_cancel ON invocations (owner)
    WHERE state = 'running' AND cancel_requested_at_ms IS NOT NULL
    """,
    """
    CREATE INDEX invocations_read ON invocations (owner, read_at_ms)
    WHERE state = 'running' AND read_at_ms IS NOT NULL
    """,
    "CREATE INDEX invocations_paused ON invocations (look_at_ms) WHERE state = 'paused'",
)
_VERSION_4: Final = (
    """
    CREATE TABLE denials (
        subject  TEXT NOT NULL PRIMARY KEY,
        since_ms INTEGER NOT NULL,
        until_ms INTEGER  -- NULL: until it is allowed again
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE limit_overrides (
        sub   TEXT NOT NULL,
        name  TEXT NOT NULL,
        value INTEGER NOT NULL,
        PRIMARY KEY (sub, name)
    ) STRICT, WITHOUT ROWID
    """,
)
# JSON: a list of names, and a list of [model, code, calls]. NULL: of an older process, or nothing yet.
_VERSION_5: Final = (
    "ALTER TABLE invocations ADD COLUMN models TEXT",
    "ALTER TABLE invocations ADD COLUMN tried TEXT",
)
# One tree instead of two: a hold is always looked for with its principal, who has few. Each page that a
# transaction touches is written to the log as a whole.
_VERSION_6: Final = (
    "ALTER TABLE reservations RENAME TO former_reservations",
    """
    CREATE TABLE reservations (
        invocation_id TEXT NOT NULL,
        attempt       INTEGER NOT NULL,
        turn          INTEGER NOT NULL,
        sub           TEXT NOT NULL,
        tokens        INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (sub, invocation_id, attempt, turn)
    ) STRICT, WITHOUT ROWID
    """,
    """
    INSERT INTO reservations (invocation_id, attempt, turn, sub, tokens, expires_at_ms)
    SELECT invocation_id, attempt, turn, sub, tokens, expires_at_ms FROM former_reservations
    """,
    "DROP TABLE former_reservations",
)
Migrations = Sequence[Sequence[str]]
MIGRATIONS: Final[Migrations] = (
    _VERSION_1,
    _VERSION_2,
    _VERSION_3,
    _VERSION_4,
    _VERSION_5,
    _VERSION_6,
)


def open_database(
    path: str, *, busy_timeout_s: float, migrations: Migrations = MIGRATIONS
) -> sqlite3.Connection:
    """Open the file, made if it is not there and brought to the newest schema; `:memory:` is one of its own.

    Raises:
        ConfigError: It can't be opened, is not ours, or a newer version of the service has written it.
        StoreUnavailable: Another process kept it locked for longer than the timeout.
    """
    if path != MEMORY:
        _touch(path)
    try:
        db = sqlite3.connect(path, timeout=_POLL_S, isolation_level=None)
    except sqlite3.Error as error:
        raise _refusal(path, f"can't be opened: {error.sqlite_errorname}") from error
    try:
        _prepare(db, path, busy_timeout_s, migrations)
    except BaseException:
        db.close()
        raise
    return db


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; its errors have one, those of Python's module have not."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _touch(path: str) -> None:
    # It holds prompts and answers: for its owner only. SQLite gives the files beside it the same mode.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise _refusal(
            path, f"can't be opened: {(error.strerror or error.__class__.__name__).lower()}"
        ) from error


def _prepare(db: sqlite3.Connection, path: str, busy_timeout_s: float, migrations: Migrations) -> None:
    give_up_at = time.monotonic() + busy_timeout_s
    while True:
        try:
            _check(db, path, len(migrations))
            db.execute("PRAGMA journal_mode = WAL").fetchone()
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA temp_store = MEMORY")  # what undoes a statement needs no file
            db.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}").fetchone()
            _migrate(db, path, migrations)
            return
        except sqlite3.Error as error:
            code = primary_code(error)
            if code == sqlite3.SQLITE_NOTADB:
                raise _refusal(path, "is not an SQLite database") from error
            if code != sqlite3.SQLITE_BUSY:
                raise _refusal(path, f"can't be used: {error.sqlite_errorname}") from error
            if time.monotonic() >= give_up_at:
                raise StoreUnavailable("Another process keeps the store locked.", retry_after_s=1) from error
            time.sleep(_POLL_S)  # a change to WAL by another process is reported at once


def _check(db: sqlite3.Connection, path: str, known: int) -> None:
    """Refuse a file that is not ours before anything is changed in it."""
    version = _pragma(db, "user_version")
    in_use = db.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]
    if in_use and _pragma(db, "application_id") != APPLICATION_ID:
        raise _refusal(path, "is another application's database")
    if version > known:
        raise _refusal(path, f"has schema version {version} and this service knows {known}: run a newer one")


def _migrate(db: sqlite3.Connection, path: str, migrations: Migrations) -> None:
    while _pragma(db, "user_version") < len(migrations):
        db.execute("BEGIN EXCLUSIVE")
        try:
            _check(db, path, len(migrations))  # another process may have been quicker
            version = _pragma(db, "user_version")
            if version < len(migrations):
                for statement in migrations[version]:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {version + 1}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _refusal(path: str, reason: str) -> ConfigError:
    return ConfigError([f"the store {path} {reason}"])
