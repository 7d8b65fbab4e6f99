"""The process's edge: faults of the configuration on stderr, and what its signals do."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service import __main__ as process
from service.app import Drain
from service.config import Settings
from tests.clock import ManualClock

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


async def answer_by_writing(scope: Scope, send: Send) -> None:
    """Answer with what each try to write at once has returned."""
    write = scope["extensions"]["headrace.write"]
    took = [write(b"too early")]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    took += [write(b""), write(b"a" * 17), write(b"b")]
    await send({"type": "http.response.body", "body": repr(took).encode(), "more_body": False})
    write(b"too late")


async def abort_or_answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/abort":
        scope["extensions"]["headrace.abort"]()
        return
    if scope["path"] == "/written":
        await answer_by_writing(scope, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def harmless_stop() -> process.HardStop:
    """Return one whose thread is not started and that ends nothing."""
    return process.HardStop(last_resort=lambda _: None)


class Server(process._Server):
    """The process's server with its listener open, without the loop that only watches `should_exit`."""

    @classmethod
    @asynccontextmanager
    async def listening(
        cls,
        clock: ManualClock,
        drain: Drain,
        hard_stop: process.HardStop | None = None,
        *,
        app: Any = abort_or_answer,
    ) -> AsyncIterator["Server"]:
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=process._Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        server = cls(config, drain, hard_stop or harmless_stop())
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        yield server
        closing = asyncio.ensure_future(server.shutdown())
        await clock.advance(1)
        await closing

    def relieve_collector(self) -> None:
        """Leave the collector of the tests as it is."""

    async def ask(self, path: str) -> bytes:
        """Make a request on a connection of its own; gives all that comes back."""
        address: Any = self.servers[0].sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address[:2])
        writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


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
    server = process._Server(uvicorn.Config(abort_or_answer, log_config=None), Drain(), hard_stop)

    server.handle_exit(signal.SIGTERM, None)

    assert (server.should_exit, limits) == (True, [119.0])


def test_a_started_server_keeps_the_collector_from_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    monkeypatch.setattr("gc.collect", lambda: steps.append("collect"))
    monkeypatch.setattr("gc.freeze", lambda: steps.append("freeze"))
    monkeypatch.setattr("gc.set_threshold", lambda *thresholds: steps.append(thresholds))

    process._Server(uvicorn.Config(abort_or_answer), Drain(), harmless_stop()).relieve_collector()

    assert steps == ["collect", "freeze", process.GC_THRESHOLDS]


async def test_the_app_can_drop_a_connection(clock: ManualClock) -> None:
    async with Server.listening(clock, Drain()) as server:
        assert await server.ask("/abort") == b""
        assert (await server.ask("/")).endswith(b"ok")


async def test_what_is_written_at_once_is_a_chunk_of_the_response_while_there_is_one(
    clock: ManualClock,
) -> None:
    async with Server.listening(clock, Drain()) as server:
        _, _, body = (await server.ask("/written")).partition(b"\r\n\r\n")

    took = b"[False, False, True, True]"
    assert body == b"11\r\naaaaaaaaaaaaaaaaa\r\n1\r\nb\r\n1a\r\n" + took + b"\r\n0\r\n\r\n"


async def test_nothing_is_written_at_once_to_a_peer_that_takes_nothing(clock: ManualClock) -> None:
    got: list[list[bool]] = []
    asked = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        write = scope["extensions"]["headrace.write"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        got.append([write(b"a" * 2**20) for _ in range(64)])
        scope["extensions"]["headrace.abort"]()
        got.append([write(b"gone")])
        asked.set()

    async with Server.listening(clock, Drain(), app=flood) as server:
        _, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asked.wait()
        writer.close()

    first, later = got
    assert (first[0], first[-1], later) == (True, False, [False])


@pytest.mark.promise("hang-up-hurts-nobody")
async def test_a_peer_that_leaves_is_told_to_the_response_before_the_request_that_it_sent_last(
    clock: ManualClock,
) -> None:
    seen: list[tuple[str, bool]] = []
    gone = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        seen.append((scope["path"], scope["extensions"]["headrace.write"](b"more")))
        gone.set()

    async with Server.listening(clock, Drain(), app=stream) as server:
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        writer.write(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"begun")
        writer.write(b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n")
        (protocol,) = server.server_state.connections
        while not protocol.pipeline:  # type: ignore[union-attr]
            await clock.advance(0)
        protocol.transport.abort()
        await gone.wait()
        writer.close()

    assert seen == [("/first", False)]


# -- peers that die without a word


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
@pytest.mark.allowed_skip("Linux only")
async def test_a_peer_that_acknowledges_nothing_is_dropped_after_the_write_timeout(
    clock: ManualClock,
) -> None:
    config = process._server_config(
        abort_or_answer, Settings("https://issuer", ("client-1",), "https://keys", "sqlite:x"), 7.5
    )
    config.load()
    accepted: list[int] = []

    class Protocol(config.http_protocol_class):  # type: ignore[name-defined,misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            accepted.append(transport.get_extra_info("socket").getsockopt(*option))

    state: dict[str, Any] = {}
    server_state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Protocol(config=config, server_state=server_state, app_state=state), "127.0.0.1", 0
    )
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await clock.advance(0)
        writer.close()
        await writer.wait_closed()

    assert accepted == [7500]
