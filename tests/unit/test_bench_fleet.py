"""The model of a fleet: its arithmetic, and that docs/performance.md is what it makes of the kept figures."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import fleet, results
from bench.fleet_model import (
    TASK_STREAMS,
    Fleet,
    Measured,
    cell_tasks,
    lease_reads_per_s,
    look_reads_per_s,
)
from bench.fleet_prices import QUOTAS, Load, tiered

MEASURED = Measured(delta_us=25.0, invocation_ms=0.5, stream_kb=60.0, heartbeats_ms=2.5)


def loads(size: int) -> dict[Load, float]:
    return {quota.load: load for quota, load in Fleet(size, MEASURED).loads()}


def test_a_task_has_as_many_streams_as_its_cpu_memory_and_setting_allow() -> None:
    # 20 deltas of 25 us, a tenth of an invocation of 0.5 ms and the heartbeats are 552.5 us a second.
    assert Fleet(1_000, MEASURED).by_cpu == int(0.6 / 552.5e-6) == 1085
    assert Fleet(1_000, MEASURED).streams_per_task == TASK_STREAMS
    assert Fleet(1_000, replace(MEASURED, delta_us=250.0)).streams_per_task == 118
    assert Fleet(1_000, replace(MEASURED, stream_kb=10_000)).streams_per_task == 229


@pytest.mark.parametrize(("streams", "tasks"), [(1, 2), (1_000, 2), (1_001, 3), (100_000, 200)])
def test_there_are_tasks_for_all_streams_and_two_at_least(streams: int, tasks: int) -> None:
    assert Fleet(streams, MEASURED).tasks == tasks


def test_units_are_those_of_the_answers_and_of_the_processes() -> None:
    of = Fleet(1_000, MEASURED)

    assert of.answers_per_s == 100
    assert of.writes_per_s == pytest.approx(100 * 34 + 2 * 0.1)
    assert of.reads_per_s == pytest.approx(100 * 6 + 2 * 4 + 2 / 1.8 + 2 * 2 / 2 / 1.8)


@pytest.mark.parametrize("reads_per_s", [lease_reads_per_s, look_reads_per_s])
def test_leases_are_read_with_the_square_of_the_tasks(reads_per_s: Callable[[float], float]) -> None:
    assert reads_per_s(2_000) == pytest.approx(4 * reads_per_s(1_000))


def test_loads_stand_beside_their_quotas_the_worst_first() -> None:
    found = Fleet(10_000_000, MEASURED).loads()
    times = [load / quota.default for quota, load in found]

    assert times == sorted(times, reverse=True)
    assert {quota.load for quota, _ in found} == set(Load) == {quota.load for quota in QUOTAS}
    assert loads(100_000)[Load.REQUESTS] == 10_000
    assert loads(1_000)[Load.TARGETS] == 2


def test_a_cell_is_as_large_as_its_leases_can_be_read() -> None:
    assert lease_reads_per_s(cell_tasks()) <= 3_000 < lease_reads_per_s(cell_tasks() + 1)


def test_a_fleet_is_made_of_cells_that_can_read_their_leases() -> None:
    streams = 3 * cell_tasks() * TASK_STREAMS
    three, four = Fleet(streams, MEASURED), Fleet(streams + 1, MEASURED)

    assert (three.cells, four.cells) == (3, 4)
    assert three.reads_per_s == pytest.approx(3 * Fleet(streams // 3, MEASURED).reads_per_s)


def test_a_tier_has_its_price_and_the_rest_the_next() -> None:
    tiers = ((10.0, 3.0), (20.0, 2.0), (math.inf, 1.0))

    assert [tiered(amount, tiers) for amount in (0, 10, 15, 30, 40)] == [0, 30, 40, 70, 80]


def test_a_fleet_of_twice_the_streams_never_costs_less() -> None:
    small, large = (Fleet(size, MEASURED).dollars_an_hour() for size in (100_000, 200_000))

    assert [name for name in small if large[name] < small[name]] == []


def test_without_the_figures_that_it_needs_nothing_is_written(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("kept", encoding="utf-8")

    assert fleet.write({}, document) is False
    assert document.read_text(encoding="utf-8") == "kept"


def test_the_document_says_what_the_kept_figures_come_to(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(fleet.PAGE.read_text(encoding="utf-8"), encoding="utf-8")

    assert fleet.write(results.load(), document) is True
    assert document.read_text(encoding="utf-8") == fleet.PAGE.read_text(encoding="utf-8")
    assert "| streams at once | 1,000 | 100,000 | 10,000,000 |" in document.read_text(encoding="utf-8")
