"""What runs invocations and what reads them, put together for one process: a part of `app`, which calls it.

The parts need each other, and get each other here: as constructor arguments, most of them as one function.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from service.admission import Admission
from service.config import Catalog
from service.follow import Follow
from service.leases import Lease
from service.policies import PolicyWatch
from service.presence import Presence
from service.runner import Runner
from service.runtimes import Runtime
from service.stores import Store
from service.takeover import Takeover


@dataclass(frozen=True, slots=True)
class Jobs:
    """What runs invocations and what reads them, in one process: all under one lease."""

    now_ms: Callable[[], int]
    policies: PolicyWatch
    lease: Lease
    admission: Admission
    runner: Runner
    takeover: Takeover
    follow: Follow
    presence: Presence | None

    @classmethod
    def of(
        cls,
        store: Store,
        catalog: Catalog,
        runtimes: Mapping[str, Runtime],
        *,
        new_invocation_id: Callable[[int], str],
        now_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        on_attempt_finished: Callable[[Mapping[str, Any]], None],
    ) -> Self:
        """Make them, each with what it calls; nothing runs yet."""
        config = catalog.service
        owner = secrets.token_hex(8)

        def now_ms() -> int:
            return int(now_s() * 1000)

        policies = PolicyWatch(store, catalog, now_ms=now_ms)
        lease = Lease(store, owner=owner, lease_s=config.lease_s, now_ms=now_ms, clock=monotonic_s)
        runner = Runner(
            store, runtimes, config, lease, policies, now_ms=now_ms, on_attempt_finished=on_attempt_finished
        )
        abandonable = [name for name, each in catalog.runtimes.items() if each.on_disconnect == "cancel"]
        presence = Presence(
            store,
            owner=owner,
            abandon_s=config.abandon_s,
            now_ms=now_ms,
            cancel=lambda invocation_id: runner.cancel(invocation_id, "abandoned"),
        )
        follow = Follow(
            store,
            runner.own_log,
            config,
            asyncio.get_running_loop().time,
            now_s,
            presence=presence,
            abandonable=abandonable,
        )
        takeover = Takeover(
            store,
            owner=owner,
            runner=runner,
            catalog=catalog,
            policies=policies,
            lease=lease,
            now_ms=now_ms,
            adopted=follow.adopt,
        )
        admission = Admission(
            store, policies, runtimes, owner=owner, now_ms=now_ms, new_invocation_id=new_invocation_id
        )
        watched = presence if abandonable else None
        return cls(now_ms, policies, lease, admission, runner, takeover, follow, watched)

    def forever(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Return what runs as long as the process does."""
        yield self.runner.commit.run()
        yield self.follow.wheel.run()
        yield self.lease.keep(lambda: self.runner.attempts, self.runner.regained)
        yield self.policies.refresh_forever(self._end_denied)
        yield self.takeover.watch()
        yield self.takeover.heed()
        if self.presence is not None:
            yield self.presence.run()

    def _end_denied(self) -> None:
        """End what goes on here of who is denied: first the readers, who are told why, then the jobs."""
        self.follow.end_denied(self.policies.refusal)
        self.runner.cancel_denied()
