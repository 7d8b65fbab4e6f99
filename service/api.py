"""The routes: submit, follow, show, list, cancel, resume, usage, health.

`app` gives `ROUTES` to `edge` and puts a `Service` into the lifespan state; the routes call the stations in
order.
`submit` is the story of one invocation: authenticate, parse, admit, start, follow. Every route that names an
invocation checks that it is the caller's, that the path names its runtime and that the caller may still call
that runtime; else it is 404.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, cast

from service import views
from service.admission import Admission, Retry
from service.api_stream import EventStream
from service.config import Catalog, RuntimeConfig
from service.edge_answer import Answer, Endpoint, Headers, document
from service.edge_request import Bodies, Request
from service.errors import (
    AlreadyEnded,
    Fenced,
    HeadraceError,
    InvalidRequest,
    NotAcceptable,
    NotFound,
    UnsupportedMediaType,
)
from service.events import START, EventId, answer_text
from service.follow import Follow
from service.identity import Identity, Principal
from service.invocations import Invocation, State
from service.policies import PolicyWatch
from service.readers import PIECE_BYTES
from service.runner import Runner
from service.stores import Store
from service.submission import parse_submission
from service.takeover import Takeover
from service.wire import NDJSON, SSE, Wire

SESSION_HEADER: Final = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
_SESSION_HEADER: Final = SESSION_HEADER.lower().encode()
# AgentCore takes 33 to 256 characters: https://docs.aws.amazon.com/bedrock-agentcore/latest/APIReference/API_InvokeAgentRuntime.html
# Shorter ones do no harm here.
_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}", re.ASCII)
_REFUSED: Final = re.compile(r"q\s*=\s*0(\.0*)?")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_INVOCATION_ID: Final = re.compile(r"inv_[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)
RESULT_LIMIT_BYTES: Final = 1024 * 1024
PAGE_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Service:
    """The collaborators that the routes call; made once, by the lifespan."""

    catalog: Catalog
    identity: Identity
    policies: PolicyWatch
    admission: Admission
    runner: Runner
    takeover: Takeover
    follow: Follow
    store: Store
    bodies: Bodies
    is_ready: Callable[[], bool]
    now_ms: Callable[[], int]


async def submit(request: Request) -> Answer:
    """`POST /runtimes/{runtime_id}/invocations`: start an invocation, then follow it."""
    service = _service(request)
    principal, runtime = await _caller(request)
    detached = _prefers_async(request)
    wire = SSE if detached else _wire_of(request)
    session_id = _session_id(request)
    service.runner.check_room(principal.sub)
    if not detached:
        service.follow.check_room(principal.sub)
    idempotency_key = _idempotency_key(request)
    body = await _json_body(request, runtime)
    submission = parse_submission(body, runtime)
    retry_of = Retry(idempotency_key, body) if idempotency_key else None
    service.runner.check_room(principal.sub)  # the body took its time; who is refused is to submit again
    with nullcontext() if detached else service.follow.room(principal.sub):
        with service.runner.room(principal.sub):
            admitted = await service.admission.admit(principal, runtime, submission, session_id, retry_of)
            invocation, given = admitted
            attempt = service.runner.start(invocation, given, runtime) if given else None
        request.line["invocation_id"] = invocation.invocation_id
        location = views.location(invocation)
        headers: Headers = [(b"location", location.encode())]
        if session_id:
            headers.append((_SESSION_HEADER, session_id.encode()))
        if detached:
            headers.append((b"preference-applied", b"respond-async"))
            return document(202, views.record(invocation), headers)
        try:
            if attempt is not None:
                await attempt.begun(service.catalog.service.first_event_grace_s)
        except HeadraceError as refusal:
            refusal.extra |= {"instance": location, "invocationId": invocation.invocation_id}
            raise
    # Nothing waits between here and the reader's opening, so the room that was kept is still there.
    return EventStream(service.follow, invocation, START, wire, principal, headers, checked=True)


async def follow(request: Request) -> Answer:
    """`GET .../events`: replay from the cursor, then tail. `Last-Event-ID` counts more than `?after=`."""
    service = _service(request)
    principal, invocation = await _own_invocation(request)
    wire = _wire_of(request)
    text = request.header(b"last-event-id") or request.parameter("after")
    cursor = EventId.parse(text) if text else START
    return EventStream(service.follow, invocation, cursor, wire, principal, [])


async def show(request: Request) -> Answer:
    """`GET .../{invocation_id}`: the record, with the text that the model has answered so far."""
    _, invocation = await _own_invocation(request)
    text, whole = await _result_text(_service(request).store, invocation.invocation_id)
    result = {"text": text} | ({} if whole else {"truncated": True})
    return document(200, views.record(invocation) | {"result": result}, [])


async def cancel(request: Request) -> Answer:
    """`POST .../{invocation_id}/cancel`: stop it, whoever runs it; 202 until it has ended."""
    service = _service(request)
    _, invocation = await _own_invocation(request)
    if not invocation.state.is_terminal:
        asked = await service.store.request_cancel(invocation.invocation_id, service.now_ms())
        invocation = asked or invocation
    if invocation.state is State.CANCELLED:
        return document(200, views.record(invocation), [])
    _refuse_ended(invocation)
    service.runner.cancel(invocation.invocation_id, "requested")
    if invocation.state is State.PAUSED:
        service.takeover.wake()
    return document(202, views.record(invocation), [])


async def resume(request: Request) -> Answer:
    """`POST .../{invocation_id}/resume`: let a paused invocation go on now, if there is room."""
    service = _service(request)
    principal, invocation = await _own_invocation(request)
    _refuse_ended(invocation)
    if invocation.state is State.PAUSED:
        limits = service.policies.limits_of(principal.sub, principal.groups)
        try:
            with service.runner.room(principal.sub):
                invocation = await service.takeover.resume(invocation, limits)
        except Fenced:  # it goes on already, or has ended
            _, invocation = await _own_invocation(request)
            _refuse_ended(invocation)
    return document(202, views.record(invocation), [])


async def list_invocations(request: Request) -> Answer:
    """`GET /runtimes/{runtime_id}/invocations`: the caller's, newest first; `?limit=` and `?before=` page."""
    service = _service(request)
    principal, runtime = await _caller(request)
    limit_text = request.parameter("limit")
    if limit_text is None:
        limit_text = "20"
    limit = int(limit_text) if re.fullmatch(r"\d{1,3}", limit_text, re.ASCII) else 0
    if not 1 <= limit <= PAGE_LIMIT:
        raise InvalidRequest(f"limit must be a number from 1 to {PAGE_LIMIT}.")
    before = request.parameter("before")
    if before is not None and not _INVOCATION_ID.fullmatch(before):
        raise InvalidRequest("before must be an invocation id: the last one of the page before.")
    page = await service.store.list_invocations(principal.sub, runtime.name, before=before, limit=limit + 1)
    body: dict[str, Any] = {"invocations": [views.record(invocation) for invocation in page[:limit]]}
    if len(page) > limit:
        body["next"] = (
            f"/runtimes/{runtime.name}/invocations?limit={limit}&before={page[limit - 1].invocation_id}"
        )
    return document(200, body, [])


