"""Passes a request to the service and its answer back: as it comes (STREAM), or whole (BUFFERED).

`gateway` calls it with what the request was mapped to. A slow client slows the reading of the service: what
is in between is bounded by the buffers of two connections.

    STREAM     nothing is sent before all headers are there; then piece by piece. An answer that is silent for
               5 minutes or takes 15 in all is cut: its chunked body never ends. Beyond 10 MB, 2 MB a second
    BUFFERED   sent once it is whole, with a length; 29 s and 10 MB at most, else a gateway response

A client that hangs up ends the request to the service. (Whether API Gateway does that is not documented:
with `reads_on` the answer is read to its end for nobody.)

Sources:
https://docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html,
https://docs.aws.amazon.com/apigateway/latest/developerguide/response-streaming-troubleshoot.html
"""

import asyncio
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from local.gateway_api import Integration, Limits, Refused
from local.gateway_balancer import Balancer, NoAnswer
from local.gateway_pace import Pace
from local.gateway_request import Asked, texts

_DROPPED: Final = frozenset(
    {"keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-known-issues.html
_REMAPPED: Final = frozenset(
    {"authorization", "connection", "content-length", "date", "server", "www-authenticate"}
)

Line = dict[str, Any]


class _Silent(Exception):
    """The service has sent nothing for too long."""


class _Broke(Exception):
    """The service's connection was lost in the middle of its answer."""


class Transfer:
    """One API's way to its service and back. `scale` is how long a second is."""

    def __init__(self, limits: Limits, balancer: Balancer, *, scale: float, reads_on: bool) -> None:
        self._limits = limits
        self._balancer = balancer
        self._scale = scale
        self._reads_on = reads_on

    async def pass_on(
        self, request: web.BaseRequest, integration: Integration, asked: Asked, request_id: str, line: Line
    ) -> web.StreamResponse:
        """Ask the service and answer; `line` is told how that ended.

        Raises:
            Refused: No answer was there in time, or none that could be passed on.
        """
        limits = self._limits
        longest_s = limits.stream_timeout_s if integration.streams else limits.buffered_timeout_s
        response: web.StreamResponse | None = None
        try:
            async with (
                asyncio.timeout(min(integration.timeout_s, longest_s) * self._scale),
                self._balancer.open(asked) as upstream,
            ):
                headers = _headers(upstream, request_id)
                if not integration.streams:
                    body = await self._whole(upstream)
                    line.update(bytes=len(body), end="whole")
                    return web.Response(status=upstream.status, headers=headers, body=body)
                response = web.StreamResponse(status=upstream.status, headers=headers)
                line["status"] = upstream.status
                line["end"] = await self._stream(upstream, request, response, line)
        except NoAnswer as error:
            line["end"] = "no-answer"
            headers = CIMultiDict({"x-amzn-Remapped-Server": "awselb/2.0", "x-amzn-RequestId": request_id})
            return web.Response(
                status=error.status, headers=headers, text=error.page, content_type="text/html"
            )
        except TimeoutError as error:
            if response is None:
                raise Refused("INTEGRATION_TIMEOUT") from error
            line["end"] = "cut-total"
        except _Silent:
            line["end"] = "cut-idle"
        except _Broke:
            line["end"] = "broke"
        if response is None:
            raise Refused("INTEGRATION_FAILURE")
        if line["end"] != "whole" and request.transport is not None:
            request.transport.abort()  # no last chunk: the client sees that it is not all
        return response

    async def _whole(self, upstream: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        while piece := await _read(upstream):
            body += piece
            if len(body) > self._limits.buffered_body_bytes:
                raise Refused("INTEGRATION_FAILURE")
        return bytes(body)

    async def _stream(
        self,
        upstream: aiohttp.ClientResponse,
        request: web.BaseRequest,
        response: web.StreamResponse,
        line: Line,
    ) -> str:
        """Send the head, and pass pieces on until there are no more; return how it ended."""
        limits = self._limits
        pace = Pace(limits.stream_free_bytes, limits.stream_bytes_per_s / self._scale)
        try:
            await response.prepare(request)
            while piece := await self._next_piece(upstream):
                await response.write(piece)
                line["bytes"] += len(piece)
                await pace.keep(len(piece))
            await response.write_eof()
        except ConnectionError:  # the client's
            while self._reads_on and await self._next_piece(upstream):
                pass
            return "hung-up"
        return "whole"

    async def _next_piece(self, upstream: aiohttp.ClientResponse) -> bytes:
        try:
            async with asyncio.timeout(self._limits.stream_idle_s * self._scale):
                return await _read(upstream)
        except TimeoutError as error:
            raise _Silent from error


async def _read(upstream: aiohttp.ClientResponse) -> bytes:
    try:
        return await upstream.content.readany()
    except aiohttp.ClientError as error:
        raise _Broke from error


def _headers(upstream: aiohttp.ClientResponse, request_id: str) -> CIMultiDict[str]:
    headers = CIMultiDict({"x-amzn-RequestId": request_id})
    for name, value in texts(upstream.raw_headers):
        if name.lower() in _REMAPPED:
            headers.add(f"x-amzn-Remapped-{name}", value)
        elif name.lower() not in _DROPPED:
            headers.add(name, value)
    headers.setdefault("Content-Type", "application/json")
    return headers
