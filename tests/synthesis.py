"""Synthesizes the stack as `make synth` does, once for each configuration, and reads what came out.

The CDK has an environment of its own and runs on Node: it is a process, and templates are JSON. So the tests
see what CloudFormation would get, and may compare it with the service, which `infra` may not import.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from infra.extract import extract

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = ROOT / ".venv-infra" / "bin" / "python"
LIMIT_S: Final = 150.0

PROD: Final = (
    "stage=prod",
    "domain=api.example.com",
    "hosted_zone_id=Z0123456789ABCDEFGHIJ",
    "callback_urls=https://app.example.com/callback",
    "cors_origins=https://app.example.com,https://admin.example.com",
)
CONFIGURATIONS: Final[Mapping[str, tuple[str, ...]]] = {"dev": ("stage=dev",), "prod": PROD}


@dataclass(frozen=True)
class Stacks:
    """The two templates of one synthesis."""

    assembly: Path

    @cached_property
    def state(self) -> dict[str, Any]:
        return self._read("HeadraceData.template.json")

    @cached_property
    def gateway(self) -> dict[str, Any]:
        return self._read("Headrace.template.json")

    @cached_property
    def resources(self) -> dict[str, dict[str, Any]]:
        """All resources of both stacks by logical id; no id is in both."""
        return {**self.state["Resources"], **self.gateway["Resources"]}

    @cached_property
    def edge(self) -> dict[str, Any]:
        return extract({"Headrace": self.gateway, "HeadraceData": self.state})

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the properties of the resources of a type, `AWS::` left out."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.resources.items()
            if resource["Type"] == f"AWS::{kind}"
        }

    def only(self, kind: str) -> dict[str, Any]:
        """Return the properties of the one resource of a type."""
        (properties,) = self.of_type(kind).values()
        return properties

    def statements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the logical id and each statement of all policies, whatever they belong to."""
        for name, resource in self.resources.items():
            properties = resource.get("Properties", {})
            documents = [
                properties.get(key) for key in ("PolicyDocument", "KeyPolicy", "AssumeRolePolicyDocument")
            ]
            if resource["Type"] == "AWS::IAM::Role":
                documents += [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
            for document in documents:
                for statement in document["Statement"] if document else ():
                    yield name, statement

    def _read(self, name: str) -> dict[str, Any]:
        template: dict[str, Any] = json.loads((self.assembly / name).read_text(encoding="utf-8"))
        return template


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the environment of `infra`: no account, no proxy that leads anywhere."""
    offline = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    quiet = {"JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": _node_version()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        (PYTHON, *arguments),
        cwd=ROOT,
        env=kept | offline | quiet,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def synthesize(assembly: Path, image_directory: Path, values: Sequence[str], *more: str) -> Stacks:
    """Synthesize one configuration into a directory."""
    done = run("-m", "infra.app", *settings(image_directory, values), "--output", str(assembly), *more)
    assert (done.returncode, done.stderr) == (0, "")
    return Stacks(assembly)


def settings(image_directory: Path, values: Sequence[str]) -> list[str]:
    """Return the arguments that give these context values."""
    given = [f"image_directory={image_directory}", *values]
    return [argument for value in given for argument in ("-c", value)]


def why_not() -> str | None:
    """Say why the stack can't be synthesized here; None if it can."""
    if shutil.which("node") is None:
        return "the CDK runs on Node, and there is none"
    if not PYTHON.exists():
        return "there is no .venv-infra: make check makes it"
    return None


def _node_version() -> str:
    shown = subprocess.run(("node", "--version"), capture_output=True, text=True, timeout=30, check=True)  # noqa: S607
    return shown.stdout.removeprefix("v").partition(".")[0]
