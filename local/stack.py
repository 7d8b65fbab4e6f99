"""The local stack: gateway, service, issuer, Bedrock endpoint as real processes on loopback, in one folder.

``python -m local`` runs one; e2e tests run their own::

    async with Stack(tmp_path, catalog=CATALOG, answers="scripts", services=2) as stack:
        await stack.bedrock.script(MODEL_ID, answer("Hello there."))
        token = await stack.token("ann", groups=["demo"])
        ... requests to stack.url ...                   through the gateway, to whichever service
        ... requests to stack.services[0].url ...       to this one, with no gateway in between
        await stack.services[0].kill()                  kill -9; the store and the other service go on
        await stack.services[0].start()                 the same address again
        stack.emulator.stall()                          of DynamoDB, if the stack was given `tables`
        ... await stack.bedrock.account(ended=1), stack.services[1].log() ...

The directory holds the store (``headrace.db``), a log file per process and ``stack.json``, which says where
things are as long as they are there; the `headrace` command line reads it. Several services share the store.
With `tables` the store is DynamoDB Local, in memory, and gone with the stack. The gateway enforces what the
template says (`gateway.json`), or a changed extract of it.
A child knows its addresses through its environment only, and sees nothing of the caller's HEADRACE_* settings
and, unless Bedrock itself answers, nothing of the caller's AWS account.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp

from local.control import BedrockControl
from local.dynamodb import DynamoDbLocal
from local.gateway_api import EXTRACT
from local.issuer import AUDIENCE, LIFETIME_S, POOL
from local.model import weights_path
from local.places import announced, clean_environ, free_port, locked
from local.process import Process, ProcessDied

Answers = Literal["smollm2", "bedrock", "scripts"]
"""Who answers: the small model, Bedrock itself (nothing local), or the scripts of a test."""


class Stack:
    """An async context manager: ready when entered, nothing left behind when left.

    `catalog` is the path of a catalog, or its text. `services` says how many there are, or the module that
    each of them runs; with none there is no gateway either. `ports` are the ones wanted for the gateway, the
    issuer, the Bedrock endpoint and the first service: one that is taken is replaced by a free one, which
    `notes` says; None means any free one. `gateway` is the extract that the gateway enforces (None: there is
    no gateway), `time_scale` how long a second of its times is. `tables` puts the store on DynamoDB: the
    definition of each table (CreateTable's parameters) by the setting that names the table to the service;
    None means SQLite. `environ` is added to what each service sees. `choose` ("package.module:function") says
    the script of each call by its request, instead of `bedrock.script`. `service_python` is
    the Python that runs the services, of an environment that has what agents need.
    """

    def __init__(
        self,
        directory: Path,
        *,
        catalog: Path | str,
        answers: Answers = "smollm2",
        services: int | Sequence[str] = 1,
        ports: tuple[int, int, int, int] | None = None,
        gateway: Path | None = EXTRACT,
        time_scale: float = 1.0,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        environ: Mapping[str, str] | None = None,
        choose: str | None = None,
        service_python: Path | None = None,
        start_s: float = 30.0,
        stop_s: float = 10.0,
    ) -> None:
        self.directory = directory.resolve()
        self.answers = answers
        self.notes: list[str] = []
        self.processes: list[Process] = []
        self.services: list[Process] = []
        self._catalog = catalog
        self._modules = ("service",) * services if isinstance(services, int) else tuple(services)
        self._ports = ports
        self._extract = gateway.resolve() if gateway and self._modules else None
        self._enforced = json.loads(self._extract.read_text(encoding="utf-8")) if self._extract else {}
        self._time_scale = time_scale
        self._tables = tables
        self._extra = environ or {}
        self._choose = choose
        self._service_python = service_python
        self._start_s = start_s
        self._stop_s = stop_s
        self._taken: set[int] = set()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            await self._start(opening)
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _start(self, opening: AsyncExitStack) -> None:
        if self.answers == "smollm2":
            weights_path()
        self.directory.mkdir(parents=True, exist_ok=True)
        opening.enter_context(locked(self.directory / "lock"))
        self._session = await opening.enter_async_context(aiohttp.ClientSession())
        if self._tables is not None:
            self._emulator = await opening.enter_async_context(DynamoDbLocal(self.directory))
            await asyncio.to_thread(self._emulator.create_tables, *self._tables.values())
        wanted = self._ports or (None, None, None, None)
        self.issuer = self._upstream("issuer", wanted[1])
        if self.answers != "bedrock":
            self._endpoint = self._upstream("bedrock", wanted[2], *self._scripted())
        upstreams = list(self.processes)
        self.services = [
            self._service(number, module, wanted[3] if number == 1 else None)
            for number, module in enumerate(self._modules, 1)
        ]
        if self._extract is not None:
            self.gateway = self._edge(self._extract, wanted[0])
            upstreams.append(self.gateway)
        await opening.enter_async_context(self._running(upstreams, stop_s=2.0))
        await opening.enter_async_context(self._running(self.services, stop_s=self._stop_s))
        opening.enter_context(announced(self.directory / "stack.json", self._whereabouts()))

    # ------------------------------------------------ what runs where

    @property
    def url(self) -> str:
        """Where callers begin: the gateway's stage; the first service if there is no gateway."""
        if self._extract is None:
            return self.services[0].url
        return f"{self.gateway.url}/{self._enforced['stage']}"

    @property
    def issuer_url(self) -> str:
        """The `iss` of its tokens."""
        return f"{self.issuer.url}/{POOL}"

    @property
    def token_url(self) -> str:
        """Where tokens are given out."""
        return f"{self.issuer.url}/token"

    @property
    def bedrock(self) -> BedrockControl:
        """The controls of the Bedrock endpoint."""
        if self.answers == "bedrock":
            raise RuntimeError("Bedrock itself has no controls")
        return BedrockControl(self._session, self._endpoint.url)

    @property
    def emulator(self) -> DynamoDbLocal:
        """The DynamoDB of a stack that has `tables`."""
        if self._tables is None:
            raise RuntimeError("the store of this stack is SQLite")
        return self._emulator

    async def token(
        self,
        user: str = "demo",
        *,
        groups: Sequence[str] = ("demo",),
        use: Literal["id", "access"] = "id",
        expires_in: int = LIFETIME_S,
        audience: str = AUDIENCE,
    ) -> str:
        """Fetch a token from the issuer; see `issuer` for the odd ones."""
        asked = {
            "user": user,
            "groups": list(groups),
            "token_use": use,
            "expires_in": expires_in,
            "audience": audience,
        }
        async with self._session.post(self.token_url, json=asked) as response:
            response.raise_for_status()
            token: str = (await response.json())[f"{use}_token"]
            return token

    async def first_death(self) -> ProcessDied:
        """Wait until one of the processes has ended, for whatever reason, and say how."""
        ends = {asyncio.create_task(process.ended(timeout_s=None)): process for process in self.processes}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return ends[done.pop()].death()
        finally:
            for end in ends:
                end.cancel()

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        for process in self.processes:
            process.send(signal.SIGKILL)

    # ------------------------------------------------ how they are made

    def _scripted(self) -> tuple[str, ...]:
        if self.answers != "scripts":
            return ()
        return ("--scripted",) if self._choose is None else ("--choose", self._choose)

    def _upstream(self, name: str, wanted: int | None, *arguments: str) -> Process:
        port = self._port(name, wanted)
        return self._child(name, f"local.{name}", ["--port", str(port), *arguments], port, self._environ())

    def _service(self, number: int, module: str, wanted: int | None) -> Process:
        name = "service" if len(self._modules) == 1 else f"service-{number}"
        port = self._port(name, wanted)
        catalog = self._catalog
        if isinstance(catalog, str):
            path = self.directory / "headrace.toml"
            path.write_text(catalog)
            catalog = path
        settings = {
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_PORT": str(port),
            "HEADRACE_CATALOG": str(catalog.resolve()),
            "HEADRACE_ISSUER": self.issuer_url,
            "HEADRACE_AUDIENCES": AUDIENCE,
            "HEADRACE_JWKS_URL": f"{self.issuer_url}/.well-known/jwks.json",
            "HEADRACE_CORS_ORIGINS": self._origin(),
            **self._store(),
        }
        if self.answers != "bedrock":
            settings["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = self._endpoint.url
        environ = {**self._environ(), **settings, **self._extra}
        return self._child(name, module, [], port, environ, self._service_python)

    def _origin(self) -> str:
        """Return the origin whose pages may read the edge's refusals: the service lets in the same one."""
        refusal = self._enforced.get("refusals", {}).get("DEFAULT_4XX", {"headers": {}})
        origin: str = refusal["headers"].get("Access-Control-Allow-Origin", "").strip("'")
        return origin if origin != "*" else ""

    def _edge(self, extract: Path, wanted: int | None) -> Process:
        port = self._port("gateway", wanted)
        arguments = ["--port", str(port), "--extract", str(extract), "--time-scale", str(self._time_scale)]
        arguments += ["--issuer", self.issuer_url, "--client-id", AUDIENCE]
        arguments += [word for service in self.services for word in ("--service", service.url)]
        return self._child("gateway", "local.gateway", arguments, port, self._environ())

    def _store(self) -> dict[str, str]:
        if self._tables is None:
            return {"HEADRACE_STORE": f"sqlite:{self.directory / 'headrace.db'}"}
        names = {setting: str(definition["TableName"]) for setting, definition in self._tables.items()}
        return {"HEADRACE_STORE": "dynamodb", "AWS_ENDPOINT_URL_DYNAMODB": self.emulator.url, **names}

    def _environ(self) -> dict[str, str]:
        return clean_environ(os.environ, aws=self.answers == "bedrock")

    def _child(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        port: int,
        environ: Mapping[str, str],
        python: Path | None = None,
    ) -> Process:
        log_path = self.directory / f"{name}.log"
        log_path.write_bytes(b"")
        url = f"http://127.0.0.1:{port}"
        process = Process(name, module, arguments, url=url, environ=environ, log_path=log_path, python=python)
        self.processes.append(process)
        return process

    def _port(self, name: str, wanted: int | None) -> int:
        port = free_port(wanted, self._taken)
        self._taken.add(port)
        if wanted and port != wanted:
            self.notes.append(f"port {wanted} is taken, the {name} uses {port}")
        return port

    @asynccontextmanager
    async def _running(self, processes: Sequence[Process], *, stop_s: float) -> AsyncIterator[None]:
        try:
            try:
                async with asyncio.TaskGroup() as starting:
                    for process in processes:
                        starting.create_task(process.start(timeout_s=self._start_s))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            yield
        finally:
            await asyncio.gather(*(process.stop(timeout_s=stop_s) for process in processes))

    def _whereabouts(self) -> dict[str, Any]:
        pids = {process.name: process.pid for process in self.processes}
        if self._tables is not None:
            pids["dynamodb"] = self.emulator.pid
        return {
            "url": self.url if self.services else None,
            "services": [service.url for service in self.services],
            "issuer": self.issuer_url,
            "token_url": self.token_url,
            "pids": {"stack": os.getpid(), **pids},
        }
