"""Turns on what must not be changed by two at once: first come, first served, in this process.

`dynamodb_accounts` has one `Turns`: whose turn it is on an account, or on the record of an invocation. A turn
that nobody else has or waits for costs a look into a dict.

Invariants: one has a turn at a time, and it goes to whoever has waited longest and still waits; who gives up
or is cancelled, even in the moment in which the turn comes, keeps it from nobody.
"""

import asyncio
from collections import deque
from typing import Final

from service.errors import StoreUnavailable
from service.stores.dynamodb_client import RETRY_AFTER_S

_Waiting = deque[asyncio.Future[None]]


class Turns:
    """The turns of all names; used by one event loop.

    Args:
        limit_s: How long one waits for a turn.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s: Final = limit_s
        self._taken: dict[str, _Waiting] = {}

    def turn(self, name: str) -> "_Turn":
        """Return the context manager that waits for a turn, and passes it on."""
        return _Turn(self, name)

    def take(self, name: str) -> asyncio.Future[None] | None:
        """Take the turn at once (None), or queue for it: the future is done when it has come."""
        waiting = self._taken.get(name)
        if waiting is None:
            self._taken[name] = deque()
            return None
        coming = asyncio.get_running_loop().create_future()
        waiting.append(coming)
        return coming

    def pass_on(self, name: str) -> None:
        """Give the turn to whoever has waited longest."""
        waiting = self._taken[name]
        while waiting:
            coming = waiting.popleft()
            if not coming.done():  # else it was cancelled
                coming.set_result(None)
                return
        del self._taken[name]


class _Turn:
    """One decision's turn."""

    __slots__ = ("_name", "_turns")

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns = turns
        self._name = name

    async def __aenter__(self) -> None:
        coming = self._turns.take(self._name)
        if coming is None:
            return
        try:
            async with asyncio.timeout(self._turns.limit_s):
                await coming
        except BaseException as error:
            if not coming.cancel() and not coming.cancelled():  # it came in the moment in which we were told
                self._turns.pass_on(self._name)
            if isinstance(error, TimeoutError):
                raise busy() from error
            raise

    async def __aexit__(self, *_: object) -> None:
        self._turns.pass_on(self._name)


def busy() -> StoreUnavailable:
    """Return what is raised where too many want the same account."""
    return StoreUnavailable("The store is too busy with this account.", retry_after_s=RETRY_AFTER_S)
