"""The response of a submission and of a follow: one `readers.Reader`, from its opening to its end.

`api` returns it; `follow` opens the reader, which writes the body by itself.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.events import EventId
from service.follow import Follow
from service.identity import Principal
from service.invocations import Invocation
from service.middleware import LINE, SEND
from service.wire import Wire

STREAM_HEADERS: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
ABORT: Final = "headrace.abort"
"""Key of `scope["extensions"]`: a function that drops the connection, from `__main__`'s protocol class."""
WRITE: Final = "headrace.write"
"""Key of `scope["extensions"]`: a `readers.Write`, from the same."""


class EventStream(Response):
    """A response that a `Reader` writes; opened before the status is sent: a bad cursor is still a 400."""

    def __init__(
        self,
        follow: Follow,
        invocation: Invocation,
        cursor: EventId,
        wire: Wire,
        principal: Principal,
        headers: Mapping[str, str],
        *,
        checked: bool = False,
    ) -> None:
        self._follow = follow
        self._checked = checked
        self._invocation = invocation
        self._cursor = cursor
        self._wire = wire
        self._principal = principal
        self.status_code = 200
        self.background = None
        self.init_headers({**STREAM_HEADERS, **headers, "Content-Type": wire.media_type})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the log, the segment or the connection ends."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        extensions = scope.get("extensions", {})
        abort, write = extensions.get(ABORT, task.cancel), extensions.get(WRITE, _never)
        opened = self._follow.reader(
            self._invocation,
            self._cursor,
            self._wire,
            token_expires_at_s=self._principal.expires_at_s,
            origin_jti=self._principal.origin_jti,
            checked=self._checked,
        )
        async with opened as reader:
            line = scope[LINE]
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                # Past what wraps `send`: it has nothing to do to a body.
                await reader.run(receive, scope[SEND], abort, write)
            finally:
                line |= {"end": reader.end or "disconnect", "events": reader.events_sent}
                line["bytes_out"] += reader.bytes_sent


def _never(_: bytes) -> bool:
    return False
