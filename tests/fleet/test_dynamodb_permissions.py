"""What a role may not do with the tables stops the start, action by action; operators may do less."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from service.config import ConfigError
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_client import Call
from tests.dynamodb import Tables


def denying(operation: str, action: str, table: str) -> Callable[[Call], Call]:
    """Refuse an operation on a table as IAM does."""
    message = f"User: arn:aws:sts::1:x is not authorized to perform: {action} on resource: arn:aws:x/{table}"

    def wrap(call: Call) -> Call:
        async def guarded(asked: str, parameters: dict[str, Any]) -> Any:
            if asked == operation and table in repr(parameters):
                error = {"Code": "AccessDeniedException", "Message": message}
                raise ClientError({"Error": error}, asked)
            return await call(asked, parameters)

        return guarded

    return wrap


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("TransactWriteItems", "dynamodb:ConditionCheckItem"),
        ("GetItem", "dynamodb:GetItem"),
        ("BatchGetItem", "dynamodb:BatchGetItem"),
        ("BatchWriteItem", "dynamodb:BatchWriteItem"),
        ("Query", "dynamodb:Query"),
    ],
)
async def test_a_missing_permission_is_one_line_and_an_operators_command_asks_for_none(
    operation: str, action: str, tables: Tables
) -> None:
    wrap = denying(operation, action, tables.usage)

    with pytest.raises(ConfigError) as refused:
        async with DynamoStore.open(
            usage_table=tables.usage, invocations_table=tables.invocations, probe=True, wrap=wrap
        ):
            pass
    async with DynamoStore.open(
        usage_table=tables.usage, invocations_table=tables.invocations, wrap=wrap
    ) as store:
        assert await store.load_invocation("inv_1") is None

    assert refused.value.faults == [
        f"HEADRACE_USAGE_TABLE: the permission {action} on the table {tables.usage} is missing"
    ]


async def test_the_probe_writes_nothing_where_everything_is_permitted(tables: Tables) -> None:
    asked: list[tuple[str, Any]] = []

    def noting(call: Call) -> Call:
        async def noted(operation: str, parameters: dict[str, Any]) -> Any:
            asked.append((operation, parameters))
            return await call(operation, parameters)

        return noted

    async with DynamoStore.open(
        usage_table=tables.usage, invocations_table=tables.invocations, probe=True, wrap=noting
    ) as store:
        account = await store.account("-probe", 1_795_279_200_000)

    assert [operation for operation, _ in asked].count("TransactWriteItems") == 2
    assert (account.reserved_tokens, account.running) == (0, 0)
    assert [window.used_tokens for window in account.windows] == [0, 0]
