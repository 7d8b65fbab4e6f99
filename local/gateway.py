"""API Gateway on one machine, as the synthesized template configures it: the edge of the local stack.

``python -m local.gateway`` is a process of the local stack; tests also run `serving` in their own::

    ANY /{stage}/...     what `local/gateway.json` (or another extract) says, in front of the service
    GET /ready           200 once it answers; of the stand-in, not of API Gateway

    respond ─ body ─ method ─ throttle ─ authorizer ─ validation ─ mapping ─ transfer ─ balancer ─ service
       │     request   api      pace     authorizer      request   request    STREAM or BUFFERED
       └─ whatever refuses: the template's gateway response (refusals)

It prints one line of JSON a request, without query, headers or bodies. `scale` is how long a second of its
times is (29 s, 5 and 15 minutes, 2 MB/s, the throttle), so that a test may wait for them. Not imitated: WAF,
usage plans, caching, binary media types. Why it is as it is: docs/decisions/0014-local-gateway.md.
"""

import argparse
import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
from aiohttp import web

from local import gateway_refusals
from local.gateway_api import EXTRACT, Api, Refused
from local.gateway_authorizer import IssuerKeys, Tokens
from local.gateway_balancer import CONNECT_S, Balancer
from local.gateway_pace import Throttle
from local.gateway_request import Sent, check, header_bytes, mapped, read_body, texts
from local.gateway_transfer import Line, Transfer

# Of one header: more than API Gateway takes of all, so that its limit decides and not our server's.
_FIELD_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 64 * 1024
_STOP_S: Final = 1.0


def print_line(line: Mapping[str, Any]) -> None:
    """Print what there is to say of one request."""
    print(json.dumps(line), flush=True)


@dataclass(frozen=True, slots=True)
class Gateway:
    """Answers requests; what it is made of says what it enforces."""

    api: Api
    throttle: Throttle
    tokens: Mapping[str, Tokens]
    transfer: Transfer
    log: Callable[[Mapping[str, Any]], None]

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, and log it."""
        raw_path, _, query = request.raw_path.partition("?")
        if raw_path == "/ready":
            return web.Response()
        stage, _, rest = raw_path.removeprefix("/").partition("/")
        if stage != self.api.stage:
            return gateway_refusals.no_such_stage()
        request_id, began_s = str(uuid4()), time.monotonic()
        line: Line = {"request_id": request_id, "method": request.method, "path": None, "bytes": 0}
        line["end"] = "failed"  # of what is not known to have ended otherwise: a fault of ours
        try:
            response = await self._answer(request, f"/{rest}", query, request_id, line)
            line["status"] = response.status
            return response
        except Refused as refused:
            refusal = gateway_refusals.answer(self.api.refusals, refused.kind, request_id)
            line.update(status=refusal.status, end=refused.kind)
            return refusal
        except asyncio.CancelledError:
            line["end"] = "hung-up"
            raise
        finally:
            self.log({**line, "duration_ms": round((time.monotonic() - began_s) * 1000)})

    async def _answer(
        self, request: web.BaseRequest, raw_path: str, query: str, request_id: str, line: Line
    ) -> web.StreamResponse:
        limits = self.api.limits
        if header_bytes(request.raw_headers) > limits.header_bytes:
            raise Refused("HEADERS_TOO_LARGE")
        body = await read_body(request, limits.body_bytes)
        method, parameters = self.api.find(request.method, raw_path)
        line.update(path=method.path, mode=method.integration.mode)
        if not self.throttle.take():
            raise Refused("THROTTLED")
        sent = Sent(request_id, parameters, query, texts(request.raw_headers), body)
        if method.authorizer is not None:
            header = self.api.authorizers[method.authorizer].header
            await self.tokens[method.authorizer].check(sent.header(header))
        check(method, sent)
        self.api.check_way(method.integration)
        asked = mapped(method.integration, sent)
        return await self.transfer.pass_on(request, method.integration, asked, request_id, line)


@asynccontextmanager
async def serving(
    extract: Mapping[str, Any],
    services: Sequence[str],
    *,
    issuer: str,
    client_ids: Sequence[str],
    port: int = 0,
    scale: float = 1.0,
    reads_on: bool = False,
    watches: bool = True,
    log: Callable[[Mapping[str, Any]], None] = print_line,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[str]:
    """Enforce an extract on 127.0.0.1 in front of services, and yield the URL of its stage.

    `reads_on`: an answer is read to its end when its client has hung up. `watches`: processes that are not
    ready are found by asking them. `now` is the wall clock, for the expiry of tokens.
    """
    api = Api.read(extract, client_ids)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(
        timeout=timeout,
        connector=aiohttp.TCPConnector(limit=0),
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    ) as session:
        keys = IssuerKeys(session, issuer)
        balancer = Balancer(services, session)
        gateway = Gateway(
            api=api,
            throttle=Throttle(api.limits.requests_per_s / scale, api.limits.burst),
            tokens={name: Tokens(each, issuer, keys, now) for name, each in api.authorizers.items()},
            transfer=Transfer(api.limits, balancer, scale=scale, reads_on=reads_on),
            log=log,
        )
        async with _listening(gateway, port, cancels=not reads_on) as bound:
            watching = asyncio.create_task(balancer.watch()) if watches else None
            try:
                yield f"http://127.0.0.1:{bound}/{api.stage}"
            finally:
                if watching is not None:
                    watching.cancel()


@asynccontextmanager
async def _listening(gateway: Gateway, port: int, *, cancels: bool) -> AsyncIterator[int]:
    server = web.Server(
        gateway.respond,
        handler_cancellation=cancels,
        access_log=None,
        auto_decompress=False,
        max_line_size=_FIELD_BYTES,
        max_field_size=_FIELD_BYTES,
    )
    runner = web.ServerRunner(server, shutdown_timeout=_STOP_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()  # what is being answered is not waited for
        await runner.cleanup()


async def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(
        json.loads(arguments.extract.read_text(encoding="utf-8")),
        arguments.service,
        issuer=arguments.issuer,
        client_ids=arguments.client_id,
        port=arguments.port,
        scale=arguments.time_scale,
        reads_on=arguments.reads_on,
    ):
        await stopped.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local.gateway", description="API Gateway on this machine."
    )
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--extract", type=Path, default=EXTRACT, help="the API part of the template")
    parser.add_argument("--issuer", required=True, help="the `iss` of tokens; its keys are below it")
    parser.add_argument("--client-id", action="append", required=True, help="an app client, may be repeated")
    parser.add_argument("--service", action="append", default=[], help="where a process of the service is")
    parser.add_argument("--time-scale", type=float, default=1.0, help="how long a second of its times is")
    parser.add_argument(
        "--reads-on", action="store_true", help="read answers to their end when clients hang up"
    )
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
