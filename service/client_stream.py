"""The reattaching reader of the `headrace` command: one invocation's events, once and in order.

Called by `cli`; calls `client` and `client_retry`, and imports nothing else of the service.

    POST, or GET .../events ──> Answer ──lines──> Follower ──Line──> cli
                ^                                    │ drop, `reconnect`, 429, 5xx
                └───── back off, Last-Event-ID ──────┘

- A line is handed over whole and once: what a drop cut off is thrown away, an id at or before the cursor is
  skipped. The cursor moves when the caller comes back for the next line: it never names what was not shown.
- A response that ends without a last event or `reconnect`, or is silent for a minute, is a drop, not success.

Source: `Last-Event-ID` https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header
"""

import json
import re
from collections.abc import Generator
from typing import Any, Final, NamedTuple, Self

from service.client import Answer, ClientError, Dropped, Endpoint, Refused, Unreachable, invocation_path
from service.client_retry import PASSING_STATUSES, BackOff

NDJSON: Final = "application/x-ndjson"
LAST_TYPES: Final = frozenset(
    {"invocationCompleted", "invocationFailed", "invocationCancelled", "streamEnded"}
)


class EventId(NamedTuple):
    """`<attempt>.<seq>`; compares in the order in which events arrive."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an event id.

        Raises:
            ValueError: It is none.
        """
        match = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", text, re.ASCII)
        if match is None:
            raise ValueError("an event id is <attempt>.<seq>, such as 1.42")
        return cls(int(match[1]), int(match[2]))


class Line(NamedTuple):
    """One NDJSON line: as received, the event's id (heartbeats and `reconnect` have none), type and value."""

    raw: bytes
    event_id: EventId | None
    type: str
    value: dict[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read `{"id":"1.3","contentBlockDelta":{...}}`.

        Raises:
            Dropped: Something between the service and us garbled it; the log still has it.
        """
        try:
            members = json.loads(raw)
            event_id = EventId.parse(members.pop("id")) if "id" in members else None
            ((event_type, value),) = members.items()
            return cls(raw, event_id, event_type, dict(value))
        except (ValueError, TypeError, AttributeError) as exc:
            raise Dropped("a line of the stream is not an event") from exc


class Follower:
    """Reads one invocation's events, over as many connections as it takes.

    Args:
        cursor: The last event that the caller has; None for all of them.
        back_off: The waits between connections.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        runtime_id: str,
        invocation_id: str | None,
        *,
        cursor: EventId | None = None,
        back_off: BackOff,
    ) -> None:
        self.runtime_id = runtime_id
        self.invocation_id = invocation_id
        self.cursor = cursor
        self._endpoint = endpoint
        self._back_off = back_off
        self._reached = False

    def lines(self, opened: Answer | None = None) -> Generator[Line, None, None]:
        """Yield heartbeats, `reconnect`s and each event once, in order; ends after the last event.

        Args:
            opened: The answer to the POST; None to begin with a GET. It is closed here.

        Raises:
            GaveUp: Nothing new for as long as `back_off` allows.
            Refused: The service does not let this caller follow.
            Unreachable: The very first connection failed.
            Dropped: The first connection broke before the invocation had an id.
        """
        self._reached = opened is not None
        while True:
            why: str | ClientError
            try:
                with opened or self._attach() as answer:
                    why = yield from self._segment(answer)
                if not why:
                    return
            except (Unreachable, Dropped, Refused) as exc:
                if not self._is_passing(exc):
                    raise
                why = exc
            opened = None
            self._back_off.wait(why)

    def _attach(self) -> Answer:
        path = f"{invocation_path(self.runtime_id, self.invocation_id or '')}/events"
        cursor = {"Last-Event-ID": str(self.cursor)} if self.cursor else {}
        answer = self._endpoint.get(path, {"Accept": NDJSON, **cursor})
        self._reached = True
        return answer

    def _segment(self, answer: Answer) -> Generator[Line, None, str]:
        """Yield one response's lines; return why it ended, "" after the last event."""
        if answer.headers.get_content_type() != NDJSON:
            raise ClientError(
                f"{self._endpoint.url} answered with something that is not a stream: check --url"
            )
        events = 0
        for raw in answer.lines():
            line = Line.parse(raw)
            events += line.event_id is not None
            if line.event_id and self.cursor and line.event_id <= self.cursor:
                continue
            # The heartbeat that opens every response proves nothing about the job.
            if line.event_id or (line.type == "heartbeat" and line.value.get("phase") != "connected"):
                self._back_off.begin_anew()
            if line.type == "invocationStarted":
                self.invocation_id = self.invocation_id or line.value.get("invocationId")
            yield line
            self.cursor = line.event_id or self.cursor
            if line.type in LAST_TYPES:
                return ""
            if line.type == "reconnect":
                if line.value.get("reason") == "token-expired":
                    self._endpoint.bearer.forget()
                return f"the service asks to reconnect ({line.value.get('reason')})"
        if not events and (ending := self._ending()):
            yield ending
            return ""
        raise Dropped("the stream ended before the answer did")

    def _ending(self) -> Line | None:
        """Return the last event if the caller has it already: then the stream is empty, and rightly so."""
        if self.cursor is None:
            return None
        path = invocation_path(self.runtime_id, self.invocation_id or "")
        terminal = self._endpoint.get_document(path).get("terminalEvent")
        ending = Line.parse(json.dumps(terminal).encode()) if terminal else None
        is_known = ending is not None and ending.event_id is not None and ending.event_id <= self.cursor
        return ending._replace(event_id=None) if ending and is_known else None

    def _is_passing(self, exc: ClientError) -> bool:
        if self.invocation_id is None:
            return False
        if isinstance(exc, Refused):
            return exc.status in PASSING_STATUSES
        return self._reached or isinstance(exc, Dropped)
