"""What the store's calls cost on AWS, by decision, in read and write units.

DynamoDB Local 3 reports too little for transactions
(https://github.com/awslabs/amazon-dynamodb-local-samples/issues/31) and twice too much for their indexes, so
units are calculated from the items, as they are before and after each write. Where it is right (single calls
and batches), `Meter` asks for `ReturnConsumedCapacity` and sees to it that both agree.

Rules: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html, sizes:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html, indexes:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html#GSI.ThroughputConsiderations.Writes.
A transaction doubles the table's units, and not the indexes' (measured on AWS by
https://github.com/nubo-db/dynoxide/pull/188). A query that finds nothing costs what one small item does.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_client import Call
from service.stores.dynamodb_tables import INVOCATIONS, USAGE, Table

WRITE_BYTES: Final = 1024
READ_BYTES: Final = 4096

Item = dict[str, Any]

_decision: ContextVar[str] = ContextVar("decision", default="opening")


def size_bytes(item: Item) -> int:
    """Return the size of an item in DynamoDB's JSON."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: dict[str, Any]) -> int:
    ((kind, content),) = value.items()
    if kind == "N":
        digits = str(content).lstrip("-").strip("0") or "0"
        return (len(digits) + 1) // 2 + 1 + str(content).startswith("-")
    if kind == "B":
        return len(bytes(content))
    if kind == "M":
        return 3 + len(content) + size_bytes(content)
    if kind == "L":
        return 3 + len(content) + sum(map(_value_bytes, content))
    return len(str(content).encode()) if kind == "S" else 1


def units(size: int, unit_bytes: int) -> int:
    return max(1, -(-size // unit_bytes))


@dataclass
class Spent:
    """What one kind of decision has cost: units, and calls by operation."""

    decisions: int = 0
    write_units: float = 0
    read_units: float = 0
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Meter:
    """Stands under a store, and before it: `DynamoStore.open(wrap=meter.wrap)`, `meter.named(store)`."""

    def __init__(self, usage_table: str, invocations_table: str) -> None:
        self._tables = {usage_table: USAGE, invocations_table: INVOCATIONS}
        self.spent: dict[str, Spent] = defaultdict(Spent)

    def wrap(self, call: Call) -> Call:
        """Count every call that `call` makes."""

        async def made(operation: str, parameters: dict[str, Any]) -> Any:
            if operation == "DescribeTable":
                return await call(operation, parameters)
            written = _writes(operation, parameters)
            before = [await self._image(call, *each) for each in written]
            answer = await call(operation, parameters | {"ReturnConsumedCapacity": "TOTAL"})
            after = [await self._image(call, *each) for each in written]
            spent = self.spent[_decision.get()]
            spent.calls[operation] += 1
            factor = 2 if operation.startswith("Transact") else 1
            write_units = sum(
                self._write_units(table, *images, factor=factor)
                for (table, _), *images in zip(written, before, after, strict=True)
            )
            read_units = _read_units(operation, parameters, answer) * factor
            if factor == 1 and answer.get("Items") != []:
                assert write_units + read_units == _reported(answer), (operation, parameters, answer)
            spent.write_units += write_units
            spent.read_units += read_units
            return answer

        return made

    @asynccontextmanager
    async def named(self, opening: Any) -> AsyncIterator[Any]:
        """Open a store whose calls are counted under the name of the decision that makes them."""
        async with opening as store:
            yield _Named(store, self.spent)

    def table(self, names: Iterable[str]) -> str:
        """Return what these decisions cost, a line each."""
        lines = [f"{'decision':<20}{'times':>6}{'write units':>13}{'read units':>12}   calls"]
        for name in names:
            spent = self.spent[name]
            calls = ", ".join(f"{count} {operation}" for operation, count in spent.calls.items())
            lines.append(
                f"{name:<20}{spent.decisions:>6}{spent.write_units:>13g}{spent.read_units:>12g}   {calls}"
            )
        return "\n".join(lines)

    @staticmethod
    async def _image(call: Call, table: str, key: Item) -> Item:
        asked = {"TableName": table, "Key": key, "ConsistentRead": True}
        image: Item = (await call("GetItem", asked)).get("Item", {})
        return image

    def _write_units(self, table: str, before: Item, after: Item, *, factor: int) -> int:
        cost = factor * units(max(size_bytes(before), size_bytes(after)), WRITE_BYTES)
        definition = self._tables[table]
        for index in definition.indexes:
            views = [_view(definition, index.partition, index.sort, image) for image in (before, after)]
            if views[0] != views[1]:  # a changed key is a deletion and an insertion
                cost += sum(units(size_bytes(view), WRITE_BYTES) for view in views if view)
        return cost


class _Named:
    """A store whose calls say which decision they belong to."""

    def __init__(self, store: DynamoStore, spent: dict[str, Spent]) -> None:
        self._store = store
        self._spent = spent

    @property
    def waiting(self) -> int:
        return self._store.waiting

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def decide(*args: Any, **named: Any) -> Any:
            self._spent[name].decisions += 1
            token = _decision.set(name)
            try:
                return await method(*args, **named)
            finally:
                _decision.reset(token)

        return decide


def _writes(operation: str, parameters: dict[str, Any]) -> list[tuple[str, Item]]:
    """Return table and key of each item that a call writes or checks."""
    if operation == "TransactWriteItems":
        actions = [next(iter(action.values())) for action in parameters["TransactItems"]]
        return [_place(action) for action in actions]
    if operation in ("PutItem", "UpdateItem", "DeleteItem"):
        return [_place(parameters)]
    if operation == "BatchWriteItem":
        return [
            _place({"TableName": table, **request["PutRequest"]})
            for table, requests in parameters["RequestItems"].items()
            for request in requests
        ]
    return []


def _place(action: dict[str, Any]) -> tuple[str, Item]:
    if "Key" in action:
        return action["TableName"], action["Key"]
    names = ("user_id", "period_id") if "user_id" in action["Item"] else ("pk", "sk")
    return action["TableName"], {name: action["Item"][name] for name in names}


def _read_units(operation: str, parameters: dict[str, Any], answer: dict[str, Any]) -> float:
    if operation in ("GetItem", "TransactGetItems"):
        found = answer["Responses"] if operation == "TransactGetItems" else [answer]
        share = 1 if parameters.get("ConsistentRead", operation == "TransactGetItems") else 0.5
        return share * sum(units(size_bytes(each.get("Item") or {}), READ_BYTES) for each in found)
    if operation == "BatchGetItem":
        ((table, asked),) = parameters["RequestItems"].items()
        sizes = [size_bytes(item) for item in answer["Responses"].get(table, [])]
        sizes += [0] * (len(asked["Keys"]) - len(sizes))
        share = 1 if asked.get("ConsistentRead") else 0.5
        return share * sum(units(size, READ_BYTES) for size in sizes)
    if operation == "Query":
        share = 1 if parameters.get("ConsistentRead") else 0.5
        return share * units(sum(map(size_bytes, answer["Items"])), READ_BYTES)
    return 0


def _view(table: Table, partition: str, sort: str, image: Item) -> Item:
    """Return what an index that projects the keys alone has of an item; {}: nothing."""
    if partition not in image or sort not in image:
        return {}
    return {name: image[name] for name in (table.partition, table.sort, partition, sort)}


def _reported(answer: dict[str, Any]) -> float:
    consumed = answer.get("ConsumedCapacity") or []
    tables = consumed if isinstance(consumed, list) else [consumed]
    return sum(float(each["CapacityUnits"]) for each in tables)
