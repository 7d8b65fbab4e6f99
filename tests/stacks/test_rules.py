"""The templates pass cdk-nag's AwsSolutions and cfn-lint; what stays of the first has a reason each."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.synthesis import CONFIGURATIONS, PYTHON, Stacks, run, settings

OPEN_BUCKET = """
import sys
from aws_cdk import aws_s3 as s3
from infra.app import build, open_app
from infra.nag import findings
app, stage, catalog = open_app(sys.argv[1:])
stacks = build(app, stage, catalog)
s3.Bucket(stacks[1], "Bucket")
print(*findings(app, stacks), sep="\\n")
"""

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("stage", CONFIGURATIONS)
def test_cdk_nag_finds_nothing_that_is_not_acknowledged(stage: str, image_directory: Path) -> None:
    done = run("-m", "infra.nag", *settings(image_directory, CONFIGURATIONS[stage]))

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_acknowledgement_has_a_reason(stacks: Stacks) -> None:
    acknowledged = {
        rule.removeprefix("Annotation::"): reason
        for path in stacks.assembly.glob("*.metadata.json")
        for entries in json.loads(path.read_text(encoding="utf-8")).values()
        for entry in entries
        if entry["type"] == "aws:cdk:acknowledged-rules"
        for rule, reason in entry["data"].items()
        if "AwsSolutions" in rule
    }

    assert {rule.partition("[")[0] for rule in acknowledged} <= {
        *("AwsSolutions-APIG4", "AwsSolutions-COG2", "AwsSolutions-COG3", "AwsSolutions-COG8"),
        *("AwsSolutions-ECS2", "AwsSolutions-ELB2", "AwsSolutions-IAM4", "AwsSolutions-IAM5"),
    }
    assert [rule for rule, reason in acknowledged.items() if not re.fullmatch(r"[A-Z].{40,}\.", reason)] == []


def test_a_bucket_that_nobody_looked_after_is_found(image_directory: Path) -> None:
    done = run("-c", OPEN_BUCKET, *settings(image_directory, CONFIGURATIONS["dev"]))

    assert (done.returncode, done.stderr) == (0, "")
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} == {
        *("AwsSolutions-S1", "AwsSolutions-S10"),
    }


@pytest.mark.parametrize("configuration", ["dev", "prod", "elsewhere"])
def test_cfn_lint_has_nothing_to_say(configuration: str, request: pytest.FixtureRequest) -> None:
    stacks: Stacks = request.getfixturevalue(configuration)
    lint = PYTHON.with_name("cfn-lint")
    named_zones = ("--ignore-checks", "W3010") if configuration == "elsewhere" else ()

    done = subprocess.run(
        (lint, "--include-checks", "W", *named_zones, "--", *sorted(stacks.assembly.glob("*.template.json"))),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "")
