"""One metered model call: held before it, settled after it, read on for its usage where it is cut short.

    reserve ─> enter ─> model.converse ─┬─ returned ─────────> the caller settles what was heard
                                        ├─ failed ───────────> noted: what it cost, or nothing
                                        └─ cancelled ─ read on ─> noted: reported, or estimated

`runtimes.converse` makes one in each turn, `runtimes.python` one for each call of its agent. Whatever ends a
call, its turn is settled: by the caller where it returned, by `settle_at_end` where it raised.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from service.errors import BudgetExceeded, QuotaExceeded, UpstreamError
from service.invocations import Usage
from service.ledger import input_bound_tokens, options_bound_tokens
from service.models import Deliver, Model, ModelRequest
from service.runtimes import Effects
from service.runtimes.heard import Heard


def hold_tokens(request: ModelRequest) -> int:
    """Return the most that a call can use: a bound of its input, and all that it may generate."""
    return _input_bound(request) + request.max_tokens


async def call_model(
    model: Model,
    request: ModelRequest,
    turn: int,
    effects: Effects,
    *,
    deliver: Deliver,
    is_held: bool,
    keep: bool = False,
    grace_s: Callable[[], float] | None = None,
) -> Heard:
    """Make one call and return what it said; its settlement is then the caller's.

    Args:
        turn: Unique in its attempt.
        is_held: Its hold was made at the admission, or when the invocation was resumed.
        keep: Whether the next turn may need what it said.
        grace_s: How long it is read on when it is cancelled; by default as `effects` say.

    Raises:
        UpstreamError: It was refused or failed.
        QuotaExceeded, BudgetExceeded, Fenced: It may not be made.
    """
    if not is_held:
        await _reserve(turn, hold_tokens(request), effects)
    heard = Heard(deliver, input_bound=_input_bound(request), max_output=request.max_tokens, keep=keep)
    tries = _Tries(turn, effects, heard)
    call = asyncio.ensure_future(model.converse(tries.guard(request), heard))
    try:
        await asyncio.shield(call)
    except BaseException as error:
        tries.is_over = True
        try:
            if isinstance(error, asyncio.CancelledError):
                await _read_on(call, (grace_s or effects.usage_grace_s)() if tries.sent else 0)
        finally:
            effects.settle_at_end(turn, _used(call, heard) if tries.sent else Usage())
        raise
    return heard


class _Tries:
    """The tries of one call: each may be made if this process may act, and is paid for if it was sent.

    Attributes:
        sent: The try that is made may have reached its model, and was not refused.
        is_over: The call was cut short: no further try is made.
    """

    __slots__ = ("_effects", "_heard", "_turn", "is_over", "sent")

    def __init__(self, turn: int, effects: Effects, heard: Heard) -> None:
        self.sent = self.is_over = False
        self._turn = turn
        self._effects = effects
        self._heard = heard

    def guard(self, request: ModelRequest) -> ModelRequest:
        return replace(
            request,
            before_try=self._before_try,
            may_send=self._may_send,
            ask=self._ask,
            give_up=self._give_up,
        )

    def _ask(self, model: str) -> None:
        self._effects.ask(self._turn, model)

    async def _before_try(self) -> None:
        self.sent = False
        if self.is_over:
            raise asyncio.CancelledError
        await self._effects.enter("model", self._turn)

    def _may_send(self) -> bool:
        self.sent = self._effects.may_act()
        return self.sent

    async def _give_up(self, failure: UpstreamError) -> None:
        """Charge what the model that is given up may have cost; the call's hold is then the next one's."""
        if self.is_over:
            raise failure
        self.sent = False
        try:
            used = self._heard.usage if failure.billed else Usage()
            await self._effects.give_up(self._turn, failure.code, used)
        except (QuotaExceeded, BudgetExceeded):  # no room for another call: this one fails as it did
            self.sent = True
            raise failure from None


def _input_bound(request: ModelRequest) -> int:
    bound = input_bound_tokens(request.system, request.messages, request.tools)
    return bound + options_bound_tokens(request.options)


async def _reserve(turn: int, tokens: int, effects: Effects) -> None:
    try:
        await effects.reserve(turn, tokens)
    except asyncio.CancelledError:  # the hold may be there, but no call was made
        effects.settle_at_end(turn, Usage())
        raise


async def _read_on(call: asyncio.Future[None], grace_s: float) -> None:
    """Let a cancelled call go on for a moment, since its usage comes last; then end it, however it ends."""
    try:
        if grace_s:
            await asyncio.wait([call], timeout=grace_s)
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


def _used(call: asyncio.Future[None], heard: Heard) -> Usage:
    """Return what a call that failed or was cut short has used: it was made, so it is paid for.

    Unless the upstream refused it before it generated anything.
    """
    error = call.exception() if call.done() and not call.cancelled() else None
    refused = isinstance(error, UpstreamError) and not error.billed and not heard.generated
    return Usage() if refused else heard.usage
