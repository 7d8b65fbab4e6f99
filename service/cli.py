"""The `headrace` command line: get a token, invoke a runtime, follow, show and list invocations, show usage.

The console script. It talks HTTP only: calls `client`, `client_stream` and its own `cli_*`, and imports
nothing else of the service.

    argv ──> arguments ──> _run ──> _invoke, _follow ... ──> client ──HTTP──> service
                                          │ Line, document
                                          └──> cli_screen ──> stdout (the answer), stderr (all else)

    exit code
    0    the invocation completed, or what was asked for was printed
    1    the invocation failed or was cancelled
    2    usage error
    3    refused: an HTTP error, or nothing answers
    4    gave up reattaching, or a submission got no answer
    130  Ctrl-C: the job goes on
    141  nobody reads stdout any more
"""

import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final, cast
from urllib.parse import quote

from service.cli_access import Call, Misuse, issue_local_token, open_endpoint, read_stdin
from service.cli_arguments import LOCAL_USER, Reference, arguments
from service.cli_screen import REFUSED, Screen
from service.cli_text import list_rows, record_rows, refusal_lines, usage_rows
from service.client import (
    Answer,
    ClientError,
    Dropped,
    Endpoint,
    Pacing,
    Refused,
    Unreachable,
    invocation_path,
    submitted_id,
)
from service.client_stream import NDJSON, EventId, Follower, GaveUp

SESSION_HEADER: Final = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

MISUSED: Final = 2
OUTCOME_UNKNOWN: Final = 4
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141


