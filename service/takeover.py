"""Takeover: finds invocations that nobody runs any more, and paused ones that may go on; runs them here.

    expired or handed over ──claim_expired──> judged ──> runner.take_over    goes on after the last stored
    paused, and due ────────────resume──────────┘                            turn, or only writes the ending

`app` runs `watch` (claims and paused ones) and `heed` (cancellations that other processes were asked for);
`api` resumes and wakes. A claim is a decision of the store, so of several processes one gets each invocation;
what it then does here is what a first attempt does, in `runner`.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from service.attempt import LONGEST_POSTPONEMENT_S, Stop
from service.beat import BEAT_S, until_beat_s
from service.config import Catalog, Limits
from service.errors import (
    AttemptsExhausted,
    BudgetExceeded,
    ConcurrencyExceeded,
    Fenced,
    HeadraceError,
    InternalError,
    PauseExpired,
    QuotaExceeded,
    RuntimeGone,
    StoreUnavailable,
)
from service.invocations import Invocation
from service.leases import Lease
from service.policies import PolicyWatch
from service.runner import Runner
from service.runtimes import InvocationInput
from service.stores import Claim, Paused, Store

logger = logging.getLogger(__name__)

CLAIMS_AT_ONCE: Final = 16
MAX_LOST_ATTEMPTS: Final = 3
LONGEST_LOOK_S: Final = 2 * BEAT_S
HEED_S: Final = BEAT_S / 2  # a cancelled model call may then be read on for a second, of two in all
# A look for our own orphans reads all that this process holds; they are a minute old anyway.
ORPHANS_EVERY_S: Final = 15.0


class Takeover:
    """What this process does for invocations that others have left.

    Args:
        store: Decides who gets what.
        owner: This process's name there.
        runner: Runs what was claimed.
        catalog: Runtimes, as they are now; what others serve is left to them.
        policies: Limits, and who is denied; nothing is claimed before they are read.
        lease: This process's: without it nothing is claimed.
        now_ms: The wall clock.
        adopted: Told each invocation that now runs here: its readers need not poll any more.
    """

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        runner: Runner,
        catalog: Catalog,
        policies: PolicyWatch,
        lease: Lease,
        now_ms: Callable[[], int],
        adopted: Callable[[str], None],
    ) -> None:
        self._store = store
        self._owner = owner
        self._runner = runner
        self._lease = lease
        self._catalog = catalog
        self._policies = policies
        self._look_s = min(catalog.service.lease_s / 3, LONGEST_LOOK_S)
        self._pause_limit_ms = int(catalog.service.pause_limit_s * 1000)
        self._now_ms = now_ms
        self._adopted = adopted
        self._woken = asyncio.Event()
        self._orphans_due_at = 0.0

    def wake(self) -> None:
        """Look at once."""
        self._woken.set()

    async def watch(self) -> None:
        """Look for what nobody runs any more, and for paused invocations that are due, for ever."""
        while True:
            self._woken.clear()
            try:
                while await self.claim_expired() == CLAIMS_AT_ONCE:
                    pass  # there may be more
                await self.look_at_paused()
            except StoreUnavailable:
                logger.debug("no look for what others have left")  # `leases` says so once for the process
            with suppress(TimeoutError):
                async with asyncio.timeout(_until_beat_s(self._look_s)):
                    await self._woken.wait()

    async def heed(self) -> None:
        """Cancel what runs here and was asked to end, by whichever process, for ever."""
        while True:
            if self._runner.running:
                try:
                    for invocation_id in await self._store.cancel_requests(self._owner):
                        self._runner.cancel(invocation_id, "requested")
                except StoreUnavailable:
                    logger.debug("no look for cancellations")  # as above
            await asyncio.sleep(_until_beat_s(HEED_S))

    async def claim_expired(self) -> int:
        """Claim what nobody runs any more, as far as there is room; returns how many, at most
        `CLAIMS_AT_ONCE`."""
        limit = min(CLAIMS_AT_ONCE, self._runner.free)
        if not (limit and self._lease.may_claim() and self._policies.is_loaded):
            return 0
        now = asyncio.get_running_loop().time()
        is_due = now >= self._orphans_due_at
        claims = await self._store.claim_expired(
            self._owner,
            self._now_ms(),
            limit=limit,
            running=self._runner.invocation_ids if is_due else None,
            runtimes=self._catalog.runtimes.keys(),
        )
        if is_due:
            self._orphans_due_at = now + ORPHANS_EVERY_S
        for claim in claims:
            self._begin(claim, resumed=False)
        return len(claims)

    async def look_at_paused(self) -> None:
        """Resume the paused invocations that are due and have room; end those that may wait no longer."""
        if self._runner.is_draining or not (self._lease.is_held() and self._policies.is_loaded):
            return
        served = self._catalog.runtimes.keys()
        for paused in await self._store.list_paused(self._now_ms(), limit=CLAIMS_AT_ONCE, runtimes=served):
            try:
                await self._look_at(paused)
            except Fenced:
                pass  # another process was quicker
            except StoreUnavailable:
                raise
            except Exception:  # the edge of one invocation: it must not keep the others
                invocation_id = paused.invocation.invocation_id
                logger.exception("can't be resumed or ended", extra={"invocation_id": invocation_id})

    async def _look_at(self, paused: Paused) -> None:
        invocation, now_ms = paused.invocation, self._now_ms()
        invocation_id, attempt = invocation.invocation_id, invocation.attempt
        expired = now_ms - (invocation.paused_at_ms or now_ms) >= self._pause_limit_ms
        limits = self._limits(invocation, paused.input)
        if expired or limits is None or invocation.cancel_requested_at_ms is not None:
            stop = PauseExpired("Submit it again when there is room.") if expired else None
            await self._end(invocation, stop)
            return
        if self._is_abandoned(paused, now_ms):
            await self._end(invocation, None)
            self._runner.cancel(invocation_id, "abandoned")
            return
        if not self._runner.free:
            return
        try:
            claim = await self._store.resume(invocation_id, attempt, self._owner, now_ms, limits=limits)
        except (QuotaExceeded, ConcurrencyExceeded) as refusal:
            wait_s = min(refusal.retry_after_s or LONGEST_POSTPONEMENT_S, LONGEST_POSTPONEMENT_S)
            await self._store.postpone(invocation_id, attempt, now_ms + int(wait_s * 1000))
        except BudgetExceeded as refusal:
            await self._end(invocation, refusal)
        else:
            self._begin(claim, resumed=True)

    async def resume(self, invocation: Invocation, limits: Limits) -> Invocation:
        """Let a paused invocation go on here, now.

        Raises:
            QuotaExceeded, ConcurrencyExceeded, BudgetExceeded: There is no room (yet): it stays paused.
            Fenced: It is not paused any more.
        """
        invocation_id, attempt = invocation.invocation_id, invocation.attempt
        claim = await self._store.resume(invocation_id, attempt, self._owner, self._now_ms(), limits=limits)
        self._begin(claim, resumed=True)
        return claim.invocation

    async def _end(self, invocation: Invocation, stop: HeadraceError | None) -> None:
        """Take a paused invocation over only to end it."""
        claim = await self._store.resume(
            invocation.invocation_id, invocation.attempt, self._owner, self._now_ms(), limits=None
        )
        self._begin(claim, resumed=False, stop=stop)

    def _begin(self, claim: Claim, *, resumed: bool, stop: HeadraceError | None = None) -> None:
        """Start the claimed attempt: it goes on, or ends the invocation for a reason."""
        invocation = claim.invocation
        fields = {"invocation_id": invocation.invocation_id, "attempt": invocation.attempt}
        runtime = self._catalog.runtimes.get(invocation.runtime_id)
        reason: Stop | HeadraceError | None = stop
        turns = tuple(turn.messages for turn in claim.turns)
        try:
            given = InvocationInput.from_json(invocation, claim.input, turns)
        except ValueError:
            logger.exception("a claimed invocation can't be read", extra=fields)
            given = InvocationInput.unreadable(invocation)
            reason = reason or InternalError("What was submitted can't be read any more: submit it again.")
        if invocation.cancel_requested_at_ms is not None:
            reason = Stop.CANCELLED
        elif invocation.lost_attempts >= MAX_LOST_ATTEMPTS:
            reason = reason or AttemptsExhausted(
                f"{invocation.lost_attempts} processes that ran it died or stalled. Submit it again."
            )
        elif runtime is None:
            reason = reason or RuntimeGone(
                "The deployment has changed: GET /runtimes lists what it serves now."
            )
        self._runner.take_over(
            invocation,
            given,
            runtime,
            stop=reason,
            resumed_turn=len(turns) + 1 if resumed else None,
        )
        if self._policies.refusal(given.sub, given.origin_jti) is not None:
            self._runner.cancel(invocation.invocation_id, "denied")
        self._adopted(invocation.invocation_id)
        if resumed:
            logger.info("resumed", extra=fields)
        else:
            logger.warning("taken over", extra=fields)

    def _is_abandoned(self, paused: Paused, now_ms: int) -> bool:
        """Tell whether nobody reads any more what nobody is to read in vain; readers anywhere are noted.

        After an outage of the store they get as long as leases do to be noted anew.
        """
        runtime = self._catalog.runtimes.get(paused.invocation.runtime_id)
        if runtime is None or runtime.on_disconnect != "cancel" or paused.read_at_ms is None:
            return False
        unread_ms = now_ms - paused.read_at_ms
        return unread_ms >= self._catalog.service.abandon_s * 1000 and self._lease.may_claim()

    def _limits(self, invocation: Invocation, stored: bytes) -> Limits | None:
        """Return the limits that count for a paused invocation; None if it can't go on anyway."""
        if invocation.runtime_id not in self._catalog.runtimes:
            return None
        try:
            given = InvocationInput.from_json(invocation, stored, ())
        except ValueError:
            return None
        if self._policies.refusal(given.sub, given.origin_jti) is not None:
            return None
        return self._policies.limits_of(given.sub, given.groups)


def _until_beat_s(every_s: float) -> float:
    return until_beat_s(every_s, asyncio.get_running_loop().time())