async def list_runtimes(request: Request) -> Answer:
    """`GET /runtimes`: what the caller may invoke."""
    service = _service(request)
    principal = await _principal(request)
    runtimes = [
        {
            "runtimeId": runtime.name,
            "kind": runtime.kind,
            "maxOutputTokens": runtime.max_output_tokens,
            "deadlineSeconds": runtime.deadline_s,
            "invocations": f"/runtimes/{runtime.name}/invocations",
        }
        for runtime in service.catalog.runtimes.values()
        if runtime.admits(principal.groups)
    ]
    return document(200, {"runtimes": runtimes}, [])


async def usage(request: Request) -> Answer:
    """`GET /usage`: what the caller has used, holds and has left, per window."""
    service = _service(request)
    principal = await _principal(request)
    account = await service.store.account(principal.sub, service.now_ms())
    return document(
        200, views.usage(account, service.policies.limits_of(principal.sub, principal.groups)), []
    )


async def ping(request: Request) -> Answer:
    """`GET /ping`: liveness only, 200 while draining; AgentCore's container contract."""
    runner = _service(request).runner
    status = "HealthyBusy" if runner.running else "Healthy"
    return document(200, {"status": status, "time_of_last_update": int(runner.busy_changed_at_s)}, [])


async def ready(request: Request) -> Answer:
    """`GET /ready`: whether the load balancer should send requests here."""
    is_ready = _service(request).is_ready()
    return document(200 if is_ready else 503, {"ready": is_ready}, [])


def _readable(endpoint: Endpoint) -> dict[str, Endpoint]:
    return {"GET": endpoint, "HEAD": endpoint}


