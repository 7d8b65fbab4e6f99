"""Errors to `application/problem+json` (RFC 9457): the only form in which the service refuses over HTTP.

`app` registers `ON_ERROR`. Nothing foreign reaches the wire: an exception that is not ours becomes
`internal-error`, and its stack goes to the log.
"""

import json
import logging
import math
from typing import Any, Final, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ExceptionHandler

from service.errors import HeadraceError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from service.middleware import LINE

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"


def problem_response(request: Request, error: HeadraceError) -> Response:
    """Answer with the problem document of `error`, its headers, and its code in the log line."""
    request.scope[LINE]["code"] = error.code
    headers = {"Cache-Control": "no-store"}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 413 and "expect" in request.headers:
        headers["Connection"] = "close"  # it waits to send the body; who sends it already must not be cut off
    if error.is_retryable and error.status in (429, 503):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or 1))
    quota = error.extra.get("quota")
    if quota is not None:
        headers |= rate_limit_headers(quota, error.retry_after_s)
    body = json.dumps(error.problem(), ensure_ascii=False).encode()
    return Response(body, error.status, headers, MEDIA_TYPE)


def rate_limit_headers(quota: dict[str, Any], resets_in_s: float | None) -> dict[str, str]:
    """Say what is left of a quota: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/."""
    left_tokens = max(0, quota["limit"] - quota["used"] - quota["reserved"])
    reset = f";t={math.ceil(resets_in_s)}" if resets_in_s is not None else ""
    return {
        "RateLimit-Policy": f'"{quota["name"]}";q={quota["limit"]}',
        "RateLimit": f'"{quota["name"]}";r={left_tokens}{reset}',
    }


async def _on_headrace_error(request: Request, error: Exception) -> Response:
    return problem_response(request, cast("HeadraceError", error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    if status == 404:
        return problem_response(request, NotFound("No route has this path."))
    if status == 405:
        response = problem_response(request, MethodNotAllowed())
        response.headers["Allow"] = ", ".join(_methods_of(request))
        return response
    return problem_response(request, InvalidRequest())


def _methods_of(request: Request) -> list[str]:
    """Return all methods of the path: it may have several routes, and Starlette names the first one's."""
    return sorted(
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    )


async def _on_exception(request: Request, error: Exception) -> Response:
    """The edge of every request: what nobody expected is logged with its stack and answered without it."""
    logger.error("request failed", exc_info=error, extra={"request_id": request.scope[LINE]["request_id"]})
    return problem_response(
        request, InternalError("The failure has been logged with the id in X-Request-Id.")
    )


ON_ERROR: Final[dict[Any, ExceptionHandler]] = {
    HeadraceError: _on_headrace_error,
    HTTPException: _on_http_exception,
    Exception: _on_exception,
}