def main(argv: Sequence[str] | None = None, *, pacing: Pacing | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        SystemExit: The arguments can't be parsed (2), or `--help` was asked for (0).
    """
    args = arguments().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # half a surrogate pair must not end an answer
    call = Call(args, Screen(verbose=args.verbose, as_json=args.json), pacing or Pacing())
    try:
        with closing(call.screen):
            return _run(call)
    except BrokenPipeError:
        # What Python still holds for stdout goes nowhere at exit, instead of failing there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _run(call: Call) -> int:
    try:
        return _COMMANDS[call.args.command](call)
    except Refused as exc:
        call.screen.note(*refusal_lines(exc))
    except Unreachable as exc:
        call.screen.note(f"headrace: {exc}", "  Start the local stack with `make run`, or check --url.")
    except Misuse as exc:
        call.screen.note(f"headrace: {exc}")
        return MISUSED
    except ClientError as exc:
        call.screen.note(f"headrace: {exc}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return REFUSED


# ---------------------------------------------------------------- commands


def _token(call: Call) -> int:
    call.screen.text(issue_local_token(call, "access" if call.args.access else "id") + "\n")
    return 0


def _invoke(call: Call) -> int:
    args = call.args
    if args.prompt == "-" and args.token_stdin:
        raise Misuse("stdin can't be both the prompt and the token: use --token-file")
    job: dict[str, Any] = {"prompt": read_stdin() if args.prompt == "-" else args.prompt}
    if args.max_tokens is not None:
        job["maxTokens"] = args.max_tokens
    headers = {"Accept": "application/json", "Prefer": "respond-async"} if args.detach else {"Accept": NDJSON}
    if args.session is not None:
        headers[SESSION_HEADER] = args.session
    endpoint = open_endpoint(call)
    endpoint.bearer.token()  # what goes wrong here goes wrong before anything is submitted
    path = f"/runtimes/{quote(args.runtime, safe='')}/invocations"
    try:
        answer = endpoint.post(path, job, headers, expected=202 if args.detach else 200)
        if not args.detach:
            return _follow_to_the_end(call, endpoint, args.runtime, submitted_id(answer), opened=answer)
        with answer:
            record = answer.document() if args.json else None
    except Dropped as exc:
        return _outcome_unknown(call, str(exc), OUTCOME_UNKNOWN)
    except KeyboardInterrupt:
        return _outcome_unknown(call, "interrupted", INTERRUPTED)
    invocation_id = submitted_id(answer)
    if args.json:
        call.screen.document(record)
    elif invocation_id is None:
        return _outcome_unknown(call, "the service took the job and did not name it", OUTCOME_UNKNOWN)
    else:
        call.screen.text(f"{invocation_id}\n")
    return 0


def _follow(call: Call) -> int:
    endpoint, runtime_id, invocation_id = _referred(call)
    return _follow_to_the_end(call, endpoint, runtime_id, invocation_id, cursor=call.args.after)


def _show(call: Call) -> int:
    endpoint, runtime_id, invocation_id = _referred(call)
    record = endpoint.get_document(invocation_path(runtime_id, invocation_id))
    if call.args.json:
        call.screen.document(record)
        return 0
    call.screen.table(record_rows(record))
    result = record.get("result") or {}
    if result.get("text"):
        call.screen.text("\n" + result["text"])
    if result.get("truncated"):
        call.screen.note(
            "headrace: the text is longer than a record shows: `headrace follow` prints all of it"
        )
    return 0


def _list(call: Call) -> int:
    args = call.args
    before = f"&before={quote(args.before, safe='')}" if args.before else ""
    path = f"/runtimes/{quote(args.runtime, safe='')}/invocations?limit={args.limit}{before}"
    page = open_endpoint(call).get_document(path)
    if args.json:
        call.screen.document(page)
        return 0
    call.screen.table(list_rows(page))
    if page.get("next"):
        last_id = page["invocations"][-1]["invocationId"]
        call.screen.note(
            f"headrace: there are more: {_again(call, 'list', args.runtime, '--before', last_id)}"
        )
    return 0


def _usage(call: Call) -> int:
    usage = open_endpoint(call).get_document("/usage")
    if call.args.json:
        call.screen.document(usage)
        return 0
    call.screen.table(usage_rows(usage))
    rest = [(name, str(value)) for name, value in usage.items() if isinstance(value, int | float | str)]
    if rest:
        call.screen.text("\n")
        call.screen.table(rest)
    return 0


def _follow_to_the_end(
    call: Call,
    endpoint: Endpoint,
    runtime_id: str,
    invocation_id: str | None,
    *,
    opened: Answer | None = None,
    cursor: EventId | None = None,
) -> int:
    def pause(why: str, wait_s: float) -> None:
        call.screen.status(f"{why}; reattaching in {wait_s:.1f} s")

    follower = Follower(
        endpoint, runtime_id, invocation_id, cursor=cursor, retry_for_s=call.args.retry_for, pause=pause
    )
    exit_code: int | None = None
    try:
        with closing(follower.lines(opened)) as lines:
            while exit_code is None:
                exit_code = call.screen.show(next(lines))
        return exit_code
    except KeyboardInterrupt:
        if follower.invocation_id is None:
            raise
        why: tuple[str, ...] = ("headrace: interrupted",)
        exit_code = INTERRUPTED
    except GaveUp as exc:
        why = (f"headrace: {exc}",)
        exit_code = OUTCOME_UNKNOWN
    except Refused as exc:
        if exc.status != 401:
            raise
        why = refusal_lines(exc)
        exit_code = REFUSED
    after = ("--after", str(follower.cursor)) if follower.cursor else ()
    on = _again(call, "follow", f"{runtime_id}/{follower.invocation_id}", *after)
    call.screen.note(*why, f"  The job goes on: {on}")
    return exit_code


def _outcome_unknown(call: Call, why: str, exit_code: int) -> int:
    look = _again(call, "list", call.args.runtime)
    call.screen.note(
        f"headrace: {why}",
        f"  The job may have been started. Look for it, and submit it again only if it isn't there: {look}",
    )
    return exit_code


def _again(call: Call, *command: str) -> str:
    """Return a command line that goes on where this one leaves, with the same endpoint and caller."""
    args = call.args
    options = [("--url", args.url), ("--token-file", args.token_file)]
    options += [("--user", args.user if args.user != LOCAL_USER else None)]
    options += [("--group", group) for group in args.group]
    given = [part for name, value in options if value for part in (name, str(value))]
    return shlex.join(["headrace", *command, *given, *(["--token-stdin"] if args.token_stdin else [])])


def _referred(call: Call) -> tuple[Endpoint, str, str]:
    """Find the invocation that the command names; a bare id is looked for in every runtime of the caller.

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


_COMMANDS: Final[dict[str, Callable[[Call], int]]] = {
    "token": _token,
    "invoke": _invoke,
    "follow": _follow,
    "show": _show,
    "list": _list,
    "usage": _usage,
}

if __name__ == "__main__":
    sys.exit(main())
