"""The process's edge: faults of the configuration on stderr, and what its signals do."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service import __main__ as process
from service.app import Drain
from tests.clock import ManualClock
from tests.listening import Server, answers_ok, harmless_stop

CATALOG = """
[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/model-1"
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `main` with a catalog and settings; gives its status and what it wrote to stderr."""
    root, uvicorn_error = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, level, root.handlers = root.handlers, root.level, []
    interval_s = sys.getswitchinterval()
    path = tmp_path / "headrace.toml"

    def run(catalog: str = CATALOG, **settings: str) -> tuple[int, str]:
        path.write_text(catalog)
        given = {
            "CATALOG": str(path),
            "ISSUER": "http://127.0.0.1:9",
            "AUDIENCES": "client-1",
            "STORE": "sqlite::memory:",
            "PORT": "0",
        }
        for name, value in (given | settings).items():
            monkeypatch.setenv(f"HEADRACE_{name}", value)
        return process.main(), capfd.readouterr().err

    yield run
    root.handlers = handlers
    root.setLevel(level)
    uvicorn_error.disabled = False
    sys.setswitchinterval(interval_s)


@pytest.mark.promise("unknown-names-stop-start")
def test_all_faults_of_settings_and_catalog_are_printed_one_a_line(run: Run) -> None:
    status, stderr = run("[runtimes.writer]\nkind = 'magic'", PORT="x", COLOUR="blue", STORE="redis:")

    assert status == 2
    assert stderr.splitlines() == [
        (
            "headrace: HEADRACE_COLOUR is not a setting; settings are HEADRACE_HOST, HEADRACE_PORT, "
            "HEADRACE_CATALOG, HEADRACE_ISSUER, HEADRACE_AUDIENCES, HEADRACE_JWKS_URL, HEADRACE_STORE, "
            "HEADRACE_USAGE_TABLE, HEADRACE_INVOCATIONS_TABLE, "
            "HEADRACE_CORS_ORIGINS"
        ),
        "headrace: HEADRACE_STORE must be dynamodb, sqlite:PATH or sqlite::memory:, not 'redis:'",
        "headrace: HEADRACE_PORT must be a number from 0 to 65535, not 'x'",
        'headrace: runtimes.writer.kind must be "converse" or "python", not \'magic\'',
        (
            'headrace: runtimes.writer.model must be "UPSTREAM/MODEL ID", such as '
            '"bedrock/us.amazon.nova-lite-v1:0"'
        ),
    ]


@pytest.mark.promise("unknown-names-stop-start")
def test_tools_that_can_not_be_loaded_stop_the_start(run: Run) -> None:
    status, stderr = run(CATALOG + 'tools = ["tests.harness:serving"]')

    assert (status, stderr) == (
        2,
        (
            "headrace: runtimes.writer.tools: tool tests.harness:serving is not a tool: decorate it with "
            "service.tools.tool\n"
        ),
    )


@pytest.mark.promise("unknown-names-stop-start")
def test_a_store_that_can_not_be_opened_stops_the_start(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "no-database"
    path.write_bytes(b"something else, and not a little of it" * 100)

    status, stderr = run(STORE=f"sqlite:{path}")

    assert status == 2
    assert stderr.startswith(f"headrace: the store {path}")
    assert "Traceback" not in stderr


def test_a_port_that_is_taken_is_a_failure_and_no_fault_of_the_configuration(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, stderr = run(PORT=str(taken.getsockname()[1]))

    assert (status, stderr) == (1, "")


# -- signals


def drain_until(gate: asyncio.Event) -> Drain:
    async def step() -> None:
        await gate.wait()

    drain = Drain()
    drain.steps = [step]
    return drain


async def test_the_first_signal_drains_with_the_listener_open_and_then_stops(clock: ManualClock) -> None:
    gate = asyncio.Event()
    drain = drain_until(gate)
    async with Server.listening(clock, drain) as server:
        server.handle_exit(signal.SIGTERM, None)
        await clock.advance(0)
        draining = (drain.is_on, server.should_exit, (await server.ask("/"))[-2:])
        gate.set()
        await clock.advance(0)

        assert draining == (True, False, b"ok")
        assert server.should_exit


@pytest.mark.promise("process-ends-in-time")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_stops_at_once(clock: ManualClock, number: signal.Signals) -> None:
    gate = asyncio.Event()
    async with Server.listening(clock, drain_until(gate)) as server:
        server.handle_exit(signal.SIGINT, None)
        await clock.advance(0)
        after_first = server.should_exit
        server.handle_exit(number, None)

        assert (after_first, server.should_exit) == (False, True)
        gate.set()


async def test_two_signals_at_the_same_moment_start_one_drain(clock: ManualClock) -> None:
    started: list[None] = []
    gate = asyncio.Event()
    drain = drain_until(gate)

    async def count() -> None:
        started.append(None)

    drain.steps.append(count)
    async with Server.listening(clock, drain) as server:
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        await clock.advance(0)

        assert started == [None]
        gate.set()


@pytest.mark.promise("process-ends-in-time")
async def test_a_drain_that_fails_is_logged_and_stops_all_the_same(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise RuntimeError

    drain = Drain()
    drain.steps = [fails]
    async with Server.listening(clock, drain) as server:
        server.handle_exit(signal.SIGTERM, None)
        await clock.advance(0)

        assert server.should_exit
        assert "drain failed" in [record.getMessage() for record in caplog.records]


@pytest.mark.promise("process-ends-in-time")
async def test_the_hard_stop_counts_from_the_first_signal(clock: ManualClock) -> None:
    limits: list[float] = []
    gate = asyncio.Event()
    hard_stop = process.HardStop(100, last_resort=limits.append)
    async with Server.listening(clock, drain_until(gate), hard_stop) as server:
        before = limits.copy()
        for _ in range(3):
            server.handle_exit(signal.SIGTERM, None)

        assert (before, limits) == ([], [101.0])
        gate.set()


@pytest.mark.promise("process-ends-in-time")
def test_a_signal_before_the_start_stops_the_start() -> None:
    limits: list[float] = []
    hard_stop = process.HardStop(last_resort=limits.append)
    server = process._Server(uvicorn.Config(answers_ok, log_config=None), Drain(), hard_stop)

    server.handle_exit(signal.SIGTERM, None)

    assert (server.should_exit, limits) == (True, [119.0])


async def test_a_server_keeps_its_date_right_and_ends_as_soon_as_it_is_told(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain()) as server:
        server.server_state.default_headers = []
        serving = asyncio.create_task(server.main_loop())
        await clock.advance(0)
        names, server.server_state.default_headers = (
            [name for name, _ in server.server_state.default_headers],
            [],
        )
        await clock.advance(1.1)
        again = [name for name, _ in server.server_state.default_headers]
        server.should_exit = True
        await clock.advance(0)

        assert (names, again, serving.done()) == ([b"date", b"server"], [b"date", b"server"], True)


def test_a_started_server_keeps_the_collector_from_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    monkeypatch.setattr("gc.collect", lambda: steps.append("collect"))
    monkeypatch.setattr("gc.freeze", lambda: steps.append("freeze"))
    monkeypatch.setattr("gc.set_threshold", lambda *thresholds: steps.append(thresholds))

    process._Server(uvicorn.Config(answers_ok), Drain(), harmless_stop()).relieve_collector()

    assert steps == ["collect", "freeze", process.GC_THRESHOLDS]
