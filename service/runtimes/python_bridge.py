"""The bridge between a python agent's thread and the service's: batches of frames, bounded both ways.

    agent's loop ("there")                                  service's loop ("here")
    Outbox.put ──── frames, phase ──── one wake-up a batch ───> Outbox's flush ──> the log
    CallStream.take <── one wake-up a batch ─── frames ──────── CallStream.deliver <── a model call

`runtimes.python` and its parts use it. A batch is what came since the other side last looked, so a loop that
is behind is woken once, however much there is. A side that is `LIMIT_BYTES` ahead waits: the agent in `put`'s
awaitable, the model call's connection in `deliver`'s.

Invariants: frames stay in order and none is lost or doubled; state that both sides touch is touched under the
lock, and nothing is called with it held. Both sides may be the same loop, as in tests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final

from service.models import Deliver, Frame

LIMIT_BYTES: Final = 64 * 1024


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> None:
    """Call something soon in another thread's loop; nothing happens if that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


class Outbox:
    """What an agent says, on its way to the log.

    Args:
        here: The service's loop.
        there: The agent's.
        deliver: The log's; called here.
        show: Takes the latest phase; called here.
    """

    def __init__(
        self,
        here: asyncio.AbstractEventLoop,
        there: asyncio.AbstractEventLoop,
        deliver: Deliver,
        show: Callable[[str], None],
    ) -> None:
        self._here = here
        self._there = there
        self._deliver = deliver
        self._show = show
        self._lock = Lock()
        self._frames: list[Frame] = []
        self._size_bytes = 0
        self._phase: str | None = None
        self._woken = False
        self._room: asyncio.Future[None] | None = None  # of `there`
        self._waiting: asyncio.Future[None] | None = None  # of `here`: until the log takes more
        self._closed = False

    # -- there

    def put(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        """Send frames; returns what to wait for before more may come, or None."""
        with self._lock:
            self._frames += frames
            self._size_bytes += sum(len(payload) for _, payload in frames)
            if self._size_bytes >= LIMIT_BYTES and self._room is None:
                self._room = self._there.create_future()
            room, wake, self._woken = self._room, not self._woken, True
        if wake:
            post(self._here, self._flush)
        return room

    def say(self, phase: str) -> None:
        """Send what heartbeats are to say; of many the last counts. From any thread."""
        with self._lock:
            self._phase = phase
            wake, self._woken = not self._woken, True
        if wake:
            post(self._here, self._flush)

    # -- here

    def close(self) -> None:
        """Drop what comes from now on, and what has not been delivered."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()

    def flush(self) -> None:
        """Deliver what is there, all of it, however far the log is ahead of the store."""
        self._take()

    def _flush(self) -> None:
        if self._waiting is not None:
            return
        waiting = self._take()
        if waiting is None:
            self._let_go()
        else:
            self._waiting = asyncio.ensure_future(waiting)
            self._waiting.add_done_callback(self._on_room)

    def _on_room(self, waiting: asyncio.Future[None]) -> None:
        self._waiting = None
        if not waiting.cancelled():
            waiting.exception()
        self._flush()

    def _take(self) -> Awaitable[None] | None:
        with self._lock:
            frames, self._frames = self._frames, []
            phase, self._phase = self._phase, None
            self._size_bytes = 0
            self._woken = False
        if self._closed:
            return None
        if phase is not None:
            self._show(phase)
        return self._deliver(frames) if frames else None

    def _let_go(self) -> None:
        with self._lock:
            room, self._room = self._room, None
        if room is not None:
            post(self._there, _resolve, room)


class CallStream:
    """What one model call says, on its way to the agent that made it; it ends once, well or with an error."""

    def __init__(self, here: asyncio.AbstractEventLoop, there: asyncio.AbstractEventLoop) -> None:
        self._here = here
        self._there = there
        self._lock = Lock()
        self._frames: list[Frame] = []
        self._size_bytes = 0
        self._ended = False
        self._dropped = False
        self._error: Exception | None = None
        self._news: asyncio.Future[None] | None = None  # of `there`
        self._room: asyncio.Future[None] | None = None  # of `here`

    # -- here

    def deliver(self, frames: Sequence[Frame]) -> Awaitable[None] | None:
        """Send a batch; the `Deliver` of the model call."""
        if self._dropped:
            return None
        with self._lock:
            self._frames += frames
            self._size_bytes += sum(len(payload) for _, payload in frames)
            if self._size_bytes >= LIMIT_BYTES and self._room is None:
                self._room = self._here.create_future()
            news, self._news, room = self._news, None, self._room
        if news is not None:
            post(self._there, _resolve, news)
        return None if room is None else asyncio.shield(room)

    def end(self, error: Exception | None = None) -> None:
        """End it, unless it has; what was delivered is taken first. From any thread."""
        with self._lock:
            if self._ended:
                return
            self._ended, self._error = True, error
            news, self._news = self._news, None
        if news is not None:
            post(self._there, _resolve, news)

    def stop(self, error: Exception) -> None:
        """End it, if it has not ended, after what its agent's loop was told before: the cancellation."""
        post(self._there, self.end, error)

    def drop(self) -> None:
        """Take no more of it, and hold the model call back no longer: nobody listens."""
        self._dropped = True
        with self._lock:
            self._frames.clear()
            room, self._room = self._room, None
        if room is not None:
            _resolve(room)

    # -- there

    async def take(self) -> list[Frame]:
        """Return what came since the last time, waiting for something; `[]` at the end.

        Raises:
            Exception: What it ended with.
        """
        while True:
            with self._lock:
                frames, self._frames = self._frames, []
                self._size_bytes = 0
                room, self._room = self._room, None
                news = None if frames or self._ended else self._there.create_future()
                self._news = news
            if room is not None:
                post(self._here, _resolve, room)
            if frames:
                return frames
            if news is None:
                break
            await news
        if self._error is not None:
            raise self._error
        return []


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
