"""The bench's figures: medians, ratios, goals, the pages that are made of them, and that the pages are so."""

import json
from pathlib import Path

import pytest

from bench import chart, pages, results, targets
from bench.report import Column, Row, as_markdown, as_text, cells, reasons
from bench.results import Section
from bench.scenarios import SCENARIOS

COLUMNS = (
    Column("us", "us", 1, spread=True),
    Column("x copy", "us", 2, per="copy"),
    Column("added", "us", 1, minus="copy"),
)


def runs(name: str, *values: float, figure: str = "us") -> Row:
    return Row(name, [{figure: value} for value in values])


def section(*rows: Row, quick: bool = False) -> Section:
    return Section(
        "python -m bench x --runs 3", "2026-11-21", "2 cores of a machine", "Python 3.11", quick, list(rows)
    )


def test_a_cell_is_the_median_with_its_spread_ratio_and_difference() -> None:
    table = cells([runs("copy", 11, 10, 30), runs("ours", 22, 20, 21)], COLUMNS)

    assert table == [
        ["subject", "us", "x copy", "added"],
        ["copy", "11.0 (10.0-30.0)", "1.00", "0.0"],
        ["ours", "21.0 (20.0-22.0)", "1.91", "10.0"],
    ]


def test_a_row_without_figures_has_dashes_and_its_reason() -> None:
    failed, missing = Row("ours"), Row("smg", reason="smg is not there: install it\nmore")
    failed.fail("3 x status 503")
    rows = [runs("copy", 10), failed, missing]

    assert cells(rows, COLUMNS)[2:] == [["ours", "-", "-", "-"], ["smg", "-", "-", "-"]]
    assert reasons(rows) == [
        "ours: failed: 3 x status 503 (1 of 1 runs)",
        "smg: smg is not there: install it",
    ]
    assert (failed.failed, missing.failed, failed.median("us")) == (True, False, None)


def test_a_run_that_failed_is_said_and_the_others_stay() -> None:
    row = runs("ours", 20)
    row.fail("3 x status 503")
    row.runs.append({"us": 22})

    assert cells([runs("copy", 10), row], COLUMNS)[2] == ["ours", "21.0 (20.0-22.0)", "2.10", "11.0"]
    assert reasons([row]) == ["ours: failed: 3 x status 503 (1 of 3 runs)"]
    assert row.given_up is False


def test_a_subject_that_is_missing_or_failed_twice_is_given_up() -> None:
    twice = Row("ours")
    for _ in range(2):
        twice.fail("it does not listen")

    assert (twice.given_up, Row("smg", reason="it is not there").given_up) == (True, True)


def test_a_ratio_to_a_row_that_is_not_there_is_a_dash() -> None:
    assert cells([runs("ours", 20)], COLUMNS)[1] == ["ours", "20.0", "-", "-"]


def test_tables_are_aligned_for_a_terminal_and_for_markdown() -> None:
    table = [["subject", "us"], ["copy", "1,000"]]

    assert as_text(table) == "subject     us\ncopy     1,000"
    assert as_markdown(table) == "| subject | us |\n| --- | --: |\n| copy | 1,000 |"


def test_the_summary_has_ratios_to_headrace_and_takes_off_the_direct_row() -> None:
    late = [runs("direct", 0.1, figure="late_p50"), runs("copy", 0.15, figure="late_p50")]
    sections = {
        "saturation": section(runs("copy", 10), runs("headrace", 20), runs("litellm", 500)),
        "delta-latency": section(*late, runs("headrace", 0.2, figure="late_p50")),
    }

    assert pages.summary(sections) == [
        ["subject", "us CPU a delta, 40,000/s", "ms added to a delta, p50"],
        ["copy", "10.0 (0.50x)", "0.05 (0.50x)"],
        ["headrace", "20.0", "0.10"],
        ["litellm", "500.0 (25x)", "-"],
    ]


