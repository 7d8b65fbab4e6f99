"""The service with failpoints: it kills itself with SIGKILL at one step of one invocation.

`test_crash` starts it in the place of `service`: ``python -m tests.e2e.failing_service``. A step is a call of
the store for the first invocation that is submitted to the process, and each is logged when it is done:

    settle:1                          SQLite: the first decision of this kind, as the port has it
    settle:TransactWriteItems:1       DynamoDB: the first call of this kind on the wire, under that decision

The invocation's session id names the failpoint: `settle:1:before`, when the store knows nothing of the step
yet, or `settle:1:after`, when it is durable and nobody in the process knows. Any other session id is no
failpoint. Nothing is taken over here, so that an invocation dies once, and goes on elsewhere; but with
`TAKES_OVER` in its environment the process claims what it can, and dies as soon as a claim has landed.
"""

import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar, cast

import uvicorn

from service.app import Adapters, create_app
from service.config import DYNAMODB, Catalog, ServiceConfig, Settings
from service.stores import Claim, NewInvocation, Store
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_client import Call
from service.stores.sqlite import SqliteStore
from service.telemetry import configure_logging

logger = logging.getLogger("headrace.failpoints")

STEP: Final = "step done"
TAKES_OVER: Final = "FAILING_SERVICE_TAKES_OVER"
DECISIONS: Final = frozenset(
    {
        "create_invocation",
        "append_events",
        "settle",
        "complete_turn",
        "reserve",
        "finish",
        "hand_over",
        "pause",
    }
)
_Answer = TypeVar("_Answer")


class Failpoint:
    """Where the process dies, once an invocation has been submitted."""

    def __init__(self) -> None:
        self._invocation_id = ""
        self._point = ""
        self._counts: Counter[str] = Counter()

    def arm(self, new: NewInvocation) -> None:
        """Watch this invocation, if it is the first."""
        if not self._invocation_id:
            self._invocation_id, self._point = new.invocation_id, new.session_id or ""

    def watches(self, argument: Any) -> bool:
        """Tell whether a decision about this is one about the invocation."""
        return self._invocation_id in _invocation_ids(argument)

    async def step(self, kind: str, take: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Take a step, or die before or after it."""
        self._counts[kind] += 1
        name = f"{kind}:{self._counts[kind]}"
        self._pass(f"{name}:before")
        answer = await take()
        logger.info(STEP, extra={"step": name})
        self._pass(f"{name}:after")
        return answer

    def _pass(self, point: str) -> None:
        if point == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


def _invocation_ids(argument: Any) -> Iterator[str]:
    if isinstance(argument, str):
        yield argument
    elif isinstance(argument, Sequence):
        for each in argument:
            yield from _invocation_ids(each)
    else:
        yield argument.invocation_id


class Watched:
    """A store whose decisions about one invocation are steps, or consist of steps on the wire."""

    def __init__(self, store: Store, failpoint: Failpoint, decide: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._failpoint = failpoint
        self._decide = decide

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return partial(self._watch, name, method) if name in DECISIONS else method

    async def _watch(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        if name == "create_invocation":
            self._failpoint.arm(args[0])
        take = partial(method, *args, **named)
        return await (self._decide(name, take) if self._failpoint.watches(args[0]) else take())

    async def claim_expired(self, *args: Any, **named: Any) -> list[Claim]:
        """Leave what others have left to others, or die of it."""
        if TAKES_OVER in os.environ and await self._store.claim_expired(*args, **named):
            os.kill(os.getpid(), signal.SIGKILL)
        return []


_DECIDING: Final[ContextVar[str]] = ContextVar("_DECIDING", default="")


@asynccontextmanager
async def open_sqlite(place: str) -> AsyncIterator[Store]:
    """Open SQLite, whose steps are the port's decisions."""
    failpoint = Failpoint()
    async with SqliteStore.open(place) as store:
        yield cast(Store, Watched(store, failpoint, failpoint.step))


@asynccontextmanager
async def open_dynamodb(usage: str, invocations: str) -> AsyncIterator[Store]:
    """Open DynamoDB, whose steps are calls on the wire."""
    failpoint = Failpoint()

    async def decide(name: str, take: Callable[[], Awaitable[Any]]) -> Any:
        outer = _DECIDING.set(name)
        try:
            return await take()
        finally:
            _DECIDING.reset(outer)

    def wrap(call: Call) -> Call:
        async def called(operation: str, parameters: dict[str, Any]) -> Any:
            deciding = _DECIDING.get()
            take = partial(call, operation, parameters)
            return await (failpoint.step(f"{deciding}:{operation}", take) if deciding else take())

        return called

    async with DynamoStore.open(usage_table=usage, invocations_table=invocations, wrap=wrap) as store:
        yield cast(Store, Watched(store, failpoint, decide))


def open_store(store: str, config: ServiceConfig) -> AbstractAsyncContextManager[Store]:
    """Open the store that `Settings.store` names, with failpoints; how long it keeps things is its own."""
    kind, _, place = store.partition(":")
    return open_dynamodb(*place.split(":")) if kind == DYNAMODB else open_sqlite(place)


def main() -> None:
    """Serve until SIGTERM, whose way out is short here: what runs is handed over at once."""
    settings = Settings.from_env(os.environ)
    configure_logging()
    app = create_app(settings, Catalog.load(settings.catalog), adapters=Adapters(open_store=open_store))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
