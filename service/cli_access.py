"""Where the `headrace` command sends its requests, with whose token, and which invocation it means.

Called by `cli`, `cli_stream` and `cli_smoke`; calls `client`. Without `--url` it is the stack that `make run`
started here, and the token comes from that stack's issuer, a fresh one when it has expired. Elsewhere it
comes from a file (read again when it has expired) or from stdin, never from an argument, which every process
can read. Tokens of the local issuer go to loopback only.

    .local/stack.json    {"url": "http://127.0.0.1:8080", "token_url": "http://127.0.0.1:8090/token"}
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from service.cli_arguments import Reference
from service.cli_screen import Screen
from service.client import Bearer, ClientError, Endpoint, Pacing, Refused, exchange, invocation_path
from service.client_retry import BackOff

DEFAULT_URL: Final = "http://127.0.0.1:8080"
STACK_FILE: Final = Path(".local/stack.json")
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Misuse(ClientError):
    """The command can't mean anything as it was given."""


@dataclass(frozen=True, slots=True)
class Call:
    """One use of the command line: what was asked for, where it shows, and its time."""

    args: argparse.Namespace
    screen: Screen
    pacing: Pacing


def open_endpoint(call: Call) -> Endpoint:
    """Return the service that the command talks to; nothing is sent yet."""
    stack = _local_stack()
    url = str(call.args.url or stack.get("url") or DEFAULT_URL).rstrip("/")
    address = _address(url)
    is_local = address.hostname in LOOPBACK
    if address.scheme == "http" and not is_local:
        call.screen.note(f"headrace: warning: the token travels unencrypted to {address.hostname}")
    token_url = stack.get("token_url") if is_local else None
    return Endpoint(url, Bearer(_token_source(call, token_url)), call.pacing)


def find_invocation(call: Call) -> tuple[Endpoint, str, str]:
    """Find the invocation that the command names; a bare id is looked for in every runtime of the caller.

    Returns:
        The service, the runtime's id and the invocation's.

    Raises:
        ClientError: No runtime has it.
    """
    args = call.args
    url, runtime_id, invocation_id = cast("Reference", args.invocation)
    if (url and args.url) or (runtime_id and args.runtime):
        raise Misuse("the invocation names its service or runtime already: leave --url or --runtime out")
    args.url = url or args.url
    endpoint = open_endpoint(call)
    runtime_id = runtime_id or args.runtime
    if runtime_id:
        return endpoint, runtime_id, invocation_id
    for runtime in endpoint.get_document("/runtimes").get("runtimes", ()):
        try:
            endpoint.get_document(invocation_path(runtime["runtimeId"], invocation_id))
            return endpoint, runtime["runtimeId"], invocation_id
        except Refused as exc:
            if exc.status != 404:
                raise
    raise ClientError(
        f"no runtime of yours has {invocation_id}: it may be older than records are kept, or another user's"
    )


def back_off(call: Call, endpoint: Endpoint, next_step: str) -> BackOff:
    """Return the waits of one request or stream; `next_step` says what follows each of them."""

    def pause(why: str, wait_s: float) -> None:
        call.screen.status(f"{why}; {next_step} in {wait_s:.1f} s")

    return BackOff(endpoint.pacing, call.args.retry_for, pause)


def issue_local_token(call: Call, use: str) -> str:
    """Get a token of the local stack's issuer; `use` is its `token_use`, `id` or `access`.

    Raises:
        Misuse: There is no local stack.
    """
    token_url = _local_stack().get("token_url")
    if not token_url:
        raise Misuse(f"there is no {STACK_FILE} here or above: start the local stack with `make run`")
    return _issue(call, str(token_url), use)


def another_token(call: Call, endpoint: Endpoint) -> str | None:
    """Get an ID token of another user: from the given file, or the local stack; None if there is neither."""
    args = call.args
    if args.other_token_file:
        return _checked(_read(args.other_token_file), str(args.other_token_file))
    is_given = args.token_file or args.token_stdin or urlsplit(endpoint.url).hostname not in LOOPBACK
    token_url = None if is_given else _local_stack().get("token_url")
    return _issue(call, token_url, "id", user=f"{args.user}-another") if token_url else None


def read_stdin() -> str:
    """Return all of stdin."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise Misuse("stdin is not UTF-8") from exc


def _address(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_plain = bool(address.hostname and address.port != 0) and not re.search(r"[^!-~]|[?#@]", url)
        if is_plain and address.scheme in ("http", "https"):
            return address
    except ValueError:
        pass  # a port that is no number, a bracket that is not closed
    raise Misuse(f"{url} is not the URL of a service: give one like https://HOST/STAGE")


def _token_source(call: Call, token_url: str | None) -> Callable[[], str]:
    args = call.args
    if args.token_stdin:
        given = _checked(read_stdin(), "stdin")
        return lambda: given
    if args.token_file:
        return lambda: _checked(_read(args.token_file), str(args.token_file))
    if token_url:
        return lambda: _issue(call, token_url, "id")
    if args.url:
        raise Misuse("a token is needed: give --token-file FILE or --token-stdin")
    raise Misuse("no local stack runs here: start one with `make run`, or give --url and --token-file")


def _issue(call: Call, token_url: str, use: str, *, user: str | None = None) -> str:
    wanted = {"user": user or call.args.user, "groups": call.args.group, "token_use": use}
    headers = {"Content-Type": "application/json"}
    body = json.dumps(wanted).encode()
    with exchange(token_url, call.pacing, method="POST", headers=headers, body=body) as answer:
        if answer.status != 200:
            raise answer.refusal()
        issued = answer.document()
    token = issued.get(f"{use}_token") if isinstance(issued, dict) else None
    return _checked(token if isinstance(token, str) else "", token_url)


def _local_stack() -> Mapping[str, Any]:
    """Read what `make run` wrote, here or in a folder above; {} if there is nothing."""
    here = Path.cwd()
    candidates = (folder / STACK_FILE for folder in (here, *here.parents))
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return {}
    try:
        stack = json.loads(_read(path))
    except ValueError:
        stack = None
    if not isinstance(stack, dict):
        raise Misuse(f"{path} is not what `make run` writes: stop the local stack and start it again")
    return stack


def _checked(token: str, source: str) -> str:
    """Return a token that can stand in a header; the message about another one does not show it."""
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise Misuse(f"{source} holds no token: a token is one word")
    return token


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise Misuse(f"{path} is not UTF-8") from exc
    except OSError as exc:
        raise Misuse(f"{path} can't be read: {exc.strerror}") from exc
