"""The routes: submit, follow, show, list, cancel, resume, usage, health.

`app` mounts `ROUTES` and puts a `Service` into the lifespan state; the routes call the stations in order.
`submit` is the story of one invocation: authenticate, parse, admit, start, follow. Every route that names an
invocation checks that it is the caller's, that the path names its runtime and that the caller may still call
that runtime; else it is 404.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from service import views
from service.admission import Admission, Retry
from service.api_stream import EventStream
from service.config import Catalog, RuntimeConfig
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
from service.middleware import LINE
from service.policies import PolicyWatch
from service.readers import PIECE_BYTES
from service.runner import Runner
from service.stores import Store
from service.submission import parse_submission
from service.takeover import Takeover
from service.wire import NDJSON, SSE, Wire

SESSION_HEADER: Final = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
# AgentCore takes 33 to 256 characters: https://docs.aws.amazon.com/bedrock-agentcore/latest/APIReference/API_InvokeAgentRuntime.html
# Shorter ones do no harm here.
_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}", re.ASCII)
_REFUSED: Final = re.compile(r"q\s*=\s*0(\.0*)?")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_INVOCATION_ID: Final = re.compile(r"inv_[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)
RESULT_LIMIT_BYTES: Final = 1024 * 1024
PAGE_LIMIT: Final = 100
# Bodies that are being read share a bound: a slow sender must not keep its part of it for ever.
BODY_TIMEOUT_S: Final = 30.0


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
    is_ready: Callable[[], bool]
    now_ms: Callable[[], int]


async def submit(request: Request) -> Response:
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
    body = await _json_body(request)
    submission = parse_submission(body, runtime)
    retry_of = Retry(idempotency_key, body) if idempotency_key else None
    with ExitStack() as kept:
        with service.runner.room(principal.sub):
            if not detached:
                kept.enter_context(service.follow.room(principal.sub))
            admitted = await service.admission.admit(principal, runtime, submission, session_id, retry_of)
            invocation, given = admitted
            attempt = service.runner.start(invocation, given, runtime) if given else None
        _note(request, invocation_id=invocation.invocation_id)
        location = views.location(invocation)
        headers = {"Location": location} | ({SESSION_HEADER: session_id} if session_id else {})
        if detached:
            return _json(views.record(invocation), 202, headers | {"Preference-Applied": "respond-async"})
        try:
            if attempt is not None:
                await attempt.begun(service.catalog.service.first_event_grace_s)
        except HeadraceError as refusal:
            refusal.extra |= {"instance": location, "invocationId": invocation.invocation_id}
            raise
    # Nothing waits between here and the reader's opening, so the room that was kept is still there.
    return EventStream(service.follow, invocation, START, wire, principal, headers, checked=True)


async def follow(request: Request) -> Response:
    """`GET .../events`: replay from the cursor, then tail. `Last-Event-ID` counts more than `?after=`."""
    service = _service(request)
    principal, invocation = await _own_invocation(request)
    wire = _wire_of(request)
    text = request.headers.get("last-event-id") or request.query_params.get("after") or ""
    cursor = EventId.parse(text) if text else START
    return EventStream(service.follow, invocation, cursor, wire, principal, {})


async def show(request: Request) -> Response:
    """`GET .../{invocation_id}`: the record, with the text that the model has answered so far."""
    _, invocation = await _own_invocation(request)
    text, whole = await _result_text(_service(request).store, invocation.invocation_id)
    result = {"text": text} | ({} if whole else {"truncated": True})
    return _json(views.record(invocation) | {"result": result})


async def cancel(request: Request) -> Response:
    """`POST .../{invocation_id}/cancel`: stop it, whoever runs it; 202 until it has ended."""
    service = _service(request)
    _, invocation = await _own_invocation(request)
    if not invocation.state.is_terminal:
        asked = await service.store.request_cancel(invocation.invocation_id, service.now_ms())
        invocation = asked or invocation
    if invocation.state is State.CANCELLED:
        return _json(views.record(invocation))
    _refuse_ended(invocation)
    service.runner.cancel(invocation.invocation_id, "requested")
    if invocation.state is State.PAUSED:
        service.takeover.wake()
    return _json(views.record(invocation), 202)


async def resume(request: Request) -> Response:
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
    return _json(views.record(invocation), 202)


async def list_invocations(request: Request) -> Response:
    """`GET /runtimes/{runtime_id}/invocations`: the caller's, newest first; `?limit=` and `?before=` page."""
    service = _service(request)
    principal, runtime = await _caller(request)
    limit_text = request.query_params.get("limit", "20")
    limit = int(limit_text) if re.fullmatch(r"\d{1,3}", limit_text, re.ASCII) else 0
    if not 1 <= limit <= PAGE_LIMIT:
        raise InvalidRequest(f"limit must be a number from 1 to {PAGE_LIMIT}.")
    before = request.query_params.get("before")
    if before is not None and not _INVOCATION_ID.fullmatch(before):
        raise InvalidRequest("before must be an invocation id: the last one of the page before.")
    page = await service.store.list_invocations(principal.sub, runtime.name, before=before, limit=limit + 1)
    body: dict[str, Any] = {"invocations": [views.record(invocation) for invocation in page[:limit]]}
    if len(page) > limit:
        body["next"] = (
            f"/runtimes/{runtime.name}/invocations?limit={limit}&before={page[limit - 1].invocation_id}"
        )
    return _json(body)


