"""Several processes on one SQLite file, and what a killed one leaves.

The processes are this module, run as a script: `test_sqlite_processes.py JOB PATH NUMBER`.
"""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.config import Limits
from service.events import START
from service.stores import Store
from service.stores.sqlite import SqliteStore
from tests.contracts.store_cases import (
    COMPLETED,
    NOW,
    ROOMY,
    block,
    charge,
    ending,
    entry,
    new,
    settlement,
    used,
)

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 3
WAIT_S = 30.0
EDGE = Limits(daily_tokens=1_000, monthly_tokens=10**6, concurrent_invocations=10**6, invocation_tokens=900)


# ------------------------------------------------------------ in the processes


async def submit(store: Store, number: int) -> Counter[str]:
    """Submit 40 at once, and count the outcomes."""
    wait_for_the_others()
    calls = [store.create_invocation(new(number * 1_000 + n, tokens=60), EDGE, NOW) for n in range(40)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(getattr(outcome, "code", type(outcome).__name__) for outcome in outcomes)


async def take_over(store: Store, number: int) -> list[str]:
    """Claim in small pieces until there is nothing left."""
    owner = f"survivor-{number}"
    await store.renew_lease(owner, NOW + 1_000_000)
    wait_for_the_others()
    claimed: list[str] = []
    while claims := await store.claim_expired(owner, NOW, limit=3):
        claimed += [claim.invocation.invocation_id for claim in claims]
    return claimed


async def write_for_ever(store: Store, number: int) -> None:
    """Run whole invocations, several at once, and say which ones the store has acknowledged."""
    numbers = count(number * 1_000_000)

    async def run() -> None:
        for invocation in numbers:
            await store.create_invocation(new(invocation, tokens=90), ROOMY, NOW)
            await store.append_events([entry(1, 5, invocation)], NOW)
            await store.settle(settlement(invocation, 1, used(60)), NOW, block(6, 8))
            await store.finish(ending(invocation, 9), NOW)
            os.write(1, b"%d\n" % invocation)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(run())


def wait_for_the_others() -> None:
    os.write(1, b"ready\n")
    sys.stdin.readline()


async def child(job: str, path: str, number: int) -> None:
    async with SqliteStore.open(path) as store:
        jobs: dict[str, Any] = {"submit": submit, "take-over": take_over, "write": write_for_ever}
        os.write(1, json.dumps(await jobs[job](store, number)).encode() + b"\n")


# ------------------------------------------------------------ the tests


@contextmanager
def process(job: str, path: Path, number: int) -> Iterator["subprocess.Popen[str]"]:
    """Run one of the jobs in a process of its own; it does not outlive the block."""
    command = [sys.executable, __file__, job, str(path), str(number)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, cwd=ROOT, **pipes) as started:
        try:
            yield started
        finally:
            started.kill()


def results(job: str, path: Path) -> list[Any]:
    """Run a job in several processes that begin together; returns what each said."""
    with ExitStack() as stack:
        started = [stack.enter_context(process(job, path, number)) for number in range(PROCESSES)]
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        said = []
        for one in started:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in started:
            said.append(json.loads(one.communicate(timeout=WAIT_S)[0]))
            assert one.returncode == 0
        return said


@pytest.mark.promise("quota-exact-under-concurrency")
async def test_submissions_of_several_processes_admit_exactly_those_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteStore.open(path) as store:
        await charge(store, 999_999, 101, NOW)

        said = await asyncio.to_thread(results, "submit", path)

        outcomes = sum(map(Counter, said), Counter[str]())
        assert outcomes == {"Invocation": 14, "quota-exceeded": PROCESSES * 40 - 14}
        assert (await store.account("user-1", NOW)).reserved_tokens == 840


async def test_processes_that_take_over_at_once_share_out_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteStore.open(path) as store:
        for number in range(30):
            await store.create_invocation(new(number, owner="dead"), ROOMY, NOW)

        said = await asyncio.to_thread(results, "take-over", path)

        assert sorted(name for claimed in said for name in claimed) == sorted(
            f"inv_{number}" for number in range(30)
        )
        attempts = [await store.load_invocation(f"inv_{number}") for number in range(30)]
        assert {record.attempt for record in attempts if record} == {2}


@pytest.mark.promise("killed-process-consistent-store")
def test_a_process_that_is_killed_while_it_writes_leaves_every_decision_whole(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    acknowledged: list[int] = []
    for number, lines in enumerate((1, 30, 150)):
        with process("write", path, number) as writer:
            assert writer.stdout is not None
            acknowledged += [int(writer.stdout.readline()) for _ in range(lines)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
            assert writer.wait(WAIT_S) == -signal.SIGKILL

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        there = [name for (name,) in db.execute("SELECT invocation_id FROM invocations")]
    assert {f"inv_{number}" for number in acknowledged} <= set(there)
    asyncio.run(check_whole(path, there, {f"inv_{number}" for number in acknowledged}))


async def check_whole(path: Path, there: list[str], acknowledged: set[str]) -> None:
    """Every decision is there whole or not at all, and every acknowledged one is there."""
    async with SqliteStore.open(path) as store:
        account = await store.account("user-1", NOW)
        settled = held = 0
        for invocation_id in there:
            record = await store.load_invocation(invocation_id)
            assert record is not None
            blocks = await store.read_events(invocation_id, START, limit_bytes=10**6)
            events = [event for piece in blocks for event in piece.events]
            ended = record.state.is_terminal
            assert ended or invocation_id not in acknowledged
            # What is stored is a whole prefix of the four decisions, the settlement with its events.
            whole = [*block(1, 8).events, COMPLETED]
            assert events == whole[: len(events)]
            assert len(events) in ((9,) if ended else (0, 5, 8))
            assert record.usage == (used(60) if len(events) > 5 else type(record.usage)())
            settled += record.usage.counted_tokens
            held += 0 if record.usage.counted_tokens else 90
        assert (account.windows[0].used_tokens, account.reserved_tokens) == (settled, held)


if __name__ == "__main__":
    asyncio.run(child(sys.argv[1], sys.argv[2], int(sys.argv[3])))
