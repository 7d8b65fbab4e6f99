"""What happens to a deployment in a drill: when, to whom, for how long; the seed decides all of it.

`schedule` is pure. `Saboteur` carries it out, one lane per service and one each for store and connections, so
that several things happen at once but no process is stopped by two faults. It writes down what it did. A
process that is stopped may hold SQLite's write lock: stops and stalls stay under the 5 s for which the store
waits, and over the lease, so that others take over from the living too.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from local.process import Process
from tests.e2e.drill.jobs import DRAIN_S, LEASE_S, seeded
from tests.e2e.drill.proxy import Proxy
from tests.e2e.drill.stores import StoreName, StoreUnderDrill

Kind = Literal["kill", "freeze", "freeze-kill", "drain", "drain-kill", "stall", "blip", "outage", "cut"]

STORE: Final = -1
CONNECTIONS: Final = -2
START_S: Final = 30.0
END_S: Final = DRAIN_S + 12

# How often each comes, by weight.
_OF_SERVICES: Final[Mapping[Kind, int]] = {
    "kill": 3,
    "freeze": 4,
    "freeze-kill": 2,
    "drain": 5,
    "drain-kill": 1,
}
_OF_STORE: Final[Mapping[StoreName, Mapping[Kind, int]]] = {
    "sqlite": {"stall": 4, "outage": 1},
    "dynamodb": {"stall": 3, "blip": 6, "outage": 1},
}
_OF_CONNECTIONS: Final[Mapping[Kind, int]] = {"cut": 1}
# How long a fault lasts: the shortest, the usual, the longest. What outlasts the lease costs one process all
# its attempts, or (an outage) every process: those are the fewer ones, or too many jobs would lose three.
_LASTS_S: Final[Mapping[Kind, tuple[float, float, float]]] = {
    "kill": (0.0, 0.5, 2.0),
    "freeze": (0.3, LEASE_S, LEASE_S + 3),
    "freeze-kill": (0.3, LEASE_S, LEASE_S + 1.5),
    "drain": (0.0, 0.0, 0.5),
    "drain-kill": (0.1, 0.5, DRAIN_S),
    "stall": (0.2, 0.5, 0.8),
    "blip": (0.0, 0.0, 0.2),
    "outage": (0.8, LEASE_S, 3.0),
    "cut": (0.0, 0.0, 0.0),
}
_PAUSE_OF_SERVICES_S: Final = (6.0, 12.0)
_PAUSE_OF_STORE_S: Final[Mapping[StoreName, tuple[float, float]]] = {
    "sqlite": (4.0, 8.0),
    "dynamodb": (1.5, 5.0),
}
_PAUSE_OF_CONNECTIONS_S: Final = (0.5, 3.0)


class Fault(NamedTuple):
    """One fault: `lane` is a service's index, `STORE` or `CONNECTIONS`."""

    at_s: float
    lane: int
    kind: Kind
    lasts_s: float


class Deed(NamedTuple):
    """Something that was done: `text` says what, and to whom."""

    at_ms: int
    text: str


def schedule(seed: int, *, services: int, seconds_s: float, store: StoreName = "sqlite") -> list[Fault]:
    """Return the faults of a seed, those of each lane in order."""
    faults: list[Fault] = []
    for lane in (*range(services), STORE, CONNECTIONS):
        rng = seeded(seed, "faults", lane)
        weights, (low_s, high_s) = _habits(lane, store)
        at_s = rng.uniform(1.0, high_s)
        while at_s < seconds_s:
            kind = rng.choices(list(weights), list(weights.values()))[0]
            shortest_s, usual_s, longest_s = _LASTS_S[kind]
            lasts_s = rng.triangular(shortest_s, longest_s, usual_s)
            faults.append(Fault(at_s, lane, kind, lasts_s))
            at_s += lasts_s + rng.uniform(low_s, high_s)
    return faults


