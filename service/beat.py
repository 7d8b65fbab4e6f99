"""The beat: what a process does again and again it does at the same moments, so that it wakes up less often.

Called by whoever looks at something every so often (`readers_wheel`, `takeover`, `watchdog`, `__main__`): all
whose times are multiples of each other's meet. A wake-up of a process that sleeps costs about as much as ten
heartbeats (bench/PROFILE.md, *A second of silence*).

Where a host's monotonic clock began is chance, so the hosts of a fleet don't beat together.
"""

from typing import Final

BEAT_S: Final = 0.9
"""The watchdog tells a block within 2 s: a probe each beat, 1 s without an answer, and a look."""
_AFTER_S: Final = 0.005
"""A beat comes so long after the moment, never before it, however coarse a timer is."""


def until_beat_s(every_s: float, now_s: float) -> float:
    """Return how long it is until the next beat; `now_s` is a monotonic clock's, the same for all."""
    rest_s = every_s - (now_s - _AFTER_S) % every_s
    # A timer may fire a little early: then this is the beat that it was set for.
    return rest_s if rest_s > _AFTER_S else rest_s + every_s
