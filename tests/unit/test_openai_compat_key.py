"""The API key of an OpenAI-compatible server: read, replaced when it is refused, kept fresh, never shown."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.config import ConfigError
from service.errors import UpstreamMisconfigured
from service.models.openai_compat_key import AT_ONCE_S, REFRESH_S, ApiKey, SecretUnreadable
from tests.bedrock import FOREIGN
from tests.clock import ManualClock
from tests.openai_compat import KEY, OK, REQUEST, opened, refusal
from tests.scripted_http import Peer, Received, ScriptedServer, scripted, sized

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:vllm-AbCdEf"


class Secrets:
    """Secrets Manager with one secret: a text, or the code of a refusal."""

    def __init__(self, text: str = KEY) -> None:
        self.text = text
        self.refused = ""
        self.answered = asyncio.Semaphore(0)
        self.requests: list[Received] = []

    async def play(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.request())
            body: dict[str, Any] = {"ARN": ARN, "SecretString": self.text}
            if self.refused:
                body = {"__type": self.refused, "message": FOREIGN}
            kind = "application/x-amz-json-1.1"
            await peer.send(sized(400 if self.refused else 200, json.dumps(body).encode(), content_type=kind))
            self.answered.release()


class Server:
    """An upstream that accepts one key."""

    def __init__(self, accepted: str = KEY) -> None:
        self.accepted = accepted
        self.keys: list[str] = []

    async def play(self, peer: Peer) -> None:
        while True:
            got = await peer.request()
            self.keys.append(got.headers["Authorization"].removeprefix("Bearer "))
            good = self.keys[-1] == self.accepted
            await peer.send(OK if good else refusal(401, {"code": "invalid_api_key"}))


@asynccontextmanager
async def endpoint(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedServer]:
    async with scripted(secrets.play) as manager:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", manager.url)
        yield manager


@asynccontextmanager
async def calling(secrets: Secrets, server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    async with (
        endpoint(secrets, monkeypatch),
        scripted(server.play) as upstream,
        opened(upstream.url, api_key_secret=ARN) as model,
    ):
        yield model


async def fault_of_opening(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    async with endpoint(secrets, monkeypatch):
        with pytest.raises(ConfigError) as caught:
            async with opened("http://127.0.0.1:9", api_key_secret=ARN):
                pass
    return caught.value.faults


@pytest.mark.parametrize(
    "text",
    [KEY, f" {KEY}\n", json.dumps({"api_key": KEY, "owner": "search"}), json.dumps({"api_key": f"{KEY} "})],
)
async def test_the_secrets_text_or_its_member_api_key_is_sent(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets, server = Secrets(text), Server()
    async with calling(secrets, server, monkeypatch) as model:
        await model.converse(REQUEST, lambda _: None)
        await model.converse(REQUEST, lambda _: None)

    (asked,) = secrets.requests
    assert (server.keys, json.loads(asked.body)) == ([KEY, KEY], {"SecretId": ARN})
    assert "/eu-west-1/secretsmanager/" in asked.headers["Authorization"]


async def test_a_key_that_was_rotated_is_fetched_and_the_call_made_again(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    secrets, server = Secrets("old"), Server("new")
    fetched: list[int] = []  # at each time that what was tried is said to be over

    async def before_try() -> None:
        fetched.append(len(secrets.requests))

    async with calling(secrets, server, monkeypatch) as model:
        clock.pass_time(AT_ONCE_S)
        secrets.text = "new"
        request = type(REQUEST)(REQUEST.model_id, REQUEST.messages, 100, before_try=before_try)
        await model.converse(request, lambda _: None)

    assert (server.keys, fetched) == (["old", "new"], [1, 1, 2])


async def test_a_key_that_stays_refused_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    secrets, server = Secrets("wrong"), Server()
    async with calling(secrets, server, monkeypatch) as model:
        clock.pass_time(AT_ONCE_S)
        refusals = [
            await asyncio.gather(model.converse(REQUEST, lambda _: None), return_exceptions=True)
            for _ in range(3)
        ]

    errors = [error for (error,) in refusals if isinstance(error, UpstreamMisconfigured)]
    assert [(error.code, error.billed) for error in errors] == [("upstream-misconfigured", False)] * 3
    assert (server.keys, len(secrets.requests)) == (["wrong"] * 3, 2)


async def test_many_calls_that_are_refused_at_once_fetch_the_key_once(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    secrets, server = Secrets("old"), Server("new")
    async with calling(secrets, server, monkeypatch) as model:
        clock.pass_time(AT_ONCE_S)
        secrets.text = "new"
        await asyncio.gather(*(model.converse(REQUEST, lambda _: None) for _ in range(4)))

    assert (sorted(server.keys), len(secrets.requests)) == (["new"] * 4 + ["old"] * 4, 2)


async def test_calls_that_wait_for_a_key_that_is_slow_to_be_refused_do_not_ask_for_it_again(
    clock: ManualClock,
) -> None:
    fetched: list[float] = []

    async def fetch() -> str:
        fetched.append(clock.monotonic_s())
        await asyncio.sleep(2 * AT_ONCE_S)
        raise SecretUnreadable("AccessDeniedException")

    key = ApiKey("old", fetch)
    await clock.advance(AT_ONCE_S)
    waiting = [asyncio.ensure_future(key.replaced("old")) for _ in range(3)]

    await clock.advance(10 * AT_ONCE_S)

    assert ([await each for each in waiting], len(fetched)) == ([False] * 3, 1)


async def test_a_key_of_the_environment_that_is_refused_is_sent_once() -> None:
    server = Server("another")
    async with scripted(server.play) as upstream, opened(upstream.url, key=KEY) as model:
        with pytest.raises(UpstreamMisconfigured):
            await model.converse(REQUEST, lambda _: None)

    assert server.keys == [KEY]


async def test_the_key_is_read_again_every_five_minutes(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    secrets, server = Secrets("old"), Server("new")
    async with calling(secrets, server, monkeypatch) as model:
        await secrets.answered.acquire()
        secrets.text = "new"
        await clock.advance(REFRESH_S)
        await secrets.answered.acquire()
        await model.converse(REQUEST, lambda _: None)

    assert server.keys == ["new"]


async def test_while_the_secret_can_not_be_read_the_last_key_is_used(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    secrets, server = Secrets(), Server()
    async with calling(secrets, server, monkeypatch) as model:
        await secrets.answered.acquire()
        secrets.refused = "AccessDeniedException"
        await clock.advance(REFRESH_S)
        await secrets.answered.acquire()
        await model.converse(REQUEST, lambda _: None)

    (record,) = [each for each in caplog.records if each.name.startswith("service.")]
    assert (server.keys, record.levelname, record.getMessage()) == ([KEY], "WARNING", "api key not refreshed")
    assert vars(record)["upstream_code"] == "AccessDeniedException"


@pytest.mark.promise("keys-stay-private")
@pytest.mark.parametrize(
    "text",
    ["", "a key with spaces", "kéy", '{"key": "secret-text"}', '{"api_key": ["secret-text"]}', "x" * 8193],
)
async def test_a_secret_that_holds_no_key_stops_the_start_and_is_not_shown(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        faults = await fault_of_opening(Secrets(text), monkeypatch)

    assert faults == [
        "upstreams.vllm.api_key_secret can't be read: it holds no key: printable ASCII, no spaces"
    ]
    assert not text or text not in str([vars(record) for record in caplog.records])


async def test_a_secret_that_may_not_be_read_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets()
    secrets.refused = "AccessDeniedException"

    faults = await fault_of_opening(secrets, monkeypatch)

    assert faults == ["upstreams.vllm.api_key_secret can't be read: AccessDeniedException"]


async def test_a_secrets_manager_that_can_not_be_reached_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    async with scripted(Secrets().play) as gone:
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", gone.url)

    async def start() -> None:
        async with opened("http://127.0.0.1:9", api_key_secret=ARN):
            pass

    starting = asyncio.create_task(start())
    await clock.advance(30)

    with pytest.raises(ConfigError, match="can't be read: EndpointConnectionError"):
        await starting


async def test_an_endpoint_that_is_no_url_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "nonsense")

    with pytest.raises(ConfigError, match=r"upstreams.vllm.api_key_secret: Invalid endpoint"):
        async with opened("http://127.0.0.1:9", api_key_secret=ARN):
            pass