ROUTES: Final[Mapping[str, Mapping[str, Endpoint]]] = {
    "/runtimes": _readable(list_runtimes),
    "/runtimes/{runtime_id}/invocations": {"POST": submit} | _readable(list_invocations),
    "/runtimes/{runtime_id}/invocations/{invocation_id}": _readable(show),
    # Not HEAD: it must not hold a reader open.
    "/runtimes/{runtime_id}/invocations/{invocation_id}/events": {"GET": follow},
    "/runtimes/{runtime_id}/invocations/{invocation_id}/cancel": {"POST": cancel},
    "/runtimes/{runtime_id}/invocations/{invocation_id}/resume": {"POST": resume},
    "/usage": _readable(usage),
    "/ping": _readable(ping),
    "/ready": _readable(ready),
}
"""Path template -> method -> endpoint."""


def _service(request: Request) -> Service:
    return cast("Service", request.state["service"])


async def _principal(request: Request) -> Principal:
    service = _service(request)
    principal = await service.identity.authenticate(request.header(b"authorization"))
    request.line["sub"] = principal.sub
    service.policies.check(principal.sub, principal.origin_jti)
    return principal


async def _caller(request: Request) -> tuple[Principal, RuntimeConfig]:
    """Authenticate, and find the runtime that the path names among those that the caller may call."""
    principal = await _principal(request)
    runtime = _service(request).catalog.runtimes.get(request.segments[1])
    if runtime is None or not runtime.admits(principal.groups):
        raise NotFound("No runtime with this id is yours to call: GET /runtimes lists those that are.")
    request.line["runtime_id"] = runtime.name
    return principal, runtime


async def _own_invocation(request: Request) -> tuple[Principal, Invocation]:
    principal, runtime = await _caller(request)
    invocation_id = request.segments[3]
    invocation = None
    if _INVOCATION_ID.fullmatch(invocation_id):
        invocation = await _service(request).store.load_invocation(invocation_id)
    if invocation is None or invocation.sub != principal.sub or invocation.runtime_id != runtime.name:
        raise NotFound("No invocation with this id is yours: it may be older than records are kept.")
    request.line["invocation_id"] = invocation_id
    return principal, invocation


def _refuse_ended(invocation: Invocation) -> None:
    if invocation.state.is_terminal:
        detail = f"Its state is {invocation.state}: its record says how it ended."
        raise AlreadyEnded(detail, extra={"state": str(invocation.state)})


def _wire_of(request: Request) -> Wire:
    """Choose the format from `Accept`: SSE unless NDJSON is asked for."""
    accepted = request.header(b"accept") or SSE.media_type
    if accepted == SSE.media_type:  # what most send
        return SSE
    for part in accepted.lower().split(","):
        media_type, *parameters = (text.strip() for text in part.split(";"))
        if any(_REFUSED.fullmatch(parameter) for parameter in parameters):
            continue
        if media_type in (SSE.media_type, "*/*", "text/*", ""):
            return SSE
        if media_type in (NDJSON.media_type, "application/*"):
            return NDJSON
    raise NotAcceptable("Accept text/event-stream or application/x-ndjson, or send Prefer: respond-async.")


def _prefers_async(request: Request) -> bool:
    preferences = request.list_header(b"prefer")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def _session_id(request: Request) -> str | None:
    session_id = request.header(_SESSION_HEADER)
    if session_id is not None and not _SESSION_ID.fullmatch(session_id):
        raise InvalidRequest(f"{SESSION_HEADER} must have 1 to 256 letters, digits, or any of . _ : -")
    return session_id


def _idempotency_key(request: Request) -> str | None:
    """Read `Idempotency-Key`: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/."""
    given = request.header(b"idempotency-key")
    if given is not None and not _KEY.fullmatch(given):
        raise InvalidRequest("Idempotency-Key must have 1 to 255 visible ASCII characters, such as a UUID.")
    return given


async def _json_body(request: Request, runtime: RuntimeConfig) -> bytes:
    media_type = request.header(b"content-type")
    if media_type is not None and media_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("Send the job as JSON with Content-Type: application/json.")
    service = _service(request)
    limit_bytes = runtime.body_limit_bytes or service.catalog.service.body_limit_bytes
    return await request.body(limit_bytes, service.bodies)


async def _result_text(store: Store, invocation_id: str) -> tuple[str, bool]:
    """Return the answer's text from the stored events, and whether that is all of it."""
    parts: list[str] = []
    size_bytes, cursor = 0, START
    while blocks := await store.read_events(invocation_id, cursor, limit_bytes=PIECE_BYTES):
        cursor = blocks[-1].last
        parts.append(answer_text(event for block in blocks for event in block.events))
        size_bytes += len(parts[-1].encode(errors="surrogatepass"))
        if size_bytes > RESULT_LIMIT_BYTES:
            break
    # The halves of a character that came in two deltas become one here; a half that is alone is replaced.
    text = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return text[:RESULT_LIMIT_BYTES].decode(errors="ignore"), len(text) <= RESULT_LIMIT_BYTES
