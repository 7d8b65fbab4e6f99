"""Errors to `application/problem+json` (RFC 9457): the only form in which the service refuses over HTTP.

`edge` asks `refuse`. Nothing foreign reaches the wire: an exception that is not ours becomes
`internal-error`, and its stack goes to the log.
"""

import logging
import math
from typing import Any, Final

from service.edge_answer import Answer, Headers, document
from service.edge_request import Request
from service.errors import HeadraceError, InternalError

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = b"application/problem+json"


def refuse(request: Request, error: Exception) -> Answer:
    """Answer with the problem document of `error`, its headers, and its code in the log line.

    What nobody expected is logged with its stack, and answered without it.
    """
    if not isinstance(error, HeadraceError):
        logger.error("request failed", exc_info=error, extra={"request_id": request.line["request_id"]})
        error = InternalError("The failure has been logged with the id in X-Request-Id.")
    request.line["code"] = error.code
    headers: Headers = []
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 413 and b"expect" in request.headers:
        # It waits to send the body; who sends it already must not be cut off.
        headers.append((b"connection", b"close"))
    if error.is_retryable and error.status in (429, 503):
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s or 1)))
    quota = error.extra.get("quota")
    if quota is not None:
        headers += rate_limit_headers(quota, error.retry_after_s)
    return document(error.status, error.problem(), headers, MEDIA_TYPE)


def rate_limit_headers(quota: dict[str, Any], resets_in_s: float | None) -> Headers:
    """Say what is left of a quota: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/."""
    left_tokens = max(0, quota["limit"] - quota["used"] - quota["reserved"])
    reset = f";t={math.ceil(resets_in_s)}" if resets_in_s is not None else ""
    return [
        (b"ratelimit-policy", f'"{quota["name"]}";q={quota["limit"]}'.encode()),
        (b"ratelimit", f'"{quota["name"]}";r={left_tokens}{reset}'.encode()),
    ]
