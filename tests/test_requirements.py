"""The pinned requirements: direct imports are named, every pin is hashed, none says where to fetch it."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

from tests.architecture import Module, imports

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(path.name for path in REQUIREMENTS.glob("*.txt"))
# Packages that would run a script of their own when installed; `make` installs with --ignore-scripts.
WOULD_RUN = {"portkey": ["@portkey-ai/gateway"]}
NODE_LOCKS = sorted(path.parent.name for path in REQUIREMENTS.glob("*/package-lock.json"))
OURS = ("service", "local", "bench", "tests")
STACK = "infra"
NAMED_OTHERWISE = {"jwt": "pyjwt", "aws_cdk": "aws-cdk-lib"}
# Chosen by uvicorn by itself where it is installed; named so that every platform gets the same.
CHOSEN_BY_NAME = {"uvloop"}


def pins(name: str) -> dict[str, str]:
    """Return the versions by distribution name, in the names' normal form."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z][\w.-]*)(?:\[[\w,]+\])?==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", distribution).lower(): version for distribution, version in found}


def imported_by(*packages: str) -> set[str]:
    """Return the distributions that packages import."""
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    found = {name.partition(".")[0] for source in sources for name in imports(Module("", source), ())}
    return {
        NAMED_OTHERWISE.get(name, name.replace("_", "-"))
        for name in found - sys.stdlib_module_names - {*OURS, STACK}
    }


def test_what_the_service_imports_is_what_it_requires() -> None:
    assert imported_by("service") | CHOSEN_BY_NAME == pins("service.in").keys()


def test_what_everything_else_imports_is_required() -> None:
    required = pins("service.in").keys() | pins("dev.in").keys() | pins("model.in").keys()

    assert imported_by(*OURS) - required == set()


def test_what_the_stack_imports_is_what_it_requires() -> None:
    assert imported_by(STACK) | {"cfn-lint"} == pins("infra.in").keys()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_pins_that_it_was_made_for(name: str) -> None:
    asked = pins(name.replace(".txt", ".in"))

    assert asked == {distribution: pins(name)[distribution] for distribution in asked}


def test_the_tests_run_on_the_versions_that_ship() -> None:
    shipped, tested = pins("service.txt"), pins("dev.txt")

    assert shipped == {distribution: tested[distribution] for distribution in shipped}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_only_hashed_pins_and_no_addresses(name: str) -> None:
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    statements = re.sub(r" \\\n", " ", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    pin = re.compile(r"[a-z0-9-]+(\[[a-z,]+\])?==\S+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+")

    assert "://" not in text
    assert [statement for statement in statements if not pin.fullmatch(statement)] == []
    assert len(statements) == len(pins(name)) > 0


@pytest.mark.parametrize("name", NODE_LOCKS)
def test_a_lock_of_node_packages_holds_only_digests_and_no_addresses(name: str) -> None:
    asked = json.loads((REQUIREMENTS / name / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((REQUIREMENTS / name / "package-lock.json").read_text(encoding="utf-8"))
    packages = lock["packages"]
    for entry in packages.values():
        entry.pop("funding", None)  # where to give money
    pinned = {path.removeprefix("node_modules/"): entry for path, entry in packages.items() if path}
    versions = {package: entry["version"] for package, entry in pinned.items()}
    running = [package for package, entry in pinned.items() if "hasInstallScript" in entry]

    assert packages[""]["dependencies"] == asked["dependencies"]
    assert asked["dependencies"].items() <= versions.items()
    assert ("://" in json.dumps(lock), "resolved" in json.dumps(lock)) == (False, False)
    assert running == WOULD_RUN.get(name, [])
    assert [package for package, entry in pinned.items() if not is_sha512(entry["integrity"])] == []


def is_sha512(integrity: str) -> bool:
    algorithm, _, digest = integrity.partition("-")
    return algorithm == "sha512" and len(base64.b64decode(digest, validate=True)) == 64
