"""The lease of this process: its claim on the invocations that it runs, and until when the claim is good.

`app` runs `keep`; `runner` and its attempts ask `is_held` before they publish, and wait for `held` before
they start a model call or a tool or write a decision; `takeover` looks for leases that have expired.

    held ──(lease_s less a margin, on the monotonic clock)──> lapsed ──(renewed, told what is left)──> held

A lapse ends nothing: another process's claim does. So after one (the process was stopped, the loop stalled,
the store was down) the store is asked what is still owned before anything goes on.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Final

from service.errors import StoreUnavailable
from service.stores import Store

logger = logging.getLogger(__name__)

# Others go by their own clocks: this process stops a tenth of the lease, at most 3 s, before they may claim.
MARGIN: Final = 0.1
LONGEST_MARGIN_S: Final = 3.0
RETRY_S: Final = 1.0


Running = Callable[[], Mapping[str, int]]
OnRegained = Callable[[Mapping[str, int]], None]


class Lease:
    """The lease of one process.

    Args:
        store: Where it is kept.
        owner: This process's name in it.
        lease_s: How long one renewal lasts.
        now_ms: The wall clock, which others compare the lease with.
        clock: A monotonic clock, in seconds, that goes on while the process is stopped.
    """

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        lease_s: float,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease_s = lease_s
        self._now_ms = now_ms
        self._clock = clock
        self._good_s = lease_s - min(lease_s * MARGIN, LONGEST_MARGIN_S)
        self._began = self._until = clock()  # lapsed
        self._renewed: asyncio.Future[None] | None = None
        self._failing = False
        self._claims_from = self._began

    def is_held(self) -> bool:
        """Tell whether no other process can have claimed anything of ours yet."""
        return self._clock() < self._until

    def may_claim(self) -> bool:
        """Tell whether what looks expired is: after an outage the others need a moment to renew theirs.

        Else the first process that is back would take all that the others still run.
        """
        return self.is_held() and not self._failing and self._clock() >= self._claims_from

    async def held(self) -> None:
        """Wait until the lease is held; at once if it is."""
        while not self.is_held():
            if self._renewed is None:
                self._renewed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._renewed)

    async def keep(self, running: Running, on_regained: OnRegained) -> None:
        """Renew the lease, for ever.

        Args:
            running: What runs here: invocation id -> attempt.
            on_regained: Called after a lapse with those of it that others have claimed meanwhile, before
                anybody who waits for `held` goes on.
        """
        while True:
            renewed = await self.renew(running, on_regained)
            rest_s = self._lease_s / 3 if renewed else min(self._lease_s / 10, RETRY_S)
            await asyncio.sleep(rest_s * random.uniform(0.8, 1.0))  # noqa: S311 (jitter)

    async def renew(self, running: Running = dict, on_regained: OnRegained = lambda _: None) -> bool:
        """Prolong the lease; False if the store did not answer, or so late that it is not held even now."""
        asked_at = self._clock()
        lost: dict[str, int] | None = None
        try:
            await self._store.renew_lease(self._owner, self._now_ms() + int(self._lease_s * 1000))
            if not self.is_held():
                lost = await self._lost(running())
        except StoreUnavailable:
            logger.log(logging.DEBUG if self._failing else logging.WARNING, "lease not renewed")
            self._failing = True
            return False
        lapsed = lost is not None and self._until > self._began
        if self._failing or lapsed:
            self._claims_from = self._clock() + self._lease_s / 3
        self._failing = False
        self._until = asked_at + self._good_s
        if not self.is_held():
            return False
        if lost is not None:
            on_regained(lost)
        if self._renewed is not None:
            renewed, self._renewed = self._renewed, None
            renewed.set_result(None)
        return True

    async def _lost(self, running: Mapping[str, int]) -> dict[str, int]:
        """Return what runs here though others have claimed it."""
        owned = await self._store.owned(self._owner)
        return {key: attempt for key, attempt in running.items() if owned.get(key) != attempt}

    async def give_back(self) -> None:
        """End the lease: nothing runs here any more."""
        self._until = self._clock()
        try:
            await self._store.renew_lease(self._owner, 0)
        except StoreUnavailable:
            logger.warning("lease not given back")
