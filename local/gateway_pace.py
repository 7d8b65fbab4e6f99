"""How fast the local gateway lets things through: requests by a token bucket, long answers by their bytes.

`gateway` and `gateway_transfer` use these, on the time of their loop. Nothing here waits by itself but
`Pace.keep`.
"""

import asyncio


class Throttle:
    """A token bucket: `burst` requests at once, `requests_per_s` in the long run."""

    def __init__(self, requests_per_s: float, burst: int) -> None:
        self._rate = requests_per_s
        self._burst = burst
        self._left = float(burst)
        self._seen_s = asyncio.get_running_loop().time()

    def take(self) -> bool:
        """Take one request's token; False if there is none."""
        now_s = asyncio.get_running_loop().time()
        self._left = min(self._burst, self._left + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Pace:
    """The first `free_bytes` of an answer go as they come, the rest at `bytes_per_s`."""

    def __init__(self, free_bytes: int, bytes_per_s: float) -> None:
        self._free_bytes = free_bytes
        self._bytes_per_s = bytes_per_s
        self._sent_bytes = 0
        self._next_s = 0.0

    async def keep(self, sent_bytes: int) -> None:
        """Count bytes that were sent, and wait until more may follow."""
        counted = max(0, min(sent_bytes, self._sent_bytes + sent_bytes - self._free_bytes))
        self._sent_bytes += sent_bytes
        if not counted:
            return
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now_s) + counted / self._bytes_per_s
        await asyncio.sleep(self._next_s - now_s)
