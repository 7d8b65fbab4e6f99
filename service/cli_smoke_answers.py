"""The checks of `headrace smoke` of one whole answer: that it streams, what is counted, who can see it.

Called by `cli_smoke`, in the order in which they stand here; calls `cli_smoke_checks` and `client_probe`.

    streams ── the first invocation's answer, timed ──>  meters, hides_from_others, attaches
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.cli_smoke_checks import NotHeld, Skipped, Visit, need, refuses_another
from service.cli_text import token_counts
from service.client_probe import Event, Heard, log_fault

# What a browser would take: something on the way that compresses shows.
ENCODINGS: Final = {"Accept-Encoding": "gzip, deflate, br"}
COUNTS: Final = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
CHARGED: Final = ("inputTokens", "outputTokens", "cacheWriteInputTokens")
SLOT_S: Final = 0.05
# A heartbeat comes every 10 s (`heartbeat_s`), and after 60 s clients take a connection for dead.
LONGEST_SILENCE_S: Final = 30.0
BUFFERED: Final = (
    "Something on the way buffers: the method needs ResponseTransferMode STREAM, and the stage a deployment "
    "made since; look for a proxy, and for transferMode in the access log"
)


def streams(visit: Visit) -> str:
    """The answer comes while it is made, whole, in order and as it is."""
    visit.usage_before = visit.document("GET /usage")
    heard = visit.submit(document=visit.job, headers={**ENCODINGS, "Idempotency-Key": visit.key})
    visit.streamed_id = id_of(visit, heard)
    need_whole(heard, heard.events)
    visit.running.discard(visit.path(visit.streamed_id))
    visit.streamed = heard
    need(
        heard.opening == b": connected",
        "the stream does not begin with `: connected`",
        "It is not as it was sent",
    )
    _need_headers(heard)
    ending = heard.events[-1]
    problem = ending.value.get("problem") or {}
    why = problem.get("detail") or problem.get("title") or "no problem is named"
    need(
        ending.type == "invocationCompleted",
        f"it ended with {ending.type} {problem.get('code', '')}: {why}",
        "Look for the invocation in the service's log",
    )
    said = _timing(heard)
    byte_s, headers_s = (at_s - heard.sent_at_s for at_s in (heard.arrivals_s[0], heard.headers_at_s))
    visit.noticed["first byte"] = f"after {byte_s:.2f} s, headers after {headers_s:.2f} s"
    visit.noticed["heartbeats"] = (
        f"{heard.heartbeats}; the longest silence was {heard.longest_silence_s:.1f} s"
    )
    return said


def _need_headers(heard: Heard) -> None:
    control = {part.strip() for part in heard.headers.get("Cache-Control", "").split(",")}
    need(
        {"no-store", "no-transform"} <= control,
        f"Cache-Control is {heard.headers.get('Cache-Control')!r}",
        "It must say no-store and no-transform, or somebody may keep or change answers",
    )
    encoding = heard.headers.get("Content-Encoding", "identity")
    need(encoding == "identity", f"Content-Encoding is {encoding}", "Switch compression off on the way")


def _timing(heard: Heard) -> str:
    """Say how the answer was spread in time.

    Raises:
        NotHeld: It came in one go, or was silent for too long.
        Skipped: It was over before that could be seen.
    """
    first_s, last_s = (at_s - heard.sent_at_s for at_s in (heard.arrivals_s[0], heard.events[-1].at_s))
    deltas_s = [event.at_s for event in heard.events if event.type == "contentBlockDelta"]
    spread_s = deltas_s[-1] - deltas_s[0] if deltas_s else 0.0
    slots = len({int(at_s / SLOT_S) for at_s in deltas_s})
    said = (
        f"{len(deltas_s)} deltas over {spread_s:.1f} s; the first byte after {first_s:.2f} s, "
        f"the end after {last_s:.1f} s"
    )
    need(
        heard.longest_silence_s <= LONGEST_SILENCE_S,
        f"nothing came for {heard.longest_silence_s:.0f} s, not even a heartbeat",
        "Look at heartbeat_s, and for something that buffers",
    )
    if slots >= 3 and (spread_s >= 0.5 or spread_s >= last_s / 10):
        return said
    if last_s < 1.0:
        raise Skipped(f"{said}: too quick to tell; give a --prompt that takes seconds")
    raise NotHeld(f"{said}. {BUFFERED}")


def meters(visit: Visit) -> str:
    """What the answer says that it used is what was counted: in the record and in every window."""
    heard = _streamed(visit)
    before = visit.usage_before or {}
    after, record = visit.document("GET /usage"), visit.document(f"GET {visit.path(_streamed_id(visit))}")
    used = heard.events[-1].value.get("usage") or {}
    turns = [event.value.get("usage") or {} for event in heard.events if event.type == "metadata"]
    reported, charged = (sum(_charged(usage) for usage in usages) for usages in (turns, [used]))
    is_plain = not used.get("estimated") and all(event.type != "attemptRestarted" for event in heard.events)
    need(
        reported == charged or not is_plain,
        f"the turns' metadata sum up to {reported} tokens, the terminal event to {charged}",
        "Compare usage_records with Bedrock's invocation log",
    )
    shown = record.get("usage") or {}
    need(
        _counts(shown) == _counts(used),
        f"the terminal event has {token_counts(used)}, the record {token_counts(shown)}",
        "Compare usage_records with Bedrock's invocation log",
    )
    busy = max(usage.get("runningInvocations", 0) for usage in (before, after))
    old = {window.get("name"): window for window in before.get("windows", ())}
    windows = after.get("windows", ())
    need(bool(windows), "GET /usage shows no window", "It must show what the caller has used")
    for window in windows:
        earlier = old.get(window.get("name"), {})
        rose = window.get("used", 0) - earlier.get("used", 0)
        said = f"the {window.get('name')} window rose by {rose}, the answer used {charged} tokens"
        if rose == charged and (window.get("reserved") == 0 or busy):
            continue
        if busy:
            raise Skipped(f"{said}, and other invocations of this user ran: use one that nobody else uses")
        if rose < charged and window.get("resetsAt") != earlier.get("resetsAt") and earlier.get("used"):
            raise Skipped(f"{said}: older use left the window meanwhile; try again")
        raise NotHeld(
            f"{said}, {window.get('reserved')} stay reserved. Look for what else this user ran: headrace list"
        )
    names = ", ".join(str(window.get("name")) for window in windows)
    return f"{token_counts(used)} in metadata, terminal event, record, GET /usage ({names})"


def hides_from_others(visit: Visit) -> str:
    """What is one user's is nobody else's."""
    invocation_id = _streamed_id(visit)
    refuses_another(visit, invocation_id, visit.other_token or "")
    return "404 for another user: record, events and cancel"


def attaches(visit: Visit) -> str:
    """The same key attaches, and does not start anything."""
    first, invocation_id = _streamed(visit), _streamed_id(visit)
    to_do = "A retry would be paid for twice: is every task on the same tables?"
    again = visit.listen(visit.submission, document=visit.job, headers={"Idempotency-Key": visit.key})
    attached_id = id_of(visit, again)
    need(attached_id == invocation_id, f"the same key started {attached_id}", to_do)
    visit.running.discard(visit.path(invocation_id))
    need(essence(again.events) == essence(first.events), "the same key gave another answer", to_do)
    other = visit.ask(
        visit.submission,
        document=visit.job | {"prompt": f"{visit.prompt} Or not."},
        headers={"Idempotency-Key": visit.key, "Prefer": "respond-async"},
    )
    if other.status == 202:
        visit.running.add(visit.path(str(other.document.get("invocationId"))))
    need(
        (other.status, other.document.get("code")) == (422, "idempotency-mismatch"),
        f"the same key with another body answered {other}",
        "It must be a 422",
    )
    return "the same key attaches to the same events; another body is a 422"


def id_of(visit: Visit, heard: Heard) -> str:
    """Return which invocation a stream is of, and note that it runs."""
    started: Mapping[str, Any] = heard.events[0].value if heard.events else {}
    invocation_id = started.get("invocationId")
    if isinstance(invocation_id, str):
        visit.running.add(visit.path(invocation_id))
    location = heard.headers.get("Location", "")
    need(
        isinstance(invocation_id, str) and location == visit.path(invocation_id),
        f"the first event names {invocation_id}, Location {location}",
        "Location must be the record's path, as the service knows it: look for what rewrites it on the way",
    )
    return str(invocation_id)


def need_whole(heard: Heard, log: Sequence[Event]) -> None:
    need(heard.is_over, "the stream has no end", "A terminal event must be followed by the end of the body")
    fault = log_fault(log)
    need(fault is None, f"{fault}", "Run it again; if that does not help, look at the invocation's log lines")


def _streamed(visit: Visit) -> Heard:
    if visit.streamed is None:
        raise Skipped("there is no whole answer to look at: see streaming")
    return visit.streamed


def _streamed_id(visit: Visit) -> str:
    _streamed(visit)
    return visit.streamed_id or ""


def essence(events: Sequence[Event]) -> list[Any]:
    return [event.essence for event in events]


def _counts(usage: Mapping[str, Any]) -> list[int]:
    return [usage.get(name, 0) for name in COUNTS]


def _charged(usage: Mapping[str, Any]) -> int:
    return sum(usage.get(name, 0) for name in CHARGED)
