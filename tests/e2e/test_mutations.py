"""A wrong template fails an end-to-end check, before it can fail a caller.

Each fault of `tests/mutations.py` is enforced by a gateway of its own, in front of one stack.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from local.gateway import serving
from local.issuer import AUDIENCE
from local.stack import Stack
from tests.e2e.client import CATALOG, Caller, calling
from tests.e2e.edge_checks import CHECKS
from tests.edge import extract
from tests.mutations import MUTATIONS, Mutation

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Where 15 minutes are 2.25 s, the service ends its responses well before. What a failed check has left
# running is not waited for.
SEGMENTS = CATALOG.replace("heartbeat_s = 0.5", "heartbeat_s = 0.2\nsegment_s = 1.2").replace(
    "drain_s = 20", "drain_s = 0"
)
SCALES = {mutation.caught_by: mutation.scale for mutation in MUTATIONS}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    async with Stack(directory, catalog=SEGMENTS, answers="scripts", gateway=None) as stack:
        yield stack


@asynccontextmanager
async def through(stack: Stack, api: Mapping[str, Any], scale: float) -> AsyncIterator[Caller]:
    """Be a principal at a gateway that enforces an extract."""
    services = [service.url for service in stack.services]
    async with (
        serving(api, services, issuer=stack.issuer_url, client_ids=[AUDIENCE], scale=scale) as url,
        calling(stack) as caller,
    ):
        yield caller.at(url)


@pytest.mark.promise("outlasts-the-edge", "segment-ends-with-reconnect")
@pytest.mark.parametrize("check", CHECKS)
async def test_the_template_as_it_is_passes(stack: Stack, check: str) -> None:
    async with through(stack, extract(), SCALES[check]) as ann:
        await CHECKS[check](stack, ann)


@pytest.mark.promise("wrong-template-found")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
async def test_a_wrong_template_fails(stack: Stack, mutation: Mutation) -> None:
    async with through(stack, mutation.of_extract(extract()), mutation.scale) as ann:
        with pytest.raises(AssertionError):
            await CHECKS[mutation.caught_by](stack, ann)
