"""The stores that the contract suite of the port runs over: one fixture, one parameter per implementation."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from service.stores import Store
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_connection import connected
from service.stores.sqlite import SqliteStore
from tests.contracts.store_cases import NOW

# `make drill` asks for it: other examples every time, and ten times as many as in `test_store_model`.
settings.register_profile("drill", derandomize=False, max_examples=5_000)

# How each is opened, empty; what only one of them needs (`tables`), it asks for by `getfixturevalue`.
OPENING: Final[dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Store]]]] = {
    "sqlite-memory": lambda _: SqliteStore.open(":memory:"),
    "sqlite-file": lambda request: SqliteStore.open(_file(request)),
    "dynamodb": lambda request: DynamoStore.open(
        **request.getfixturevalue("tables").names,
        now_ms=lambda: NOW,
        connect=partial(connected, request.getfixturevalue("aws")),
    ),
}


@pytest.fixture(params=OPENING)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Open an empty store; closed after the test."""
    async with OPENING[request.param](request) as opened:
        yield opened


def _file(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("tmp_path")
    return folder / "store.sqlite"
