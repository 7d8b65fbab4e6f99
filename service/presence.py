"""Presence: which invocations have a reader, in whatever process, and which of ours have lost their last one.

For runtimes with `on_disconnect = "cancel"`. `follow` says who comes and goes, `app` runs `run` and injects
what cancels. It calls only the store.

    follow ── opened, closed ──> this process's readers ──note_read──> store ──unread──> cancel(invocation_id)
                                 at once when the first comes or the last goes,          every quarter of
                                 and every quarter of `abandon_s` while there are any    `abandon_s`

Invariants: neither `opened` nor `closed` waits for the store. What was never read is never abandoned. What is
cancelled has been unread for `abandon_s`, and this process has seen it unread in every look of the second
half of that time: so after a takeover, or an outage of the store, its readers have time to come back.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Set
from typing import Final

from service.errors import StoreUnavailable
from service.stores import Store

logger = logging.getLogger(__name__)

LOOKS: Final = 4
"""How many there are in `abandon_s`."""


class Presence:
    """Who is read; one per process."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        abandon_s: float,
        now_ms: Callable[[], int],
        cancel: Callable[[str], None],
    ) -> None:
        """Note reads in `store`, and give `cancel` the ids of the owner's invocations that are abandoned.

        An id may be given again while its invocation still runs.
        """
        self._store = store
        self._owner = owner
        self._abandon_s = abandon_s
        self._now_ms = now_ms
        self._cancel = cancel
        self._readers: Counter[str] = Counter()
        self._unnoted: set[str] = set()
        self._some = asyncio.Event()
        self._unread_looks: Counter[str] = Counter()
        self._is_away = False

    def opened(self, invocation_id: str) -> None:
        """Note a reader that has come."""
        self._readers[invocation_id] += 1
        if self._readers[invocation_id] == 1:
            self._unnoted.add(invocation_id)
            self._some.set()

    def closed(self, invocation_id: str) -> None:
        """Note a reader that has gone."""
        self._readers[invocation_id] -= 1
        if not self._readers[invocation_id]:
            del self._readers[invocation_id]
            self._unnoted.add(invocation_id)
            self._some.set()

    def __len__(self) -> int:
        """Return how many invocations have a reader here."""
        return len(self._readers)

    async def run(self) -> None:
        """Note and look, for ever. With a store that is down, it is tried again at the next look."""
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            is_due = await self._is_due(look_at)
            try:
                if is_due:
                    look_at = loop.time() + self._abandon_s / LOOKS
                    await self._note(self._unnoted | self._readers.keys())
                    await self._look()
                else:
                    await self._note(self._unnoted)
            except StoreUnavailable:
                self._unread_looks.clear()  # nobody could note a reader: what was seen before counts no more
                if not self._is_away:
                    logger.warning("readers not noted: nothing is abandoned while the store is away")
                self._is_away = True
            else:
                self._is_away = False

    async def _is_due(self, look_at: float) -> bool:
        """Wait for the time of the next look (True), or for somebody who comes or goes."""
        if asyncio.get_running_loop().time() >= look_at:
            return True
        try:
            async with asyncio.timeout_at(look_at):
                await self._some.wait()
        except TimeoutError:
            return True
        return False

    async def _note(self, invocation_ids: Set[str]) -> None:
        """Write that these, all that is not noted among them, are read now."""
        self._some.clear()
        self._unnoted = set()
        if not invocation_ids:
            return
        try:
            await self._store.note_read(invocation_ids, self._now_ms())
        except BaseException:
            self._unnoted |= invocation_ids
            raise

    async def _look(self) -> None:
        """Cancel what has been unread for long enough, and is not read here."""
        since_ms = self._now_ms() - int(self._abandon_s * 1000) // 2
        unread = await self._store.unread(self._owner, since_ms) - self._readers.keys()
        looks = {invocation_id: self._unread_looks[invocation_id] + 1 for invocation_id in unread}
        abandoned = [invocation_id for invocation_id in unread if looks[invocation_id] > LOOKS // 2]
        for invocation_id in abandoned:
            del looks[invocation_id]
            self._cancel(invocation_id)
        self._unread_looks = Counter(looks)
