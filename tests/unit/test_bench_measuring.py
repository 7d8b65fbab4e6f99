"""A run of the bench goes on when something fails, and keeps what it has measured when it is stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import measuring, results
from bench.measuring import QUICK, Bed, Figures, Group, Scenario, measure
from bench.processes import Processes, SubjectFailed
from bench.report import Row
from bench.subjects import Running, SubjectMissing, Upstream


def scenario(name: str, figures: Callable[[Bed], Figures], **more: object) -> Scenario:
    given: dict[str, object] = {"subjects": {}, "columns": (), "plans": lambda _name, _effort: []}
    return Scenario(name=name, figures=figures, alone=("direct",), **{**given, **more})  # type: ignore[arg-type]


warm_up = Bed.warm_up  # `without_processes` replaces it


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "start_upstream", lambda _processes, *, tls: Upstream(1, 1))
    monkeypatch.setattr(Bed, "warm_up", lambda _bed: None)


def said(_line: str) -> None:
    """Nobody listens."""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (SubjectFailed("no delta arrived"), "failed: no delta arrived"),
        (KeyError("us"), "failed: KeyError: 'us'"),
    ],
    ids=["the subject's", "the bench's"],
)
def test_a_scenario_that_fails_does_not_end_the_others(fault: Exception, reason: str) -> None:
    def fail(_bed: Bed) -> Figures:
        raise fault

    group = {
        "first": (scenario("first", fail), [Row("direct")]),
        "second": (scenario("second", lambda _bed: {"us": 1.0}), [Row("direct")]),
    }

    measure(group, 0, QUICK, said)

    ((first,), (second,)) = (rows for _, rows in group.values())
    assert (first.runs, first.reason) == ([{}], reason)
    assert (second.runs, second.reason) == ([{"us": 1.0}], None)


@pytest.mark.parametrize(
    ("fault", "runs", "reason"),
    [
        (SubjectMissing("x is not there"), 0, "x is not there"),
        (OSError("no port"), 2, "failed: OSError: no port"),
    ],
    ids=["missing", "failed"],
)
def test_a_subject_that_does_not_start_is_a_row_that_says_so(
    fault: Exception, runs: int, reason: str
) -> None:
    def start(*_given: object) -> None:
        raise fault

    row = Row("x")
    group = {"first": (scenario("first", lambda _bed: {}, subjects={"x": start}), [row])}

    for run in range(3):
        measure(group, run, QUICK, said)

    assert (len(row.runs), row.reason) == (runs, reason)


def test_what_only_sets_the_scale_is_measured_in_the_first_round() -> None:
    row = Row("direct")
    group = {"first": (scenario("first", lambda _bed: {"us": 1.0}, once=("direct",)), [row])}

    for run in range(3):
        measure(group, run, QUICK, said)

    assert row.runs == [{"us": 1.0}]


def test_a_run_that_is_stopped_has_kept_its_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "results.json"
    load, save = results.load, results.save

    def stop_in_the_second_round(group: Group, run: int, _effort: object, _say: object) -> None:
        if run:
            raise KeyboardInterrupt
        for _, rows in group.values():
            rows[0].runs.append({"first_us": 40.0, "verified_us": 1.5})

    monkeypatch.setattr(command, "measure", stop_in_the_second_round)
    monkeypatch.setattr(command, "_prepare", lambda: None)
    monkeypatch.setattr(command, "_publish", lambda _sections: None)
    monkeypatch.setattr(results, "load", lambda: load(kept))
    monkeypatch.setattr(results, "save", lambda sections: save(sections, kept))

    with pytest.raises(KeyboardInterrupt):
        command.main(["token"])

    assert load(kept)["token"].by_name["headrace"].median("first_us") == 40.0
    assert capsys.readouterr().out == ""


def test_each_caller_has_asked_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Bed, "load", lambda _bed, _plan, *, times, **_more: asked.append(times))
    callers = [f"Authorization: Bearer {number}\r\n" for number in range(64)]

    for headers in (callers, [""]):
        running = Running(1, 1, lambda _plan: "/", headers=headers)
        warm_up(Bed(Processes(), Upstream(1, 1), running, "headrace", QUICK))

    assert asked == [64, 20]
