"""The answer to a submission and to a follow: one `readers.Reader`, from its opening to its end.

`api` makes it, with the reader open, so that a bad cursor is still a 400; `edge` sends its head, then lets
the reader write the body by itself, and closes it.
"""

import asyncio
from collections.abc import Awaitable, MutableMapping
from typing import Any, Final, cast

from starlette.types import Receive, Scope, Send

from service.edge_answer import Answer, Headers
from service.events import EventId
from service.follow import Follow
from service.identity import Principal
from service.invocations import Invocation
from service.wire import Wire

STREAM_HEADERS: Final[Headers] = [
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]
ABORT: Final = "headrace.abort"
"""Key of `scope["extensions"]`: a function that drops the connection, from `protocol`."""
WRITE: Final = "headrace.write"
"""Key of `scope["extensions"]`: a `readers.Write`, from the same."""


class EventStream(Answer):
    """An answer that a `Reader` writes until the log, the segment or the connection ends."""

    __slots__ = ("_follow", "_reader")

    def __init__(
        self,
        follow: Follow,
        invocation: Invocation,
        cursor: EventId,
        wire: Wire,
        principal: Principal,
        headers: Headers,
        *,
        checked: bool = False,
    ) -> None:
        """Open the reader; for the arguments and what is raised see `Follow.open`."""
        media_type = (b"content-type", wire.media_type.encode())
        super().__init__(200, [*STREAM_HEADERS, *headers, media_type])
        self._follow = follow
        self._reader = follow.open(
            invocation,
            cursor,
            wire,
            token_expires_at_s=principal.expires_at_s,
            origin_jti=principal.origin_jti,
            checked=checked,
        )

    def write(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Stream to the end."""
        extensions = scope.get("extensions", {})
        task = cast("asyncio.Task[None]", asyncio.current_task())
        abort = extensions.get(ABORT, task.cancel)
        return self._reader.run(receive, send, abort, extensions.get(WRITE, _never))

    def close(self, line: MutableMapping[str, Any]) -> None:
        """Forget the reader, and note what it has sent and why it ended."""
        reader = self._reader
        self._follow.close(reader)
        line["bytes_out"] = reader.bytes_sent
        line["end"] = reader.end or "disconnect"
        line["events"] = reader.events_sent


def _never(_: bytes) -> bool:
    return False
