"""Events as a client takes them off the wire, in both encodings, and the rule of `attemptRestarted`.

Written from docs/api.md ("The stream", "Never lose an event") and nothing else; `clients` reads responses
with it, `audit` compares what came out with the store. Pure.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from tests.sse import SseParser

TERMINAL: Final = frozenset({"invocationCompleted", "invocationFailed", "invocationCancelled"})
WITHOUT_ID: Final = frozenset({"reconnect", "streamEnded"})

Encoding = Literal["sse", "ndjson"]
ACCEPT: Final[dict[Encoding, str]] = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class Id(NamedTuple):
    """An event's id; compares as the document says: as pairs of numbers."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.seq}"

    @classmethod
    def of(cls, text: str) -> "Id":
        attempt, _, seq = text.partition(".")
        return cls(int(attempt), int(seq))


class Entry(NamedTuple):
    """One event of a log: its id and its bytes, a JSON object with one member."""

    id: Id
    event: bytes

    @property
    def kind(self) -> str:
        return self.event[2 : self.event.index(b'"', 2)].decode()

    @property
    def value(self) -> Any:
        (value,) = json.loads(self.event).values()
        return value


class Feed(Protocol):
    """Takes the bytes of one response in any pieces."""

    def feed(self, piece: bytes) -> Iterable[tuple[Id | None, bytes]]:
        """Return the events that are whole now; those that are in no log have no id."""
        ...


class SseFeed:
    """`text/event-stream`, as a browser parses it."""

    def __init__(self) -> None:
        self._parser = SseParser()

    def feed(self, piece: bytes) -> Iterable[tuple[Id | None, bytes]]:
        for kind, told, last_id in self._parser.feed(piece):
            yield (None if kind in WITHOUT_ID else Id.of(last_id)), told.encode()


class NdjsonFeed:
    """`application/x-ndjson`: a line is the event's object with `id` put in front."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterable[tuple[Id | None, bytes]]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b'{"id":"'):
                end = line.index(b'"', 7)
                yield Id.of(line[7:end].decode()), b"{" + line[end + 2 :]
            elif not line.startswith(b'{"heartbeat":'):
                yield None, line


FEEDS: Final[dict[Encoding, type[SseFeed | NdjsonFeed]]] = {"sse": SseFeed, "ndjson": NdjsonFeed}


def parse(body: bytes, encoding: Encoding) -> list[Entry]:
    """Return the events of a whole response, those without an id left out."""
    return [Entry(event_id, event) for event_id, event in FEEDS[encoding]().feed(body) if event_id]


def reassemble(entries: Iterable[Entry]) -> list[Entry]:
    """Return what counts of the events that a reader received: rule 8 of "Never lose an event"."""
    log: list[Entry] = []
    for entry in entries:
        if entry.kind == "attemptRestarted":
            rewind_to = Id.of(entry.value["rewindTo"])
            log = [kept for kept in log if kept.id <= rewind_to]
        log.append(entry)
    return log


class ToolUse(NamedTuple):
    """A tool that a turn asked for, as it stands in a log: by its number within the turn, from 1."""

    turn: int
    number: int
    tool_use_id: str
    arguments: Any


class Answer(NamedTuple):
    """What a reassembled log says: the text of each turn, and the tools that each asked for."""

    texts: Sequence[str]
    tool_uses: Sequence[ToolUse]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def answer_of(log: Iterable[Entry]) -> Answer:
    """Read a reassembled log as an application would; arguments that are no JSON stay text."""
    texts: list[list[str]] = []
    uses: list[tuple[int, str, list[str]]] = []
    for entry in log:
        match entry.kind, entry.value:
            case "messageStart", _:
                texts.append([])
            case "contentBlockStart", {"start": {"toolUse": {"toolUseId": tool_use_id}}}:
                uses.append((len(texts), tool_use_id, []))
            case "contentBlockDelta", {"delta": {"text": text}} if texts:
                texts[-1].append(text)
            case "contentBlockDelta", {"delta": {"toolUse": {"input": piece}}} if uses:
                uses[-1][2].append(piece)
    numbers: Counter[int] = Counter()
    numbered = []
    for turn, tool_use_id, pieces in uses:
        numbers[turn] += 1
        numbered.append(ToolUse(turn, numbers[turn], tool_use_id, _arguments("".join(pieces))))
    return Answer(["".join(pieces) for pieces in texts], numbered)


def _arguments(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw
