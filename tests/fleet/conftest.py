"""Fixtures of the tests on DynamoDB alone, on real time: a fleet's stores, which share two tables."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import aioboto3
import pytest

from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_connection import connected, new_session
from tests.contracts.store_cases import NOW
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults

OpenStore = Callable[..., AbstractAsyncContextManager[DynamoStore]]


class OneClient:
    """Stands for AWS's session, and gives all stores the same client: one is slow to make."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def client(self, *_: object, **__: object) -> AbstractAsyncContextManager[Any]:
        return nullcontext(self._client)


@pytest.fixture(scope="session")
def aws_session() -> aioboto3.Session:
    """Share what a session reads once."""
    return new_session()


@pytest.fixture
async def one_client(tables: Tables, aws_session: aioboto3.Session) -> AsyncIterator[OneClient]:
    """Make the client that all stores of a test use; closed after it."""
    async with connected(aws_session) as client:
        yield OneClient(client)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def open_store(tables: Tables, one_client: Any, faults: Faults) -> OpenStore:
    """Open a store on the test's tables, under the test's faults; each call is another process."""

    def opening(
        *, deadline_s: float = 20.0, now_ms: int = NOW, tables: Tables = tables, faults: Faults = faults
    ) -> AbstractAsyncContextManager[DynamoStore]:
        return DynamoStore.open(
            usage_table=tables.usage,
            invocations_table=tables.invocations,
            deadline_s=deadline_s,
            now_ms=lambda: now_ms,
            session=one_client,
            wrap=faults.wrap,
        )

    return opening
