"""Leases: this process's claim on the invocations that it runs, and the search for those of dead processes.

One lease per process, renewed every third of its length. A process that finds an expired lease claims its
invocations with a higher attempt number: what the dead attempt held is settled as an estimate (on the
deployment's account, not the caller's quota), and the invocation ends with `interrupted`, so that no log is
left open. `app` runs `Leases.keep`.
"""

import asyncio
import logging
import random
from collections.abc import Callable
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

    def __init__(self, store: Store, *, owner: str, lease_s: float, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._owner = owner
        self._lease_s = lease_s
        self._now_ms = now_ms

    async def keep(self) -> None:
        """Renew the lease and look for expired ones, for ever."""
        while True:
            await self.renew()
            await self.claim_expired()
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

    async def claim_expired(self) -> None:
        """Claim what dead processes left, and end it."""
        try:
            claims = await self._store.claim_expired(self._owner, self._now_ms(), limit=CLAIMS_AT_ONCE)
        except StoreUnavailable:
            logger.warning("no look for expired leases")
            return
        for claim in claims:
            finish = partial(self._store.finish, _interrupted(claim), self._now_ms())
            try:
                await persist(finish)
            except Fenced:  # this process stalled in between, and its claim was claimed in turn
                logger.warning("claim fenced", extra={"invocation_id": claim.invocation.invocation_id})
            else:
                logger.warning("interrupted", extra={"invocation_id": claim.invocation.invocation_id})


def _interrupted(claim: Claim) -> Ending:
    """Return the ending of an invocation whose process died."""
    invocation = claim.invocation
    restarted = {"attempt": invocation.attempt, "rewindTo": str(invocation.attempts[-2].last)}
    failure = Interrupted("Submit it again; the log has what was produced until then.")
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
