"""What is measured: each subject as a function that starts it in front of the upstream and says how to ask
it.

`scenarios` starts one subject at a time. All of them answer one plan with the same deltas: Headrace and the
obvious loop from event-stream frames, the copying ones (direct, copy, nginx) by passing on the SSE that the
upstream writes for them.

    direct     no subject: the client asks the upstream; the base of added times, and the bench's own limit
    copy       `copier`: raw uvloop, bytes in, bytes out: the floor in Python
    nginx      one worker, `proxy_pass`, buffering off
    headrace   `python -m service` with everything on: verified token, quota, event log in an SQLite file
    obvious    `obvious`: Starlette, aioboto3, `json.dumps`, `StreamingResponse`
"""

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.port_shape import SHAPES
from bench.processes import LOAD_CORE, Processes, free_port
from bench.script import Plan

DELTA_MARK = 'data: {"contentBlockDelta"'
"""Begins each delta in every subject's answer."""

_AUDIENCE = "headrace-local"
_AWS = {
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class SubjectMissing(Exception):
    """The subject isn't installed; says how to install it."""


@dataclass(frozen=True)
class Running:
    """A subject that listens: how to ask it for a plan, and how its answers end."""

    pid: int
    port: int
    path: Callable[[Plan], str]
    end_mark: str = '{"metadata"'
    headers: str = ""

    def request(self, plan: Plan) -> str:
        """The bytes of a request for a plan, as latin-1 text."""
        body = json.dumps({"prompt": "Describe the river between the weir and the turbine."})
        return (
            f"POST {self.path(plan)} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{self.headers}\r\n{body}"
        )


Start = Callable[[Processes, int, Sequence[Plan]], Running]
"""Starts a subject in front of the upstream's port, able to answer these plans."""


def start_upstream(processes: Processes) -> Running:
    """Start the fake upstream on the client's core; as a subject, it is `direct`."""
    port = free_port()
    pid = processes.python("bench.upstream", "--port", str(port), port=port, core=LOAD_CORE)
    return Running(pid, port, _sse_path)


def start_copy(processes: Processes, upstream_port: int, _plans: Sequence[Plan]) -> Running:
    port = free_port()
    pid = processes.python(
        "bench.copier", "--port", str(port), "--upstream-port", str(upstream_port), port=port
    )
    return Running(pid, port, _sse_path)


def start_nginx(processes: Processes, upstream_port: int, _plans: Sequence[Plan]) -> Running:
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
events {{ worker_connections 8192; }}
http {{
access_log off; keepalive_requests 1000000; {temporary}
upstream bedrock {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000; }}
server {{
listen 127.0.0.1:{port} backlog=4096;
location / {{
proxy_pass http://bedrock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
}} }} }}
"""
    )
    if os.geteuid() == 0:
        shutil.chown(processes.folder, "nobody")
        shutil.chown(folder, "nobody")
        settings.write_text("user nobody nogroup;\n" + settings.read_text())
    pid = processes.start([nginx, "-e", f"{folder}/error.log", "-c", str(settings)], port=port)
    return Running(pid, port, _sse_path)


def start_obvious(processes: Processes, upstream_port: int, _plans: Sequence[Plan]) -> Running:
    port = free_port()
    environ = {**_AWS, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{upstream_port}"}
    pid = processes.python("bench.obvious", "--port", str(port), port=port, environ=environ)
    return Running(pid, port, _runtime_path)


def start_headrace(processes: Processes, upstream_port: int, plans: Sequence[Plan]) -> Running:
    """Start the issuer beside the client, then the service: a runtime a plan, limits out of reach."""
    issuer_port, port = free_port(), free_port()
    issuer = f"http://127.0.0.1:{issuer_port}"
    processes.python("local.issuer", "--port", str(issuer_port), port=issuer_port, core=LOAD_CORE)
    catalog = processes.folder / "headrace.toml"
    catalog.write_text(_catalog(plans))
    environ = {
        **_AWS,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{upstream_port}",
        "HEADRACE_HOST": "127.0.0.1",
        "HEADRACE_PORT": str(port),
        "HEADRACE_CATALOG": str(catalog),
        "HEADRACE_ISSUER": f"{issuer}/local_pool",
        "HEADRACE_AUDIENCES": _AUDIENCE,
        "HEADRACE_STORE": f"sqlite:{processes.folder / 'headrace.sqlite'}",
    }
    pid = processes.python("service", port=port, environ=environ)
    token = _id_token(f"{issuer}/token")
    headers = f"Authorization: Bearer {token}\r\n"
    return Running(pid, port, _runtime_path, end_mark='{"invocationCompleted"', headers=headers)


def start_shape(shape: str) -> Start:
    """The `Start` of one of port-shape's apps, which take Bedrock's path themselves."""

    def start(processes: Processes, upstream_port: int, _plans: Sequence[Plan]) -> Running:
        port = free_port()
        pid = processes.python(
            "bench.port_shape", shape, "--port", str(port), "--upstream-port", str(upstream_port), port=port
        )
        return Running(pid, port, lambda plan: f"/model/{plan.model_id}/converse-stream")

    return start


SUBJECTS: dict[str, Start] = {
    "copy": start_copy,
    "nginx": start_nginx,
    "headrace": start_headrace,
    "obvious": start_obvious,
}
SHAPE_SUBJECTS: dict[str, Start] = {"copy": start_copy} | {shape: start_shape(shape) for shape in SHAPES}


def nginx_path() -> str | None:
    """Where nginx is; Debian keeps it off an ordinary user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _sse_path(plan: Plan) -> str:
    return f"/sse/{plan.model_id}"


def _runtime_path(plan: Plan) -> str:
    return f"/runtimes/{plan.model_id}/invocations"


def _catalog(plans: Sequence[Plan]) -> str:
    runtimes = "".join(
        f'[runtimes.{plan.model_id}]\nkind = "converse"\nmodel = "bedrock/{plan.model_id}"\n'
        f"max_output_tokens = {max(plan.deltas, 1024)}\n"
        for plan in plans
    )
    return f"""[service]
running_invocations = 100_000
open_readers = 100_000
readers_per_principal = 100_000
drain_s = 1
[upstreams.bedrock]
kind = "bedrock"
{runtimes}[limits.default]
daily_tokens = 1_000_000_000_000
monthly_tokens = 1_000_000_000_000
concurrent_invocations = 1_000_000
invocation_tokens = 1_000_000_000
"""


def _id_token(url: str) -> str:
    body = json.dumps({"user": "bench", "groups": ["bench"], "token_use": "id"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - our own loopback URL
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback URL
        token = json.load(answer)["id_token"]
    assert isinstance(token, str)
    return token
