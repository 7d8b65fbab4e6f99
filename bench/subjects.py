"""What is measured: each subject as a function that starts it in front of the upstream and says how to ask
it.

`measuring` starts one subject at a time. All of them answer one plan with the same deltas: Headrace and the
obvious loop from event-stream frames, the copying ones (direct, copy, nginx) by passing on the SSE that the
upstream writes for them. Gateways that others make are in `peers`.

    direct     no subject: the client asks the upstream; the base of added times, and the bench's own limit
    copy       `copier`: raw uvloop, bytes in, bytes out: the floor in Python
    nginx      one worker, `proxy_pass`, buffering off
    headrace   `python -m service` with everything on: verified token, quota, event log in an SQLite file
               (`on_chat`: in front of chat/completions instead of Bedrock)
    obvious    `obvious`: Starlette, aioboto3, `json.dumps`, `StreamingResponse`
"""

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.canned import TABLES
from bench.certificates import certify
from bench.delays import DELAYS
from bench.loads import Asking
from bench.port_shape import SHAPES
from bench.processes import LOAD_CORE, Processes, SubjectFailed, free_port
from bench.sampler import SAMPLES
from bench.script import DELTA_MARK, Plan
from local.dynamodb import DynamoDbLocal, EmulatorDied
from local.emulators import EmulatorMissing
from service.config import DYNAMODB

