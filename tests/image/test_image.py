"""What is in the image, and that the service answers and drains in it, under what ECS allows.

`.ci/image` runs this folder; `make test` does not, since it needs root and container tools.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from local.answers import answer
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import Caller
from tests.image.engine import (
    BASE,
    IMAGE,
    STOP_S,
    Container,
    EngineFailed,
    inspected,
    podman,
    run_once,
    running,
)
from tests.synthesis import ROOT
from tests.test_docs import DOCUMENTS, fences
from tests.test_requirements import pins

# A stop may last as long as ECS waits for it.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(STOP_S + 60)]

MAX_BYTES_OVER_BASE = 200_000_000
MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
WORDS = [f"word{number} " for number in range(40)]
TOOLS = ("pip", "pip3", "uv", "gcc", "cc", "g++", "ld", "make", "git", "curl", "wget")

# What is below /app, and what there or among the packages belongs to, or can be changed by, anybody but root.
OUR_FILES = """
import json, os, stat, sys
found, foreign = [], []
for top in ("/app", "/opt/headrace"):
    for folder, _, names in os.walk(top):
        for path in [folder] + [os.path.join(folder, name) for name in names]:
            mode = os.lstat(path)
            if mode.st_uid or mode.st_gid or (not stat.S_ISLNK(mode.st_mode) and mode.st_mode & 0o022):
                foreign.append(path)
        if top == "/app":
            found += [os.path.relpath(os.path.join(folder, name), top) for name in names]
print(json.dumps([sys.implementation.cache_tag, found, foreign]))
"""
WRITE_EVERYWHERE = """
import errno, json, os
told = {}
for folder in ("/", "/app", "/app/agents", "/tmp", "/var/tmp", "/run", "/opt/headrace/bin"):
    try:
        open(os.path.join(folder, "new"), "w").close()
    except OSError as error:
        told[folder] = errno.errorcode[error.errno]
