"""The ledger in DynamoDB: what a decision settles, and the change that it makes to a record and its account.

`stores.dynamodb`'s siblings make a `Change` of the record that they have read, say what becomes of it, and
commit it: one transaction, which fails if holds or ledger are not as they were read.

    record    holds: tokens by model call      ledger: what each call used, by model call, once
    usage     account, bucket and month move, the reservation's row goes

Invariants: a call has one line in its record's ledger, and the first one stands; whoever writes it removes
the hold and moves the counters in the same transaction, so it is settled exactly once however often it is
tried. What an attempt that is not the current one used is never charged.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from service.events import EventId
from service.invocations import Attempt, Usage, all_tried
from service.stores import Settlement
from service.stores.dynamodb_client import Refused, Write, put, update
from service.stores.dynamodb_items import Record, attempts_item, boundary_text, call_name, record_key
from service.stores.dynamodb_records import Tables


class Change:
    """What one decision does to one invocation, on the record as it was read."""

    def __init__(self, tables: Tables, record: Record, now_ms: int) -> None:
        self._tables = tables
        self._record = record
        self._now_ms = now_ms
        self._sets: dict[str, Any] = {"updated_at_ms": now_ms}
        self._removes: list[str] = []
        self._conditions: dict[str, Any] = {}
        self._lines: dict[str, list[Any]] = {}
        self._holds = dict(record.holds)
        self._charged = Usage()
        self._tried = record.shown.tried
        self._released_tokens = 0
        self._running = 0
        self._beside: list[Write] = []

    @property
    def invocation_id(self) -> str:
        return self._record.shown.invocation_id

    # ------------------------------------------------------------ what becomes of the record

    def set(self, **attributes: Any) -> None:
        """Set attributes; None removes one."""
        for name, value in attributes.items():
            if value is None:
                self._removes.append(name)
            else:
                self._sets[name] = value

    def require(self, **attributes: Any) -> None:
        """Ask that attributes are still so when this is committed; None: that there is none."""
        self._conditions |= attributes

    def attempts(self, attempts: tuple[Attempt, ...]) -> None:
        self.set(attempts=attempts_item(attempts))

    def boundary(self, boundary: EventId) -> None:
        """Note the last event that belongs to a turn: a takeover goes on from there."""
        text = boundary_text(boundary)
        if text > (self._record.boundary or ""):
            self.set(boundary=text)

    def starts(self) -> None:
        """Take a concurrency slot."""
        self._running += 1

    def ends(self) -> None:
        """Give the concurrency slot back."""
        self._running -= 1

    def beside(self, *writes: Write) -> None:
        """Write these items in the same transaction."""
        self._beside += writes

    # ------------------------------------------------------------ holding and settling

    def hold(self, name: str, tokens: int) -> None:
        """Note a hold, whose row and account the transaction writes besides."""
        self._holds[name] = tokens

    def settle(self, settlement: Settlement) -> bool:
        """Settle a call; returns False if it had been settled before."""
        name = call_name(settlement.attempt, settlement.turn)
        charged = settlement.charged and settlement.attempt == self._record.shown.attempt
        first = self._settle(name, settlement.model, settlement.usage, charged=charged)
        if first and settlement.tried:
            self._tried = all_tried(self._tried, settlement.tried)
        return first

    def settle_open_holds(self, *, charged: bool) -> None:
        """Settle what is still held at its full size, as an estimate; lapsed holds too."""
        current = str(self._record.shown.attempt)
        for name, tokens in sorted(self._holds.items()):
            usage = Usage(input_tokens=abs(tokens), estimated=True)
            if not self._settle(name, "", usage, charged=charged and name.startswith(f"{current}.")):
                self._release(name)

    def _settle(self, name: str, model: str, usage: Usage, *, charged: bool) -> bool:
        if name in self._record.ledger or name in self._lines:
            return False
        self._lines[name] = [*usage, charged, model, self._now_ms]
        if charged:
            self._charged = self._charged.plus(usage)
        self._release(name)
        return True

    def _release(self, name: str) -> None:
        """Take a call's hold off the account, if it has one."""
        tokens = self._holds.pop(name, -1)
        if tokens >= 0:  # a lapsed one has no row, and is not on the account
            self._released_tokens += tokens
            row = self._tables.accounts.unreserve(
                self._record.shown.sub, self._record.shown.invocation_id, name
            )
            self._beside.append(row)

    # ------------------------------------------------------------ committing

    async def commit(self) -> None:
        """Write it all, or nothing.

        Raises:
            Refused: Something is not as it was read. Place 0 is the record's.
        """
        writes = self.writes()
        # One write too is a transaction: its token tells an answer that was lost from a refusal.
        if any(write.parameters["TableName"] == self._tables.usage for write in writes):
            async with self._tables.accounts.turn(self._record.shown.sub):
                await self._tables.client.write_together(writes)
        else:
            await self._tables.client.write_together(writes)

    def writes(self) -> list[Write]:
        """Return all writes of the decision, the record's first."""
        return [self._write(), *self._beside, *self._account()]

    def _account(self) -> Sequence[Write]:
        settled = self._charged.counted_tokens
        committed = settled - self._released_tokens
        sub, accounts = self._record.shown.sub, self._tables.accounts
        writes: list[Write] = []
        if committed or settled or self._running:
            writes.append(accounts.change(sub, committed=committed, settled=settled, running=self._running))
        if any(self._charged[:4]):
            writes += accounts.count(sub, self._charged, self._now_ms)
        return writes

    def left(self) -> Record:
        """Return the record as this change leaves it, once it is committed."""
        item = self._record.item | self._new()
        for name in self._removes:
            item.pop(name, None)
        item["ledger"] = item["ledger"] | self._lines
        return Record.read(item)

    def _new(self) -> dict[str, Any]:
        """Return all attributes that are set, but for the ledger's lines."""
        record, sets = self._record, dict(self._sets)
        if self._lines:
            used = record.shown.usage.plus(self._charged)
            sets |= {"used": list(used[:4]), "estimated": used.estimated}
        if self._tried != record.shown.tried:
            sets["tried"] = [list(each) for each in self._tried]
        if self._holds != record.holds:
            sets["holds"] = self._holds
        if self._lines or self._holds != record.holds:
            held = sum(map(abs, self._holds.values())) - sum(map(abs, record.holds.values()))
            sets["committed_tokens"] = record.committed_tokens + held + self._charged.counted_tokens
        return sets

    def _write(self) -> Write:
        sets, conditions = self._new(), dict(self._conditions)
        # What is calculated from what was read asks that it is still so.
        calculated = ("used", "tried", "holds", "committed_tokens")
        conditions |= {name: self._record.item.get(name) for name in calculated if name in sets}
        lines = sorted(self._lines.items())
        same = {name: value for name, value in conditions.items() if value is not None}
        absent = tuple(name for name in conditions if name not in same)
        change, condition = _expressions(len(lines), tuple(sets), tuple(self._removes), tuple(same), absent)
        values = {f"line{place}": line for place, (_, line) in enumerate(lines)}
        values |= {f"new_{name}": value for name, value in sets.items()}
        values |= {f"old_{name}": value for name, value in same.items()}
        names = {f"line{place}": name for place, (name, _) in enumerate(lines)}
        key = record_key(self.invocation_id)
        return update(self._tables.invocations, key, change, condition, names=names, **values)


