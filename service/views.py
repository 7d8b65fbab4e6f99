"""What the API shows of records and accounts, as JSON documents. Pure; called by `api`."""

from typing import Any

from service.config import Limits, ModelName
from service.events import event_type, event_value
from service.invocations import Attempt, Invocation, Tried, timestamp
from service.stores import Account


def location(invocation: Invocation) -> str:
    """Return the path of the record."""
    return f"/runtimes/{invocation.runtime_id}/invocations/{invocation.invocation_id}"


def record(invocation: Invocation) -> dict[str, Any]:
    """Show an invocation: state, attempts, times, usage and, once it has ended, its terminal event."""
    shown: dict[str, Any] = {
        "invocationId": invocation.invocation_id,
        "runtimeId": invocation.runtime_id,
        "sessionId": invocation.session_id,
        "state": str(invocation.state),
        "attempts": [_attempt(attempt) for attempt in invocation.attempts],
        "createdAt": timestamp(invocation.created_at_ms),
        "updatedAt": timestamp(invocation.updated_at_ms),
        "deadlineAt": timestamp(invocation.deadline_at_ms),
        "finishedAt": _maybe(invocation.finished_at_ms),
        "usage": invocation.usage.as_json(),
        "models": [ModelName.of(model).shown for model in invocation.models],
        "tried": [_tried(each) for each in invocation.tried],
        "events": location(invocation) + "/events",
    }
    moments = {
        "cancelRequestedAt": invocation.cancel_requested_at_ms,
        "pausedAt": invocation.paused_at_ms,
        "resumesAt": invocation.resumes_at_ms,
    }
    shown |= {name: timestamp(at_ms) for name, at_ms in moments.items() if at_ms is not None}
    if invocation.terminal is not None:
        kind = event_type(invocation.terminal).decode()
        shown["terminalEvent"] = {"id": str(invocation.last), kind: event_value(invocation.terminal)}
    return shown


def _tried(tried: Tried) -> dict[str, Any]:
    code = {"code": tried.code} if tried.code else {}
    return {"model": ModelName.of(tried.model).shown, **code, "calls": tried.calls}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "startedAt": timestamp(attempt.started_at_ms),
        "lastEventId": str(attempt.last) if attempt.last is not None and attempt.last.seq else None,
        "end": attempt.end and str(attempt.end),
    }


def _maybe(at_ms: int | None) -> str | None:
    return None if at_ms is None else timestamp(at_ms)


def usage(account: Account, limits: Limits) -> dict[str, Any]:
    """Show what a principal has used, holds and has left, per window."""
    windows = []
    for window, limit_tokens in zip(
        account.windows, (limits.daily_tokens, limits.monthly_tokens), strict=True
    ):
        held_tokens = window.used_tokens + account.reserved_tokens
        windows.append(
            {
                "name": window.name,
                "windowSeconds": window.window_s,
                "limit": limit_tokens,
                "used": window.used_tokens,
                "usage": window.used.as_json(),
                "reserved": account.reserved_tokens,
                "remaining": max(0, limit_tokens - held_tokens),
                "resetsAt": timestamp(window.resets_at_ms),
            }
        )
    return {
        "windows": windows,
        "runningInvocations": account.running,
        "concurrentInvocations": limits.concurrent_invocations,
    }
