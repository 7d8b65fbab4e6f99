"""The bench's DynamoDB that answers at once: what the store asks of it for its own work is answered."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.canned import Conversation
from bench.decisions import measure as measure_decisions
from service.app import open_store
from service.config import ServiceConfig
from service.events import Block
from service.stores import EventBlock

PLACE = "dynamodb:usage:invocations"


@pytest.fixture
async def _canned(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    server = await asyncio.get_running_loop().create_server(Conversation, "127.0.0.1", 0)
    async with server:
        monkeypatch.setenv(
            "AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        )
        yield


@pytest.mark.usefixtures("_canned")
async def test_invocations_begin_and_end_on_it() -> None:
    found = await measure_decisions(PLACE, settle_s=0.0, window_s=0.1)

    assert found["decided"] > 0
    assert 0 < found["decisions_ms"] < 1000


@pytest.mark.usefixtures("_canned")
async def test_a_first_attempt_may_write_its_log() -> None:
    blocks = [EventBlock(f"inv_{number}", Block(1, 1, (b"{}",))) for number in range(30)]

    async with open_store(PLACE, ServiceConfig()) as store:
        fenced = await store.append_events(blocks, 0)

    assert fenced == frozenset()