def _habits(lane: int, store: StoreName) -> tuple[Mapping[Kind, int], tuple[float, float]]:
    """Return what happens in a lane, by weight, and how long nothing happens in between."""
    if lane == STORE:
        return _OF_STORE[store], _PAUSE_OF_STORE_S[store]
    if lane == CONNECTIONS:
        return _OF_CONNECTIONS, _PAUSE_OF_CONNECTIONS_S
    return _OF_SERVICES, _PAUSE_OF_SERVICES_S


@dataclass
class Saboteur:
    """Carries a schedule out; `incidents` is what should not have happened meanwhile."""

    services: Sequence[Process]
    store: StoreUnderDrill
    proxy: Proxy
    deeds: list[Deed] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    incidents: list[str] = field(default_factory=list)

    async def run(self, faults: Sequence[Fault]) -> None:
        """Carry out all faults; at the end all services run, or `incidents` says why not."""
        began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as lanes:
            for lane in sorted({fault.lane for fault in faults}):
                mine = [fault for fault in faults if fault.lane == lane]
                lanes.create_task(self._carry_out(mine, began_s))

    async def _carry_out(self, faults: Sequence[Fault], began_s: float) -> None:
        for fault in faults:
            # The schedule itself: a fault that the one before has delayed comes at once.
            await asyncio.sleep(began_s + fault.at_s - asyncio.get_running_loop().time())
            self.counts[fault.kind] += 1
            if fault.lane == STORE:
                await self._let_store_fail(fault)
            elif fault.lane == CONNECTIONS:
                self._did(f"half of {self.proxy.open_connections} connections are cut")
                self.proxy.cut(0.5)
            else:
                await self._strike(self.services[fault.lane], fault)

    async def _strike(self, service: Process, fault: Fault) -> None:
        if not service.running:
            self.incidents.append(f"{service.name} ended by itself: {service.death()}")
            return
        self._did(f"{service.name}: {fault.kind}, {fault.lasts_s:.2f} s")
        strikes: dict[Kind, Callable[[Process, float], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "freeze-kill": self._freeze_and_kill,
            "drain": self._drain,
            "drain-kill": self._drain_and_kill,
        }
        await strikes[fault.kind](service, fault.lasts_s)

    async def _kill(self, service: Process, lasts_s: float) -> None:
        await service.kill()
        await asyncio.sleep(lasts_s)
        await self._start(service)

    async def _freeze(self, service: Process, lasts_s: float) -> None:
        service.pause()
        await asyncio.sleep(lasts_s)
        service.resume()
        self._did(f"{service.name}: resumed")

    async def _freeze_and_kill(self, service: Process, lasts_s: float) -> None:
        service.pause()
        await asyncio.sleep(lasts_s)
        await service.kill()
        await self._start(service)

    async def _drain(self, service: Process, lasts_s: float) -> None:
        service.send(signal.SIGTERM)
        await self._end(service)
        await asyncio.sleep(lasts_s)
        await self._start(service)

    async def _drain_and_kill(self, service: Process, lasts_s: float) -> None:
        service.send(signal.SIGTERM)
        await asyncio.sleep(lasts_s)
        await service.kill()
        await self._start(service)

    async def _end(self, service: Process) -> None:
        try:
            status = await service.ended(timeout_s=END_S)
        except TimeoutError:
            self.incidents.append(f"{service.name} still runs {END_S:g} s after its SIGTERM")
            await service.kill()
            return
        self._did(f"{service.name}: ended with status {status}")
        if status != 0:
            self.incidents.append(f"{service.name} ended with status {status} after its SIGTERM")

    async def _start(self, service: Process) -> None:
        self._did(f"{service.name}: started again")
        await service.start(timeout_s=START_S)
        self._did(f"{service.name}: ready")

    async def _let_store_fail(self, fault: Fault) -> None:
        failing = self.store.stalled() if fault.kind == "stall" else self.store.out()
        async with failing as done:
            self._did(f"{done}, {fault.lasts_s:.2f} s")
            await asyncio.sleep(fault.lasts_s)

    def _did(self, text: str) -> None:
        self.deeds.append(Deed(time.time_ns() // 1_000_000, text))
