"""Fixtures of the tests on DynamoDB alone, on real time: a fleet's stores, which share two tables."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

import aioboto3
import pytest

from service.models.aws_http import new_session
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_client import Call
from service.stores.dynamodb_connection import connected
from tests.contracts.store_cases import NOW
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults

OpenStore = Callable[..., AbstractAsyncContextManager[DynamoStore]]
Connect = Callable[[], AbstractAsyncContextManager[Call]]


@pytest.fixture(scope="session")
def aws_session() -> aioboto3.Session:
    """Share what a session reads once."""
    return new_session()


@pytest.fixture
async def one_connection(tables: Tables, aws_session: aioboto3.Session) -> AsyncIterator[Connect]:
    """Connect once for all stores of a test: it is slow; closed after it."""
    async with connected(aws_session) as call:
        yield lambda: nullcontext(call)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def open_store(tables: Tables, one_connection: Connect, faults: Faults) -> OpenStore:
    """Open a store on the test's tables, under the test's faults; each call is another process."""

    def opening(
        *, deadline_s: float = 20.0, now_ms: int = NOW, tables: Tables = tables, faults: Faults = faults
    ) -> AbstractAsyncContextManager[DynamoStore]:
        return DynamoStore.open(
            usage_table=tables.usage,
            invocations_table=tables.invocations,
            deadline_s=deadline_s,
            now_ms=lambda: now_ms,
            connect=one_connection,
            wrap=faults.wrap,
        )

    return opening
