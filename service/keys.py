"""The issuer's signing keys: kept fresh in the background, served stale while the issuer is down.

`identity` asks for a key by its id. Calls the injected `fetch_jwks` and reads its answer with `jose`.

    refresh_forever ─┐
    find(unknown) ───┴─> one fetch at a time ── bytes ──> parse_jwks ──> the keys in use ──> get, find

Invariants:
- Only a JWKS that is right as a whole replaces the keys in use.
- There is one fetch at a time, for all who wait for it. It ends within 5 s, and is not cancelled with
  one of them: a caller that hangs up can't keep the others from a new key.
- A key that the issuer no longer publishes verifies nothing after the next refresh; `on_change` lets go of
  what it has verified.

Sources: Cognito rotates keys,
https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-tokens-verifying-a-jwt.html
and limits the rate of requests for them,
https://docs.aws.amazon.com/cognito/latest/developerguide/cognito-document-history.html
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from service.errors import IssuerUnavailable
from service.jose import UnusableKeys, parse_jwks

FETCH_TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 3600.0
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
SERVED_STALE_S: Final = 24 * 3600.0
UNKNOWN_KID_REFETCH_S: Final = 30.0

logger = logging.getLogger(__name__)


class IssuerKeys:
    """The keys that verify now, by their id.

    Args:
        fetch_jwks: Gets the JWKS; may raise anything, is cancelled after 5 s.
        now_s: Epoch seconds.
        on_change: Called when the keys are no longer the same, before anybody sees the new ones.
    """

    def __init__(
        self,
        *,
        fetch_jwks: Callable[[], Awaitable[bytes]],
        now_s: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._fetch_jwks = fetch_jwks
        self._now_s = now_s
        self._on_change = on_change
        self._keys: Mapping[str, RSAPublicKey] = {}
        self._fetch: asyncio.Task[None] | None = None
        self._failures = 0
        self._unknown_kid_at_s = float("-inf")
        self.usable_until_s = float("-inf")
        """Epoch seconds after which the keys are too old; minus infinity until they were loaded once."""

    @property
    def loaded(self) -> bool:
        """Whether keys were ever loaded, however old they are by now."""
        return bool(self._keys)

    def get(self, kid: str) -> RSAPublicKey | None:
        """Return the key if it is in use; never waits."""
        return self._keys.get(kid) if self._now_s() <= self.usable_until_s else None

    async def find(self, kid: str) -> RSAPublicKey | None:
        """Return the key, if need be after a fetch, at most one in 30 s; None if the issuer does not have it.

        Raises:
            IssuerUnavailable: There are no keys, or they are older than 24 h.
        """
        if self.get(kid) is None and self._may_refetch():
            await self.refresh()
        if self._now_s() > self.usable_until_s:
            raise IssuerUnavailable(
                "The token issuer's keys can't be loaded at the moment; try again.",
                retry_after_s=FETCH_TIMEOUT_S,
            )
        return self.get(kid)

    async def refresh(self) -> None:
        """Fetch the keys, or wait for the fetch under way; a failure is logged and changes nothing."""
        fetch = self._fetch
        if fetch is None or fetch.done():
            fetch = self._fetch = asyncio.create_task(self._load(), name="issuer-keys")
        await asyncio.wait({fetch})

    async def refresh_forever(self) -> None:
        """Refresh every hour, after a failure sooner. When it is cancelled, so is the fetch under way."""
        try:
            while True:
                await asyncio.sleep(self._next_refresh_in_s())
                await self.refresh()
        finally:
            if self._fetch is not None and self._fetch.cancel():
                await asyncio.wait({self._fetch})

    def _may_refetch(self) -> bool:
        if self._fetch is not None and not self._fetch.done():
            return True  # and join it
        # The distance, not the difference: a clock that was set back must not end refetching for as long.
        if abs(self._now_s() - self._unknown_kid_at_s) < UNKNOWN_KID_REFETCH_S:
            return False
        self._unknown_kid_at_s = self._now_s()
        return True

    def _next_refresh_in_s(self) -> float:
        pause_s = REFRESH_S
        if self._failures:
            pause_s = min(FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10), LONGEST_RETRY_S)
        return pause_s * random.uniform(0.8, 1.0)  # noqa: S311 - spreads many processes' fetches, protects nothing

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                body = await self._fetch_jwks()
            keys = parse_jwks(body)
        except Exception as error:  # noqa: BLE001 - the fetch is injected: whatever it raises, the keys in use stay
            self._failures += 1
            fault = str(error) if isinstance(error, UnusableKeys) else type(error).__name__
            fields = {"fault": fault, "failures": self._failures, "keys_in_use": len(self._keys)}
            logger.warning("issuer keys not loaded", extra=fields)
            return
        self._failures = 0
        self.usable_until_s = self._now_s() + SERVED_STALE_S
        if keys != self._keys:
            self._keys = keys
            self._on_change()
