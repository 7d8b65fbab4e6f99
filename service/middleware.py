"""Pure ASGI around the routes: request id, security headers, canonical log line, paths, body limit.

`app` stacks it: `Envelope` outermost, so that every answer has its headers and its log line; `Paths` and
`BodyLimit` inside. None of it looks at response bodies; what a stream writes does not pass through it.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, Overloaded

logger = logging.getLogger(__name__)

ROOTS: Final = frozenset({"runtimes", "usage", "ping", "ready"})
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:=-]{8,128}", re.ASCII)
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=63072000; includeSubDomains"),
)
LINE: Final = "headrace.line"
"""Key of the request's log fields in the ASGI scope: routes add theirs to the dict behind it."""
SEND: Final = "headrace.send"
"""Key of the server's own `send` in the ASGI scope: for the bodies of streams, which count their bytes."""


class Envelope:
    """Gives every request an id and a log line, and every response the security headers."""

    def __init__(self, app: ASGIApp, request_finished: Callable[[Mapping[str, Any]], None]) -> None:
        self._app = app
        self._request_finished = request_finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode(
            "latin-1"
        )
        request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        line: dict[str, Any] = {
            "request_id": request_id,
            "method": scope["method"],
            "status": 0,
            "bytes_out": 0,
        }
        scope[LINE], scope[SEND] = line, send
        extra = (*SECURITY_HEADERS, (b"x-request-id", request_id.encode()))

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            else:
                line["bytes_out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:  # what was answered is logged too: the server would log it once more, text and all
            if not line["status"]:
                raise
            if "code" not in line:
                logger.exception("response broke off", extra={"request_id": request_id})
        finally:
            line["operation"] = getattr(scope.get("endpoint"), "__name__", "")
            line["duration_ms"] = round((time.perf_counter() - began_at) * 1000)
            self._request_finished(line)


class Paths:
    """Brings a path to the form that the routes know: no `/{stage}`, no percent-encoded ARN."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
            scope["path"] = route_path(raw_path)
            if LINE in scope and _has_stage(raw_path.split("/")):
                scope[LINE]["prefixed"] = True
            scope["root_path"] = ""
        await self._app(scope, receive, send)


def route_path(raw_path: str) -> str:
    """Return the path to route, from the path as it came.

    API Gateway may put its stage in front (its documentation and its behaviour disagree:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/private-integration.html), and AWS SDKs send
    a runtime as a percent-encoded ARN, whose last part after `/` is the id.
    """
    segments = raw_path.partition("?")[0].split("/")
    if _has_stage(segments):
        del segments[1]
    if len(segments) > 2 and segments[1] == "runtimes":
        segments[2] = unquote(segments[2]).rpartition("/")[2]
    return "/".join(segments[:3] + [unquote(segment) for segment in segments[3:]])


def _has_stage(segments: Sequence[str]) -> bool:
    return len(segments) > 2 and segments[1] not in ROOTS and segments[2] in ROOTS


class BodyLimit:
    """Refuses a body that is too large: at once when it says so, else when the limit is passed while reading.

    Args:
        limit_of: Path -> the most bytes that its body may have.
        all_bytes: The most bytes of bodies that may be in reading here; beyond it, requests are shed.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int], all_bytes: int) -> None:
        self._app = app
        self._limit_of = limit_of
        self._all_bytes = all_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        limit_bytes = self._limit_of(scope["path"])
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        declared_bytes = int(declared) if declared.isdigit() else 0
        read_bytes = 0

        async def limited() -> Message:
            nonlocal read_bytes
            if declared_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            message = await receive()
            got_bytes = len(message.get("body", b""))
            read_bytes += got_bytes
            self._held_bytes += got_bytes
            if read_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            if self._held_bytes > self._all_bytes:
                raise Overloaded("Too many request bodies are being read: try again.", retry_after_s=1)
            if not message.get("more_body", False):
                release()
            return message

        def release() -> None:
            nonlocal read_bytes
            self._held_bytes -= read_bytes
            read_bytes = 0

        try:
            await self._app(scope, limited, send)
        finally:
            release()


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"This path takes bodies of at most {limit_bytes} bytes.")
