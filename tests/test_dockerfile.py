"""The Dockerfile as text: pinned, and given what it copies and nothing else.

`tests/stacks` compares it with the task definition, and `.ci/image` builds and runs it.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions(text: str) -> list[tuple[str, str]]:
    """Return name and arguments of each instruction, comments and line ends gone."""
    plain = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE))
    return [
        (name, " ".join(rest.split())) for name, rest in re.findall(r"^([A-Z]+) (.*)$", plain, re.MULTILINE)
    ]


DOCKERFILE = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def arguments(name: str) -> list[str]:
    return [rest for each, rest in DOCKERFILE if each == name]


def test_both_stages_have_one_base_pinned_by_its_digest() -> None:
    version = r"python:3\.13\.\d+-slim"

    assert re.fullmatch(rf"BASE={version}@sha256:[0-9a-f]{{64}}", arguments("ARG")[0])
    assert arguments("FROM") == ["${BASE} AS build", "${BASE}"]


def test_packages_are_hashed_wheels() -> None:
    (install,) = [command for command in arguments("RUN") if " install " in command]

    assert {"--require-hashes", "--only-binary :all:"} <= set(re.findall(r"--\S+(?: :\S+)?", install))
    assert re.findall(r"-r (\S+)", install) == ["/build/service.txt", "/build/requirements.txt"]


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {
        source.rstrip("/")
        for each in arguments("COPY")
        if not each.startswith("--from")
        for source in each.split()[:-1]
    }
    admitted = [rule[1:] for rule in rules if rule.startswith("!")]

    assert rules == ["*", *(f"!{path}" for path in admitted), "**/__pycache__", "**/*.py[cod]"]
    # A file of an admitted folder is admitted with it.
    assert {path for path in copied if not any(path.startswith(f"{each}/") for each in admitted)} == set(
        admitted
    )
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_it_says_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (labels,) = arguments("LABEL")

    assert f'org.opencontainers.image.version="{project["version"]}"' in labels.split()
    assert f'org.opencontainers.image.licenses="{project["license"]}"' in labels.split()


@pytest.mark.parametrize(
    ("under", "status"), [({}, 0), ({"CI": "true"}, 1), ({"CI": "true", "IMAGE_STAGE": "optional"}, 0)]
)
def test_a_machine_that_can_not_run_the_container_stage_fails_under_ci_unless_it_is_optional_there(
    tmp_path: Path, under: dict[str, str], status: int
) -> None:
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\necho Other\n", encoding="utf-8")
    uname.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "IMAGE_STAGE")}
    environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | under

    run = subprocess.run(
        [ROOT / ".ci" / "image"], env=environment, capture_output=True, text=True, check=False, timeout=30
    )

    assert run.returncode == status
    assert run.stdout.startswith("image: skipped: it needs root on Debian")
