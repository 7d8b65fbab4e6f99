"""What the task definition and the Dockerfile must agree on, and what the CDK hands to the builder."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.stacks.test_agreement import container
from tests.synthesis import ROOT, Stacks
from tests.test_dockerfile import arguments

pytestmark = pytest.mark.timeout(180)


def test_the_task_runs_the_image_as_it_is_meant(stacks: Stacks) -> None:
    task = container(stacks)
    (port,) = [str(mapping["ContainerPort"]) for mapping in task["PortMappings"]]
    settings = dict(part.split("=", 1) for part in shlex.split(arguments("ENV")[0]))

    assert [task["User"]] == arguments("USER")
    assert [port] == arguments("EXPOSE") == [settings["HEADRACE_PORT"]]
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    assert [name for name in ("Command", "EntryPoint", "WorkingDirectory") if name in task] == []


def test_ecs_and_the_image_check_the_same_health(stacks: Stacks) -> None:
    check = container(stacks)["HealthCheck"]
    (own,) = arguments("HEALTHCHECK")
    options, command = own.split(" CMD ")

    assert ["CMD", *json.loads(command)] == check["Command"]
    assert dict(re.findall(r"--([a-z-]+)=(\d+)", options)) == {
        "interval": str(check["Interval"]),
        "timeout": str(check["Timeout"]),
        "start-period": str(check["StartPeriod"]),
        "retries": str(check["Retries"]),
    }


def test_the_cdk_hands_over_what_the_image_needs(dev: Stacks) -> None:
    (asset,) = dev.assembly.glob("asset.*/Dockerfile")
    staged = {path.relative_to(asset.parent) for path in asset.parent.rglob("*") if path.is_file()}
    code = {
        path.relative_to(ROOT)
        for top in ("service", "agents")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert staged - code == {
        Path(name) for name in ("Dockerfile", ".dockerignore", "headrace.toml", "requirements/service.txt")
    }
    assert code - staged == set()
