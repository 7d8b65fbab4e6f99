"""The command `headrace smoke`: whether an endpoint keeps the contract, asked from outside.

Called by `cli`; runs the checks of the other `cli_smoke_*`, a line each:

    ok       streaming       96 deltas in 2.9 s; the first byte after 0.12 s, the last after 3.1 s
    FAILED   resume          1.7 came again after 1.9. Nothing may be ...
    skipped  usage           there is no whole answer to look at: see streaming
    noticed  request id      ...

- `noticed` says how the endpoint behaves where documentation leaves it open; it is no judgement.
- The exit code is 0 only if every check held: a check that had to be skipped did not.
- Three invocations are paid for. What was started and has not ended is cancelled on the way out.
- No part of a token is in any line, whatever the endpoint sends.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Final, NamedTuple

from service.cli_access import Call, Misuse, another_token, open_endpoint
from service.cli_exits import Exit
from service.cli_smoke_answers import attaches, hides_from_others, meters, streams
from service.cli_smoke_checks import (
    NotHeld,
    Skipped,
    Visit,
    claims_of,
    knows_its_paths,
    refuses_altered_tokens,
    refuses_garbage,
    refuses_no_token,
)
from service.cli_smoke_jobs import answers_async, cancels, keeps_records, resumes
from service.cli_text import printable
from service.client import ClientError, Endpoint, Refused
from service.client_probe import Probe

CHECKS: Final[Sequence[tuple[str, Callable[[Visit], str]]]] = (
    ("no token", refuses_no_token),
    ("garbage token", refuses_garbage),
    ("altered token", refuses_altered_tokens),
    ("paths", knows_its_paths),
    ("streaming", streams),
    ("usage", meters),
    ("another user", hides_from_others),
    ("idempotency", attaches),
    ("respond-async", answers_async),
    ("resume", resumes),
    ("records", keeps_records),
    ("cancel", cancels),
)


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """What came of one check, as its line says it."""

    check: str
    outcome: Outcome
    said: str


def smoke(call: Call) -> Exit:
    """Run all checks and print what they found."""
    endpoint = open_endpoint(call)
    try:
        visit = _visit(call, endpoint)
    except ClientError as exc:  # which may quote what the endpoint sent
        exc.args = (_without_token(str(exc), endpoint),)
        raise
    findings = []
    try:
        for name, check in CHECKS:
            if check is hides_from_others and visit.other_token is None:
                visit.noticed[name] = "was not asked for: give --other-token-file"
                continue
            call.screen.status(f"{name} ...")
            finding = _run(name, check, visit)
            findings.append(finding)
            if not call.args.json:
                call.screen.text(_line(finding.outcome, name, finding.said))
    finally:
        _leave_nothing(visit)
    held = sum(finding.outcome is Outcome.OK for finding in findings)
    noticed = {
        name: _without_token(said, endpoint, visit.other_token) for name, said in visit.noticed.items()
    }
    if call.args.json:
        call.screen.document(
            {
                "url": endpoint.url,
                "runtimeId": visit.runtime_id,
                "held": held == len(findings),
                "checks": [finding._asdict() for finding in findings],
                "noticed": noticed,
            }
        )
    else:
        call.screen.text("".join(_line("noticed", name, said) for name, said in noticed.items()))
        call.screen.text(f"{held} of {len(findings)} checks held\n")
    return Exit.DONE if held == len(findings) else Exit.FAILED


def _visit(call: Call, endpoint: Endpoint) -> Visit:
    """Find out whether this is a Headrace that takes the token, and what is to be invoked."""
    args = call.args
    token = endpoint.bearer.token()
    claims = claims_of(token)
    if claims is None:
        raise Misuse("that is no ID token: one has three parts with a dot in between")
    try:
        runtimes = endpoint.get_document("/runtimes").get("runtimes")
    except Refused as exc:
        raise ClientError(_why_refused(exc, claims)) from exc
    if not isinstance(runtimes, list) or not all(
        isinstance(runtime, dict) and isinstance(runtime.get("runtimeId"), str) for runtime in runtimes
    ):
        raise ClientError(f"{endpoint.url}/runtimes did not list runtimes: is that the URL of a Headrace?")
    by_id = {runtime["runtimeId"]: runtime for runtime in runtimes}
    if not by_id:
        raise ClientError("this user may call no runtime: put it into a group that headrace.toml names")
    runtime_id = args.runtime or next(iter(by_id))
    if runtime_id not in by_id:
        raise ClientError(f"this user may call no runtime {runtime_id}, but {', '.join(by_id)}")
    most_tokens = by_id[runtime_id].get("maxOutputTokens")
    most_tokens = most_tokens if isinstance(most_tokens, int) else args.max_tokens
    return Visit(
        probe=Probe(endpoint, args.limit),
        runtime_id=runtime_id,
        prompt=args.prompt,
        max_tokens=min(args.max_tokens, most_tokens),
        most_tokens=most_tokens,
        other_token=another_token(call, endpoint),
    )


def _why_refused(exc: Refused, claims: dict[str, object]) -> str:
    code, detail = exc.problem.get("code"), exc.problem.get("detail")
    said = " ".join(str(part) for part in (exc.status, code or exc.title, detail) if part)
    if exc.status == 401:
        use, end = claims.get("token_use"), claims.get("exp")
        return (
            f"GET /runtimes answered {said}. The token says token_use={use}, exp={end}: it must be an ID "
            "token (id) of one of the deployment's clients that has not expired"
        )
    if exc.status in (403, 404) and not code:
        return f"GET /runtimes answered {said}. Is the stage missing in the URL, as in https://HOST/dev?"
    return f"GET /runtimes answered {said}"


def _run(name: str, check: Callable[[Visit], str], visit: Visit) -> Finding:
    try:
        outcome, said = Outcome.OK, check(visit)
    except Skipped as exc:
        outcome, said = Outcome.SKIPPED, str(exc)
    except (NotHeld, ClientError) as exc:
        outcome, said = Outcome.FAILED, str(exc)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        # Checks read answers as the contract has them: where one has another form, that is the finding.
        outcome, said = Outcome.FAILED, f"an answer has not the form that it must have ({type(exc).__name__})"
    return Finding(name, outcome, _without_token(said, visit.probe.endpoint, visit.other_token))


def _leave_nothing(visit: Visit) -> None:
    """Cancel what was started and has not been seen to end; the least that a guest can do."""
    for path in visit.running:
        with suppress(ClientError):
            visit.ask(f"POST {path}/cancel")


def _line(kind: str, name: str, said: str) -> str:
    return f"{kind:<9}{name:<19}{said}\n"


def _without_token(text: str, endpoint: Endpoint, other_token: str | None = None) -> str:
    """Take out every part of a token: an endpoint may send back what it was sent."""
    tokens = (endpoint.bearer.token(), other_token or "")
    for part in {part for token in tokens for part in token.split(".") if len(part) > 3}:
        text = text.replace(part, "[token]")
    return printable(re.sub(r"eyJ[\w-]+(\.[\w-]+)*", "[token]", text)).replace("\n", " ")
