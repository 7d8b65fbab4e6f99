"""One container for the tests that only look, beside an issuer and a scripted Bedrock endpoint."""

from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
import pytest_asyncio

from local.issuer import AUDIENCE
from local.places import clean_environ
from local.stack import Stack
from tests.e2e.client import WAIT_S, Caller
from tests.image.engine import Container, running
from tests.synthesis import ROOT


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Give everything around the service, and no service."""
    directory = tmp_path_factory.mktemp("stack")
    async with Stack(directory, catalog=ROOT / "headrace.toml", answers="scripts", services=0) as stack:
        yield stack


@pytest.fixture(scope="session")
def environ(stack: Stack) -> Mapping[str, str]:
    """Give what the task definition would say: where things are. Like DynamoDB, the store needs no disk."""
    return {
        **{name: value for name, value in clean_environ({}, aws=False).items() if name.startswith("AWS_")},
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": stack.bedrock.url,
        "HEADRACE_ISSUER": stack.issuer_url,
        "HEADRACE_AUDIENCES": AUDIENCE,
        "HEADRACE_STORE": "sqlite::memory:",
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def container(environ: Mapping[str, str]) -> AsyncIterator[Container]:
    """Give a container that serves on the image's own address."""
    async with running(environ) as container:
        yield container


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ann(stack: Stack, container: Container) -> AsyncIterator[Caller]:
    """Give a caller of it."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S, sock_read=WAIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Caller(session, container.url, await stack.token("ann"))