@lru_cache(maxsize=256)  # one for each form of a decision
def _expressions(
    lines: int,
    sets: tuple[str, ...],
    removes: tuple[str, ...],
    same: tuple[str, ...],
    absent: tuple[str, ...],
) -> tuple[str, str]:
    """Return how a record changes, and on what condition.

    Args:
        lines: How many lines its ledger gets; none of them is there yet.
        sets, removes: What becomes of attributes.
        same, absent: Those that are still as they were read, and those that are still not there.
    """
    changes = [f"#ledger.#line{place} = :line{place}" for place in range(lines)]
    changes += [f"#{name} = :new_{name}" for name in sets]
    change = "SET " + ", ".join(changes)
    if removes:
        change += " REMOVE " + ", ".join(f"#{name}" for name in removes)
    asked = ["attribute_exists(#pk)"]
    asked += [f"attribute_not_exists(#ledger.#line{place})" for place in range(lines)]
    asked += [f"#{name} = :old_{name}" for name in same]
    asked += [f"attribute_not_exists(#{name})" for name in absent]
    return change, " AND ".join(asked)


async def settle_alone(tables: Tables, settlement: Settlement, now_ms: int) -> bool:
    """Settle what was used by an invocation whose record is gone: a line of its own, once."""
    name = call_name(settlement.attempt, settlement.turn)
    usage = settlement.usage
    line = {
        "pk": settlement.invocation_id,
        "sk": f"ledger:{name}",
        "line": [*usage, settlement.charged, settlement.model, now_ms],
        "ttl": now_ms // 1000 + int(tables.ledger_s),
    }
    writes = [put(tables.invocations, line, "attribute_not_exists(#pk)")]
    if settlement.charged:
        counted = usage.counted_tokens
        writes.append(tables.accounts.change(settlement.sub, committed=counted, settled=counted))
        writes += tables.accounts.count(settlement.sub, usage, now_ms)
    try:
        async with tables.accounts.turn(settlement.sub):
            await tables.client.write_together(writes)
    except Refused:
        return False
    return True
