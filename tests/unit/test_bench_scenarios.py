"""The bench's scenarios hold together: what they ask for is served, a quick run is a part of a full one."""

import json
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from bench.certificates import certify
from bench.loadings import LOW_RATE, Offer, saturating
from bench.measuring import FULL, QUICK, Scenario
from bench.peers import SUBJECTS, program_of
from bench.report import Row
from bench.scenarios import SCENARIOS
from bench.script import Plan
from bench.subjects import Running, SubjectMissing, Upstream, catalog, chat_body
from service.config import Catalog

PLAN = Plan(first_ms=1, deltas=5, interval_us=1000)


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("effort", [FULL, QUICK], ids=["full", "quick"])
def test_every_plan_can_be_told_by_its_model_id(name: str, effort: object) -> None:
    plans = [
        plan
        for subject in SCENARIOS[name].subjects
        for plan in SCENARIOS[name].plans(subject, FULL if effort is FULL else QUICK)
    ]

    assert [Plan.parse(plan.model_id) for plan in plans] == plans


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_what_is_measured_once_or_quickly_is_a_subject_of_its_scenario(scenario: Scenario) -> None:
    known = {*scenario.subjects, *scenario.alone}

    assert {*scenario.once, *(scenario.quick or ())} <= known
    assert names(scenario.rows(None, few=False)) == [*scenario.alone, *scenario.subjects]


def test_scenarios_of_one_group_agree_about_the_upstream() -> None:
    groups: dict[str, set[bool]] = {}
    for scenario in SCENARIOS.values():
        if scenario.group is not None:
            groups.setdefault(scenario.group, set()).add(scenario.tls)

    assert {group: len(found) for group, found in groups.items()} == dict.fromkeys(groups, 1)
    assert groups.keys() == {"one by one", "flat"}


def test_rows_are_those_chosen_or_the_few_of_a_quick_run_or_all() -> None:
    scenario = replace(SCENARIOS["tls"], quick=("headrace",))

    assert names(scenario.rows(None, few=True)) == ["headrace"]
    assert names(scenario.rows(["copy", "litellm"], few=True)) == ["copy"]
    assert names(scenario.rows(None, few=False)) == [
        *("copy", "nginx", "headrace", "obvious"),
        "headrace, chat/completions",
    ]


def test_a_stream_of_a_window_lasts_until_the_window_is_over() -> None:
    plan = Offer(streams=10, interval_us=20_000, burst=4, ramp_s=2.0).plan(FULL)

    assert (plan.burst, plan.interval_us) == (4, 20_000)
    assert plan.deltas / plan.burst * 0.02 >= 2.0 + 1.0 + FULL.window_s
    assert LOW_RATE.plan(FULL).stamped is True


def test_a_subject_that_saturates_early_is_offered_less() -> None:
    assert [saturating(name).streams for name in ("copy", "headrace", "obvious", "litellm")] == [
        800,
        800,
        400,
        100,
    ]


def test_callers_ask_in_turn_and_the_length_is_that_of_the_body() -> None:
    running = Running(
        1, 8080, lambda plan: f"/x/{plan.model_id}", headers=("A: 1\r\n", "A: 2\r\n"), body=chat_body
    )

    first, second = running.asking(PLAN).requests
    head, _, body = first.partition("\r\n\r\n")

    assert head.startswith("POST /x/bench-1-5-1000-1 HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}" in head
    assert (json.loads(body)["model"], json.loads(body)["stream"]) == (PLAN.model_id, True)
    assert second == first.replace("A: 1", "A: 2")


def test_a_certificate_is_trusted_by_whom_it_is_given_to(tmp_path: Path) -> None:
    made = certify(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server)
    client = ssl.create_default_context(cafile=str(made.trusted))

    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(here, there, server_hostname="127.0.0.1")
    answering = server.wrap_bio(there, here, server_side=True)
    for _ in range(3):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue

    assert asking.version() == "TLSv1.3"
    assert Upstream(1, 443, made.trusted).url == "https://127.0.0.1:443"


def test_a_peer_that_is_not_installed_says_what_installs_it(tmp_path: Path) -> None:
    with pytest.raises(SubjectMissing) as missing:
        program_of("smg", tmp_path)

    assert str(missing.value) == "smg is not in .bench/smg: `make bench` installs it"
    assert {"litellm", "portkey", "smg"} <= SUBJECTS.keys()


@pytest.mark.parametrize(("model", "endpoint"), [("bedrock", "bedrock"), ("chat", "openai")])
def test_headrace_knows_a_runtime_for_each_plan(tmp_path: Path, model: str, endpoint: str) -> None:
    settings = tmp_path / "headrace.toml"
    settings.write_text(catalog([PLAN, PLAN], Upstream(1, 8080), model), encoding="utf-8")

    known = Catalog.load(settings)

    assert known.runtimes.keys() == {PLAN.model_id}
    assert known.upstreams[model].kind == endpoint
    assert known.runtimes[PLAN.model_id].model == f"{model}/{PLAN.model_id}"
