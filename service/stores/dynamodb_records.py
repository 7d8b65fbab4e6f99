"""Records in DynamoDB: read, listed, begun and changed; and what is kept beside them.

`stores.dynamodb` and its siblings call these functions. A decision reads the record, makes up its mind, and
writes on condition that what it rests on is still so; if it is not (`Refused`), it is made anew (`decide`).
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from service.config import Limits
from service.errors import (
    BudgetExceeded,
    ConcurrencyExceeded,
    Fenced,
    IdempotencyMismatch,
    QuotaExceeded,
    StoreUnavailable,
)
from service.invocations import Invocation
from service.stores import Hold, Idempotency, NewInvocation
from service.stores.dynamodb_accounts import ROUNDS, Accounts
from service.stores.dynamodb_client import (
    RETRY_AFTER_S,
    DynamoClient,
    Item,
    Refused,
    Write,
    put,
    update,
)
from service.stores.dynamodb_items import (
    INLINE_INPUT_BYTES,
    Record,
    idempotency_key,
    lease_key,
    listing,
    new_record,
    record_key,
    with_body,
)
from service.stores.dynamodb_tables import LISTED_INDEX
from service.stores.packing import RAW, compress, expand
from service.stores.windows import check_budget

logger = logging.getLogger(__name__)

_INPUT: Final = "input"
_MAY_BE_INLINE_BYTES: Final = 4096
_KNOWN: Final = 10_000
_Answer = TypeVar("_Answer")


class Known:
    """The records of attempts that run in this process, each as its last decision has left it.

    A decision takes one out instead of reading it, and only its commit puts the next one back. Others may
    have changed the record since; then a condition of the transaction fails, and the decision is made on what
    is read. So nothing is refused by what is remembered here.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def keep(self, record: Record, attempt: int) -> None:
        """Remember a record that this attempt, which runs in this process, has just written."""
        if record.fence != attempt:
            return
        self._records[record.shown.invocation_id] = record
        if len(self._records) > _KNOWN:
            del self._records[next(iter(self._records))]

    def take(self, invocation_id: str, attempt: int) -> Record | None:
        """Take out what this attempt has left, if that is known."""
        record = self._records.get(invocation_id)
        if record is None or record.fence != attempt:
            return None
        del self._records[invocation_id]
        return record

    def forget(self, invocation_id: str) -> None:
        """Forget what an attempt has left that does not run any more."""
        self._records.pop(invocation_id, None)


@dataclass(frozen=True, slots=True)
class Tables:
    """Where everything is, and how long.

    Attributes:
        retention_s: For how long an invocation that has ended is shown.
        content_s: After how long its input, turns and events are deleted, from when they were written.
        ledger_s: For how long a record stays for its ledger, once it is not shown any more.
        now_ms: The clock by which an ended invocation is not shown any more.
    """

    client: DynamoClient
    usage: str
    invocations: str
    accounts: Accounts
    retention_s: float
    content_s: float
    ledger_s: float
    now_ms: Callable[[], int]
    known: Known = field(default_factory=Known)

    def content_ttl(self, now_ms: int) -> int:
        return now_ms // 1000 + int(self.content_s)


