"""What a route answers: a status, headers and a body. `api` and `problems` make it, `edge` sends it.

Pure. A stream of events is an `Answer` too, whose body writes itself: `api_stream.EventStream`.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from starlette.types import Receive, Scope, Send

Header = tuple[bytes, bytes]
Headers = list[Header]
NO_STORE: Final[Header] = (b"cache-control", b"no-store")


class Answer:
    """A whole answer.

    Attributes:
        headers: Its own, with names in lower case; `edge` adds what all answers have.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def write(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Write the body; the head has been sent."""
        return send({"type": "http.response.body", "body": self.body})

    def close(self, line: MutableMapping[str, Any]) -> None:
        """Note in the log line what was sent. Called once, however it went."""
        line["bytes_out"] = len(self.body)


def document(
    status: int, shown: Mapping[str, Any], headers: Headers, media_type: bytes = b"application/json"
) -> Answer:
    """Answer with a JSON document that nobody may keep."""
    body = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()
    head = [NO_STORE, *headers, (b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    return Answer(status, head, body)


Endpoint = Callable[..., Awaitable[Answer]]
