"""One metered model call: held before it, settled after it, read on for its usage where it is cut short.

    reserve ─> enter ─> model.converse ─┬─ returned ─────────> the caller settles what was heard
                                        ├─ failed ───────────> noted: what it cost, or nothing
                                        └─ cancelled ─ read on ─> noted: reported, or estimated

`runtimes.converse` makes one in each turn, `runtimes.python` one for each call of its agent. Whatever ends a
call, its turn is settled: by the caller where it returned, by `settle_at_end` where it raised.
"""

import asyncio

from service.errors import BudgetExceeded, QuotaExceeded, UpstreamError
from service.invocations import Usage
from service.models import Model, ModelRequest
from service.runtimes import Effects
from service.runtimes.heard import Heard


class ModelCall:
    """One call: each of its tries may be made if this process may act, and is paid for if it was sent.

    It runs in its caller's task. Cancelled, it ends at once, unless it is told before to read on.

    Args:
        turn: Unique in its attempt.
        heard: What it says goes there.
    """

    __slots__ = ("_effects", "_heard", "_is_over", "_is_sent", "_timer", "_turn")

    def __init__(self, turn: int, effects: Effects, heard: Heard) -> None:
        self._turn = turn
        self._effects = effects
        self._heard = heard
        self._is_sent = False  # the try that is made may have reached its model, and was not refused
        self._is_over = False  # it was cut short: no further try is made
        self._timer: asyncio.TimerHandle | None = None

    async def made(self, model: Model, request: ModelRequest, *, is_held: bool) -> Heard:
        """Make the call and return what it said; its settlement is then the caller's.

        Args:
            is_held: Its hold was made at the admission, or when the invocation was resumed.

        Raises:
            UpstreamError: It was refused or failed.
            QuotaExceeded, BudgetExceeded, Fenced: It may not be made.
            CancelledError: It was cut short, however far it was read on.
        """
        if not is_held:
            await _reserve(self._turn, self._heard.most_tokens, self._effects)
        request = self._guarded(request)  # the other one is not kept as long as the stream
        try:
            await model.converse(request, self._heard)
        except BaseException as error:
            self._effects.settle_at_end(self._turn, self._used(error) if self._is_sent else Usage())
            if self._is_over and isinstance(error, Exception):
                raise asyncio.CancelledError from error
            raise
        finally:
            self._is_sent = False
            if self._timer is not None:
                self._timer.cancel()
        if self._is_over:
            self._effects.settle_at_end(self._turn, self._heard.usage)
            raise asyncio.CancelledError
        return self._heard

    def reads_on(self, task: asyncio.Task[None], grace_s: float) -> bool:
        """Let the call go on for a moment, since its usage comes last, and cancel `task`, its own, then.

        Returns:
            False: There is nothing to wait for: cancel it now.
        """
        if not self._is_sent or not grace_s:
            return False
        self._is_over = True
        self._timer = asyncio.get_running_loop().call_later(grace_s, task.cancel)
        return True

    def _used(self, error: BaseException) -> Usage:
        """Return what a call that failed or was cut short has used: it was made, so it is paid for.

        Unless the upstream refused it before it generated anything.
        """
        refused = isinstance(error, UpstreamError) and not error.billed and not self._heard.generated
        return Usage() if refused else self._heard.usage

    # -- what the upstream asks and tells

    def _guarded(self, request: ModelRequest) -> ModelRequest:
        return request._replace(
            before_try=self._before_try,
            may_send=self._may_send,
            ask=self._ask,
            give_up=self._give_up,
        )

    def _ask(self, model: str) -> None:
        self._effects.ask(self._turn, model)

    async def _before_try(self) -> None:
        self._is_sent = False
        if self._is_over:
            raise asyncio.CancelledError
        await self._effects.enter("model", self._turn)

    def _may_send(self) -> bool:
        self._is_sent = self._effects.may_act()
        return self._is_sent

    async def _give_up(self, failure: UpstreamError) -> None:
        """Charge what the model that is given up may have cost; the call's hold is then the next one's."""
        if self._is_over:
            raise failure
        self._is_sent = False
        try:
            used = self._heard.usage if failure.billed else Usage()
            await self._effects.give_up(self._turn, failure.code, used)
        except (QuotaExceeded, BudgetExceeded):  # no room for another call: this one fails as it did
            self._is_sent = True
            raise failure from None


async def _reserve(turn: int, tokens: int, effects: Effects) -> None:
    try:
        await effects.reserve(turn, tokens)
    except asyncio.CancelledError:  # the hold may be there, but no call was made
        effects.settle_at_end(turn, Usage())
        raise
