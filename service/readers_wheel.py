"""One timer for all readers: heartbeats, ends of segments, cut-offs of stuck peers.

`follow` has one `Wheel` and `app` runs it; a `readers.Reader` adds itself, and is looked at when it is due.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from service.beat import until_beat_s


class Turned(Protocol):
    """A reader, as its wheel sees it."""

    slot: int

    def due_at(self) -> float: ...
    def look(self, now: float) -> None: ...


class Wheel:
    """One timer for all readers: each sits in the slot of the tick at which something is due for it.

    A write does not move a reader: when its slot comes and it has written since, it is put further along. So
    the cost is per heartbeat interval, not per delta.
    """

    def __init__(self, tick_s: float, clock: Callable[[], float]) -> None:
        self.tick_s = tick_s
        self._clock = clock
        self._slots: dict[int, set[Turned]] = {}
        self.now = clock()
        self._turned = int(self.now / self.tick_s)

    def add(self, reader: Turned) -> None:
        """Look at this reader when it is due."""
        slot = max(math.ceil(reader.due_at() / self.tick_s), self._turned + 1)
        reader.slot = slot
        self._slots.setdefault(slot, set()).add(reader)

    def remove(self, reader: Turned) -> None:
        """Forget this reader."""
        slot = self._slots.get(reader.slot)
        if slot is not None:
            slot.discard(reader)
            if not slot:
                del self._slots[reader.slot]

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    async def run(self) -> None:
        """Turn for ever; cancel it when the last reader has gone."""
        while True:
            await asyncio.sleep(until_beat_s(self.tick_s, self._clock()))
            self.turn()

    def turn(self) -> None:
        """Look at all readers whose slot has come."""
        self.now = self._clock()
        until = int(self.now / self.tick_s)
        for slot in range(self._turned + 1, until + 1):
            self._turned = slot
            for reader in self._slots.pop(slot, ()):
                if reader.due_at() <= self.now:
                    reader.look(self.now)
                self.add(reader)
