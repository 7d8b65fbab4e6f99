"""Gateways that others make, each from its public package in an environment of its own under `.bench/`.

`make bench` installs them, pinned and hashed (requirements/litellm.txt, requirements/smg.txt,
requirements/portkey/); one that is not there is a row that says so. They see nothing of our
environment, and get no database, no telemetry, one worker each and no log line a request: what they do for a
delta, and nothing else.

    litellm   LiteLLM's proxy: Bedrock in, chat/completions out
    portkey   Portkey's gateway, on Node: Bedrock in, chat/completions out
    smg       a gateway in Rust: chat/completions in and out; it relays, and knows no Bedrock

Sources: https://docs.litellm.ai/docs/proxy/configs, https://portkey.ai/docs/integrations/llms/bedrock,
https://github.com/lightseekorg/smg
"""

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.processes import Processes, free_port
from bench.script import Plan
from bench.subjects import AWS, OURS, Running, Start, SubjectMissing, Upstream, chat_body

_PEERS = Path(__file__).resolve().parents[1] / ".bench"
_PORTKEY = _PEERS / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
_LOOPBACK = Path(__file__).with_name("loopback.cjs")
_CHAT_PATH = "/v1/chat/completions"
_CHAT_END = "[DONE]"


def program_of(peer: str, folder: Path = _PEERS) -> str:
    """Where a peer's program is.

    Raises:
        SubjectMissing: It is not installed.
    """
    program = folder / peer / "bin" / peer
    if not program.exists():
        raise SubjectMissing(f"{peer} is not in .bench/{peer}: `make bench` installs it")
    return str(program)


def start_litellm(processes: Processes, upstream: Upstream, plans: Sequence[Plan]) -> Running:
    """Start LiteLLM's proxy in front of the Bedrock endpoint.

    Raises:
        SubjectMissing: It is not installed.
    """
    program, port = program_of("litellm"), free_port()
    models = [
        {
            "model_name": plan.model_id,
            "litellm_params": {
                "model": f"bedrock/converse/{plan.model_id}",
                "aws_bedrock_runtime_endpoint": upstream.url,
                "aws_region_name": AWS["AWS_REGION"],
                "aws_access_key_id": AWS["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": AWS["AWS_SECRET_ACCESS_KEY"],
            },
        }
        for plan in dict.fromkeys(plans)
    ]
    settings = processes.folder / "litellm.yaml"
    settings.write_text(json.dumps({"model_list": models}))  # JSON is YAML
    key = f"sk-{secrets.token_hex(32)}"  # without one it does not start
    environ = {
        **AWS,
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a list of prices from the net
        "LITELLM_LOG": "ERROR",
    }
    command = [program, "--config", str(settings), "--host", "127.0.0.1", "--port", str(port)]
    pid = processes.start(
        [*command, "--num_workers", "1", "--telemetry", "False"], port=port, environ=environ, foreign=True
    )
    headers = (f"Authorization: Bearer {key}\r\n",)
    return Running(pid, port, lambda _: _CHAT_PATH, end_mark=_CHAT_END, headers=headers, body=chat_body)


def start_portkey(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
    """Start Portkey's gateway in front of the Bedrock endpoint.

    Raises:
        SubjectMissing: It is not installed, or there is no Node.
    """
    node, program = shutil.which("node"), _PORTKEY / "build" / "start-server.js"
    if node is None or not program.exists():
        raise SubjectMissing("portkey is not in .bench/portkey: `make bench` installs it where Node is")
    port = free_port()
    command = [node, "--require", str(_LOOPBACK), str(program), f"--port={port}", "--headless"]
    pid = processes.start(command, port=port, environ={"NODE_ENV": "production"}, foreign=True)
    headers = "".join(
        f"{name}: {value}\r\n"
        for name, value in {
            "x-portkey-provider": "bedrock",
            "x-portkey-custom-host": upstream.url,
            "x-portkey-aws-region": AWS["AWS_REGION"],
            "x-portkey-aws-access-key-id": AWS["AWS_ACCESS_KEY_ID"],
            "x-portkey-aws-secret-access-key": AWS["AWS_SECRET_ACCESS_KEY"],
        }.items()
    )
    return Running(pid, port, lambda _: _CHAT_PATH, end_mark=_CHAT_END, headers=(headers,), body=chat_body)


def start_smg(processes: Processes, upstream: Upstream, _plans: Sequence[Plan]) -> Running:
    """Start the gateway in Rust in front of the chat/completions endpoint.

    Raises:
        SubjectMissing: It is not installed.
    """
    program, port = program_of("smg"), free_port()
    command = [
        *(program, "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend", "openai", "--worker-urls", upstream.url, "--log-level", "error"),
        *("--max-concurrent-requests", "100000", "--queue-size", "100000"),  # it would refuse idle streams
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
    ]
    pid = processes.start(command, port=port, foreign=True)
    return Running(
        pid,
        port,
        lambda _: _CHAT_PATH,
        end_mark=_CHAT_END,
        headers=("Authorization: Bearer bench\r\n",),
        body=chat_body,
    )


PEERS: dict[str, Start] = {"litellm": start_litellm, "portkey": start_portkey, "smg": start_smg}
SUBJECTS = OURS | PEERS
