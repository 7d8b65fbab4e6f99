"""The load balancer between the local gateway and the processes of the service.

`gateway_transfer` sends each request to the process that has the fewest. One that is not ready (`GET /ready`,
looked at every `HEALTH_S`) gets none, unless none is. What can't be connected, or hangs up before it has
answered, is an answer of the load balancer's own, in HTML, as API Gateway would pass it on:
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-troubleshooting.html.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
from yarl import URL

from local.gateway_request import Asked

HEALTH_S: Final = 1.0
"""Sooner than the template's, so that a process that was started again is found at once."""
CONNECT_S: Final = 10.0


class NoAnswer(Exception):
    """The load balancer answers itself, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    @property
    def page(self) -> str:
        """What stands in its answer."""
        said = f"{self.status} {HTTPStatus(self.status).phrase}"
        return f"<html>\r\n<head><title>{said}</title></head>\r\n<body><h1>{said}</h1></body>\r\n</html>\r\n"


@dataclass(slots=True, eq=False)
class Target:
    """One process of the service."""

    url: str
    outstanding: int = 0
    ready: bool = True


class Balancer:
    """The processes, and how busy each is."""

    def __init__(self, urls: Sequence[str], session: aiohttp.ClientSession) -> None:
        self.targets = [Target(url) for url in urls]
        self._session = session

    @asynccontextmanager
    async def open(self, asked: Asked) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask the least busy process; the answer's connection is closed in the end if it was not read whole.

        Raises:
            NoAnswer: There is no process, or none that answers.
        """
        target = self._take()
        try:
            response = await self._ask(target, asked)
            try:
                yield response
            finally:
                response.close()
        finally:
            target.outstanding -= 1

    def _take(self) -> Target:
        if not self.targets:
            raise NoAnswer(503)
        target = min(self.targets, key=lambda each: (not each.ready, each.outstanding))
        # Of several that are as busy the next one is the first that has not been taken for longest.
        self.targets.remove(target)
        self.targets.append(target)
        target.outstanding += 1
        return target

    async def _ask(self, target: Target, asked: Asked) -> aiohttp.ClientResponse:
        try:
            return await self._session.request(
                asked.method,
                URL(target.url + asked.target, encoded=True),
                headers=asked.headers,
                data=asked.body or None,
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise NoAnswer(504) from error
        except aiohttp.ClientError as error:
            raise NoAnswer(502) from error

    async def watch(self) -> None:
        """Look at the processes again and again; cancelled when nobody balances any more."""
        while True:
            await asyncio.gather(*map(self._look, self.targets))
            await asyncio.sleep(HEALTH_S)

    async def _look(self, target: Target) -> None:
        try:
            async with asyncio.timeout(HEALTH_S), self._session.get(f"{target.url}/ready") as response:
                target.ready = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            target.ready = False
