"""Where a local stack may be: its ports, its environment, the lock of its directory, the file that says
where it is.

`stack` calls these while it starts.
"""

import fcntl
import json
import os
import random
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Above the well-known ports and below those that systems give to outgoing connections (32768 on Linux, 49152
# on macOS): what is free here stays free until a service that was killed is started again.
_PORTS: Final = range(20_000, 32_000)


class AlreadyRunning(Exception):
    """Another stack runs in this directory."""


def clean_environ(environ: Mapping[str, str], *, aws: bool) -> dict[str, str]:
    """Return an environment for a child: without HEADRACE_* and, unless `aws`, with an account that is
    none."""
    own = {name: value for name, value in environ.items() if not name.startswith("HEADRACE_")}
    if aws:
        return own
    direct = ",".join(filter(None, [own.get("no_proxy") or own.get("NO_PROXY"), "127.0.0.1"]))
    return {
        **{name: value for name, value in own.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",  # the example key of AWS's documentation
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",  # botocore reads this one
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": direct,  # botocore heeds a proxy, which does not reach this machine's loopback
        "no_proxy": direct,
    }


def free_port(wanted: int | None, taken: Collection[int]) -> int:
    """Return the wanted port if it is free, else any free one; none of those in `taken`."""
    candidates = random.SystemRandom().sample(_PORTS, 100)
    for port in [wanted, *candidates] if wanted else candidates:
        if port not in taken and _is_free(port):
            return port
    raise OSError("no free port found")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    # On macOS a bind succeeds beside a server that listens on all addresses; it would answer, though.
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a directory; the system gives it back when this process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"another stack runs in {path.parent}") from error
        yield


@contextmanager
def announced(path: Path, whereabouts: Mapping[str, Any]) -> Iterator[None]:
    """Say in a file where things are; a reader sees all of it or none."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(whereabouts, indent=2) + "\n")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
