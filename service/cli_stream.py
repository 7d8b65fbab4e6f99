"""The commands of `headrace` that print an answer: `invoke` and `follow`.

Called by `cli`; calls `cli_access`, `client_retry` and `client_stream`.

- Each submission has a key of its own: a POST whose answer did not come is sent again, and attaches to what
  the first one started.
- What is said on the way out names what is known: that the job goes on, and how to follow or end it; or that
  it may have been started, and how to attach to it.
"""

import uuid
from contextlib import closing
from typing import Any, Final
from urllib.parse import quote

from service.cli_access import Call, Misuse, back_off, find_invocation, open_endpoint, read_stdin
from service.cli_arguments import again
from service.cli_exits import Exit
from service.cli_text import refusal_lines
from service.client import Answer, Dropped, Endpoint, Refused, submitted_id
from service.client_retry import GaveUp, RepeatedPost
from service.client_stream import NDJSON, Follower

SESSION_HEADER: Final = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


def invoke(call: Call) -> Exit:
    """Submit a job and print its answer, or its id with `--detach`."""
    args = call.args
    if args.prompt == "-" and args.token_stdin:
        raise Misuse("stdin can't be both the prompt and the token: use --token-file")
    job: dict[str, Any] = {"prompt": read_stdin() if args.prompt == "-" else args.prompt}
    if args.max_tokens is not None:
        job["maxTokens"] = args.max_tokens
    key = args.idempotency_key or str(uuid.uuid4())
    accept = {"Accept": "application/json", "Prefer": "respond-async"} if args.detach else {"Accept": NDJSON}
    session = {SESSION_HEADER: args.session} if args.session is not None else {}
    endpoint = open_endpoint(call)
    endpoint.bearer.token()  # what goes wrong here goes wrong before anything is submitted
    submission = RepeatedPost(
        endpoint,
        f"/runtimes/{quote(args.runtime, safe='')}/invocations",
        job,
        {"Idempotency-Key": key, **accept, **session},
        back_off(call, endpoint, "trying again"),
        expected=(202,) if args.detach else (200,),
    )
    try:
        if args.detach:
            return _print_id(call, *submission.send_and_read())
        answer = submission.send()
        return _follow(call, endpoint, args.runtime, submitted_id(answer), opened=answer)
    except (GaveUp, Dropped) as exc:
        why: tuple[str, ...] = (f"headrace: {exc}",)
        exit_code = Exit.GAVE_UP
    except Refused as exc:
        if submission.taken != "perhaps":
            raise
        why = refusal_lines(exc)
        exit_code = Exit.REFUSED
    except KeyboardInterrupt:
        if submission.taken == "no":
            raise
        why = ("headrace: interrupted",)
        exit_code = Exit.INTERRUPTED
    attach = f"give the same command with --idempotency-key {key} to attach to it"
    call.screen.note(*why, f"  The job may have been started: {attach}")
    return exit_code


def follow(call: Call) -> Exit:
    """Print the answer of an invocation that was submitted before."""
    return _follow(call, *find_invocation(call))


def _print_id(call: Call, answer: Answer, record: Any) -> Exit:
    invocation_id = submitted_id(answer)
    if call.args.json:
        call.screen.document(record)
    elif invocation_id is None:
        raise Dropped("the service took the job and did not name it")
    else:
        call.screen.text(f"{invocation_id}\n")
    return Exit.DONE


def _follow(
    call: Call,
    endpoint: Endpoint,
    runtime_id: str,
    invocation_id: str | None,
    *,
    opened: Answer | None = None,
) -> Exit:
    args = call.args
    waits = back_off(call, endpoint, "reattaching")
    follower = Follower(endpoint, runtime_id, invocation_id, cursor=args.after, back_off=waits)
    ended: Exit | None = None
    try:
        with closing(follower.lines(opened)) as lines:
            while ended is None:
                ended = call.screen.show(next(lines))
        return ended
    except KeyboardInterrupt:
        if follower.invocation_id is None:
            raise
        why: tuple[str, ...] = ("headrace: interrupted",)
        exit_code = Exit.INTERRUPTED
    except GaveUp as exc:
        why = (f"headrace: {exc}",)
        exit_code = Exit.GAVE_UP
    except Refused as exc:
        if exc.status != 401:
            raise
        why = refusal_lines(exc)
        exit_code = Exit.REFUSED
    reference = f"{runtime_id}/{follower.invocation_id}"
    cursor = follower.cursor if call.screen.shows_at_once else args.after
    goes_on = again(args, "follow", reference, *(("--after", str(cursor)) if cursor else ()))
    to_end = (f"  To end it: {again(args, 'cancel', reference)}",) if exit_code is Exit.INTERRUPTED else ()
    call.screen.note(*why, f"  The job goes on: {goes_on}", *to_end)
    return exit_code