async def decide(once: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Make a decision, anew while what it was made on changes under it."""
    for _ in range(ROUNDS):
        try:
            return await once()
        except Refused:
            continue
    raise StoreUnavailable("The store is too busy with this invocation.", retry_after_s=RETRY_AFTER_S)


async def decide_as(
    tables: Tables,
    invocation_id: str,
    attempt: int,
    once: Callable[[Record | None], Awaitable[_Answer]],
) -> _Answer:
    """Make an attempt's decision on the record as its last one left it, else as `decide` on what is read."""
    known = tables.known.take(invocation_id, attempt)
    if known is not None:
        with suppress(Refused, BudgetExceeded, Fenced):
            return await once(known)

    async def read() -> _Answer:
        return await once(await load(tables, invocation_id))

    return await decide(read)


# ---------------------------------------------------------------- reading


async def load(tables: Tables, invocation_id: str) -> Record | None:
    """Return a record that is still shown, or None."""
    record = await load_ledger(tables, invocation_id)
    return None if record is None else _shown(tables, record)


async def load_ledger(tables: Tables, invocation_id: str) -> Record | None:
    """Return a record as long as it is there: its ledger says what is settled, shown or not."""
    item = await tables.client.get(tables.invocations, record_key(invocation_id))
    return None if item is None else Record.read(item)


async def load_many(tables: Tables, invocation_ids: Sequence[str]) -> dict[str, Record]:
    """Return those records that are there and still shown; one that can't be read hides no other."""
    # An index that changes while it is read may name one twice, which BatchGetItem refuses.
    keys = [record_key(invocation_id) for invocation_id in dict.fromkeys(invocation_ids)]
    items = await tables.client.get_many(tables.invocations, keys)
    records = (_readable(tables, item) for item in items)
    return {record.shown.invocation_id: record for record in records if record is not None}


def _readable(tables: Tables, item: Item) -> Record | None:
    try:
        return _shown(tables, Record.read(item))
    except Exception:  # the edge of one record: all others must go on, whatever is wrong with this one
        logger.exception("a record can't be read", extra={"invocation_id": item["pk"]})
        return None


def _shown(tables: Tables, record: Record) -> Record | None:
    gone = record.gone_at_ms is not None and record.gone_at_ms <= tables.now_ms()
    return None if gone else record


async def list_newest(
    tables: Tables, sub: str, runtime_id: str, before: str | None, limit: int
) -> list[Invocation]:
    """Return a page, newest first; nothing comes before an invocation that is not there."""
    until = ":"  # follows every digit
    if before is not None:
        position = await load(tables, before)
        if position is None or position.shown.sub != sub:
            return []
        until = position.item["listed_at"]
    found: list[Invocation] = []
    while len(found) < limit:
        keys = await tables.client.query(
            tables.invocations,
            "#listing = :listing AND #listed_at < :until",
            index=LISTED_INDEX,
            forward=False,
            limit=limit,
            listing=listing(sub, runtime_id),
            until=until,
        )
        if not keys:
            break
        records = await load_many(tables, [key["pk"] for key in keys])
        found += [records[key["pk"]].shown for key in keys if key["pk"] in records]
        until = keys[-1]["listed_at"]
    return found[:limit]


# ---------------------------------------------------------------- beginning


async def create(tables: Tables, new: NewInvocation, limits: Limits, now_ms: int) -> Invocation:
    """Admit an invocation, or return the one that took its idempotency key, or that it is already.

    Raises:
        IdempotencyMismatch, BudgetExceeded, ConcurrencyExceeded, QuotaExceeded: As the port says.
    """
    first = Hold(
        new.invocation_id, 1, 1, new.sub, new.first_reservation_tokens, new.reservation_expires_at_ms
    )
    record, beside = new_record(new, now_ms), []
    # One that fits stays as it is, and a large one is compressed once, where it is written.
    may_fit = INLINE_INPUT_BYTES < len(new.input) <= _MAY_BE_INLINE_BYTES
    codec, packed = compress(new.input) if may_fit else (RAW, new.input)
    if len(packed) <= INLINE_INPUT_BYTES:
        record |= {"input": packed, "input_codec": codec}
    else:
        beside.append(await content(tables, new.invocation_id, _INPUT, new.input, now_ms))
    writes = [
        put(tables.invocations, record, "attribute_not_exists(#pk)"),
        tables.accounts.reservation(first),
    ]
    if new.idempotency is not None:
        writes.append(_take_key(tables, new.idempotency, new.invocation_id, now_ms))

    async def commit(account: Write) -> None:
        await tables.client.write_together([account, *writes, *beside])

    async def once() -> Invocation:
        try:
            check_budget(limits, used_tokens=0, requested_tokens=first.tokens)
            await tables.accounts.hold(first, limits, now_ms, commit, starts=True)
        except (Refused, BudgetExceeded, ConcurrencyExceeded, QuotaExceeded):
            known = await _known(tables, new, now_ms)
            if known is None:
                raise
            return known
        begun = Record.read(record)
        tables.known.keep(begun, 1)
        return begun.shown

    return await decide(once)


async def _known(tables: Tables, new: NewInvocation, now_ms: int) -> Invocation | None:
    """Return what a submission finds in its place: its own invocation, or the one that took its key."""
    own = await load(tables, new.invocation_id)
    if own is not None:
        if (own.shown.sub, own.shown.runtime_id) != (new.sub, new.runtime_id):
            raise ValueError(f"{new.invocation_id} is another invocation's id")
        return own.shown
    if new.idempotency is None:
        return None
    key = await tables.client.get(tables.invocations, idempotency_key(new.idempotency.key))
    if key is None or key["expires_at_ms"] <= now_ms:
        return None
    if key["body"] != new.idempotency.body:
        raise IdempotencyMismatch("Send a retry with the same body, and a new request with a new key.")
    taken = await load(tables, key["invocation_id"])
    return None if taken is None else taken.shown


def _take_key(tables: Tables, idempotency: Idempotency, invocation_id: str, now_ms: int) -> Write:
    item = {
        **idempotency_key(idempotency.key),
        "body": idempotency.body,
        "invocation_id": invocation_id,
        "expires_at_ms": idempotency.expires_at_ms,
        "ttl": idempotency.expires_at_ms // 1000,
    }
    return put(tables.invocations, item, "attribute_not_exists(#pk) OR #expires_at_ms <= :now", now=now_ms)


async def ensure_lease(tables: Tables, owner: str) -> None:
    """See to it that an owner has a lease, expired if need be: what has none is never looked for."""
    lease = put(tables.invocations, lease_key(owner) | {"expires_at_ms": 0}, "attribute_not_exists(#pk)")
    with suppress(Refused):  # it has one
        await tables.client.write(lease)


# ---------------------------------------------------------------- content of any size


async def content(
    tables: Tables, pk: str, sk: str, body: bytes, now_ms: int, *, condition: str | None = None, **extra: Any
) -> Write:
    """Return the write of an item that holds a body.

    What does not fit an item is written before, in parts of their own that only this item names.

    Args:
        condition: Of the write; its values are `extra`'s, which become attributes of the item too.
    """
    codec, packed = compress(body)
    item: Item = {"pk": pk, "sk": sk, "codec": codec, "ttl": tables.content_ttl(now_ms), **extra}
    *parts, item = with_body(item, packed, ":".join((sk, *map(str, extra.values()))))
    if parts:
        await tables.client.put_many(tables.invocations, parts)
    return put(tables.invocations, item, condition, **(extra if condition else {}))


async def read_content(tables: Tables, item: Mapping[str, Any]) -> bytes:
    """Return the body of an item that `content` has written; b"" if parts of it are gone."""
    blob = await read_blob(tables, item)
    return b"" if blob is None else expand(item["codec"], blob)


async def read_blob(tables: Tables, item: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of an item, which may lie in parts; None if one is not there (yet)."""
    if "parts" not in item:
        blob: bytes = item["blob"]
        return blob
    keys = [{"pk": item["pk"], "sk": part} for part in item["parts"]]
    parts = {part["sk"]: part["blob"] for part in await tables.client.get_many(tables.invocations, keys)}
    return b"".join(parts[name] for name in item["parts"]) if len(parts) == len(keys) else None


async def load_input(tables: Tables, record: Record) -> bytes:
    """Return what was submitted; b"" if it is gone: the record of what goes on stays, this expires."""
    if record.input is not None:
        return expand(record.item["input_codec"], record.input)
    item = await tables.client.get(tables.invocations, {"pk": record.shown.invocation_id, "sk": _INPUT})
    return b"" if item is None else await read_content(tables, item)


async def keep_longer(tables: Tables, invocation_id: str, now_ms: int) -> None:
    """Put off the deletion of an invocation's content, which counts from when it was written."""
    items = await tables.client.query(tables.invocations, "#pk = :pk", pk=invocation_id)
    ttl = tables.content_ttl(now_ms)
    for item in items:
        if item.get("ttl", ttl) < ttl:
            key = {"pk": invocation_id, "sk": item["sk"]}
            later = update(tables.invocations, key, "SET #ttl = :ttl", "attribute_exists(#pk)", ttl=ttl)
            with suppress(Refused):  # it is gone: an update would make a hollow one
                await tables.client.write(later)
