"""When a model call is tried again: refused for now and not billed, before anything was delivered.

The upstreams (`models.bedrock`, `models.openai_compat`) run their calls through `tried`; it calls back.

Invariants: `before_try` is awaited before each try and ahead of its pause; a try that was withheld counts as
none; what may have cost tokens is never tried again; no try begins later than the window.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from service.errors import UpstreamThrottled, UpstreamUnavailable
from service.models import ModelRequest
from service.models.connection import Withheld

# Full jitter below these: small, so that a last refusal still comes within `first_event_grace_s` and can be a
# status. No try begins later than the window: a caller is waiting.
RETRY_CEILINGS_S: Final = (0.2, 0.5)
RETRY_WINDOW_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pacing:
    """How retries wait."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    now_s: Callable[[], float] = time.monotonic


async def tried(request: ModelRequest, call: Callable[[], Awaitable[None]], pacing: Pacing) -> None:
    """Make the call until it is answered, refused for good, or refused for now too often.

    Where another model can be asked, that is done at once. An upstream that names a time beyond our own pause
    is not asked again before it: the caller is told.

    Raises:
        UpstreamError: What the last try raised.
    """
    give_up_at_s = pacing.now_s() + RETRY_WINDOW_S
    ceilings_s = iter(RETRY_CEILINGS_S)
    pause_s = 0.0
    while True:
        await request.before_try()
        if pause_s:
            await pacing.sleep(pause_s)
        try:
            return await call()
        except Withheld:
            pause_s = 0.0
        except (UpstreamThrottled, UpstreamUnavailable) as refusal:
            ceiling_s = next(ceilings_s, None)
            if (
                refusal.billed
                or request.has_successor
                or ceiling_s is None
                or (refusal.retry_after_s or 0) > ceiling_s
            ):
                raise
            pause_s = pacing.random() * ceiling_s
            if pacing.now_s() + pause_s > give_up_at_s:
                raise
