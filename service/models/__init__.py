"""The port of upstreams: one model call, delivered as batches of ConverseStream frames.

`runtimes.metered` calls `models.route`, which goes from one upstream to the next; `models.bedrock` and
`models.openai_compat` are the upstreams.

A frame is an event type and the payload's bytes, unparsed: `(b"contentBlockDelta",
b'{"delta":{"text":"Hel"},...}')`. What arrived together in one read is delivered in one call, straight from
the connection's callback: no task switch, queue or timer per delta (docs/decisions/0002-model-port.md has the
measurement).

A stream is complete when `messageStop` *and* the end of the stream were seen; every other ending is an error.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from service.config import NO_OPTIONS, ModelOptions
from service.errors import UpstreamError

CALL_METADATA: Final = "headrace:call"
"""Says in the upstream's own logs which model call this is: `<invocation>:<attempt>:<turn>`."""

Frame = tuple[bytes, bytes]
"""(event type, payload)."""

Deliver = Callable[[Sequence[Frame]], Awaitable[None] | None]
"""Take a batch, synchronously, without raising. An awaitable means: read no more until it is done."""


async def _at_once() -> None:
    """Wait for nothing."""


async def _given_up(_: UpstreamError) -> None:
    """Wait for nothing."""


class ModelRequest(NamedTuple):
    """One model call, in Bedrock Converse's shapes (dicts as its JSON documents; bytes members in base64).

    An upstream carries all `options` or is not configured with them; of cache points, those that it has.
    `max_tokens` is always sent upstream: what is unset reserves the model's maximum of the account's quota.
    `before_try` is awaited before each try, the first one too, and ahead of the pause before a further one:
    what was tried until then is over and has cost nothing. What it raises ends the call. `may_send` is asked
    right before the first byte of a try leaves: if it says no, nothing is sent, and `before_try` is awaited
    again.

    A route (`models.route`) goes from model to model: `ask` is told the name of each, before it is tried.
    `give_up` is awaited, once for each model whose failure does not end the call, with that failure, before
    the next one is tried: it may have cost tokens (`billed`). What it raises ends the call. A model that
    `has_successor` is not tried again by its adapter.
    """

    model_id: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    system: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    request_metadata: Mapping[str, str] = MappingProxyType({})
    options: ModelOptions = NO_OPTIONS
    before_try: Callable[[], Awaitable[None]] = _at_once
    may_send: Callable[[], bool] = lambda: True
    ask: Callable[[str], None] = lambda _: None
    give_up: Callable[[UpstreamError], Awaitable[None]] = _given_up
    has_successor: bool = False


class Model(Protocol):
    """An upstream that answers Converse-shaped requests."""

    async def converse(self, request: ModelRequest, deliver: Deliver) -> None:
        """Make one call and deliver its frames; return when the stream has ended well.

        Cancelling it closes the upstream connection before it returns. It retries nothing once a frame was
        delivered. After it returned or raised, `deliver` is not called again.

        Raises:
            UpstreamError: A refusal (nothing delivered) or a failure (`billed` says whether the call may have
                cost tokens); a stream that ends without `messageStop` is `UpstreamFailed`.
        """
        ...
