"""The watchdog: a thread that finds an event loop which is blocked, and says by which code.

    every 0.9 s: a probe into each loop ── answered ──> fine
                                        └─ not for 1 s ──> its thread's stack, and whose task it is, are told

`agent_loops` starts it. What it finds it hands to who observes (`telemetry`), once when a loop is blocked and
once when it goes on; it changes nothing. A block of 2 s is always told, a shorter one if a probe has met it.
The stack has source lines, and no values.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from service.beat import BEAT_S, until_beat_s

BLOCKED_S: Final = 1.0
LOOK_AGAIN_S: Final = 0.1
AGENT_TASK: Final = "agent "
"""How the names of the tasks begin that run an agent; the rest is the invocation's id."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A loop, by the name of whose it is, and the thread that runs it."""

    name: str
    loop: asyncio.AbstractEventLoop
    thread_id: int


class _Probe:
    """The last probe into one loop, and how often the loop was blocked."""

    def __init__(self) -> None:
        self.sent_at = 0.0
        self.answered_at: float | None = 0.0
        self.is_told = False
        self.blocks = 0


class Watchdog:
    """Watches loops.

    Args:
        tell: Told the fields of what was found, in the watchdog's thread.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        tell: Callable[[Mapping[str, Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = [(each, _Probe()) for each in watched]
        self._tell = tell
        self._clock = clock
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread, a daemon."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread; it waits for nothing."""
        self._stopped.set()

    def _run(self) -> None:
        rest_s = BEAT_S
        while not self._stopped.wait(rest_s):
            is_fine = self.look()
            rest_s = until_beat_s(BEAT_S, time.monotonic()) if is_fine else LOOK_AGAIN_S

    def look(self) -> bool:
        """Look at each loop once, and send it the next probe; False: one has not answered the last one."""
        is_fine = True
        for watched, probe in self._probes:
            if probe.answered_at is None:
                is_fine = False
                self._look_at_silent(watched, probe)
            else:
                if probe.is_told:
                    self._say(watched, probe, probe.answered_at, blocked=False)
                self._send(watched, probe)
        return is_fine

    def _look_at_silent(self, watched: Watched, probe: _Probe) -> None:
        now = self._clock()
        if now - probe.sent_at >= BLOCKED_S and not probe.is_told:
            probe.is_told = True
            probe.blocks += 1
            self._say(watched, probe, now, blocked=True)

    def _send(self, watched: Watched, probe: _Probe) -> None:
        probe.sent_at, probe.answered_at, probe.is_told = self._clock(), None, False

        def answer() -> None:
            probe.answered_at = self._clock()

        with suppress(RuntimeError):  # the loop has ended
            watched.loop.call_soon_threadsafe(answer)

    def _say(self, watched: Watched, probe: _Probe, at: float, *, blocked: bool) -> None:
        fields: dict[str, Any] = {
            "loop": watched.name,
            "blocked": blocked,
            "blocked_ms": round((at - probe.sent_at) * 1000),
            "blocks": probe.blocks,
        }
        if blocked:
            frame = sys._current_frames().get(watched.thread_id)
            fields["stack"] = "".join(traceback.format_stack(frame)) if frame is not None else ""
            fields["invocation_id"] = _running_in(watched.loop)
        self._tell(fields)


def _running_in(loop: asyncio.AbstractEventLoop) -> str:
    """Return the invocation whose agent a loop is running now; empty if it runs another task, or none."""
    try:
        task = asyncio.current_task(loop)
    except RuntimeError:  # a version that looks only at its own thread's
        return ""
    name = task.get_name() if task is not None else ""
    return name.removeprefix(AGENT_TASK) if name.startswith(AGENT_TASK) else ""
