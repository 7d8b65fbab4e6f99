"""One request at a time, timed and kept as it came: what `headrace smoke` judges.

Called by the parts of `cli_smoke`; calls `client`, takes `EventId` from `client_stream` and imports nothing
else of the service. Nothing is tried again, no token is renewed and no event is skipped: `client_stream`
makes the best of an endpoint, this one shows what it does.

- Each body ends: after `limit_s` it is `Late`, beyond MAX_BODY_BYTES it is `Dropped`.
- The clock is read once for each piece that arrives, so that tests may move it in step.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from email.message import Message
from itertools import pairwise
from typing import Any, Final, NamedTuple

from service.client import Answer, ClientError, Dropped, Endpoint, exchange
from service.client_stream import LAST_TYPES, EventId

SSE: Final = "text/event-stream"
MAX_BODY_BYTES: Final = 16 * 1024 * 1024


class Late(ClientError):
    """An answer took longer than the probe waits for one."""


class NoStream(ClientError):
    """An answer that should have been a stream was something else."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object in the body; {} if there is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def __str__(self) -> str:
        """Say it in a line: `404 not-found`, `403 Forbidden`."""
        problem = self.document
        said = [str(self.status), *(str(problem[name]) for name in ("code", "detail") if problem.get(name))]
        if len(said) == 1:
            said += [str(problem.get("title") or problem.get("message") or "without a problem document")]
        return " ".join(said)


