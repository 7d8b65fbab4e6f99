"""Every request passes here: found a route, answered, its answer sent, its line logged. Pure ASGI.

    scope ──> Request ──> route ──> Answer, or a problem ──> head ──> body ──> log line
                                                              └ CORS, security headers, request id

`app` makes it of the routes (`api`) and of what answers for errors (`problems`). There are no layers: each
answer has one head, made here, and a stream that is open for an hour is awaited in one place, here. What it
writes does not pass through here. Nothing gets past here but a request that is cancelled.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.edge_answer import Answer, Endpoint, Headers
from service.edge_request import Request
from service.errors import MethodNotAllowed, NotFound

logger = logging.getLogger(__name__)

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=63072000; includeSubDomains"),
)
Routes = Mapping[str, Mapping[str, Endpoint]]
"""Path template -> method -> endpoint; in a path, names are at even places and ids at odd ones."""
Shape = tuple[int, tuple[str, ...]]


class Refuse(Protocol):
    """Makes the answer of what an endpoint has raised; never raises."""

    def __call__(self, request: Request, error: Exception) -> Answer: ...


class Edge:
    """The ASGI application."""

    def __init__(
        self,
        routes: Routes,
        refuse: Refuse,
        cors: "Cors",
        request_finished: Callable[[Mapping[str, Any]], None],
        lifespan: ASGIApp,
    ) -> None:
        self._routes = {_shape(template.split("/")[1:]): endpoints for template, endpoints in routes.items()}
        self._refuse = refuse
        self._cors = cors
        self._request_finished = request_finished
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        began_at = time.perf_counter()
        request = Request(scope, receive)
        line = request.line
        try:
            answer = await self._answer(request)
            line["status"] = answer.status
            try:
                await send(self._head(request, answer))
                del request
                writing = answer.write(scope, receive, send)
                _forget(scope)
                await writing
            finally:
                answer.close(line)
        except Exception:  # what was answered is logged: the server would log it once more, text and all
            if "code" not in line or not line["status"]:
                logger.exception("response broke off", extra={"request_id": line["request_id"]})
        finally:
            line["duration_ms"] = round((time.perf_counter() - began_at) * 1000)
            self._request_finished(line)

    async def _answer(self, request: Request) -> Answer:
        if request.is_preflight:
            return self._cors.preflight(request)
        endpoints = self._routes.get(_shape(request.segments))
        if endpoints is None or "" in request.segments:
            return self._refuse(request, NotFound("No route has this path."))
        endpoint = endpoints.get(request.method)
        if endpoint is None:
            refusal = self._refuse(request, MethodNotAllowed())
            refusal.headers.append((b"allow", ", ".join(sorted(endpoints)).encode()))
            return refusal
        request.line["operation"] = endpoint.__name__
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001 - the edge of every request: `refuse` logs what is unexpected
            return self._refuse(request, error)

    def _head(self, request: Request, answer: Answer) -> dict[str, Any]:
        headers = [
            *answer.headers,
            *self._cors.headers(request),
            *SECURITY_HEADERS,
            (b"x-request-id", request.line["request_id"].encode()),
        ]
        return {"type": "http.response.start", "status": answer.status, "headers": headers}


def _forget(scope: Scope) -> None:
    """Drop what the request said, a token among it: its answer may stream for an hour."""
    method = scope["method"]
    scope["headers"].clear()  # the server holds the list too
    scope.clear()
    scope["method"] = method  # uvicorn's own `send` asks for it


def _shape(segments: Sequence[str]) -> Shape:
    return len(segments), tuple(segments[::2])


class Cors:
    """Lets web pages of some origins call, and see what a client needs. Starlette decides, this asks it."""

    def __init__(
        self, origins: Sequence[str], allow_headers: Sequence[str], expose_headers: Sequence[str]
    ) -> None:
        self._rules = CORSMiddleware(
            _nothing,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=allow_headers,
            expose_headers=expose_headers,
            max_age=600,
        )
        self._exposed: Headers = [
            (name.lower().encode(), value.encode()) for name, value in self._rules.simple_headers.items()
        ]

    def preflight(self, request: Request) -> Answer:
        """Answer a browser that asks whether a page may ask."""
        asked = StarletteHeaders(raw=list(request.headers.items()))
        response = self._rules.preflight_response(asked)
        return Answer(response.status_code, response.raw_headers, bytes(response.body))

    def headers(self, request: Request) -> Headers:
        """Return what the answer to a request must have for the page that asks."""
        origin = request.header(b"origin")
        if origin is None:
            return _VARIES
        if request.is_preflight:
            return []
        if not self._rules.is_allowed_origin(origin):
            return self._exposed + _VARIES
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return [*self._exposed, allowed, *_VARIES]


_VARIES: Final[Headers] = [(b"vary", b"Origin")]


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand where Starlette wants an application: only its decisions are asked for."""