def test_a_goal_is_looked_at_run_by_run() -> None:
    target = targets.TARGETS[0]
    sections = {"saturation": section(runs("copy", 10, 10, 10), runs("headrace", 15, 19, 21))}

    table = targets.table(sections, [target, targets.TARGETS[1]])

    assert table[1][1:] == ["at most 2", "2.10", "1.50", "2 of 3"]
    assert table[2][1:] == ["at least 20", "-", "-", "not measured"]


def test_a_run_that_failed_holds_no_goal() -> None:
    ours = runs("headrace", 15, 16)
    ours.runs.insert(1, {})
    sections = {"saturation": section(runs("copy", 10, 10, 10), ours)}

    assert targets.table(sections, targets.TARGETS[:1])[1][1:] == ["at most 2", "1.60", "1.50", "2 of 3"]


def test_a_goal_that_is_missed_says_what_bounds_it() -> None:
    ours = section(runs("copy", 10, 10), runs("headrace", 15, 21))
    goal = targets.TARGETS[0]

    assert targets.missed({"saturation": ours}) == [f"{goal.says}: {goal.bounded_by}"]
    assert f"- {goal.says}: {goal.bounded_by}" in pages.results_page({"saturation": ours})
    assert [goal.says for goal in targets.TARGETS if not goal.bounded_by] == []


def test_a_goal_to_reach_is_worst_where_it_is_smallest() -> None:
    sections = {"saturation": section(runs("litellm", 400, 600), runs("headrace", 25, 25))}

    assert targets.table(sections, [targets.TARGETS[1]])[1][1:] == ["at least 20", "16.0", "24.0", "1 of 2"]


def test_pages_are_made_of_whatever_there_is() -> None:
    failed = Row("headrace")
    failed.fail("it does not listen")
    sections = {name: section(failed, Row("copy", reason="stopped")) for name in SCENARIOS}

    page = pages.results_page(sections)

    assert page.count("- headrace: failed: it does not listen (1 of 1 runs)") == len(SCENARIOS)
    assert "0 of 1" in page
    assert "not measured" in chart.drawn(sections)


def test_every_goal_asks_for_a_figure_that_its_scenario_shows() -> None:
    shown = {column.figure for scenario in SCENARIOS.values() for column in scenario.columns}
    asked = {kept.scenario for kept in pages.KEPT}

    assert asked <= SCENARIOS.keys()
    assert {kept.figure for kept in pages.KEPT} <= shown


def test_sections_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    row = Row("smg", reason="it is not there")
    sections = {"saturation": section(runs("copy", 10.25, 11), row, quick=True)}

    results.save(sections, path)

    assert results.load(path) == sections
    assert results.load(tmp_path / "none.json") == {}
    assert '{ "us": 10.25 }' in path.read_text(encoding="utf-8")


def test_the_chart_has_a_dot_for_each_figure_and_escapes_nothing_foreign() -> None:
    drawn = chart.drawn({"saturation": section(runs("copy", 12), runs("headrace", 20), Row("smg"))})

    assert drawn.count("<circle") == 2
    assert (">12</text>" in drawn, ">20</text>" in drawn, "smg (Rust)" in drawn) == (True, True, True)
    assert (drawn[:5], drawn[-7:]) == ("<svg ", "</svg>\n")


def test_a_section_says_command_runs_day_machine_and_reasons() -> None:
    rows = [runs("copy", 10, 11, 12), Row("smg", reason="smg is not there")]

    page = pages.results_page({"saturation": section(*rows)})

    assert "`python -m bench x --runs 3`, 3 runs, 2026-11-21. 2 cores of a machine; Python 3.11." in page
    assert "- smg: smg is not there" in page


@pytest.mark.parametrize(
    ("made", "kept"), [(pages.results_page, pages.RESULTS), (chart.drawn, chart.PATH)], ids=["page", "chart"]
)
def test_what_is_published_is_what_was_measured(made: object, kept: Path) -> None:
    assert callable(made)
    assert made(results.load()) == kept.read_text(encoding="utf-8")


def test_the_kept_figures_are_of_scenarios_and_columns_that_there_are() -> None:
    kept = json.loads(results.PATH.read_text(encoding="utf-8"))

    assert kept.keys() <= SCENARIOS.keys()
    assert kept.keys() >= {"saturation", "requests", "idle"}
