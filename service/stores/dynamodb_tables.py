"""The two DynamoDB tables: their keys and indexes, whether what is there fits, and how to make them.

`stores.dynamodb` checks them when it opens; tests and local runs make them by `Table.definition`. The items
are drawn in `stores.dynamodb`.

Sources: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html,
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-indexes-general-sparse-indexes.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from service.config import ConfigError
from service.stores.dynamodb_client import DynamoClient
from service.stores.dynamodb_values import pack

HELD_INDEX: Final = "held"
LISTED_INDEX: Final = "listed"
TTL_ATTRIBUTE: Final = "ttl"

_NOT_PERMITTED: Final = frozenset({"AccessDeniedException", "AccessDenied"})
# The message says which action on which resource is not authorized.
_ACTION: Final = re.compile(r"perform: (dynamodb:\w+)", re.ASCII)
_FAULTS: Final = {
    "ResourceNotFoundException": "is not there, in this region and account",
    "AccessDeniedException": "can't be described: the permission dynamodb:DescribeTable is missing",
    "UnrecognizedClientException": "can't be described: the credentials are not known",
    "ExpiredTokenException": "can't be described: the credentials have expired",
}


@dataclass(frozen=True, slots=True)
class Index:
    """A sparse global index that projects the keys alone: an item without its attributes is not in it."""

    name: str
    partition: str
    sort: str
    sort_type: str


@dataclass(frozen=True, slots=True)
class Table:
    """What a table must look like; `setting` names the environment variable that names it."""

    setting: str
    partition: str
    sort: str
    indexes: tuple[Index, ...] = ()

    def definition(self, name: str) -> dict[str, Any]:
        """Return the parameters of CreateTable, billed by request."""
        types = {self.partition: "S", self.sort: "S"}
        for index in self.indexes:
            types |= {index.partition: "S", index.sort: index.sort_type}
        definition: dict[str, Any] = {
            "TableName": name,
            "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [
                {"AttributeName": attribute, "AttributeType": kind} for attribute, kind in types.items()
            ],
            "KeySchema": _key_schema(self.partition, self.sort),
        }
        if self.indexes:
            definition["GlobalSecondaryIndexes"] = [
                {
                    "IndexName": index.name,
                    "KeySchema": _key_schema(index.partition, index.sort),
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
                for index in self.indexes
            ]
        return definition

    def faults(self, name: str, description: Mapping[str, Any]) -> list[str]:
        """Say what is wrong with a table that is there, as DescribeTable shows it; [] if it fits."""
        if description.get("TableStatus") not in ("ACTIVE", "UPDATING"):
            return [f"{self.setting}: the table {name} is {description.get('TableStatus')}, not ACTIVE"]
        faults = []
        if _keys(description) != (self.partition, self.sort):
            faults.append(
                f"{self.setting}: the table {name} has the key ({', '.join(_keys(description))})"
                f" and must have ({self.partition}, {self.sort})"
            )
        indexes = {each["IndexName"]: each for each in description.get("GlobalSecondaryIndexes", ())}
        for index in self.indexes:
            found = indexes.get(index.name)
            if found is None or _keys(found) != (index.partition, index.sort):
                faults.append(
                    f"{self.setting}: the table {name} needs the global index {index.name!r} with the key"
                    f" ({index.partition}, {index.sort})"
                )
        kinds = {each["AttributeName"]: each["AttributeType"] for each in description["AttributeDefinitions"]}
        expected = {each["AttributeName"]: each["AttributeType"] for each in self._attributes(name)}
        faults += [
            f"{self.setting}: in the table {name} the key {attribute!r} must be of type {kind}"
            for attribute, kind in expected.items()
            if attribute in kinds and kinds[attribute] != kind
        ]
        return faults

    def _attributes(self, name: str) -> list[dict[str, str]]:
        attributes: list[dict[str, str]] = self.definition(name)["AttributeDefinitions"]
        return attributes


USAGE: Final = Table("HEADRACE_USAGE_TABLE", "user_id", "period_id")
INVOCATIONS: Final = Table(
    "HEADRACE_INVOCATIONS_TABLE",
    "pk",
    "sk",
    (
        # Who holds an invocation that has not ended: its process's lease, or nobody.
        Index(HELD_INDEX, "holder", "held_at_ms", "N"),
        # What a principal has of a runtime, by age.
        Index(LISTED_INDEX, "listing", "listed_at", "S"),
    ),
)


def _key_schema(partition: str, sort: str) -> list[dict[str, str]]:
    return [
        {"AttributeName": partition, "KeyType": "HASH"},
        {"AttributeName": sort, "KeyType": "RANGE"},
    ]


def _keys(described: Mapping[str, Any]) -> tuple[str, ...]:
    ordered = sorted(described.get("KeySchema", ()), key=lambda key: key["KeyType"] != "HASH")
    return tuple(key["AttributeName"] for key in ordered)


async def check_tables(client: DynamoClient, names: Mapping[Table, str], *, probe: bool) -> None:
    """Stop the start with all that is wrong with the tables, and with `probe` with our permissions on them.

    Raises:
        ConfigError: Something is.
        StoreUnavailable: DynamoDB does not answer.
    """
    faults: list[str] = []
    try:
        for table, name in names.items():
            faults += await _describe(client, table, name)
        if probe and not faults:
            for table, name in names.items():
                faults += await _probe(client, table, name)
    except BotoCoreError as error:
        raise ConfigError([f"DynamoDB: {error}"]) from error
    if faults:
        raise ConfigError(faults)


async def _describe(client: DynamoClient, table: Table, name: str) -> list[str]:
    try:
        answer = await client.ask("DescribeTable", {"TableName": name})
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return [f"{table.setting}: the table {name} {_FAULTS.get(code, f'gives {code}')}"]
    return table.faults(name, answer["Table"])


async def _probe(client: DynamoClient, table: Table, name: str) -> list[str]:
    """Try everything that the store will do with a table, on keys that are nobody's; nothing is written.

    A transaction needs the permission for each of its actions before it looks at conditions, and this one has
    a condition that never holds.
    """

    def key(number: int) -> dict[str, Any]:
        return pack({table.partition: "-probe", table.sort: f"{number}"})

    query = {
        "TableName": name,
        "KeyConditionExpression": "#key = :key",
        "ExpressionAttributeValues": {":key": {"S": "-probe"}},
        "Limit": 1,
    }
    there = {
        "ConditionExpression": "attribute_exists(#key)",
        "ExpressionAttributeNames": {"#key": table.sort},
    }
    actions: list[dict[str, Any]] = [
        {"Put": {"TableName": name, "Item": key(1)}},
        {"Update": {"TableName": name, "Key": key(2)}},
        {"Delete": {"TableName": name, "Key": key(3)}},
        {"ConditionCheck": {"TableName": name, "Key": key(4), **there}},
    ]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("TransactWriteItems", {"TransactItems": actions}),
        ("GetItem", {"TableName": name, "Key": key(1)}),
        ("BatchGetItem", {"RequestItems": {name: {"Keys": [key(1)]}}}),
        ("BatchWriteItem", {"RequestItems": {name: [{"DeleteRequest": {"Key": key(1)}}]}}),
        ("Query", query | {"ExpressionAttributeNames": {"#key": table.partition}}),
    ]
    calls += [
        (
            "Query",
            query | {"IndexName": index.name, "ExpressionAttributeNames": {"#key": index.partition}},
        )
        for index in table.indexes
    ]
    missing: dict[str, None] = {}
    for operation, parameters in calls:
        try:
            await client.ask(operation, parameters)
        except ClientError as error:
            fault = error.response.get("Error", {})
            if fault.get("Code") in _NOT_PERMITTED:
                named = _ACTION.search(fault.get("Message", ""))
                missing[named[1] if named else f"dynamodb:{operation}"] = None
    return [f"{table.setting}: the permission {action} on the table {name} is missing" for action in missing]
