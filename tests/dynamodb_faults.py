"""Faults under AWS's client: what a scripted call of the store's meets in DynamoDB's place, or after it.

    DynamoStore ──> DynamoClient ──> Faults ──> aiobotocore ──> DynamoDB Local

DynamoDB Local never throttles, conflicts or loses an answer, so `DynamoStore.open(wrap=faults.wrap)` does::

    faults.at(3, answer_lost)                            the third call from now
    faults.at(1, throttled, operation="TransactWriteItems", times=2)
    faults.always(hanging)                               until `faults.none()`

A fault is a function that is given the call; what it raises is what aiobotocore would. The codes are those of
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html and of
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html.
"""

import asyncio
import copy
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from service.stores.dynamodb_client import Call

Fault = Callable[[Call, str, dict[str, Any]], Awaitable[Any]]

_URL: Final = "http://127.0.0.1:9"
_LEFT: Final = {"BatchWriteItem": "UnprocessedItems", "BatchGetItem": "UnprocessedKeys"}


def refusal(code: str, operation: str, status: int = 400, **more: Any) -> ClientError:
    """Return what aiobotocore raises when DynamoDB refuses a call."""
    answer: Any = {
        "Error": {"Code": code, "Message": "a scripted fault"},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **more,
    }
    return ClientError(answer, operation)


# ---------------------------------------------------------------- before it has happened


async def throttled(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """Too many requests: of a transaction, one action is throttled and the whole of it cancelled."""
    if operation == "TransactWriteItems":
        raise _cancelled(operation, parameters, "ThrottlingError")
    raise refusal("ProvisionedThroughputExceededException", operation)


async def conflicting(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """Another transaction has one of the items."""
    if operation in ("TransactWriteItems", "TransactGetItems"):
        raise _cancelled(operation, parameters, "TransactionConflict")
    raise refusal("TransactionConflictException", operation)


async def failing(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """DynamoDB itself fails."""
    raise refusal("InternalServerError", operation, status=500)


async def unreachable(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """Nobody listens."""
    raise EndpointConnectionError(endpoint_url=_URL, error=ConnectionRefusedError())


async def unconnected(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """No connection within the time for it."""
    raise ConnectTimeoutError(endpoint_url=_URL)


async def forbidden(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """No permission."""
    raise refusal("AccessDeniedException", operation)


async def invalid(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """DynamoDB can't read it, or it is over a limit: a defect of the store's."""
    raise refusal("ValidationException", operation)


async def hanging(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """No answer, ever."""
    await asyncio.Event().wait()


async def given_up_before(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """The client can't even sign it: `StoreUnavailable` at once, and nothing has happened."""
    raise CredentialRetrievalError(provider="scripted", error_msg="a scripted fault")


# ---------------------------------------------------------------- after it has happened


async def answer_lost(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """It has happened, and the time for its answer runs out."""
    await call(operation, parameters)
    raise ReadTimeoutError(endpoint_url=_URL)


async def cut_off(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """It has happened, and the connection is cut in the middle of the answer."""
    await call(operation, parameters)
    raise ConnectionClosedError(endpoint_url=_URL)


async def failed_after(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """It has happened, and DynamoDB says 500: its documentation allows for that."""
    await call(operation, parameters)
    raise refusal("InternalServerError", operation, status=500)


async def given_up_after(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """It has happened, and the client gives up at once: `StoreUnavailable`."""
    await call(operation, parameters)
    raise CredentialRetrievalError(provider="scripted", error_msg="a scripted fault")


async def partly(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """Only the first half of a batch, rounded down, has happened; the rest is handed back."""
    ((table, asked),) = parameters["RequestItems"].items()
    entries = asked["Keys"] if isinstance(asked, dict) else asked
    half = len(entries) // 2

    def some(chosen: list[Any]) -> dict[str, Any]:
        return {table: asked | {"Keys": chosen} if isinstance(asked, dict) else chosen} if chosen else {}

    answer: dict[str, Any] = {"Responses": {}}
    if half:
        answer = await call(operation, parameters | {"RequestItems": some(entries[:half])})
    return answer | {_LEFT[operation]: some(entries[half:])}


async def behind(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
    """An eventually consistent batch of reads meets a replica that has none of the items yet."""
    ((_, asked),) = parameters["RequestItems"].items()
    answer = await call(operation, parameters)
    return answer if asked["ConsistentRead"] else answer | {"Responses": {}}


def first(meanwhile: Callable[[], Awaitable[Any]]) -> Fault:
    """Return no fault: something else happens before the call does."""

    async def interrupted(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
        await meanwhile()
        return await call(operation, parameters)

    return interrupted


def sometimes(fault: Fault, share: float, seed: int) -> Fault:
    """Return a fault that meets this share of the calls, by dice."""
    dice = random.Random(seed)  # noqa: S311 - not a secret

    async def thrown(call: Call, operation: str, parameters: dict[str, Any]) -> Any:
        chosen = fault if dice.random() < share else None
        return await (call(operation, parameters) if chosen is None else chosen(call, operation, parameters))

    return thrown


def _cancelled(operation: str, parameters: dict[str, Any], code: str) -> ClientError:
    reasons = [{"Code": "None"} for _ in parameters["TransactItems"]]
    reasons[-1] = {"Code": code, "Message": "a scripted fault"}
    return refusal("TransactionCanceledException", operation, CancellationReasons=reasons)


# ---------------------------------------------------------------- the script


@dataclass(slots=True)
class _Planned:
    fault: Fault
    operation: str | None
    after: int
    times: int


@dataclass(frozen=True, slots=True)
class Made:
    """A call that the store has made, before any fault."""

    operation: str
    parameters: dict[str, Any] = field(repr=False)


class Faults:
    """The layer: what is planned happens, everything else goes through.

    Attributes:
        calls: What the store has called, in order, with all its tries.
        forgets_tokens: Every call of a transaction is a new one, as 10 minutes after the first.
    """

    def __init__(self, *, forgets_tokens: bool = False) -> None:
        self.calls: list[Made] = []
        self.forgets_tokens = forgets_tokens
        self._planned: list[_Planned] = []

    @property
    def operations(self) -> list[str]:
        return [made.operation for made in self.calls]

    def at(self, nth: int, fault: Fault, *, operation: str | None = None, times: int = 1) -> None:
        """Let the n-th call from now (of an operation) meet a fault, and those after it, `times` in all."""
        self._planned.append(_Planned(fault, operation, nth - 1, times))

    def always(self, fault: Fault, *, operation: str | None = None) -> None:
        """Let all calls (of an operation) meet a fault."""
        self.at(1, fault, operation=operation, times=10**9)

    def none(self) -> None:
        """Forget what is planned, and what has been called."""
        self._planned.clear()
        self.calls.clear()

    def wrap(self, call: Call) -> Call:
        """Stand before `call`."""

        async def made(operation: str, parameters: dict[str, Any]) -> Any:
            self.calls.append(Made(operation, copy.copy(parameters)))
            if self.forgets_tokens and "ClientRequestToken" in parameters:
                parameters = parameters | {"ClientRequestToken": secrets.token_hex(16)}
            fault = self._due(operation)
            return await (
                call(operation, parameters) if fault is None else fault(call, operation, parameters)
            )

        return made

    def _due(self, operation: str) -> Fault | None:
        """Return the fault that this call meets; the first that was planned stands."""
        due: Fault | None = None
        for planned in self._planned:
            if planned.operation not in (None, operation):
                continue
            if planned.after:
                planned.after -= 1
            elif planned.times and due is None:
                planned.times -= 1
                due = planned.fault
        return due
