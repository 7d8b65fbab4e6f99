"""A breaker: how well a model has answered lately, and whether it may be asked now.

`models.route` has one for each model of each upstream, shared by all runtimes of the process.

    closed ──(of 10 or more calls of the last 30 s half failed)──> open ──(5 s)──> half-open: one call probes
      ^                                                              ^                │
      │                                                              └──(it fails)────┤
      └──────────────────────────(its first event comes)──────────────────────────────┘

Failures are what is the model's or its upstream's: throttled, unavailable, silent, broken off. What is the
caller's or the deployment's (rejected, misconfigured) says nothing about the next call. A call counts as good
with its first event, since its end may be an hour away; if it breaks off later that counts as a failure too.
A probe that is silent for 10 s lets one more call probe, and its end then decides nothing. There are no
timers: time is looked at when somebody asks.

The pattern: https://learn.microsoft.com/en-us/azure/architecture/patterns/circuit-breaker
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Literal, Self

from service.errors import UpstreamFailed, UpstreamThrottled, UpstreamTimeout, UpstreamUnavailable

WINDOW_S: Final = 30.0
MIN_CALLS: Final = 10
FAILURE_RATE: Final = 0.5
OPEN_S: Final = 5.0
PROBE_S: Final = 10.0
"""How long a silent probe keeps other calls away; it may be silent for `upstream_silence_s`."""
REMEMBERED_CALLS: Final = 1000
_FAILURES: Final = (UpstreamThrottled, UpstreamUnavailable, UpstreamTimeout, UpstreamFailed)
PROBED_AGAIN_S: Final = 1.0
"""When to come back while a probe runs."""


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Watched:
    """One call, while its block runs; `answered` is to be called at its first event."""

    __slots__ = ("_breaker", "_has_answered", "_is_probe")

    def __init__(self, breaker: "Breaker") -> None:
        self._breaker = breaker
        self._is_probe = False
        self._has_answered = False

    def answered(self) -> None:
        """Count the call as good."""
        self._has_answered = True
        self._breaker._note_answer(is_probe=self._is_probe)

    def __enter__(self) -> Self:
        self._is_probe = self._breaker._begin(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> Literal[False]:
        if error is None and not self._has_answered:
            self.answered()
        elif isinstance(error, _FAILURES):
            self._breaker._note_failure(self, counts=self._has_answered or not self._is_probe)
        if self._is_probe:
            self._breaker._leave(self)
        return False


class Breaker:
    """The breaker of one model.

    Args:
        now_s: A monotonic clock.
        on_change: Told each new state, with what it was decided on.
    """

    def __init__(self, now_s: Callable[[], float], on_change: Callable[[dict[str, Any]], None]) -> None:
        self._now_s = now_s
        self._on_change = on_change
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED_CALLS)  # when, and failed or not
        self._opened = 0
        self._opened_until_s: float | None = None
        self._probe: Watched | None = None
        self._probed_at_s = 0.0

    @property
    def state(self) -> BreakerState:
        if self._opened_until_s is None:
            return BreakerState.CLOSED
        is_open = self._is_probed or self._now_s() < self._opened_until_s
        return BreakerState.OPEN if is_open else BreakerState.HALF_OPEN

    @property
    def admits(self) -> bool:
        """Whether the model may be asked now."""
        return self.state is not BreakerState.OPEN

    @property
    def retry_after_s(self) -> float:
        """How long to leave the model alone."""
        if self._opened_until_s is None:
            return 0.0
        return max(self._opened_until_s - self._now_s(), PROBED_AGAIN_S if self._is_probed else 0.0)

    @property
    def _is_probed(self) -> bool:
        return self._probe is not None and self._now_s() < self._probed_at_s + PROBE_S

    def watch(self) -> Watched:
        """Count the call that is made in this block; one that is made while half-open is the probe."""
        return Watched(self)

    def _begin(self, call: Watched) -> bool:
        """Note that a call begins; whether it is a probe."""
        if self._opened_until_s is None:
            return False
        self._probe, self._probed_at_s = call, self._now_s()
        self._tell(BreakerState.HALF_OPEN)
        return True

    def _note_answer(self, *, is_probe: bool) -> None:
        if is_probe and self._opened_until_s is not None:
            self._close()
        self._outcomes.append((self._now_s(), False))

    def _note_failure(self, call: Watched, *, counts: bool) -> None:
        """Note a failure; that of a probe after which another one probes counts for nothing."""
        is_probe = call is self._probe
        if not (is_probe or counts):
            return
        self._outcomes.append((self._now_s(), True))
        if is_probe or (self._opened_until_s is None and self._fails_too_often()):
            self._open()

    def _leave(self, call: Watched) -> None:
        if call is self._probe:
            self._probe = None

    def _fails_too_often(self) -> bool:
        while self._outcomes and self._outcomes[0][0] <= self._now_s() - WINDOW_S:
            self._outcomes.popleft()
        failures = sum(failed for _, failed in self._outcomes)
        return len(self._outcomes) >= MIN_CALLS and failures >= FAILURE_RATE * len(self._outcomes)

    def _open(self) -> None:
        self._opened += 1
        self._opened_until_s = self._now_s() + OPEN_S
        self._tell(BreakerState.OPEN)

    def _close(self) -> None:
        self._opened_until_s = self._probe = None
        self._outcomes.clear()
        self._tell(BreakerState.CLOSED)

    def _tell(self, state: BreakerState) -> None:
        counts = {"calls": len(self._outcomes), "failures": sum(failed for _, failed in self._outcomes)}
        self._on_change({"state": str(state), **counts, "opened": self._opened})
