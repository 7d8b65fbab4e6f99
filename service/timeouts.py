"""Many timeouts on one timer of the loop: each is a little late, and none is early.

Called by `runner` and `attempt` (deadlines) and `models.pool` and `models.connection` (silence): what has a
timeout that hardly ever passes. A timer of uvloop is 544 bytes, and each stream would have two; a place in a
slot is about 70. Slots that nothing is in cost nothing: the timer is set for the first that has something.

Invariant: what is cancelled is not looked at any more.
"""

import asyncio
import math
from typing import Protocol


class Timed(Protocol):
    """What has a timeout; `slot` belongs to the `Timeouts` that it is in."""

    slot: int

    def look(self, now_s: float) -> float | None:
        """Do what is due, and return when to look again, if at all."""
        ...


class Timeouts:
    """Looks at each thing when its time has come, at most `tick_s` later; times are the loop's."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, set[Timed]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0

    def watch(self, timed: Timed, due_s: float) -> None:
        """Look at this at `due_s`; it is watched here once, or not at all."""
        timed.slot = slot = math.ceil(due_s / self._tick_s)
        watched = self._slots.get(slot)
        if watched is None:
            self._slots[slot] = {timed}
            self._set_timer(slot)
        else:
            watched.add(timed)

    def cancel(self, timed: Timed) -> None:
        """Forget this; harmless if it is not watched."""
        watched = self._slots.get(timed.slot)
        if watched is not None:
            watched.discard(timed)
            if not watched:
                del self._slots[timed.slot]
        timed.slot = -1

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def _set_timer(self, slot: int) -> None:
        if self._timer is not None:
            if self._timer_slot <= slot:
                return
            self._timer.cancel()
        self._timer_slot = slot
        self._timer = asyncio.get_running_loop().call_at(slot * self._tick_s, self._pass)

    def _pass(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        try:
            for slot in sorted(slot for slot in self._slots if slot * self._tick_s <= now_s):
                for timed in self._slots.pop(slot, ()):
                    again_s = timed.look(now_s) if timed.slot == slot else None
                    if again_s is not None:
                        self.watch(timed, again_s)
        finally:  # whatever a look has raised, the other slots keep their timer
            if self._slots:
                self._set_timer(min(self._slots))
