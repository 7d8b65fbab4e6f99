"""Containers of the image under test, through podman's command line, with the rights that ECS gives its task.

`conftest` starts one for the module; tests start others. `.ci/image` has built the image, says its name in
IMAGE and its base's in BASE, and gives podman a storage of its own; it runs pytest in a network namespace
that has only loopback, which `--network=host` hands on to the container.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

IMAGE: Final = os.environ.get("IMAGE", "headrace")
BASE: Final = os.environ.get("BASE", "")
STOP_S: Final = 120  # the stop timeout of the task definition
_LIMIT_S: Final = 60.0
_READY_S: Final = 45.0
_AS_ON_ECS: Final = (
    *("--read-only", "--read-only-tmpfs=false"),  # podman would mount a writable /tmp; Fargate does not
    *("--user=10001:10001", "--cap-drop=ALL", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"),
    *("--no-healthcheck", "--log-driver=k8s-file", "--pull=never"),
)


class EngineFailed(Exception):
    """A podman command failed; the text is what it said."""


def podman(*arguments: str, timeout_s: float = _LIMIT_S) -> str:
    """Run a podman command and return what it printed on both streams.

    Raises:
        EngineFailed: Its status is not 0.
    """
    done = subprocess.run(
        ("podman", *arguments),  # noqa: S607 - wherever it is installed
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise EngineFailed(f"podman {arguments[0]}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def inspected(image: str) -> Any:
    """Return the whole configuration of an image."""
    (found,) = json.loads(podman("image", "inspect", image))
    return found


def run_once(*command: str, network: str = "none") -> str:
    """Run a command instead of the service, in a container that is removed; return its output."""
    return podman("run", "--rm", *_AS_ON_ECS, f"--network={network}", IMAGE, *command)


@dataclass(frozen=True)
class Container:
    """One that runs the service, ready when it was started."""

    id: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Any:
        """Return what podman knows of its process: `Running`, `ExitCode`, and more."""
        return json.loads(podman("inspect", "--format={{json .State}}", self.id))

    def run(self, *command: str) -> str:
        """Run a command inside."""
        return podman("exec", self.id, *command)

    def python(self, source: str) -> Any:
        """Run Python inside, and return the JSON that it prints."""
        return json.loads(self.run("python", "-c", source))

    def log(self) -> list[dict[str, Any]]:
        """Return the lines that it has logged."""
        return [json.loads(line) for line in podman("logs", self.id).splitlines()]

    async def stop(self) -> None:
        """Send the image's stop signal and wait for the end; after STOP_S it is killed, as on ECS."""
        await asyncio.to_thread(podman, "stop", f"--time={STOP_S}", self.id, timeout_s=STOP_S + _LIMIT_S)

    async def ready(self) -> None:
        """Wait until it is ready.

        Raises:
            EngineFailed: It ended instead.
            TimeoutError: It is not ready in time.
        """
        async with asyncio.timeout(_READY_S), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                if not self.state["Running"]:
                    raise EngineFailed(f"status {self.state['ExitCode']}\n{podman('logs', self.id)}")
                await asyncio.sleep(0.1)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def running(
    environ: Mapping[str, str], *, port: int = 8080, image: str = IMAGE
) -> AsyncIterator[Container]:
    """Start a container and wait until it is ready; it is removed at the end, whatever became of it."""
    settings = [f"--env={name}={value}" for name, value in environ.items()]
    if port != 8080:
        settings.append(f"--env=HEADRACE_PORT={port}")
    container = Container(
        podman("run", "--detach", *_AS_ON_ECS, "--network=host", *settings, image).strip(), port
    )
    try:
        await container.ready()
        yield container
    finally:
        podman("rm", "--force", "--time=0", container.id)
