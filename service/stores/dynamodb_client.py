"""DynamoDB's calls as the store makes them: plain values in and out, retried within a deadline.

`stores.dynamodb` and its siblings call it. `call` is the seam to the wire: production hands in that of
`dynamodb_connection`, tests wrap it with faults.

A call that DynamoDB throttles, that conflicts with another's, or that the network loses is made again, with
jitter, until `DEADLINE_S`; after it the answer is `StoreUnavailable`, and what was asked for may or may not
have happened. A transaction keeps its token over its retries, so that it can't meet its own first half; the
token lives for 10 minutes only, so what is called again later rests on conditions.

Sources: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html (what may be
retried), https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html (conflicts,
`ClientRequestToken`, 100 actions, 4 MB),
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchWriteItem.html (25 items, 16 MB),
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection

from service.errors import StoreUnavailable
from service.stores.dynamodb_values import Item as Item
from service.stores.dynamodb_values import expressions, pack, unpack

logger = logging.getLogger(__name__)

DEADLINE_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5
RETRY_AFTER_S: Final = 1.0
BATCH_WRITES: Final = 25
BATCH_READS: Final = 100

_RETRIED: Final = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
_RETRIED_REASONS: Final = frozenset(
    {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
)
_CONDITION: Final = "ConditionalCheckFailed"

Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Refused(Exception):
    """A condition did not hold; nothing was written.

    Attributes:
        found: By place in the transaction, the item that was there ({}: none) for each condition that failed.
    """

    def __init__(self, found: Mapping[int, Item]) -> None:
        super().__init__(f"conditions {sorted(found)} failed")
        self.found = found


class Write(NamedTuple):
    """One action of a transaction, or a write of its own."""

    kind: str
    parameters: Mapping[str, Any]


def put(table: str, item: Item, condition: str | None = None, **values: Any) -> Write:
    """Write a whole item. `#name` in a condition stands for the attribute, `:name` for a keyword's value."""
    place = {"TableName": table, "Item": pack(item)}
    return Write("Put", place | expressions(condition=condition, values=values))


def update(
    table: str,
    key: Item,
    change: str,
    condition: str | None = None,
    *,
    names: Mapping[str, str] | None = None,
    **values: Any,
) -> Write:
    """Change an item. `names` are those of `#names` that are not attributes' own."""
    place = {"TableName": table, "Key": pack(key)}
    return Write("Update", place | expressions("UpdateExpression", change, condition, values, names))


def delete(table: str, key: Item, condition: str | None = None, **values: Any) -> Write:
    """Delete an item."""
    place = {"TableName": table, "Key": pack(key)}
    return Write("Delete", place | expressions(condition=condition, values=values))


def check(table: str, key: Item, condition: str, **values: Any) -> Write:
    """Ask for a condition, and write nothing."""
    place = {"TableName": table, "Key": pack(key)}
    return Write("ConditionCheck", place | expressions(condition=condition, values=values))


