"""The items of the invocations table: their keys, and a record as item and as `Invocation`.

`stores.dynamodb`, which draws them, and its siblings call these functions; nothing here calls DynamoDB.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from service.events import Block, EventId
from service.invocations import Attempt, AttemptEnd, Invocation, State, Tried, Usage
from service.stores import NewInvocation, Turn
from service.stores.dynamodb_client import Item
from service.stores.packing import pack, unpack

RECORD: Final = "record"
HANDED_OVER: Final = "-handed-over"
PAUSED: Final = "-paused"
"""Who holds an invocation that no process runs; a process's lease begins with no hyphen."""
LEASES: Final = "leases"

INLINE_INPUT_BYTES: Final = 384
"""An input up to this is part of the record while it has not ended: one item less, still under 1 KB."""
PIECE_BYTES: Final = 300 * 1024
COMPRESSED_FROM_BYTES: Final = 800
"""Up to 1 KB an item costs one write unit, so the events of a short one lie in it as they are."""
PARTS: Final = "part:"

_EVENT: Final = re.compile(r"event:(\d+):(\d+)", re.ASCII)


def record_key(invocation_id: str) -> Item:
    return {"pk": invocation_id, "sk": RECORD}


def event_sk(event_id: EventId) -> str:
    """Return the sort key of the block whose last event this is."""
    return f"event:{event_id.attempt:04}:{event_id.seq:09}"


def boundary_text(boundary: EventId) -> str:
    """Write an event's id so that texts sort as ids do."""
    return f"{boundary.attempt:04}:{boundary.seq:09}"


def read_boundary(text: str) -> EventId:
    attempt, seq = text.split(":")
    return EventId(int(attempt), int(seq))


def turn_sk(number: int) -> str:
    return f"turn:{number:05}"


def lease_key(owner: str) -> Item:
    return {"pk": LEASES, "sk": owner}


def idempotency_key(key: str) -> Item:
    return {"pk": f"idempotency:{key}", "sk": "idempotency"}


def signals_pk(owner: str) -> str:
    return f"signals:{owner}"


def listing(sub: str, runtime_id: str) -> str:
    return f"{runtime_id} {sub}"


def call_name(attempt: int, turn: int) -> str:
    """Return how a record names one model call: in `holds` what it holds, in `ledger` what it used."""
    return f"{attempt}.{turn}"


@dataclass(slots=True)
class Record:
    """A record as the table has it: what the port shows of it, and what decisions are made on.

    Attributes:
        fence: The attempt that may write, if any may.
        holder: Its owner's lease, `HANDED_OVER`, `PAUSED`, or None: it has ended.
        holds: Tokens of open holds by model call; negative: lapsed, so not on the account any more.
        ledger: The calls that are settled.
        boundary: The last event that belongs to a turn, as `boundary_text`.
        input: Where it is small.
    """

    shown: Invocation
    fence: int | None
    holder: str | None
    holds: dict[str, int]
    ledger: frozenset[str]
    boundary: str | None
    committed_tokens: int
    paused_turn: int = 0
    paused_tokens: int = 0
    input: bytes | None = None
    gone_at_ms: int | None = None
    read_at_ms: int | None = None
    item: Item = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, item: Item) -> "Record":
        """Read a record from its item."""
        shown = Invocation(
            item["pk"],
            item["runtime_id"],
            item["sub"],
            item.get("session_id"),
            State(item["state"]),
            tuple(_attempt(number, *each) for number, each in enumerate(item["attempts"], 1)),
            item["created_at_ms"],
            item["updated_at_ms"],
            item["deadline_at_ms"],
            Usage._make((*item["used"], item["estimated"])),
            item.get("finished_at_ms"),
            item.get("terminal"),
            item.get("cancel_requested_at_ms"),
            item.get("paused_at_ms"),
            item.get("resumes_at_ms"),
            tuple(item.get("models", ())),
            tuple(Tried(*each) for each in item.get("tried", ())),
        )
        return cls(
            shown,
            item.get("fence"),
            item.get("holder"),
            item["holds"],
            frozenset(item["ledger"]),
            item.get("boundary"),
            item["committed_tokens"],
            item.get("paused_turn", 0),
            item.get("paused_tokens", 0),
            item.get("input"),
            item.get("gone_at_ms"),
            item.get("read_at_ms"),
            item,
        )

    @property
    def open_tokens(self) -> int:
        """What its open holds have on the account."""
        return sum(tokens for tokens in self.holds.values() if tokens > 0)


