"""`python -m infra.app`: needs no account and asks nobody; each fault of a stage is one clear line."""

import json
from pathlib import Path

import pytest

from tests.synthesis import CONFIGURATIONS, PROD, ROOT, Stacks, run, settings

pytestmark = pytest.mark.timeout(180)


def test_nothing_is_looked_up(stacks: Stacks) -> None:
    manifest = json.loads((stacks.assembly / "manifest.json").read_text(encoding="utf-8"))
    stack_environments = {
        artifact["environment"] for artifact in manifest["artifacts"].values() if "environment" in artifact
    }

    assert "missing" not in manifest
    assert stack_environments == {"aws://unknown-account/us-east-1"}


def test_two_syntheses_are_the_same(dev: Stacks, image_directory: Path, tmp_path: Path) -> None:
    done = run(
        "-m", "infra.app", *settings(image_directory, CONFIGURATIONS["dev"]), "--output", str(tmp_path)
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (Stacks(tmp_path).state, Stacks(tmp_path).gateway) == (dev.state, dev.gateway)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (["stage=test"], "stage must be one of dev, prod, not 'test'"),
        (
            [value for value in PROD if not value.startswith(("domain", "hosted"))],
            "domain is not set: prod speaks TLS to its load balancer, which takes a domain",
        ),
        (["region=us-east-9x"], "region must be a Region such as eu-west-1, not 'us-east-9x'"),
        (
            ["region=eu-west-1"],
            "the model 'us.anthropic.claude-sonnet-4-5-20250929-v1:0' can't be called from eu-west-1",
        ),
    ],
)
def test_a_stage_that_can_not_be_is_one_clear_line(
    image_directory: Path, values: list[str], fault: str
) -> None:
    done = run("-m", "infra.app", *settings(image_directory, values))

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"headrace: {fault}\n")


def test_without_a_dockerfile_it_says_where_one_is_missing(image_directory: Path, tmp_path: Path) -> None:
    done = run("-m", "infra.app", *settings(tmp_path, []))

    assert (done.returncode, done.stderr) == (
        2,
        f"headrace: image_directory: there is no Dockerfile in {tmp_path.resolve()}\n",
    )


def test_the_command_line_of_the_cdk_runs_the_same_program() -> None:
    cdk = json.loads((ROOT / "cdk.json").read_text(encoding="utf-8"))

    assert cdk["app"] == ".venv-infra/bin/python -m infra.app"
    assert "INFRA_PY := .venv-infra/bin/python\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