class DynamoClient:
    """The calls; one per process, used by one event loop."""

    def __init__(self, call: Call, *, deadline_s: float = DEADLINE_S) -> None:
        self._call = call
        self.deadline_s = deadline_s

    async def ask(self, operation: str, parameters: dict[str, Any]) -> Any:
        """Make a call whose refusal says something about the tables, or about our permissions.

        Raises:
            ClientError: DynamoDB refuses; its code says why.
            BotoCoreError: There are no credentials, say.
            StoreUnavailable: No answer.
        """
        patience = _Patience(self.deadline_s)
        while True:
            try:
                return await self._call(operation, parameters)
            except ClientError as error:
                if not _may_pass(error):
                    raise
                reason = type(error).__name__
            except (HTTPClientError, NoConnection) as error:
                reason = type(error).__name__
            await patience.wait(reason)

    async def get(self, table: str, key: Item, *, consistent: bool = True) -> Item | None:
        """Return an item, or None."""
        parameters = {"TableName": table, "Key": pack(key), "ConsistentRead": consistent}
        answer = await self.call("GetItem", parameters)
        return unpack(answer["Item"]) if "Item" in answer else None

    async def get_many(
        self, table: str, keys: Sequence[Item], *, consistent: bool = True, only: Sequence[str] = ()
    ) -> list[Item]:
        """Return those of these items that are there, in no order; with `only`, these attributes of them."""
        asked_of_each: dict[str, Any] = {"ConsistentRead": consistent}
        if only:
            projection = ", ".join(f"#{name}" for name in only)
            asked_of_each |= expressions("ProjectionExpression", projection)
        found: list[Item] = []
        for begin in range(0, len(keys), BATCH_READS):
            packed = [pack(key) for key in keys[begin : begin + BATCH_READS]]
            asked = {table: asked_of_each | {"Keys": packed}}
            async for answer in self._batches("BatchGetItem", asked, "UnprocessedKeys"):
                found += [unpack(item) for item in answer["Responses"].get(table, ())]
        return found

    async def get_together(self, keys: Sequence[tuple[str, Item]]) -> list[Item | None]:
        """Return items as they stand at one moment, between two transactions."""
        gets = [{"Get": {"TableName": table, "Key": pack(key)}} for table, key in keys]
        answer = await self.call("TransactGetItems", {"TransactItems": gets})
        return [unpack(each["Item"]) if each.get("Item") else None for each in answer["Responses"]]

    async def query(
        self,
        table: str,
        condition: str,
        *,
        index: str | None = None,
        forward: bool = True,
        limit: int | None = None,
        enough: Callable[[Sequence[Item]], bool] | None = None,
        **values: Any,
    ) -> list[Item]:
        """Return the items of a partition that a key condition names, in order.

        Args:
            index: Of the table or, eventually consistent, of this index.
            limit: At most so many a page, and without `enough` in all.
            enough: Asked after each page whether what has been found is.
        """
        parameters: dict[str, Any] = {
            "TableName": table,
            "ScanIndexForward": forward,
            **expressions("KeyConditionExpression", condition, values=values),
        }
        parameters |= {"ConsistentRead": True} if index is None else {"IndexName": index}
        if limit is not None:
            parameters["Limit"] = limit
        found: list[Item] = []
        while True:
            answer = await self.call("Query", parameters)
            found += [unpack(item) for item in answer["Items"]]
            more = answer.get("LastEvaluatedKey")
            satisfied = len(found) >= limit if limit and enough is None else enough and enough(found)
            if not more or satisfied:
                return found
            parameters["ExclusiveStartKey"] = more

    async def write(self, write: Write) -> None:
        """Make one write of its own: half the price of a transaction.

        Raises:
            Refused: Its condition did not hold.
        """
        await self.call(f"{write.kind}Item", dict(write.parameters))

    async def write_together(self, writes: Sequence[Write]) -> None:
        """Make all of these writes, or none.

        Raises:
            Refused: Conditions did not hold.
        """
        actions = [{write.kind: write.parameters} for write in writes]
        token = secrets.token_hex(16)
        await self.call("TransactWriteItems", {"TransactItems": actions, "ClientRequestToken": token})

    async def put_many(self, table: str, items: Iterable[Item]) -> None:
        """Write these items in order, each for itself: after a failure some of them may be there.

        They are made while they are written, so that many don't hold the event loop up.
        """
        requests = ({"PutRequest": {"Item": pack(item)}} for item in items)
        while some := list(islice(requests, BATCH_WRITES)):
            async for _ in self._batches("BatchWriteItem", {table: some}, "UnprocessedItems"):
                pass

    async def _batches(self, operation: str, asked: dict[str, Any], left: str) -> Any:
        """Ask until nothing is left unprocessed; what was processed is not asked for again."""
        patience = _Patience(self.deadline_s)
        while asked:
            answer = await self.call(operation, {"RequestItems": asked})
            yield answer
            asked = answer.get(left) or {}
            if asked:
                await patience.wait("Unprocessed")

    async def call(self, operation: str, parameters: dict[str, Any]) -> Any:
        """Make one call, again and again while that can help.

        Raises:
            Refused: A condition did not hold.
            StoreUnavailable: No answer, or none that helps, within the deadline; or no permission.
        """
        patience = _Patience(self.deadline_s)
        while True:
            try:
                async with asyncio.timeout_at(patience.until):
                    return await self._call(operation, parameters)
            except ClientError as error:
                reason = _reason(error, operation)
            except TimeoutError as error:
                raise _unavailable("Timeout", operation) from error
            except (HTTPClientError, NoConnection) as error:  # refused, cut, timed out
                reason = type(error).__name__
            except BotoCoreError as error:  # no credentials, say
                raise _unavailable(type(error).__name__, operation) from error
            await patience.wait(reason)


class _Patience:
    """How long a call is made again: full jitter, up to the deadline."""

    def __init__(self, deadline_s: float) -> None:
        self.until = asyncio.get_running_loop().time() + deadline_s
        self._pause_s = FIRST_PAUSE_S

    async def wait(self, reason: str) -> None:
        pause_s = self._pause_s * random.uniform(0.5, 1.5)  # noqa: S311 (jitter)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if asyncio.get_running_loop().time() + pause_s >= self.until:
            raise _unavailable(reason, "retries")
        await asyncio.sleep(pause_s)


def _reason(error: ClientError, operation: str) -> str:
    """Return why a call may be made again.

    Raises:
        Refused, StoreUnavailable: It may not.
    """
    response: Any = error.response
    code = response.get("Error", {}).get("Code", "")
    if code == "TransactionCanceledException":
        reasons = response.get("CancellationReasons", [])
        failed = {
            place: unpack(each.get("Item") or {})
            for place, each in enumerate(reasons)
            if each.get("Code") == _CONDITION
        }
        if failed:
            raise Refused(failed) from error
        if reasons and all(each.get("Code") in _RETRIED_REASONS for each in reasons):
            return "TransactionConflict"
        raise error
    if code == "ConditionalCheckFailedException":
        raise Refused({0: unpack(response.get("Item") or {})}) from error
    if _may_pass(error):
        return str(code)
    if code == "ValidationException":
        raise error  # a defect of ours, not of the store
    # No such table, no permission, a bad key: nothing that trying again within seconds would mend.
    raise _unavailable(code, operation) from error


def _may_pass(error: ClientError) -> bool:
    """Tell whether what DynamoDB complains of may be over in a moment."""
    response: Any = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return response.get("Error", {}).get("Code", "") in _RETRIED or status >= 500


def _unavailable(reason: str, operation: str) -> StoreUnavailable:
    logger.warning("dynamodb gave no answer", extra={"reason": reason, "operation": operation})
    return StoreUnavailable("The store gave no answer in time.", retry_after_s=RETRY_AFTER_S)