def new_record(new: NewInvocation, now_ms: int) -> Item:
    """Return the item of an invocation that begins."""
    return {
        **record_key(new.invocation_id),
        "runtime_id": new.runtime_id,
        "sub": new.sub,
        "session_id": new.session_id,
        "state": State.RUNNING.value,
        "attempts": [[now_ms, None, None]],
        "fence": 1,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
        "deadline_at_ms": new.deadline_at_ms,
        "used": [0, 0, 0, 0],
        "estimated": False,
        "committed_tokens": new.first_reservation_tokens,
        "holds": {call_name(1, 1): new.first_reservation_tokens},
        "ledger": {},
        "holder": new.owner,
        "held_at_ms": now_ms,
        "listing": listing(new.sub, new.runtime_id),
        "listed_at": listed_at(now_ms, new.invocation_id),
        "models": list(new.models),
    }


def listed_at(created_at_ms: int, invocation_id: str) -> str:
    return f"{created_at_ms:015} {invocation_id}"


def attempts_item(attempts: tuple[Attempt, ...]) -> list[list[Any]]:
    """Write the attempts of a record."""
    return [
        [
            each.started_at_ms,
            None if each.end is None else each.end.value,
            None if each.last is None else each.last.seq,
        ]
        for each in attempts
    ]


def event_items(invocation_id: str, block: Block, ttl: int) -> list[Item]:
    """Return the items of a block: one, or several where it is over `PIECE_BYTES`.

    One event that does not fit an item lies in parts, which come before the item that names them.
    """
    items: list[Item] = []
    for piece, codec, blob in pack(block, PIECE_BYTES, COMPRESSED_FROM_BYTES):
        item: Item = {
            "pk": invocation_id,
            "sk": event_sk(piece.last),
            "first_seq": piece.first_seq,
            "codec": codec,
            "ttl": ttl,
        }
        items += with_body(item, blob, item["sk"])
    return items


def with_body(item: Item, body: bytes, name: str) -> list[Item]:
    """Return an item with its body: in it, or before it in parts under this name."""
    if len(body) <= PIECE_BYTES:
        return [item | {"blob": body}]
    begins = range(0, len(body), PIECE_BYTES)
    keys = [f"{PARTS}{name}:{number:05}" for number in range(len(begins))]
    parts = [
        {"pk": item["pk"], "sk": key, "blob": body[begin : begin + PIECE_BYTES], "ttl": item["ttl"]}
        for key, begin in zip(keys, begins, strict=True)
    ]
    return [*parts, item | {"parts": keys}]


def read_block(item: Item) -> Block:
    """Read a block of events from its item."""
    match = _EVENT.fullmatch(item["sk"])
    assert match is not None  # noqa: S101 - the query asked for such keys
    return Block(int(match[1]), item["first_seq"], unpack(item["codec"], item["blob"]))


def read_turn(item: Item, messages: bytes) -> Turn:
    """Read a turn from its item."""
    return Turn(int(item["sk"].removeprefix("turn:")), messages, read_boundary(item["boundary"]))


def _attempt(number: int, started_at_ms: int, end: str | None, seq: int | None) -> Attempt:
    last = None if seq is None else EventId(number, seq)
    return Attempt(number, started_at_ms, last, None if end is None else AttemptEnd(end))