_AUDIENCE = "headrace-local"
_USERS = 64
"""Callers are told apart, as they would be: on DynamoDB each has an account of its own."""
AWS = {
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_PROMPT = "Describe the river between the weir and the turbine."


class SubjectMissing(Exception):
    """The subject isn't installed; says how to install it."""


@dataclass(frozen=True)
class Upstream:
    """The fake upstream: where it listens, and what to trust if it speaks TLS."""

    pid: int
    port: int
    trusted: Path | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.trusted is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def under_way(self) -> int:
        """How many answers it is giving."""
        with closing(urllib.request.urlopen(f"{self.url}/open", timeout=10)) as answer:  # noqa: S310 - ours
            found: dict[str, int] = json.load(answer)
        return found["open"]


def _prompt_body(_plan: Plan) -> dict[str, Any]:
    return {"prompt": _PROMPT}


def chat_body(plan: Plan) -> dict[str, Any]:
    """A plan as OpenAI's API asks for it."""
    return {
        "model": plan.model_id,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": max(plan.deltas, 1024),
        "stream": True,
    }


@dataclass(frozen=True)
class Running:
    """A subject that listens: how to ask it for a plan, and how its answers end."""

    pid: int
    port: int
    path: Callable[[Plan], str]
    end_mark: str = '{"metadata"'
    headers: Sequence[str] = ("",)
    """Sets of headers that requests have in turn."""
    body: Callable[[Plan], dict[str, Any]] = _prompt_body
    store: str = ""
    """Headrace's, as another process can open it with `environ`."""
    environ: Mapping[str, str] = field(default_factory=dict)

    def asking(self, plan: Plan) -> Asking:
        """How to ask for a plan, as latin-1 text, and what is a right answer."""
        body = json.dumps(self.body(plan))
        requests = [
            f"POST {self.path(plan)} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}"
            for headers in self.headers
        ]
        return Asking(requests, DELTA_MARK, self.end_mark, plan.deltas)


Start = Callable[[Processes, Upstream, Sequence[Plan]], Running]
"""Starts a subject in front of the upstream, able to answer these plans."""


def start_upstream(processes: Processes, *, tls: bool = False) -> Upstream:
    """Start the fake upstream on the client's core."""
    port = free_port()
    arguments = ["bench.upstream", "--port", str(port)]
    certificate = certify(processes.folder) if tls else None
    if certificate is not None:
        arguments += ["--certificate", str(certificate.server)]
    pid = processes.python(*arguments, port=port, core=LOAD_CORE)
    return Upstream(pid, port, certificate.trusted if certificate is not None else None)


def direct(upstream: Upstream) -> Running:
    """The upstream itself as a subject."""
    return Running(upstream.pid, upstream.port, _sse_path)


def start_copy(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
    port = free_port()
    arguments = ["bench.copier", "--port", str(port), "--upstream-port", str(upstream.port)]
    if upstream.trusted is not None:
        arguments += ["--trusted", str(upstream.trusted)]
    return Running(processes.python(*arguments, port=port), port, _sse_path)


def start_nginx(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
    """Start nginx with a configuration and temporary files of its own.

    Raises:
        SubjectMissing: It is not on PATH.
    """
    nginx = nginx_path()
    if nginx is None:
        raise SubjectMissing("nginx is not on PATH: `apt-get install nginx-light` (or `brew install nginx`)")
    port, folder = free_port(), processes.folder / "nginx"
    folder.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings = folder / "nginx.conf"
    settings.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 20000; }}
http {{
access_log off; keepalive_requests 1000000; {temporary}
upstream bedrock {{ server 127.0.0.1:{upstream.port}; keepalive 1024; keepalive_requests 1000000; }}
server {{
listen 127.0.0.1:{port} backlog=4096;
location / {{
proxy_pass {upstream.url.partition(":")[0]}://bedrock; proxy_http_version 1.1; proxy_set_header Connection "";
proxy_buffering off; proxy_read_timeout 900;
}} }} }}
"""
    )
    if os.geteuid() == 0:
        shutil.chown(processes.folder, "nobody")
        shutil.chown(folder, "nobody")
        settings.write_text("user nobody nogroup;\n" + settings.read_text())
    pid = processes.start([nginx, "-e", f"{folder}/error.log", "-c", str(settings)], port=port)
    return Running(pid, port, _sse_path)


def start_obvious(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
    port = free_port()
    environ = _bedrock(upstream)
    pid = processes.python("bench.obvious", "--port", str(port), port=port, environ=environ)
    return Running(pid, port, _runtime_path)


def start_headrace(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """Start the issuer beside the client, then the service: a runtime a plan, limits out of reach."""
    return _start_service(processes, upstream, plans, _in_file(processes))


def start_headrace_sampled(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same under `sampler`, which writes its samples to the measurement's folder."""
    samples = {SAMPLES: str(processes.folder / SAMPLES)}
    return _start_service(processes, upstream, plans, _in_file(processes) | samples, module="bench.sampler")


def start_headrace_on_chat(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same in front of the chat/completions endpoint, as smg is."""
    return _start_service(processes, upstream, plans, _in_file(processes), model="chat")


def start_headrace_delayed(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same under `delays`, which writes its spans to the measurement's folder."""
    spans = {DELAYS: str(processes.folder / DELAYS)}
    return _start_service(processes, upstream, plans, _in_file(processes) | spans, module="bench.delays")


def start_headrace_in_memory(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same with a store that no disk has to wait for."""
    return _start_service(processes, upstream, plans, {"HEADRACE_STORE": "sqlite::memory:"})


def start_headrace_on_dynamodb(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same on DynamoDB Local, which runs on the client's core.

    Raises:
        SubjectMissing: The emulator can't run here.
    """
    try:
        emulator = processes.enter(DynamoDbLocal(processes.folder), core=LOAD_CORE)
    except EmulatorMissing as missing:
        raise SubjectMissing(str(missing)) from missing
    except EmulatorDied as died:
        raise SubjectFailed(str(died)) from died
    emulator.create_tables(*(table.definition(name) for name, table in TABLES.items()))
    return _start_service(processes, upstream, plans, _at(emulator.url))


def start_headrace_on_canned(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """The same on a DynamoDB that answers at once and keeps nothing."""
    return _start_service(processes, upstream, plans, _canned(processes))


def start_headrace_on_canned_sampled(
    processes: Processes, upstream: Upstream, plans: Sequence[Plan]
) -> Running:
    """The same under `sampler`."""
    samples = {SAMPLES: str(processes.folder / SAMPLES)}
    return _start_service(processes, upstream, plans, _canned(processes) | samples, module="bench.sampler")


def _canned(processes: Processes) -> dict[str, str]:
    port = free_port()
    processes.python("bench.canned", "--port", str(port), port=port, core=LOAD_CORE)
    return _at(f"http://127.0.0.1:{port}")


def _at(url: str) -> dict[str, str]:
    """A store on the DynamoDB that listens there."""
    named = {table.setting: name for name, table in TABLES.items()}
    return {"HEADRACE_STORE": DYNAMODB, **named, "AWS_ENDPOINT_URL_DYNAMODB": url}


def _in_file(processes: Processes) -> dict[str, str]:
    return {"HEADRACE_STORE": f"sqlite:{processes.folder / 'headrace.sqlite'}"}


def _start_service(
    processes: Processes,
    upstream: Upstream,
    plans: Sequence[Plan],
    store: Mapping[str, str],
    *,
    model: str = "bedrock",
    module: str = "service",
) -> Running:
    issuer_port, port = free_port(), free_port()
    issuer = f"http://127.0.0.1:{issuer_port}"
    processes.python("local.issuer", "--port", str(issuer_port), port=issuer_port, core=LOAD_CORE)
    settings = processes.folder / "headrace.toml"
    settings.write_text(catalog(plans, upstream, model))
    environ = {
        **_bedrock(upstream),
        "HEADRACE_HOST": "127.0.0.1",
        "HEADRACE_PORT": str(port),
        "HEADRACE_CATALOG": str(settings),
        "HEADRACE_ISSUER": f"{issuer}/local_pool",
        "HEADRACE_AUDIENCES": _AUDIENCE,
        **store,
    }
    pid = processes.python(module, port=port, environ=environ)
    tokens = [_id_token(f"{issuer}/token", f"user-{number}") for number in range(_USERS)]
    headers = [f"Authorization: Bearer {token}\r\n" for token in tokens]
    place = store["HEADRACE_STORE"]
    return Running(
        pid,
        port,
        _runtime_path,
        end_mark='{"invocationCompleted"',
        headers=headers,
        store=":".join((DYNAMODB, *TABLES)) if place == DYNAMODB else place,
        environ={**AWS, **store},
    )


def start_shape(shape: str) -> Start:
    """The `Start` of one of port-shape's apps, which take Bedrock's path themselves."""

    def start(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
        port = free_port()
        pid = processes.python(
            "bench.port_shape", shape, "--port", str(port), "--upstream-port", str(upstream.port), port=port
        )
        return Running(pid, port, lambda plan: f"/model/{plan.model_id}/converse-stream")

    return start


OURS: dict[str, Start] = {
    "copy": start_copy,
    "nginx": start_nginx,
    "headrace": start_headrace,
    "obvious": start_obvious,
}
SHAPE_SUBJECTS: dict[str, Start] = {"copy": start_copy} | {shape: start_shape(shape) for shape in SHAPES}


def nginx_path() -> str | None:
    """Where nginx is; Debian keeps it off an ordinary user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _bedrock(upstream: Upstream) -> dict[str, str]:
    trusting = () if upstream.trusted is None else ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
    trusted = {name: str(upstream.trusted) for name in trusting}
    return {**AWS, **trusted, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": upstream.url}


def _sse_path(plan: Plan) -> str:
    return f"/sse/{plan.model_id}"


def _runtime_path(plan: Plan) -> str:
    return f"/runtimes/{plan.model_id}/invocations"


def catalog(plans: Sequence[Plan], upstream: Upstream, model: str) -> str:
    """The service's catalog: a runtime for each plan, both endpoints of the upstream, limits out of reach."""
    runtimes = "".join(
        f'[runtimes.{plan.model_id}]\nkind = "converse"\nmodel = "{model}/{plan.model_id}"\n'
        f"max_output_tokens = {max(plan.deltas, 1024)}\n"
        for plan in dict.fromkeys(plans)
    )
    return f"""[service]
running_invocations = 100_000
open_readers = 100_000
readers_per_principal = 100_000
drain_s = 1
[upstreams.bedrock]
kind = "bedrock"
[upstreams.chat]
kind = "openai"
base_url = "{upstream.url}/v1"
{runtimes}[limits.default]
daily_tokens = 1_000_000_000_000
monthly_tokens = 1_000_000_000_000
concurrent_invocations = 1_000_000
invocation_tokens = 1_000_000_000
"""


def _id_token(url: str, user: str) -> str:
    body = json.dumps({"user": user, "groups": ["bench"], "token_use": "id"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - our own loopback URL
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback URL
        token = json.load(answer)["id_token"]
    assert isinstance(token, str)
    return token