print(json.dumps(sorted(set(told.values()))), len(told))
"""
INSTALLERS = """
import importlib.util, json, os, shutil, sys
names = json.loads(sys.argv[1])
modules = [name for name in ("pip", "ensurepip", "setuptools", "wheel") if importlib.util.find_spec(name)]
print(json.dumps([[name for name in names if shutil.which(name)], modules]))
"""
DISTRIBUTIONS = """
import json, re
from importlib.metadata import distributions
print(json.dumps({re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in distributions()}))
"""


async def test_it_says_how_it_is_run() -> None:
    config = inspected(IMAGE)["Config"]

    assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("10001:10001", "/app", "SIGTERM")
    assert (config.get("Entrypoint"), config["Cmd"]) == (None, ["python", "-m", "service"])
    assert config["ExposedPorts"].keys() == {"8080/tcp"}
    assert config["Labels"]["org.opencontainers.image.base.name"] == BASE


async def test_it_adds_less_than_200_mb_to_its_base() -> None:
    added_bytes = inspected(IMAGE)["Size"] - inspected(BASE)["Size"]

    print(f"\nimage: {added_bytes / 1e6:.0f} MB over its base of {inspected(BASE)['Size'] / 1e6:.0f} MB")
    assert 0 < added_bytes < MAX_BYTES_OVER_BASE


@pytest.mark.promise("image-asks-for-nothing")
async def test_it_runs_as_a_number_without_any_capability(container: Container) -> None:
    lines = container.run("cat", "/proc/1/status").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    assert status["Uid"] == status["Gid"] == ["10001"] * 4
    assert [status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [["0" * 16]] * 5


@pytest.mark.promise("image-asks-for-nothing")
async def test_nothing_can_be_written(container: Container) -> None:
    assert container.run("python", "-c", WRITE_EVERYWHERE) == '["EROFS"] 7\n'


async def test_it_holds_our_code_with_bytecode_and_nothing_else(container: Container) -> None:
    cache_tag, found, foreign = container.python(OUR_FILES)
    sources = [
        path.relative_to(ROOT)
        for top in ("service", "agents")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    bytecode = [
        path.parent / "__pycache__" / f"{path.stem}.{cache_tag}.pyc"
        for path in sources
        if path.suffix == ".py"
    ]

    assert set(found) ^ {str(path) for path in (*sources, *bytecode, "headrace.toml")} == set()
    assert foreign == []


async def test_it_has_exactly_the_pinned_packages(container: Container) -> None:
    assert container.python(DISTRIBUTIONS) == pins("service.txt") | pins("../agents/requirements.txt")


@pytest.mark.promise("image-asks-for-nothing")
async def test_it_has_nothing_that_installs_or_builds(container: Container) -> None:
    seen = [
        json.loads(container.run(python, "-c", INSTALLERS, json.dumps(TOOLS)))
        for python in ("python", "/usr/local/bin/python")
    ]

    assert seen == [[[], []]] * 2


async def test_it_is_alive_and_ready(ann: Caller) -> None:
    (alive, health), (ready, _) = await ann.get("/ping"), await ann.get("/ready")

    assert (alive, health["status"], ready) == (200, "Healthy", 200)


async def test_its_health_check_tells_a_service_from_none(container: Container) -> None:
    kind, *command = inspected(IMAGE)["Healthcheck"]["Test"]

    assert kind == "CMD"
    assert container.run(*command) == ""
    with pytest.raises(EngineFailed, match="Connection refused"):
        run_once(*command)


@pytest.mark.promise("image-asks-for-nothing")
async def test_an_answer_streams_out_of_it(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("read")))

    async with ann.submit() as stream:
        await stream.until(b"word3")  # the model has not gone on yet
        await stack.bedrock.release("read")
        await stream.whole()

    assert [event.type for event in stream.events] == [
        "invocationStarted",
        "messageStart",
        *["contentBlockDelta"] * 40,
        "contentBlockStop",
        "messageStop",
        "metadata",
        "invocationCompleted",
    ]


@pytest.mark.promise("sigterm-reconnects-readers")
async def test_a_stop_ends_readers_with_reconnect_lets_the_job_finish_and_exits_with_0(
    stack: Stack, environ: Mapping[str, str], ann: Caller
) -> None:
    await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait("drained")))

    async with running(environ, port=8090) as container:
        async with ann.at(container.url).submit() as stream:
            await stream.until(b"word3")
            stopping = asyncio.create_task(container.stop())
            await stream.whole()
            await stack.bedrock.release("drained")
            await stopping
        state, log = container.state, container.log()

    assert stream.events[-1].data == '{"reconnect":{"after":"1.6","reason":"drain"}}'
    assert (state["Running"], state["ExitCode"], state["OOMKilled"]) == (False, 0, False)
    assert [line["state"] for line in log if line["message"] == "attempt"] == ["completed"]


async def test_a_tool_of_ones_own_comes_in_by_an_image_on_top_of_it(
    tmp_path: Path, environ: Mapping[str, str], ann: Caller
) -> None:
    (dockerfile,) = fences(DOCUMENTS["docs/operations.md"], "dockerfile")
    tool = next(body for body in fences(DOCUMENTS["docs/configuration.md"], "python") if "@tool" in body)
    catalog = (ROOT / "headrace.toml").read_text(encoding="utf-8")
    (tmp_path / "Dockerfile").write_text(
        dockerfile.replace("FROM headrace", f"FROM {IMAGE}"), encoding="utf-8"
    )
    (tmp_path / "my_tools.py").write_text(tool, encoding="utf-8")
    (tmp_path / "headrace.toml").write_text(
        catalog.replace("[runtimes.writer]", '[runtimes.writer]\ntools = ["agents.my_tools:search"]'),
        encoding="utf-8",
    )

    podman(
        "build",
        "--isolation=chroot",
        "--pull=never",
        "--format=docker",
        "--tag=localhost/ours",
        str(tmp_path),
    )
    async with running(environ, port=8091, image="localhost/ours") as container:
        status, listed = await ann.at(container.url).get("/runtimes")

    assert status == 200
    assert "writer" in str(listed)
