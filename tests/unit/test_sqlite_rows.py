"""What the SQLite store leaves in its file: rows for the ledger's auditor, and nothing for ever but those."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.events import Block, join
from service.invocations import Usage
from service.stores import RESERVATION_GRACE_MS, EventBlock, HandOver
from service.stores.sqlite import SqliteStore
from service.stores.sqlite_events import ROW_LIMIT_BYTES
from tests.contracts.store_cases import (
    DAY_MS,
    HOUR_MS,
    NOW,
    ROOMY,
    after_pause,
    charge,
    ending,
    entry,
    hold,
    new,
    pausing,
    running,
    settlement,
)

PURGE_BATCH = 200


class Filed:
    """A store in a file, and a look into the file."""

    def __init__(self, store: SqliteStore, path: Path) -> None:
        self.store = store
        self.path = path

    def rows(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(sql).fetchall()

    def counts(self) -> dict[str, int]:
        return {
            table: self.rows(f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608 - the names below
            for table in (
                "invocations",
                "inputs",
                "attempts",
                "turns",
                "events",
                "reservations",
                "usage_records",
            )
        }


@pytest.fixture
async def filed(tmp_path: Path) -> AsyncIterator[Filed]:
    path = tmp_path / "store.sqlite"
    async with SqliteStore.open(path) as store:
        yield Filed(store, path)


async def test_a_settlement_is_one_usage_record_one_bucket_and_one_month(filed: Filed) -> None:
    store = filed.store
    await store.create_invocation(new(), ROOMY, NOW)
    await store.reserve(hold(1, 2, 70), ROOMY, NOW)

    await store.settle(settlement(1, 1, Usage(1, 2, 3, 4)), NOW + 5)
    await store.finish(ending(), NOW + 9)

    model = ("inv_1", 1, 1, "user-1", "writer", "model-1", 1, 2, 3, 4, 0, 1, NOW + 5)
    left_open = ("inv_1", 1, 2, "user-1", "writer", "", 70, 0, 0, 0, 1, 1, NOW + 9)
    assert filed.rows("SELECT * FROM usage_records ORDER BY turn") == [model, left_open]
    assert filed.rows("SELECT * FROM usage ORDER BY period_id") == [
        ("user-1", "10min:2026-11-21:16:40", 71, 2, 3, 4),
        ("user-1", "monthly:2026-11", 71, 2, 3, 4),
    ]
    assert filed.rows("SELECT * FROM reservations") == []


async def test_what_a_dead_attempt_used_is_in_the_ledger_and_in_no_counter(filed: Filed) -> None:
    store = filed.store
    await store.create_invocation(new(tokens=70), ROOMY, NOW)
    handed_over = settlement(1, 2, Usage(1, 2, 3, 4), charged=False)
    await store.hand_over(HandOver("inv_1", 1, (handed_over,)), NOW)
    await store.claim_expired("owner-2", NOW + 1, limit=1)

    await store.settle(settlement(1, 3, Usage(5, 6, 7, 8, True)), NOW + 2)

    assert filed.rows("SELECT * FROM usage_records ORDER BY turn") == [
        ("inv_1", 1, 1, "user-1", "writer", "", 70, 0, 0, 0, 1, 0, NOW + 1),  # what it held
        ("inv_1", 1, 2, "user-1", "writer", "model-1", 1, 2, 3, 4, 0, 0, NOW),
        ("inv_1", 1, 3, "user-1", "writer", "model-1", 5, 6, 7, 8, 1, 0, NOW + 2),
    ]
    assert filed.rows("SELECT * FROM usage") == []
    assert filed.rows("SELECT * FROM reservations") == []


async def test_a_pause_leaves_no_trace_in_the_row_of_an_invocation_that_goes_on(filed: Filed) -> None:
    store = filed.store
    columns = "state, owner, attempt, paused_at_ms, resumes_at_ms, look_at_ms, paused_turn, paused_tokens"
    await store.create_invocation(new(), ROOMY, NOW)

    await store.pause(pausing(resumes_at_ms=NOW + 9), NOW + 5)
    paused = filed.rows(f"SELECT {columns} FROM invocations")  # noqa: S608 - the columns are those above
    await store.resume("inv_1", 1, "owner-2", NOW + 9, limits=ROOMY)
    resumed = filed.rows(f"SELECT {columns} FROM invocations")  # noqa: S608 - the columns are those above

    assert paused == [("paused", "", 1, NOW + 5, NOW + 9, NOW + 9, 2, 200)]
    assert resumed == [("running", "owner-2", 2, None, None, None, None, None)]
    assert filed.rows("SELECT * FROM reservations") == [
        ("inv_1", 2, 2, "user-1", 200, NOW + 4 + HOUR_MS + RESERVATION_GRACE_MS)
    ]


async def test_usage_records_are_append_only(filed: Filed) -> None:
    await filed.store.settle(settlement(), NOW)

    with closing(sqlite3.connect(filed.path)) as db:
        for statement in ("UPDATE usage_records SET input_tokens = 0", "DELETE FROM usage_records"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


async def test_long_blocks_are_cut_into_rows_between_events_and_compressed_where_that_is_smaller(
    filed: Filed,
) -> None:
    store = filed.store
    await store.create_invocation(new(), ROOMY, NOW)
    half = b"b" * (ROW_LIMIT_BYTES // 2)
    long = Block(1, 2, (half, half, half[:-1], b"c" * (ROW_LIMIT_BYTES + 9), b"d" * 100))

    await store.append_events(
        [EventBlock("inv_1", Block(1, 1, (b"a" * 100,))), EventBlock("inv_1", long)], NOW
    )

    rows = filed.rows("SELECT first_seq, last_seq, codec, length(blob) < 20000 FROM events ORDER BY last_seq")
    assert rows == [(1, 1, 0, 1), (2, 2, 1, 1), (3, 4, 1, 1), (5, 5, 1, 1), (6, 6, 0, 1)]
    assert len(join((half, half[:-1]))) == ROW_LIMIT_BYTES


# ------------------------------------------------------------ retention


async def test_a_purge_deletes_what_ended_before_the_cut_with_all_of_it_but_the_usage_records(
    filed: Filed,
) -> None:
    store = filed.store
    for number, ended_at_ms in ((1, NOW), (2, NOW + 1), (3, None)):
        await store.create_invocation(new(number), ROOMY, NOW - HOUR_MS)
        await store.append_events([entry(1, 3, number)], NOW - HOUR_MS)
        if ended_at_ms is not None:
            await store.finish(ending(number, 4), ended_at_ms)
    before = filed.counts()

    deleted = await store.purge(NOW + DAY_MS + 1, 86_400.0)

    assert deleted == 1
    assert await store.load_invocation("inv_1") is None
    assert [record.invocation_id for record in await listed(store)] == ["inv_3", "inv_2"]
    assert filed.counts() == {
        **{table: count - 1 for table, count in before.items()},
        "events": before["events"] - 2,
        "turns": 0,
        "reservations": 1,
        "usage_records": 2,
    }


async def listed(store: SqliteStore) -> list[Any]:
    return await store.list_invocations("user-1", "writer", before=None, limit=10)


async def test_a_purge_of_many_goes_in_batches_and_deletes_all(filed: Filed) -> None:
    store = filed.store
    for number in range(PURGE_BATCH + 5):
        await store.create_invocation(new(number), ROOMY, NOW)
        await store.finish(ending(number), NOW)

    assert await store.purge(NOW + 1, 0.0) == PURGE_BATCH + 5

    assert filed.counts()["invocations"] == 0
    assert await store.purge(NOW + 1, 0.0) == 0


async def test_a_purge_keeps_buckets_for_25_hours_months_for_13_and_leases_that_are_held(
    filed: Filed,
) -> None:
    store = filed.store
    later_ms = NOW + 395 * DAY_MS  # 2027-12-21
    for number, at_ms in enumerate(
        (NOW - 30 * DAY_MS, NOW, later_ms - 26 * HOUR_MS, later_ms - 25 * HOUR_MS)
    ):
        await charge(store, number, 10, at_ms)
    await store.renew_lease("owner-1", later_ms)
    await store.renew_lease("owner-2", later_ms + 1)

    await store.purge(later_ms, 86_400.0)

    assert [period for (period,) in filed.rows("SELECT period_id FROM usage ORDER BY 1")] == [
        "10min:2027-12-20:15:40",
        "monthly:2026-11",
        "monthly:2027-12",
    ]
    assert filed.rows("SELECT owner FROM leases") == [("owner-2",)]


async def test_a_purge_deletes_the_denials_that_have_ended(filed: Filed) -> None:
    for subject, until_ms in (("ended", NOW), ("going on", NOW + 1), ("for ever", None)):
        await filed.store.deny(subject, NOW - HOUR_MS, until_ms)

    await filed.store.purge(NOW, 86_400.0)

    assert filed.rows("SELECT subject FROM denials ORDER BY subject") == [("for ever",), ("going on",)]


async def test_a_store_says_how_many_calls_wait(filed: Filed) -> None:
    call = asyncio.ensure_future(filed.store.account("user-1", NOW))
    await asyncio.sleep(0)
    waiting = filed.store.waiting
    await call

    assert (waiting, filed.store.waiting) == (1, 0)


async def test_a_running_invocation_is_never_purged_and_can_be_claimed_after_its_lease_is_gone(
    filed: Filed,
) -> None:
    store = filed.store
    await store.renew_lease("owner-1", NOW + 1)
    await store.create_invocation(new(), ROOMY, NOW)

    await store.purge(NOW + 40 * DAY_MS, 0.0)

    assert await store.load_invocation("inv_1") == running()
    assert len(await store.claim_expired("owner-2", NOW + 40 * DAY_MS, limit=1)) == 1


async def test_a_paused_invocation_is_never_purged_and_goes_on_all_the_same(filed: Filed) -> None:
    store = filed.store
    await store.create_invocation(new(), ROOMY, NOW)
    waiting = await after_pause(store, pausing(), NOW)

    deleted = await store.purge(NOW + 40 * DAY_MS, 0.0)

    assert deleted == 0
    assert await store.load_invocation("inv_1") == waiting
    claim = await store.resume("inv_1", 1, "owner-2", NOW + 40 * DAY_MS, limits=ROOMY)
    assert claim.input == b'{"prompt":"hi"}'
