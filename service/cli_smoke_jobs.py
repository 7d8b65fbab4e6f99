"""The checks of `headrace smoke` of jobs that are left: without a stream, in the middle of it, or for good.

Called by `cli_smoke`, in the order in which they stand here; calls `cli_smoke_checks` and `client_probe`.

    answers_async ── the second invocation ──>  resumes (hangs up in the middle)  ──>  keeps_records
    cancels ── the third one
"""

from collections.abc import Sequence
from typing import Final

from service.cli_smoke_answers import essence, id_of, need_whole
from service.cli_smoke_checks import Skipped, Visit, need
from service.cli_text import token_counts
from service.client_probe import Event

# The service promises 2 s where no tool is slow to end; the way here and a shared upstream are not its own.
LONGEST_CANCEL_S: Final = 10.0


def answers_async(visit: Visit) -> str:
    """Who does not want to wait gets a record at once."""
    reply = visit.ask(
        visit.submission,
        document=visit.job,
        headers={"Accept": "application/json", "Prefer": "respond-async"},
    )
    record = reply.document
    invocation_id, location = record.get("invocationId"), reply.headers.get("Location")
    if isinstance(invocation_id, str):
        visit.running.add(visit.path(invocation_id))
        visit.detached_id = invocation_id if reply.status == 202 else None
    need(reply.status == 202, f"the submission answered {reply}", "It must be a 202 with the record")
    need(
        isinstance(invocation_id, str) and location == visit.path(invocation_id),
        f"the record names {invocation_id}, Location {location}",
        "Location must be the record's path, as the service knows it: look for what rewrites it on the way",
    )
    applied = reply.headers.get("Preference-Applied")
    need(applied == "respond-async", f"Preference-Applied is {applied!r}", "It must be respond-async")
    return f"202 and the record of {invocation_id}"


def resumes(visit: Visit) -> str:
    """Who hangs up in the middle gets the rest, once and in order."""
    if visit.detached_id is None:
        raise Skipped("there is no invocation to follow: see respond-async")
    request = f"GET {visit.path(visit.detached_id)}/events"
    first = visit.listen(request, enough=_is_under_way)
    kept = first.events[: len(first.events) // 2] if first.is_over else first.events
    need(bool(kept), "the stream ended before anything was in it", "Look for its end in the service's log")
    cursor = kept[-1].event_id
    rest = visit.listen(request, headers={"Last-Event-ID": str(cursor)})
    need_whole(rest, [*kept, *rest.events])
    visit.running.discard(visit.path(visit.detached_id))
    whole = visit.listen(request)
    need(
        essence(whole.events) == essence([*kept, *rest.events]),
        f"read from the start it is not what came up to {cursor} and after it",
        "Readers lose or repeat events: is every task on the same tables?",
    )
    visit.resumed = whole
    last = whole.events[-1].event_id
    return f"hung up after {cursor}, the rest came once and in order up to {last}"


def keeps_records(visit: Visit) -> str:
    """A record has the ending and the text of its events, and the list has the record."""
    if visit.resumed is None or visit.detached_id is None:
        raise Skipped("there is no whole log to compare with: see resume")
    events = visit.resumed.events
    record = visit.document(f"GET {visit.path(visit.detached_id)}")
    ending = {"id": str(events[-1].event_id), events[-1].type: events[-1].value}
    need(
        record.get("terminalEvent") == ending,
        f"the record is {record.get('state')}, and does not show the terminal event of its log",
        "Is every task on the same tables?",
    )
    result = record.get("result") or {}
    is_plain = not result.get("truncated") and all(event.type != "attemptRestarted" for event in events)
    need(
        not is_plain or result.get("text") == "".join(event.text for event in events),
        "the record's text is not the text of its events",
        "Is every task on the same tables?",
    )
    listed = visit.document(f"GET {visit.submission.partition(' ')[2]}?limit=20").get("invocations", ())
    need(
        visit.detached_id in [each.get("invocationId") for each in listed],
        "the list of invocations lacks it",
        "Look at the table's index `listed`",
    )
    return f"{record.get('state')}, with ending and text of its events; listed"


def cancels(visit: Visit) -> str:
    """Who cancels sees it end, and what it used."""
    longer = visit.job | {"maxTokens": min(visit.most_tokens, 4 * visit.max_tokens)}
    heard = visit.submit(document=longer, enough=_is_under_way)
    invocation_id = id_of(visit, heard)
    path = visit.path(invocation_id)
    reply = visit.ask(f"POST {path}/cancel")
    if heard.is_over or reply.status == 409:
        visit.running.discard(path)
        raise Skipped("the answer was over before it could be cancelled: give a --prompt that takes longer")
    need(
        reply.status in (200, 202), f"the cancel answered {reply}", "It must be a 202, or 200 once it is done"
    )
    rest = visit.listen(f"GET {path}/events", headers={"Last-Event-ID": str(heard.events[-1].event_id)})
    need_whole(rest, [*heard.events, *rest.events])
    visit.running.discard(path)
    ending = rest.events[-1]
    if ending.type == "invocationCompleted":
        raise Skipped("the answer was over before it was cancelled: give a --prompt that takes longer")
    need(
        (ending.type, ending.value.get("reason")) == ("invocationCancelled", "requested"),
        f"it ended with {ending.type} ({ending.value.get('reason')})",
        "It must be invocationCancelled (requested): look for it in the service's log",
    )
    took_s = ending.at_s - rest.sent_at_s
    need(
        took_s <= LONGEST_CANCEL_S, f"it took {took_s:.1f} s", "Look for a tool that ignores its cancellation"
    )
    record = visit.document(f"GET {path}")
    need(record.get("state") == "cancelled", f"its record is {record.get('state')}", "It must be cancelled")
    used = token_counts(ending.value.get("usage"))
    visit.noticed["usage when cut"] = f"{used}: compare with the bill"
    return f"ended {took_s:.1f} s later, {used}"


def _is_under_way(events: Sequence[Event]) -> bool:
    return sum(event.type == "contentBlockDelta" for event in events) >= 3
