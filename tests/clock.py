"""Time that a test moves: a clock, and an event loop whose timers follow it.

`tests/conftest.py` runs what is in `tests/unit` and `tests/contracts` on a `ManualLoop`. The fixture `clock`
is that loop's clock; the code under test is given `clock.now_ms` and `clock.monotonic_s`.

    advance(30) ──target──> selector: nothing is ready, so ... ──> time of the next timer, up to the target
                                ^                                             │
                                └───────── the loop runs what is due <────────┘

- Time stands still until `advance` moves it, from timer to timer, so each fires at its own time and in order.
- Between two timers the loop runs until nothing is ready: `advance` returns when all tasks wait.
- Threads and sockets live in real time. A step of theirs that is part of the story must be waited for before
  time goes on: `clock.wait_while(busy)`. (A loop can't tell a thread at work from a task that waits in vain.)
- A loop on which nothing happens for `STALL_S` real seconds fails the test instead of hanging it.
"""

import asyncio
import selectors
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

START_AT_MS: Final = int(datetime(2026, 11, 21, 16, 40, tzinfo=UTC).timestamp() * 1000)
START_S: Final = 1000.0
"""Where the monotonic clock begins: not at 0, so that a confusion of "no time yet" with 0 shows."""

STALL_S: Final = 20.0
_POLL_S: Final = 0.001
_TURNS_AT_ONE_TIME: Final = 10_000


class Stalled(RuntimeError):
    """Nothing can happen any more, or the loop never comes to rest: the test would hang."""


class ManualClock:
    """A clock that shows 2026-11-21T16:40:00Z until it is moved. Wall and monotonic time move together."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._target_s = 0.0
        self._arrival: asyncio.Future[None] | None = None
        self._busy: list[Callable[[], bool]] = []
        self._turns = 0

    def now_ms(self) -> int:
        """Return the wall time as epoch milliseconds."""
        return START_AT_MS + round(self._passed_s * 1000)

    def monotonic_s(self) -> float:
        """Return what `time.monotonic` would; the time of the loop."""
        return START_S + self._passed_s

    async def advance(self, seconds: float) -> None:
        """Move time on while the loop runs, each timer firing at its own time; `0` lets what is ready run.

        Raises:
            Stalled: The loop does not come to rest (a task spins, a timer re-arms itself without delay).
        """
        if not isinstance(asyncio.get_running_loop(), ManualLoop):
            raise TypeError("advance needs the manual loop; without one, time is moved by `pass_time`")
        if self._arrival is not None:
            raise RuntimeError("two tasks advance the same clock")
        self._target_s, self._turns = self._passed_s + _not_negative(seconds), 0
        self._arrival = asyncio.get_running_loop().create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    def pass_time(self, seconds: float) -> None:
        """Move time at once, as for a suspended process or code without a loop; due timers fire late."""
        self._passed_s += _not_negative(seconds)

    def wait_while(self, busy: Callable[[], bool]) -> None:
        """Let time stand still in `advance` as long as `busy()` is true: work goes on that takes real time.

        `busy` must stay true until the result has been handed to the loop (`call_soon_threadsafe`).
        """
        self._busy.append(busy)

    @property
    def _is_advancing(self) -> bool:
        return self._arrival is not None and not self._arrival.done()

    def _at_rest(self, next_timer_s: float | None) -> bool:
        """Decide what follows when the loop has nothing to run; False means: wait for threads and sockets."""
        if self._arrival is None or self._arrival.done() or any(busy() for busy in self._busy):
            return False
        if next_timer_s is not None and self._passed_s + next_timer_s <= self._target_s:
            self._passed_s += next_timer_s
            self._turns = 0
        else:
            self._passed_s = self._target_s
            self._arrival.set_result(None)
        return True

    def _has_turned(self) -> None:
        """Count a turn of the loop during `advance`; too many at one time mean that it never rests."""
        if self._arrival is None or self._arrival.done():
            return
        self._turns += 1
        if self._turns > _TURNS_AT_ONE_TIME:
            self._arrival.set_exception(
                Stalled(
                    f"the loop did not come to rest in {_TURNS_AT_ONE_TIME} turns at one time: a task spins"
                )
            )


class _Selector(selectors.DefaultSelector):
    """Learns from what the loop asks (how long may I sleep?) that all is at rest and what timer is next."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            self._clock._has_turned()
            return ready
        stalled_at_s = time.monotonic() + STALL_S
        while not self._clock._at_rest(timeout):
            # During `advance`, `busy` turns false without a word to the loop, so it is asked again and again.
            ready = super().select(_POLL_S if self._clock._is_advancing else STALL_S)
            if ready:
                return ready
            if time.monotonic() >= stalled_at_s:
                timers = (
                    "no timer waits"
                    if timeout is None
                    else f"the next timer is {timeout:g} s of `advance` away"
                )
                raise Stalled(f"nothing happened for {STALL_S:g} s: {timers}")
        return []


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop with a `ManualClock` of its own; sockets, threads and signals work as ever."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(_Selector(self.clock))

    def time(self) -> float:
        """Return the clock's monotonic time."""
        return self.clock.monotonic_s()


def _not_negative(seconds: float) -> float:
    if seconds < 0:
        raise ValueError(f"time never goes back: {seconds} s")
    return seconds
