"""A request as the routes see it: where it goes, what its headers say, its body within limits.

`edge` makes one of each ASGI scope, routes read it. Headers are looked through once.
"""

import asyncio
import random
import re
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from starlette.types import Receive, Scope

from service.errors import BodyTooLarge, InvalidRequest, Overloaded

ROOTS: Final = frozenset({"runtimes", "usage", "ping", "ready"})
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:=-]{8,128}", re.ASCII)
# Bodies that are being read share a bound: a slow sender must not keep its part of it for ever.
BODY_TIMEOUT_S: Final = 30.0


class Request:
    """One request.

    Attributes:
        method: As it came.
        headers: By name, in lower case; of one that came twice, the first value.
        segments: The path between its slashes, without a stage: names at even places, ids at odd ones.
        line: The fields of its log line; routes add theirs.
        state: What the lifespan has yielded.
    """

    __slots__ = ("_query", "_raw_headers", "_receive", "headers", "line", "method", "segments", "state")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(reversed(self._raw_headers))
        self._query: bytes = scope["query_string"]
        self._receive = receive
        self.method: str = scope["method"]
        self.state: dict[str, Any] = scope.get("state", {})
        given = self.header(b"x-request-id") or ""
        self.line: dict[str, Any] = {
            "request_id": given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}",
            "method": self.method,
            "status": 0,
            "bytes_out": 0,
        }
        raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        self.segments, is_prefixed = segments_of(raw_path)
        if is_prefixed:
            self.line["prefixed"] = True

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks if a page may ask: https://fetch.spec.whatwg.org/#cors-preflight-request."""
        return (
            self.method == "OPTIONS"
            and b"origin" in self.headers
            and b"access-control-request-method" in self.headers
        )

    def header(self, name: bytes) -> str | None:
        """Return the value of a header, named in lower case; None if it did not come."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def list_header(self, name: bytes) -> list[str]:
        """Return the members of a header whose value is a list, which may come in several pieces."""
        if name not in self.headers:
            return []
        values = [value.decode("latin-1") for each, value in self._raw_headers if each == name]
        return ",".join(values).split(",")

    def parameter(self, name: str) -> str | None:
        """Return the last value of a parameter of the query; None if it did not come."""
        if not self._query:
            return None
        values = parse_qs(self._query.decode("latin-1"), keep_blank_values=True).get(name)
        return values[-1] if values else None

    async def body(self, limit_bytes: int, bodies: "Bodies") -> bytes:
        """Read the body, which leaves nothing of it here: a stream may be open for an hour.

        Raises:
            BodyTooLarge: It says so, at once; or it has passed `limit_bytes` while it was read.
            Overloaded: All that are read here together are too much.
            InvalidRequest: It ended early, or did not come within 30 s.
        """
        declared = self.headers.get(b"content-length", b"").lstrip(b"0")  # `int` takes 4,300 digits
        if declared.isdigit() and (len(declared) > 18 or int(declared) > limit_bytes):
            raise _too_large(limit_bytes)
        pieces: list[bytes] = []
        read_bytes = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise InvalidRequest("The body ended early.")
                    pieces.append(piece := message.get("body", b""))
                    read_bytes += len(piece)
                    bodies.held_bytes += len(piece)
                    if read_bytes > limit_bytes:
                        raise _too_large(limit_bytes)
                    if bodies.held_bytes > bodies.all_bytes:
                        raise Overloaded(
                            "Too many request bodies are being read: try again.", retry_after_s=1
                        )
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise InvalidRequest(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from error
        finally:
            bodies.held_bytes -= read_bytes
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Bodies:
    """What all bodies that are being read in this process may have together."""

    def __init__(self, all_bytes: int) -> None:
        self.all_bytes = all_bytes
        self.held_bytes = 0


def segments_of(raw_path: str) -> tuple[list[str], bool]:
    """Return the segments of a path as it came, and whether a stage was in front of them.

    API Gateway may put its stage in front (its documentation and its behaviour disagree:
    https://docs.aws.amazon.com/apigateway/latest/developerguide/private-integration.html), and AWS SDKs send
    a runtime as a percent-encoded ARN, whose last part after `/` is the id.
    """
    segments = raw_path.partition("?")[0].split("/")[1:]
    is_prefixed = len(segments) > 1 and segments[0] not in ROOTS and segments[1] in ROOTS
    if is_prefixed:
        del segments[0]
    if "%" in raw_path:
        segments = [unquote(segment) if place else segment for place, segment in enumerate(segments)]
        if len(segments) > 1 and segments[0] == "runtimes":
            segments[1] = segments[1].rpartition("/")[2]
    return segments, is_prefixed


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"This path takes bodies of at most {limit_bytes} bytes.")
