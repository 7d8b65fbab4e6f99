"""The `headrace` command line: get a token, invoke a runtime, follow, show, list, cancel and resume
invocations, show usage, check a deployment; for operators, deny principals and override limits.

The console script. It talks HTTP only: calls `client`, `client_*` and its own `cli_*`. Of the rest of the
service it imports `operate`, and that for the commands of operators alone, which go to the store.

    argv ──> arguments ──> _run ──> invoke, follow, _show ... ──> client_* ──HTTP──> service
                             │            │ Line, document
                             │            └──> cli_screen ──> stdout (the answer), stderr (all else)
                             └────> _operate ──> operate ──> store

`cli_exits` lists the exit codes.
"""

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Final
from urllib.parse import quote

from service.cli_access import Call, Misuse, back_off, find_invocation, issue_local_token, open_endpoint
from service.cli_arguments import again, arguments
from service.cli_exits import Exit
from service.cli_screen import Screen
from service.cli_smoke import smoke
from service.cli_stream import follow, invoke
from service.cli_text import list_rows, record_rows, refusal_lines, usage_rows
from service.client import ClientError, Pacing, Refused, Unreachable, invocation_path
from service.client_retry import GaveUp, RepeatedPost


def main(argv: Sequence[str] | None = None, *, pacing: Pacing | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        SystemExit: The arguments can't be parsed (2), or `--help` was asked for (0).
    """
    args = arguments().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # half a surrogate pair must not end an answer
    screen = Screen(verbose=args.verbose, as_json=args.json, live=args.live, after=args.after)
    call = Call(args, screen, pacing or Pacing())
    try:
        with closing(call.screen):
            return _run(call)
    except BrokenPipeError:
        # What Python still holds for stdout goes nowhere at exit, instead of failing there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.NOBODY_READS


def _run(call: Call) -> Exit:
    try:
        return _COMMANDS[call.args.command](call)
    except Refused as exc:
        call.screen.note(*refusal_lines(exc))
    except Unreachable as exc:
        call.screen.note(f"headrace: {exc}", "  Start the local stack with `make run`, or check --url.")
    except Misuse as exc:
        call.screen.note(f"headrace: {exc}")
        return Exit.MISUSED
    except GaveUp as exc:
        call.screen.note(f"headrace: {exc}")
        return Exit.GAVE_UP
    except ClientError as exc:
        call.screen.note(f"headrace: {exc}")
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.REFUSED


# ---------------------------------------------------------------- commands


def _token(call: Call) -> Exit:
    call.screen.text(issue_local_token(call, "access" if call.args.access else "id") + "\n")
    return Exit.DONE


def _show(call: Call) -> Exit:
    endpoint, runtime_id, invocation_id = find_invocation(call)
    record = endpoint.get_document(invocation_path(runtime_id, invocation_id))
    if call.args.json:
        call.screen.document(record)
        return Exit.DONE
    call.screen.table(record_rows(record))
    result = record.get("result") or {}
    if result.get("text"):
        call.screen.text("\n" + result["text"])
    if result.get("truncated"):
        call.screen.note(
            "headrace: the text is longer than a record shows: `headrace follow` prints all of it"
        )
    return Exit.DONE


def _list(call: Call) -> Exit:
    args = call.args
    before = f"&before={quote(args.before, safe='')}" if args.before else ""
    path = f"/runtimes/{quote(args.runtime, safe='')}/invocations?limit={args.limit}{before}"
    page = open_endpoint(call).get_document(path)
    if args.json:
        call.screen.document(page)
        return Exit.DONE
    call.screen.table(list_rows(page))
    if page.get("next"):
        last_id = page["invocations"][-1]["invocationId"]
        call.screen.note(
            f"headrace: there are more: {again(args, 'list', args.runtime, '--before', last_id)}"
        )
    return Exit.DONE


def _usage(call: Call) -> Exit:
    usage = open_endpoint(call).get_document("/usage")
    if call.args.json:
        call.screen.document(usage)
        return Exit.DONE
    call.screen.table(usage_rows(usage))
    rest = [(name, str(value)) for name, value in usage.items() if isinstance(value, int | float | str)]
    if rest:
        call.screen.text("\n")
        call.screen.table(rest)
    return Exit.DONE


def _cancel(call: Call) -> Exit:
    return _ask(call, "cancel", {202: "will be cancelled", 200: "is cancelled"})


def _resume(call: Call) -> Exit:
    return _ask(call, "resume", {202: "goes on"})


def _ask(call: Call, verb: str, said: Mapping[int, str]) -> Exit:
    """Ask for something to be done with an invocation; `said` is what each good status means."""
    endpoint, runtime_id, invocation_id = find_invocation(call)
    path = f"{invocation_path(runtime_id, invocation_id)}/{verb}"
    waits = back_off(call, endpoint, "trying again")
    asked = RepeatedPost(endpoint, path, None, {"Accept": "application/json"}, waits, expected=tuple(said))
    answer, record = asked.send_and_read()
    if call.args.json:
        call.screen.document(record)
    else:
        call.screen.text(f"{runtime_id}/{invocation_id} {said[answer.status]}\n")
    return Exit.DONE


def _operate(call: Call) -> Exit:
    from service.operate import NotDone, operate  # noqa: PLC0415 - users' commands need nothing of the service

    try:
        done = operate(call.args, os.environ)
    except NotDone as exc:
        call.screen.note(*(f"headrace: {fault}" for fault in exc.faults))
        return Exit.MISUSED if exc.is_misuse else Exit.REFUSED
    if call.args.json:
        call.screen.document(done.document)
    else:
        call.screen.table(done.rows)
    return Exit.DONE


_COMMANDS: Final[dict[str, Callable[[Call], Exit]]] = {
    "token": _token,
    "invoke": invoke,
    "follow": follow,
    "show": _show,
    "cancel": _cancel,
    "resume": _resume,
    "list": _list,
    "usage": _usage,
    "smoke": smoke,
    **dict.fromkeys(("deny", "allow", "denied", "limit"), _operate),
}

if __name__ == "__main__":
    sys.exit(main())
