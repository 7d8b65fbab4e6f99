"""What the Bedrock endpoint will answer, and what it was asked: scripts and signals in, account and
requests out.

`bedrock.BedrockEndpoint` is one that listens; `control` lets another process write in it and read from it.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from local.account import MAX_CALLS, Account
from local.converse import ConverseRequest
from local.scripts import Script

Choose = Callable[[ConverseRequest], Script]


class Playbook:
    """Scripts by model id, each a script or successive ones; or a function from the request to a script."""

    def __init__(
        self, scripts: Mapping[str, Script | Sequence[Script]] | Choose | None = None, *, keep_requests: bool
    ) -> None:
        self._choose = scripts if callable(scripts) else None
        self._scripts: dict[str, deque[Script]] = {}
        if isinstance(scripts, Mapping):
            for model_id, script in scripts.items():
                self.script(model_id, *((script,) if isinstance(script, Script) else script))
        self._signals: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._requests: deque[Mapping[str, Any]] = deque(maxlen=MAX_CALLS if keep_requests else 0)
        self.account = Account()

    @property
    def requests(self) -> tuple[Mapping[str, Any], ...]:
        """The bodies of the calls so far, oldest first; none if they are not kept."""
        return tuple(self._requests)

    def script(self, model_id: str, *scripts: Script) -> None:
        """Answer this model's next calls with these scripts, one after the other; the last repeats."""
        self._scripts[model_id] = deque(scripts)

    def release(self, signal: str) -> None:
        """Let every script go on that waits for this signal, now or later."""
        self._signals[signal].set()

    async def released(self, signal: str) -> None:
        """Wait until the signal is released."""
        await self._signals[signal].wait()

    def next_script(self, request: ConverseRequest) -> Script | None:
        """Note the request and return the script that answers it, if there is one."""
        self._requests.append(request.body)
        if self._choose is not None:
            return self._choose(request)
        scripts = self._scripts.get(request.model_id)
        if not scripts:
            return None
        return scripts.popleft() if len(scripts) > 1 else scripts[0]