class Event(NamedTuple):
    """One event as it was sent: its id (`reconnect` has none), type and bytes, and when they had come."""

    event_id: EventId | None
    type: str
    raw: bytes
    at_s: float

    @property
    def value(self) -> dict[str, Any]:
        """The value behind the type; {} if the data is not what it should be."""
        try:
            value = json.loads(self.raw)[self.type]
        except (ValueError, KeyError, TypeError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def text(self) -> str:
        """The text that a delta adds to the answer."""
        delta = self.value.get("delta") if self.type == "contentBlockDelta" else None
        text = delta.get("text") if isinstance(delta, dict) else None
        return text if isinstance(text, str) else ""

    @property
    def essence(self) -> tuple[EventId | None, str, bytes]:
        """What must be the same however often it is read."""
        return self.event_id, self.type, self.raw


@dataclass(slots=True)
class Heard:
    """A stream, as far as it was read: `is_over` once its body ended by itself."""

    headers: Message
    sent_at_s: float
    headers_at_s: float
    arrivals_s: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    opening: bytes = b""
    heartbeats: int = 0
    is_over: bool = False

    @property
    def longest_silence_s(self) -> float:
        """The longest time without a byte, from the headers on."""
        moments = [self.headers_at_s, *self.arrivals_s]
        return max((after - before for before, after in pairwise(moments)), default=0.0)


class Probe:
    """Sends single requests to one endpoint. `limit_s` is how long one may take, its answer included."""

    def __init__(self, endpoint: Endpoint, limit_s: float) -> None:
        self.endpoint = endpoint
        self._limit_s = limit_s
        self._now = endpoint.pacing.now

    def ask(
        self,
        request: str,
        *,
        token: str | None,
        headers: Mapping[str, str] | None = None,
        document: Any = None,
    ) -> Reply:
        """Send a request such as `GET /usage` and return its whole answer."""
        sent_at_s = self._now()
        with self._send(request, token, headers or {}, document) as answer:
            body = b"".join(piece for piece, _ in self._pieces(answer, sent_at_s))
        return Reply(answer.status, answer.headers, body)

    def listen(
        self,
        request: str,
        *,
        token: str | None,
        headers: Mapping[str, str] | None = None,
        document: Any = None,
        enough: Callable[[Sequence[Event]], bool] = lambda _: False,
        begun: Callable[[Message], None] = lambda _: None,
    ) -> Heard:
        """Read a stream to its end, or hang up as soon as `enough` of it is there; `begun` gets its headers.

        Raises:
            NoStream: The answer is none.
            Late, Dropped: It did not end, or broke off.
        """
        sent_at_s = self._now()
        with self._send(request, token, {"Accept": SSE, **(headers or {})}, document) as answer:
            heard = Heard(answer.headers, sent_at_s, self._now())
            with closing(self._pieces(answer, sent_at_s)) as pieces:
                if answer.status != 200 or answer.headers.get_content_type() != SSE:
                    reply = Reply(answer.status, answer.headers, b"".join(piece for piece, _ in pieces))
                    raise NoStream(f"{request} answered {reply} ({answer.headers.get_content_type()})")
                begun(answer.headers)
                lines = _Lines(heard)
                for piece, at_s in pieces:
                    lines.feed(piece, at_s)
                    if enough(heard.events):
                        return heard
        heard.is_over = True
        return heard

    def _send(self, request: str, token: str | None, headers: Mapping[str, str], document: Any) -> Answer:
        method, path = request.split(" ")
        given = {"Authorization": f"Bearer {token}"} if token is not None else {}
        body = None if document is None else json.dumps(document).encode()
        kind = {} if document is None else {"Content-Type": "application/json"}
        return exchange(
            self.endpoint.url + path,
            self.endpoint.pacing,
            method=method,
            headers={**given, **kind, **headers},
            body=body,
        )

    def _pieces(self, answer: Answer, sent_at_s: float) -> Generator[tuple[bytes, float], None, None]:
        size_bytes = 0
        for piece in answer.pieces():
            at_s = self._now()
            size_bytes += len(piece)
            if at_s - sent_at_s > self._limit_s:
                raise Late(f"the answer was not over after {self._limit_s:g} s (--limit)")
            if size_bytes > MAX_BODY_BYTES:
                raise Dropped(f"the answer is longer than {MAX_BODY_BYTES} bytes")
            yield piece, at_s


class _Lines:
    """Takes the pieces of an event stream apart: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def feed(self, piece: bytes, at_s: float) -> None:
        heard = self._heard
        heard.arrivals_s.append(at_s)
        *complete, self._rest = (self._rest + piece).split(b"\n")
        for line in complete:
            if not heard.opening:
                heard.opening = line
            name, colon, value = line.partition(b":")
            if line.startswith(b":"):
                heard.heartbeats += line.startswith(b": heartbeat")
            elif colon and name in (b"id", b"event", b"data") and name not in self._fields:
                self._fields[name] = value.removeprefix(b" ")
            elif not line and b"data" in self._fields:
                heard.events.append(self._event(at_s))
                self._fields.clear()
            else:
                raise ClientError("a line of the stream is not one of an event stream's")

    def _event(self, at_s: float) -> Event:
        try:
            event_id = EventId.parse(self._fields[b"id"].decode()) if b"id" in self._fields else None
        except ValueError as exc:
            raise ClientError("an event's id is not <attempt>.<seq>") from exc
        name = self._fields.get(b"event", b"").decode("utf-8", "replace")
        return Event(event_id, name, self._fields[b"data"], at_s)


def log_fault(events: Sequence[Event]) -> str | None:
    """Say what is wrong with a whole log: its order, a gap, what came twice, how it ends; None if nothing."""
    last = EventId(1, 0)
    for event in events:
        if event.event_id is None:
            reason = event.value.get("reason")
            return f"the response ended with {event.type}" + (f" ({reason})" if reason else "")
        next_attempt = event.event_id == (last.attempt + 1, 1) and event.type == "attemptRestarted"
        if event.event_id <= last:
            return f"{event.event_id} came again after {last}"
        if event.event_id != (last.attempt, last.seq + 1) and not next_attempt:
            return f"{event.event_id} came after {last}: what is between them is missing"
        last = event.event_id
    endings = [event for event in events if event.type in LAST_TYPES]
    if len(endings) != 1:
        return f"there are {len(endings)} terminal events instead of one"
    if events[-1] is not endings[0]:
        return f"{events[-1].type} came after the terminal event"
    return None