async def list_runtimes(request: Request) -> Response:
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
    return _json({"runtimes": runtimes})


async def usage(request: Request) -> Response:
    """`GET /usage`: what the caller has used, holds and has left, per window."""
    service = _service(request)
    principal = await _principal(request)
    account = await service.store.account(principal.sub, service.now_ms())
    return _json(views.usage(account, service.policies.limits_of(principal.sub, principal.groups)))


async def ping(request: Request) -> Response:
    """`GET /ping`: liveness only, 200 while draining; AgentCore's container contract."""
    runner = _service(request).runner
    status = "HealthyBusy" if runner.running else "Healthy"
    return _json({"status": status, "time_of_last_update": int(runner.busy_changed_at_s)})


async def ready(request: Request) -> Response:
    """`GET /ready`: whether the load balancer should send requests here."""
    is_ready = _service(request).is_ready()
    return _json({"ready": is_ready}, 200 if is_ready else 503)


_EVENTS: Final = Route("/runtimes/{runtime_id}/invocations/{invocation_id}/events", follow, methods=["GET"])
_EVENTS.methods = {"GET"}  # Starlette adds HEAD, and a HEAD must not hold a reader open
ROUTES: Final = (
    Route("/runtimes", list_runtimes, methods=["GET"]),
    Route("/runtimes/{runtime_id}/invocations", submit, methods=["POST"]),
    Route("/runtimes/{runtime_id}/invocations", list_invocations, methods=["GET"]),
    Route("/runtimes/{runtime_id}/invocations/{invocation_id}", show, methods=["GET"]),
    _EVENTS,
    Route("/runtimes/{runtime_id}/invocations/{invocation_id}/cancel", cancel, methods=["POST"]),
    Route("/runtimes/{runtime_id}/invocations/{invocation_id}/resume", resume, methods=["POST"]),
    Route("/usage", usage, methods=["GET"]),
    Route("/ping", ping, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
)


def _service(request: Request) -> Service:
    return cast("Service", request.state.service)


def _note(request: Request, **fields: Any) -> None:
    request.scope[LINE].update(fields)


async def _principal(request: Request) -> Principal:
    service = _service(request)
    principal = await service.identity.authenticate(request.headers.get("authorization"))
    _note(request, sub=principal.sub)
    service.policies.check(principal.sub, principal.origin_jti)
    return principal


async def _caller(request: Request) -> tuple[Principal, RuntimeConfig]:
    """Authenticate, and find the runtime that the path names among those that the caller may call."""
    principal = await _principal(request)
    runtime = _service(request).catalog.runtimes.get(request.path_params["runtime_id"])
    if runtime is None or not runtime.admits(principal.groups):
        raise NotFound("No runtime with this id is yours to call: GET /runtimes lists those that are.")
    _note(request, runtime_id=runtime.name)
    return principal, runtime


async def _own_invocation(request: Request) -> tuple[Principal, Invocation]:
    principal, runtime = await _caller(request)
    invocation_id = request.path_params["invocation_id"]
    invocation = None
    if _INVOCATION_ID.fullmatch(invocation_id):
        invocation = await _service(request).store.load_invocation(invocation_id)
    if invocation is None or invocation.sub != principal.sub or invocation.runtime_id != runtime.name:
        raise NotFound("No invocation with this id is yours: it may be older than records are kept.")
    _note(request, invocation_id=invocation_id)
    return principal, invocation


def _refuse_ended(invocation: Invocation) -> None:
    if invocation.state.is_terminal:
        detail = f"Its state is {invocation.state}: its record says how it ended."
        raise AlreadyEnded(detail, extra={"state": str(invocation.state)})


def _wire_of(request: Request) -> Wire:
    """Choose the format from `Accept`: SSE unless NDJSON is asked for."""
    for part in request.headers.get("accept", "*/*").lower().split(","):
        media_type, *parameters = (text.strip() for text in part.split(";"))
        if any(_REFUSED.fullmatch(parameter) for parameter in parameters):
            continue
        if media_type in (SSE.media_type, "*/*", "text/*", ""):
            return SSE
        if media_type in (NDJSON.media_type, "application/*"):
            return NDJSON
    raise NotAcceptable("Accept text/event-stream or application/x-ndjson, or send Prefer: respond-async.")


def _prefers_async(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def _session_id(request: Request) -> str | None:
    session_id = request.headers.get(SESSION_HEADER)
    if session_id is not None and not _SESSION_ID.fullmatch(session_id):
        raise InvalidRequest(f"{SESSION_HEADER} must have 1 to 256 letters, digits, or any of . _ : -")
    return session_id


def _idempotency_key(request: Request) -> str | None:
    """Read `Idempotency-Key`: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/."""
    given = request.headers.get("idempotency-key")
    if given is not None and not _KEY.fullmatch(given):
        raise InvalidRequest("Idempotency-Key must have 1 to 255 visible ASCII characters, such as a UUID.")
    return given


async def _json_body(request: Request) -> bytes:
    """Read the body without leaving it in the request: a stream may be open for an hour."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the job as JSON with Content-Type: application/json.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return b"".join([piece async for piece in request.stream()])
    except TimeoutError as error:
        raise InvalidRequest(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from error
    except ClientDisconnect as error:
        raise InvalidRequest("The body ended early.") from error


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


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
