"""Leases: this process's claim on the invocations that it runs, and the search for those of dead processes.

One lease per process, renewed every third of its length. A process that finds an expired lease claims its
invocations with a higher attempt number: what the dead attempt held is settled as an estimate (on the
deployment's account, not the caller's quota), and the invocation ends with `interrupted`, so that no log is
left open. The same happens to invocations of its own that it does not run. `app` runs `keep` and `watch`.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from service.errors import Fenced, Interrupted, StoreUnavailable
from service.events import Block, encode
from service.invocations import State, Usage
from service.ledger import persist
from service.stores import Claim, Ending, Settlement, Store

logger = logging.getLogger(__name__)

CLAIMS_AT_ONCE: Final = 16


class Leases:
    """The lease of one process."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        lease_s: float,
        now_ms: Callable[[], int],
        running: Callable[[], Collection[str] | None] = lambda: None,
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease_s = lease_s
        self._now_ms = now_ms
        self._running = running

    async def keep(self) -> None:
        """Renew the lease, for ever."""
        while True:
            await self.renew()
            await self._rest()

    async def watch(self) -> None:
        """Look for what nobody runs any more, for ever; apart from `keep`, which must not wait."""
        while True:
            while await self.claim_expired() == CLAIMS_AT_ONCE:
                pass  # there may be more
            await self._rest()

    async def _rest(self) -> None:
        await asyncio.sleep(self._lease_s / 3 * random.uniform(0.8, 1.0))  # noqa: S311 (jitter)

    async def renew(self) -> None:
        """Prolong the lease; with a store that is down, the next round tries again."""
        try:
            await self._store.renew_lease(self._owner, self._now_ms() + int(self._lease_s * 1000))
        except StoreUnavailable:
            logger.warning("lease not renewed")

    async def give_back(self) -> None:
        """End the lease: nothing runs here any more."""
        try:
            await self._store.renew_lease(self._owner, 0)
        except StoreUnavailable:
            logger.warning("lease not given back")

    async def claim_expired(self) -> int:
        """Claim what nobody runs any more, and end it; returns how many, at most `CLAIMS_AT_ONCE`."""
        try:
            claims = await self._store.claim_expired(
                self._owner, self._now_ms(), limit=CLAIMS_AT_ONCE, running=self._running()
            )
        except StoreUnavailable:
            logger.warning("no look for expired leases")
            return 0
        for claim in claims:
            fields = {"invocation_id": claim.invocation.invocation_id}
            try:
                await persist(partial(self._store.finish, _interrupted(claim), self._now_ms()))
            except Fenced:  # this process stalled in between, and its claim was claimed in turn
                logger.warning("claim fenced", extra=fields)
            except Exception:  # the edge of one claim: the others must not wait for it
                logger.exception("claim could not be ended", extra=fields)
            else:
                logger.warning("interrupted", extra=fields)
        return len(claims)


def _interrupted(claim: Claim) -> Ending:
    """Return the ending of an invocation whose process died."""
    invocation = claim.invocation
    restarted = {"attempt": invocation.attempt, "rewindTo": str(invocation.attempts[-2].last)}
    failure = Interrupted("Submit it again.")
    problem = failure.problem(
        instance=f"/runtimes/{invocation.runtime_id}/invocations/{invocation.invocation_id}",
        invocationId=invocation.invocation_id,
    )
    events = (encode("attemptRestarted", restarted), encode("invocationFailed", {"problem": problem}))
    settlements = tuple(
        Settlement(
            invocation_id=hold.invocation_id,
            attempt=hold.attempt,
            turn=hold.turn,
            sub=hold.sub,
            runtime_id=invocation.runtime_id,
            model="",
            usage=Usage(input_tokens=hold.tokens, estimated=True),
            charged=False,
        )
        for hold in claim.open_holds
    )
    return Ending(
        invocation.invocation_id,
        invocation.attempt,
        State.FAILED,
        Block(invocation.attempt, 1, events),
        settlements,
    )
