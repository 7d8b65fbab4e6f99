"""What `BedrockModel.open` finds in the environment: credentials, region, endpoint, proxies, certificates."""

from pathlib import Path

import pytest

from service.config import ConfigError
from service.errors import (
    UpstreamMisconfigured,
)
from service.models import Frame
from tests.bedrock import OK, REQUEST, START, STOP, bedrock, opened
from tests.scripted_http import (
    certify,
    replies,
    scripted,
)


async def test_no_credentials_are_a_misconfiguration(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bedrock(replies(OK), monkeypatch) as (_, server):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        async with opened() as model:
            with pytest.raises(UpstreamMisconfigured) as caught:
                await model.converse(REQUEST, lambda _: None)

    assert (caught.value.billed, server.requests) == (False, [])


async def test_a_region_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")

    with pytest.raises(ConfigError) as caught:
        async with opened():
            pass

    assert caught.value.faults == ["AWS_REGION is not set"]


async def test_an_endpoint_must_be_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "nonsense")

    with pytest.raises(ConfigError, match="the client for bedrock-runtime can't be made"):
        async with opened():
            pass


async def test_a_proxy_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")

    with pytest.raises(ConfigError) as caught:
        async with opened():
            pass

    host = "bedrock-runtime.us-east-1.amazonaws.com"
    assert caught.value.faults == [
        f"HTTPS_PROXY is set, but calls to AWS go through no proxy: add {host} to NO_PROXY"
    ]


async def test_a_proxy_is_no_matter_for_an_endpoint_on_this_machine_or_in_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with bedrock(replies(OK), monkeypatch) as (model, server):
        await model.converse(REQUEST, lambda _: None)
    monkeypatch.delenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME")
    monkeypatch.setenv("NO_PROXY", "amazonaws.com")
    async with opened():
        pass

    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [None, "nonsense"])
async def test_a_ca_bundle_must_be_usable(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))

    with pytest.raises(ConfigError, match=r"the CA bundle .* can't be used"):
        async with opened():
            pass


async def test_the_ca_bundle_of_the_environment_is_the_one_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_tls, ca_file = certify(tmp_path)
    frames: list[Frame] = []
    async with scripted(replies(OK), tls=server_tls) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        async with opened() as model:
            with pytest.raises(UpstreamMisconfigured) as caught:
                await model.converse(REQUEST, lambda _: None)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ca_file))
        async with opened() as model:
            await model.converse(REQUEST, frames.extend)

    assert (caught.value.billed, frames) == (False, [START, STOP])
