"""The stores that the contract suite of the port runs over: one fixture, one parameter per implementation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.stores.sqlite import SqliteStore


@pytest.fixture(params=["sqlite-memory", "sqlite-file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Open an empty store; closed after the test."""
    path = ":memory:" if request.param == "sqlite-memory" else tmp_path / "store.sqlite"
    async with SqliteStore.open(path) as opened:
        yield opened
