"""Composition: what the process needs to start, to be ready and to go on, and what it makes and cleans up."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import FrameType

import aiohttp
import pytest

from service.app import (
    CROCKFORD,
    JWKS_LIMIT_BYTES,
    Adapters,
    Fetch,
    InvocationIds,
    create_app,
    jwks_client,
    open_store,
    open_upstreams,
)
from service.app_runtimes import load_parts
from service.attempt import LONGEST_POSTPONEMENT_S
from service.config import Catalog, ConfigError, Limits, ServiceConfig, Settings, UpstreamConfig
from service.errors import IssuerUnavailable
from service.models.bedrock import BedrockModel
from service.models.openai_compat import OpenAICompatModel
from service.stores import Store
from service.takeover import LONGEST_LOOK_S
from tests.asgi import lifespan
from tests.clock import ManualClock
from tests.fakes import ScriptedModel, answer
from tests.harness import INVOCATIONS, serving
from tests.id_tokens import CLIENT, ISSUER, ScriptedIssuer, bearer, jwks
from tests.unit.test_pause import TIGHT, costly_turn, paused, record_of

CATALOG = Catalog.from_document(
    {
        "upstreams": {"bedrock": {"kind": "bedrock"}},
        "runtimes": {"writer": {"kind": "converse", "model": "bedrock/m"}},
    }
)
SETTINGS = Settings(ISSUER, (CLIENT,), "https://keys", "sqlite::memory:")
DAY_S = 24 * 3600


# -- readiness


async def test_without_the_issuers_keys_a_process_is_alive_but_not_ready(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(OSError("no route to host"))
    async with serving(clock, issuer=issuer) as served:
        ping, ready = [await served.client.request("GET", path) for path in ("/ping", "/ready")]
        refused = await served.submit()
        issuer.answer = jwks()
        await clock.advance(2)
        later = await served.client.request("GET", "/ready")
        admitted = await served.submit()

    error = IssuerUnavailable("The token issuer's keys can't be loaded at the moment; try again.")
    assert (ping.status, ready.status, ready.json()) == (200, 503, {"ready": False})
    assert (refused.status, refused.json()) == (503, error.problem())
    assert refused.headers["retry-after"] == "5"
    assert (later.status, admitted.status) == (200, 200)


@asynccontextmanager
async def key_server(head: bytes, body: bytes = b"") -> AsyncIterator[str]:
    """Serve one response to each request; gives the URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        writer.write(b"HTTP/1.1 " + head + b"\r\n" + length + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"


async def test_the_issuers_keys_are_fetched_as_they_are() -> None:
    async with key_server(b"200 OK", jwks()) as url, jwks_client() as fetch:
        assert await fetch(url) == jwks()


async def test_an_issuer_that_refuses_gives_no_keys() -> None:
    async with key_server(b"500 Oh no") as url, jwks_client() as fetch:
        with pytest.raises(aiohttp.ClientResponseError):
            await fetch(url)


async def test_a_redirect_is_not_followed_for_keys() -> None:
    async with key_server(b"200 OK", jwks()) as elsewhere:
        redirect = b"302 Found\r\nlocation: " + elsewhere.encode()
        async with key_server(redirect, b"moved") as url, jwks_client() as fetch:
            assert await fetch(url) == b"moved"


async def test_keys_that_are_larger_than_any_issuers_are_not_read_to_their_end() -> None:
    async with key_server(b"200 OK", b" " * (JWKS_LIMIT_BYTES + 1)) as url, jwks_client() as fetch:
        with pytest.raises(ValueError, match="larger than any issuer's"):
            await fetch(url)


# -- opening


async def test_the_store_and_the_upstreams_that_are_configured_are_opened() -> None:
    vllm = UpstreamConfig("far", "openai", base_url="http://127.0.0.1:9/v1")
    catalog = replace(CATALOG, upstreams={"near": UpstreamConfig("near", "bedrock"), "far": vllm})

    async with open_store("sqlite::memory:") as store, open_upstreams(catalog) as upstreams:
        account = await store.account("user-1", 0)

        assert (account.running, account.reserved_tokens) == (0, 0)
        assert {name: type(model) for name, model in upstreams.items()} == {
            "near": BedrockModel,
            "far": OpenAICompatModel,
        }


async def test_each_runtime_calls_the_upstream_that_its_model_names(clock: ManualClock) -> None:
    second = ScriptedModel(answer("from the second"))
    catalog = """
    [upstreams.second]
    kind = "bedrock"
    [runtimes.poet]
    kind = "converse"
    model = "second/model-2"
    """
    async with serving(clock, catalog=catalog, upstreams={"second": second}) as served:
        for runtime in ("writer", "poet", "poet"):
            await served.submit(path=f"/runtimes/{runtime}/invocations")

    assert [request.model_id for request in served.model.requests] == ["model-1"]
    assert [request.model_id for request in second.requests] == ["model-2"] * 2


@pytest.mark.parametrize("is_handed_on", [True, False])
async def test_a_fault_that_opening_shows_fails_the_start_and_is_handed_on(is_handed_on: bool) -> None:
    noted: list[ConfigError] = []

    @asynccontextmanager
    async def open_jwks() -> AsyncIterator[Fetch]:
        yield lambda _: ScriptedIssuer().fetch_jwks()

    def fails(_: str, __: ServiceConfig) -> AbstractAsyncContextManager[Store]:
        raise ConfigError(["the store's file is from a newer version"])

    adapters = Adapters(open_store=fails, open_jwks=open_jwks)
    hand_on = noted.append if is_handed_on else None
    app = create_app(SETTINGS, CATALOG, adapters=adapters, on_config_error=hand_on)

    with pytest.raises(AssertionError, match=r"lifespan.startup.failed"):
        await AsyncExitStack().enter_async_context(lifespan(app))

    expected = [["the store's file is from a newer version"]] if is_handed_on else []
    assert [error.faults for error in noted] == expected


def test_all_faults_of_all_runtimes_tools_are_told_at_once() -> None:
    tables = {
        "writer": {"kind": "converse", "model": "bedrock/m", "tools": ["nowhere.at_all:search"]},
        "editor": {"kind": "converse", "model": "bedrock/m", "tools": ["tests.harness:serving"]},
        "plain": {"kind": "converse", "model": "bedrock/m"},
    }
    catalog = Catalog.from_document({"upstreams": {"bedrock": {"kind": "bedrock"}}, "runtimes": tables})

    with pytest.raises(ConfigError) as caught:
        load_parts(catalog)

    assert caught.value.faults == [
        (
            "runtimes.writer.tools: tool nowhere.at_all:search can't be imported: ModuleNotFoundError: "
            "No module named 'nowhere'"
        ),
        (
            "runtimes.editor.tools: tool tests.harness:serving is not a tool: decorate it with "
            "service.tools.tool"
        ),
    ]
    with pytest.raises(ConfigError):
        create_app(SETTINGS, catalog)


# -- ids


def test_an_invocation_id_is_a_ulid_of_its_time() -> None:
    # The time part of the example in https://github.com/ulid/spec.
    new_id = InvocationIds()

    ids = {new_id(1469918176385) for _ in range(1000)}

    assert len(ids) == 1000
    assert all(re.fullmatch(f"inv_01ARYZ6S41[{CROCKFORD}]{{16}}", each) for each in ids)


def test_invocation_ids_sort_by_time() -> None:
    new_id = InvocationIds()

    ids = [new_id(2**exponent) for exponent in range(48)]

    assert ids == sorted(ids)


# -- what goes on in the background


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """The SIGTERMs that this process got."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = signal.signal(signal.SIGTERM, note)
    yield signals
    signal.signal(signal.SIGTERM, before)


async def test_a_background_task_that_fails_makes_the_process_drain(
    clock: ManualClock, terminated: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(clock) as served:
        await clock.advance(0)
        served.store.only, served.store.broken = {"claim_expired"}, RuntimeError("disk on fire")
        await clock.advance(11)

    assert terminated == [signal.SIGTERM]
    assert [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"] == [
        "background task failed"
    ]


@pytest.mark.promise("pauses-at-quota")
async def test_a_paused_invocation_that_can_not_be_resumed_is_logged_and_nothing_else_ends(
    clock: ManualClock, terminated: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(clock, costly_turn(9500), answer("42"), catalog=TIGHT) as served:
        location = await paused(served)
        served.store.only, served.store.broken = {"resume"}, ValueError("not to be understood")
        clock.pass_time(DAY_S + 600)
        await clock.advance(LONGEST_POSTPONEMENT_S)
        served.store.broken = None
        await clock.advance(LONGEST_LOOK_S)
        record = await record_of(served, location)

    assert (terminated, record["state"]) == ([], "completed")
    assert {each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")} == {
        "can't be resumed or ended"
    }


async def test_tasks_that_end_with_the_process_are_no_failure(
    clock: ManualClock, terminated: list[int]
) -> None:
    async with serving(clock):
        await clock.advance(100)

    assert terminated == []


async def test_ended_invocations_are_forgotten_when_their_retention_is_over(clock: ManualClock) -> None:
    async with serving(clock) as served:
        location = (await served.submit()).headers["location"]
        clock.pass_time(DAY_S - 1800)
        token = bearer({"iat": clock.now_ms() // 1000, "exp": clock.now_ms() // 1000 + 3600})
        await clock.advance(1)
        kept = await served.get(location, authorization=token)
        await clock.advance(1800 + 721)
        forgotten = await served.get(location, authorization=token)
        listed = await served.get(INVOCATIONS, authorization=token)

    assert (kept.status, forgotten.status, listed.json()) == (200, 404, {"invocations": []})


async def test_a_purge_that_the_store_can_not_do_is_tried_again(clock: ManualClock) -> None:
    async with serving(clock) as served:
        await clock.advance(0)
        served.store.only, served.store.down = {"purge"}, True
        await clock.advance(721)
        served.store.down = False
        await clock.advance(721)

        assert served.store.calls.count("purge") >= 3


def test_limits_of_the_catalog_without_any_are_the_documented_ones() -> None:
    assert CATALOG.limits_of(("writers",)) == Limits(200_000, 2_000_000, 8, 500_000)
