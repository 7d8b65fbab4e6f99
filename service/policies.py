"""What operators have decided about principals, as this process knows it: who is denied, whose limits differ.

`app` runs `refresh_forever`. `api` asks `check` at every request; whoever needs limits asks `limits_of`.

    store ──all decisions, at start and every 10 s──> PolicyWatch ──> check, limits_of
                                                          └─ each reading ─> enforce: readers of who is denied
                                                                             end, what they submitted too
Invariants:
- Before the first reading nobody is let in.
- A store that does not answer changes nothing: what was read last holds, and no denial lapses.
- What began while its principal was being denied (a request that was checked just before) ends at the next
  reading.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Final

from service.config import Catalog, Limits
from service.errors import Denied, StoreUnavailable
from service.stores import Policies, Store

logger = logging.getLogger(__name__)

REFRESH_S: Final = 10.0
RETRY_S: Final = 1.0
USER: Final = "sub:"
"""Before a `sub`, names the principal; before an `origin_jti`, `SIGN_IN` names one of its sign-ins."""
SIGN_IN: Final = "origin_jti:"
_LIMITS: Final = frozenset(field.name for field in fields(Limits))


class PolicyWatch:
    """The newest reading of what operators have decided."""

    def __init__(self, store: Store, catalog: Catalog, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._catalog = catalog
        self._now_ms = now_ms
        self._policies: Policies | None = None
        self._failing = False

    @property
    def is_loaded(self) -> bool:
        """Whether they were ever read; a later failure takes no process out of service."""
        return self._policies is not None

    async def load(self) -> bool:
        """Read them once. A failure is logged, and leaves what was read before; never raises."""
        try:
            self._policies = await self._store.policies(self._now_ms())
        except StoreUnavailable:
            logger.log(logging.DEBUG if self._failing else logging.WARNING, "denials and limits not read")
            self._failing = True
            return False
        self._failing = False
        return True

    async def refresh_forever(self, enforce: Callable[[], None]) -> None:
        """Read them every 10 s; `enforce` is called after each reading that has a denial."""
        while True:
            rest_s = RETRY_S if self._failing else REFRESH_S
            await asyncio.sleep(rest_s * random.uniform(0.8, 1.0))  # noqa: S311 (jitter)
            if await self.load() and self._policies is not None and self._policies.denied:
                enforce()

    def refusal(self, sub: str, origin_jti: str | None) -> Denied | None:
        """Return why a principal, or what it has submitted, may not go on; None if it may."""
        if self._policies is None or not self._policies.denied:
            return None
        denied = self._policies.denied
        if USER + sub in denied:
            return Denied("Who runs this deployment has denied you access: ask there.")
        if origin_jti is not None and SIGN_IN + origin_jti in denied:
            return Denied("This sign-in has been revoked: sign out, and sign in again.")
        return None

    def check(self, sub: str, origin_jti: str | None) -> None:
        """Let a principal in.

        Raises:
            Denied: It may not call.
            StoreUnavailable: It is not known yet.
        """
        if self._policies is None:
            raise StoreUnavailable("Who may call could not be read yet: try again.", retry_after_s=1)
        refusal = self.refusal(sub, origin_jti)
        if refusal is not None:
            raise refusal

    def limits_of(self, sub: str, groups: Sequence[str]) -> Limits:
        """Return a principal's limits: its groups', and in place of some of them its own."""
        limits = self._catalog.limits_of(tuple(groups))
        own = self._policies.limits.get(sub) if self._policies is not None else None
        if not own:
            return limits
        # A newer version of the command may have written a limit that this one does not know.
        return replace(limits, **{name: value for name, value in own.items() if name in _LIMITS})
