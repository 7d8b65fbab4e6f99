"""A request on its way through API Gateway: its limits, what is validated, and what the backend gets of it.

`gateway` calls these in order. Pure but for reading the body. A path goes on in the bytes in which it came:
its parameters are not decoded (API Gateway may do that: docs/operations.md).

Sources:
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html,
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-method-request-validation.html
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

import jsonschema
from aiohttp import web

from local.gateway_api import Integration, Method, Refused

_LINE_END_BYTES: Final = 2
_ORIGIN: Final = re.compile(r"^\w+://[^/]*")
# What belongs to one connection, and what is made anew:
# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
_NOT_PASSED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("host", "content-length", "expect"),
    }
)


@dataclass(frozen=True, slots=True)
class Sent:
    """What a client sent, and what API Gateway knows of it: all that a mapping may take its value from."""

    request_id: str
    path: Mapping[str, str]
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first header of a name."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)

    def value(self, source: str) -> str | None:
        """Return the value of a mapping expression, None if it has none."""
        if source.startswith("'"):
            return source[1:-1]
        if source == "context.requestId":
            return self.request_id
        kind, _, name = source.removeprefix("method.request.").partition(".")
        match kind:
            case "path":
                return self.path.get(name)
            case "header":
                return self.header(name)
            case "querystring":
                return next(iter(parse_qs(self.query, keep_blank_values=True).get(name, ())), None)
        raise Refused("API_CONFIGURATION_ERROR")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the backend is asked for; `target` is path and query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def header_bytes(raw: Iterable[tuple[bytes, bytes]]) -> int:
    """Return what counts against the limit of headers: names, values and line ends."""
    return sum(len(name) + len(value) + _LINE_END_BYTES for name, value in raw)


def texts(raw: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return headers as text, in order."""
    return tuple((name.decode("utf-8", "replace"), value.decode("utf-8", "replace")) for name, value in raw)


async def read_body(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """Read all of a body: API Gateway passes nothing on before it has it.

    Raises:
        Refused: It is larger than the limit.
    """
    if (request.content_length or 0) > limit_bytes:
        raise Refused("REQUEST_TOO_LARGE")
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    body = bytearray()
    while piece := await request.content.readany():
        body += piece
        if len(body) > limit_bytes:
            raise Refused("REQUEST_TOO_LARGE")
    return bytes(body)


def check(method: Method, sent: Sent) -> None:
    """Validate a request as its method says.

    Raises:
        Refused: A parameter is missing, or the body is not what its model says.
    """
    if method.checks_parameters and any(not sent.value(name) for name in method.requires):
        raise Refused("BAD_REQUEST_PARAMETERS")
    media = (sent.header("Content-Type") or "application/json").partition(";")[0].strip().lower()
    schema = method.schemas.get(media)
    if method.checks_body and schema is not None and not _is_valid(sent.body, schema):
        raise Refused("BAD_REQUEST_BODY")


def _is_valid(body: bytes, schema: Mapping[str, Any]) -> bool:
    try:
        return jsonschema.Draft4Validator(schema).is_valid(json.loads(body)) is True
    except (ValueError, RecursionError):
        return False


def mapped(integration: Integration, sent: Sent) -> Asked:
    """Return what an integration makes of a request.

    Raises:
        Refused: A mapping is none that is known.
    """
    path = _ORIGIN.sub("", integration.uri) or "/"
    headers = [(name, value) for name, value in sent.headers if name.lower() not in _NOT_PASSED]
    query = sent.query
    for place, source in integration.sets.items():
        value = sent.value(source)
        kind, _, name = place.removeprefix("integration.request.").partition(".")
        match kind:
            case "path" if value is not None:
                path = path.replace(f"{{{name}}}", value)
            case "header":
                headers = [pair for pair in headers if pair[0].lower() != name.lower()]
                headers += [(name, value)] if value is not None else []
            case _:
                raise Refused("API_CONFIGURATION_ERROR")
    target = f"{path}?{query}" if query else path
    return Asked(integration.method, target, tuple(headers), sent.body)
