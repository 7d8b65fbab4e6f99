"""Documents of the service to lines for people. Pure; called by `cli` and `cli_screen`.

Tolerant on purpose: a member that is missing or new never keeps the rest from being shown.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from service.client import Refused
from service.client_stream import Line

Row = tuple[str, ...]

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Replace control characters but tab and newline: nothing received may steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def refusal_lines(refused: Refused) -> Row:
    """Describe a refused request in at most two lines."""
    wait = f"Try again in {refused.retry_after_s} s." if refused.retry_after_s else ""
    detail = " ".join(str(part) for part in (refused.problem.get("detail"), wait) if part)
    title = f"{refused.status} {refused.title}"
    return _two_lines(title, refused.problem.get("code"), detail)


def problem_lines(what: str, value: Mapping[str, Any]) -> Row:
    """Describe the problem inside an event, if it has one, in at most two lines."""
    problem = value.get("problem") or {}
    title = f"{what}: {problem['title']}" if "title" in problem else what
    return _two_lines(title, problem.get("code"), problem.get("detail"))


def cancellation_lines(value: Mapping[str, Any]) -> Row:
    """Say that the invocation was cancelled, why, and what it used."""
    used = f"{token_counts(value['usage'])} were used." if value.get("usage") else None
    return _two_lines("the invocation was cancelled", value.get("reason"), used)


def pause_line(value: Mapping[str, Any]) -> str:
    """Say in one line what a paused invocation waits for, and until when."""
    until = f" until {value['resumesAt']}" if value.get("resumesAt") else ""
    return problem_lines(f"paused{until}", value)[0]


def progress(line: Line) -> str:
    """Say in a few words what a line of a stream means for the job; "" if nothing."""
    value = line.value
    match line.type:
        case "heartbeat":
            parts = (("", "phase", ""), ("turn ", "turn", ""), ("", "elapsed_s", " s"))
            return ", ".join(f"{pre}{value[name]}{post}" for pre, name, post in parts if name in value)
        case "invocationStarted":
            return f"{value.get('runtimeId')}/{value.get('invocationId')} started"
        case "toolStarted":
            return f"tool {value.get('name')} runs"
        case "toolFinished":
            return f"tool {value.get('name')}: {value.get('status')}"
        case "metadata":
            return token_counts(value.get("usage"))
        case _:
            return ""


def token_counts(usage: Mapping[str, Any] | None) -> str:
    """Show token counts: `34 input, 120 output tokens`; of caches only what was used."""
    used = usage or {}
    counts = [f"{used.get('inputTokens', 0)} input", f"{used.get('outputTokens', 0)} output"]
    for name, shown in (("cacheReadInputTokens", "cache read"), ("cacheWriteInputTokens", "cache write")):
        if used.get(name):
            counts.append(f"{used[name]} {shown}")
    return ", ".join(counts) + " tokens" + (" (estimated)" if used.get("estimated") else "")


def record_rows(record: Mapping[str, Any]) -> list[Row]:
    """Show a record: what it is, where it stands, when, and what it used."""
    terminal = {name: value for name, value in (record.get("terminalEvent") or {}).items() if name != "id"}
    ending: Mapping[str, Any] = next(iter(terminal.values()), {})
    problem = ending.get("problem") or {}
    why = ending.get("stopReason") or ending.get("reason") or problem.get("code")
    rows = [
        ("invocation", f"{record.get('runtimeId')}/{record.get('invocationId')}"),
        ("state", f"{record.get('state')}" + (f" ({why})" if why else "")),
        ("problem", " ".join(f"{problem[name]}" for name in ("title", "detail") if problem.get(name))),
        ("session", record.get("sessionId")),
        ("attempts", len(record.get("attempts") or ())),
        ("created", record.get("createdAt")),
        ("finished", record.get("finishedAt")),
        ("deadline", record.get("deadlineAt")),
        ("cancel", record.get("cancelRequestedAt")),
        ("paused", record.get("pausedAt")),
        ("resumes", record.get("resumesAt")),
        ("usage", token_counts(record.get("usage"))),
    ]
    return [(name, str(value)) for name, value in rows if value]


def list_rows(page: Mapping[str, Any]) -> list[Row]:
    """Show a page of records, one a row."""
    rows: list[Row] = [("INVOCATION", "STATE", "CREATED", "USAGE")]
    for record in page.get("invocations", ()):
        state, created = str(record.get("state")), str(record.get("createdAt"))
        rows.append((str(record.get("invocationId")), state, created, token_counts(record.get("usage"))))
    return rows


def usage_rows(usage: Mapping[str, Any]) -> list[Row]:
    """Show the quota windows, one a row."""
    members = ("name", "limit", "used", "reserved", "remaining", "resetsAt")
    rows: list[Row] = [("WINDOW", "LIMIT", "USED", "RESERVED", "REMAINING", "RESETS")]
    rows.extend(
        tuple(str(window.get(member, "-")) for member in members) for window in usage.get("windows", ())
    )
    return rows


def _two_lines(title: str, code: str | None, detail: str | None) -> Row:
    first = f"headrace: {title}" + (f" ({code})" if code else "")
    return (first, f"  {detail}") if detail else (first,)
