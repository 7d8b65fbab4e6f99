"""Admission: a principal and a submission become a running invocation with its first hold, or a refusal.

`api.submit` calls it, `stores` decides: quota, concurrency and budget are checked and written in one
transaction.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from service.config import RuntimeConfig
from service.identity import Principal
from service.invocations import Invocation
from service.ledger import reservation_expires_at_ms
from service.policies import PolicyWatch
from service.runtimes import InvocationInput, Runtime
from service.stores import Idempotency, NewInvocation, Store
from service.submission import Submission

IDEMPOTENCY_KEYS_LIVE_MS: Final = 24 * 3_600_000


class Retry(NamedTuple):
    """What a request with an `Idempotency-Key` is known by: the caller's key, and the body's bytes."""

    key: str
    body: bytes

    def idempotency(self, principal: Principal, runtime: RuntimeConfig, now_ms: int) -> Idempotency:
        """Bind the key to principal and runtime; neither key nor body is stored, only their digests."""
        scoped = json.dumps([principal.sub, runtime.name, self.key]).encode()
        return Idempotency(
            hashlib.sha256(scoped).hexdigest(),
            hashlib.sha256(self.body).hexdigest(),
            now_ms + IDEMPOTENCY_KEYS_LIVE_MS,
        )


class Admission:
    """Lets submissions in."""

    def __init__(
        self,
        store: Store,
        policies: PolicyWatch,
        runtimes: Mapping[str, Runtime],
        *,
        owner: str,
        now_ms: Callable[[], int],
        new_invocation_id: Callable[[int], str],
    ) -> None:
        self._store = store
        self._policies = policies
        self._runtimes = runtimes
        self._owner = owner
        self._now_ms = now_ms
        self._new_invocation_id = new_invocation_id

    async def admit(
        self,
        principal: Principal,
        runtime: RuntimeConfig,
        submission: Submission,
        session_id: str | None,
        retry_of: Retry | None = None,
    ) -> tuple[Invocation, InvocationInput | None]:
        """Write the invocation and its first hold; the input is None if `retry_of` names a running or ended
        one.

        Raises:
            IdempotencyMismatch: The key has been used for another body.
            QuotaExceeded, ConcurrencyExceeded, BudgetExceeded: The principal's limits leave no room.
            StoreUnavailable: Admission fails closed.
        """
        now_ms = self._now_ms()
        given = InvocationInput(
            invocation_id=self._new_invocation_id(now_ms),
            runtime_id=runtime.name,
            sub=principal.sub,
            groups=principal.groups,
            session_id=session_id,
            messages=submission.messages,
            max_tokens=submission.max_tokens,
            request_metadata=submission.request_metadata,
            origin_jti=principal.origin_jti,
        )
        deadline_at_ms = now_ms + int(runtime.deadline_s * 1000)
        new = NewInvocation(
            invocation_id=given.invocation_id,
            runtime_id=given.runtime_id,
            sub=given.sub,
            session_id=session_id,
            input=given.to_json(),
            first_reservation_tokens=self._runtimes[runtime.name].first_reservation_tokens(given),
            owner=self._owner,
            deadline_at_ms=deadline_at_ms,
            reservation_expires_at_ms=reservation_expires_at_ms(deadline_at_ms),
            idempotency=retry_of and retry_of.idempotency(principal, runtime, now_ms),
            models=tuple(map(str, runtime.route)),
        )
        limits = self._policies.limits_of(principal.sub, principal.groups)
        invocation = await self._store.create_invocation(new, limits, now_ms)
        return invocation, given if invocation.invocation_id == new.invocation_id else None
