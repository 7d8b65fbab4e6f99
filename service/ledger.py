"""The ledger: what to hold before a model call, what to write after it, and the account of one attempt.

`admission` and `runtimes.metered` ask how much; `runner` gives each attempt its `AttemptLedger`; the store
keeps the books.

A hold is an upper bound: no text has more tokens than UTF-8 bytes (byte-level BPE and SentencePiece with byte
fallback both guarantee it), and templates, roles and tool plumbing are covered by fixed allowances.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import orjson

from service.config import NO_OPTIONS, Limits, ModelOptions
from service.errors import QuotaExceeded, StoreUnavailable
from service.events import Block
from service.invocations import Invocation, Tried, Usage, all_tried
from service.log import AttemptLog
from service.stores import RESERVATION_GRACE_MS, Hold, Settlement, Store, Turn

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Chat templates add a handful of tokens per message; tool use adds a system prompt of up to about 700 tokens:
# https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview#pricing
REQUEST_OVERHEAD_TOKENS: Final = 64
MESSAGE_OVERHEAD_TOKENS: Final = 16
TOOLS_OVERHEAD_TOKENS: Final = 1024
# A model that is asked to think gets a system prompt for it, whose size nobody tells.
REASONING_OVERHEAD_TOKENS: Final = 1024
# Fixed ceilings: an image is scaled down by the models to about 1,600 tokens (https://docs.anthropic.com/en/docs/build-with-claude/vision;
# not by all of kind "openai": docs/configuration.md says what to limit there);
# a document is at most 100 pages, each as text and as image.
IMAGE_CEILING_TOKENS: Final = 4096
DOCUMENT_CEILING_TOKENS: Final = 150_000
MOST_TOKENS: Final = 10**12
"""No call has used more, whatever its upstream says: the stores add counts up in 64 bits."""
PERSIST_RETRY_S: Final = (0.1, 5.0)
GIVEN_UP: Final = 1_000_000
"""Added to a turn for each model that it has asked: the number of a given-up call's entry in the ledger."""


def input_bound_tokens(
    system: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> int:
    """Return an upper bound of the input tokens of one model call."""
    return fixed_bound_tokens(system, tools) + messages_bound_tokens(messages)


def fixed_bound_tokens(
    system: str, tools: Sequence[Mapping[str, Any]], options: ModelOptions = NO_OPTIONS
) -> int:
    """Return an upper bound of what is the same in the input of each model call of an agent."""
    bound = REQUEST_OVERHEAD_TOKENS + len(system.encode()) + options_bound_tokens(options)
    if tools:
        bound += TOOLS_OVERHEAD_TOKENS + sum(
            len(json.dumps(spec, ensure_ascii=False).encode()) for spec in tools
        )
    return bound


def messages_bound_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return an upper bound of the tokens of a conversation."""
    return sum(
        MESSAGE_OVERHEAD_TOKENS + sum(map(_block_bound_tokens, message["content"])) for message in messages
    )


def _block_bound_tokens(block: Mapping[str, Any]) -> int:
    if "text" in block:
        return len(block["text"].encode(errors="surrogatepass"))
    if "image" in block:
        return IMAGE_CEILING_TOKENS
    if "document" in block:
        return DOCUMENT_CEILING_TOKENS
    return len(json.dumps(block, ensure_ascii=False).encode(errors="surrogatepass"))


def options_bound_tokens(options: ModelOptions) -> int:
    """Return an upper bound of what a runtime's options add to the input of each model call.

    Cache points add nothing: what is read from a cache or written to it is part of the input all the same.
    """
    bound = 0 if options.reasoning is None else REASONING_OVERHEAD_TOKENS
    more = options.additional_model_request_fields
    if more:  # may hold tools of the model's own
        bound += TOOLS_OVERHEAD_TOKENS + len(json.dumps(more, ensure_ascii=False).encode())
    return bound


def parsed(payload: bytes) -> Any:
    """Parse what an upstream wrote; NaN and half a character, which orjson refuses, are taken too.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload)


def reported_usage(metadata: bytes) -> Usage | None:
    """Read the usage of a ConverseStream `metadata` payload; None if it has none that makes sense."""
    try:
        usage = parsed(metadata)["usage"]
        counts = [
            usage.get(name, 0)
            for name in ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        return None
    return Usage(*counts)


def estimated_usage(*, input_bound: int, max_output: int, output_bytes: int) -> Usage:
    """Estimate a call whose usage was never reported: at least what was streamed, at most its hold.

    `output_bytes` are the bytes of the delta payloads: an upper bound of their tokens. What a model thinks
    and does not stream (OpenAI's reasoning models) is not in it.
    """
    return Usage(input_tokens=input_bound, output_tokens=min(output_bytes, max_output), estimated=True)


class AttemptLedger:
    """The account of one attempt: what it holds, what it settled, what is settled with its ending.

    A settlement is remembered before it is written and forgotten when the store has it, so whatever
    interrupts the write, the ending carries it; the store keeps the first of two. Every decision waits until
    this process's lease is held.

    Attributes:
        total: What the invocation has used, earlier attempts' charged usage included.
        refused: The turn and the tokens of the hold that found no room, if one did.
        tried: The models that the attempt's settled calls have asked.
    """

    def __init__(
        self,
        store: Store,
        pen: AttemptLog,
        invocation: Invocation,
        model: str,
        limits: Callable[[], Limits],
        *,
        now_ms: Callable[[], int],
        held: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._pen = pen
        self._invocation = invocation
        self._model = model
        self._limits = limits
        self._now_ms = now_ms
        self._held = held
        self._unwritten: dict[int, Settlement] = {}
        self._tried: dict[int, list[Tried]] = {}
        self.total = invocation.usage
        self.refused: tuple[int, int] | None = None
        self.tried: tuple[Tried, ...] = ()

    @property
    def unwritten(self) -> tuple[Settlement, ...]:
        """What `finish` must still write."""
        return tuple(self._unwritten.values())

    async def reserve(self, turn: int, tokens: int) -> None:
        """Hold tokens for a turn's model call.

        Raises:
            QuotaExceeded, BudgetExceeded: There is no room for it.
            Fenced: Another attempt has taken over.
        """
        try:
            await self._hold(turn, tokens)
        except QuotaExceeded:
            self.refused = turn, tokens
            raise

    async def _hold(self, turn: int, tokens: int) -> None:
        invocation = self._invocation
        hold = Hold(
            invocation_id=invocation.invocation_id,
            attempt=invocation.attempt,
            turn=turn,
            sub=invocation.sub,
            tokens=tokens,
            expires_at_ms=reservation_expires_at_ms(invocation.deadline_at_ms),
        )
        await self._held()
        await persist(lambda: self._store.reserve(hold, self._limits(), self._now_ms()))

    def ask(self, turn: int, model: str) -> None:
        """Note which model a turn's call asks now: its usage record is this one's."""
        self._tried.setdefault(turn, []).append(Tried(model))

    async def give_up(self, turn: int, code: str, usage: Usage) -> None:
        """Note why the model that a turn asks is given up for the next one, and charge what it may have cost.

        That is an entry of its own, with a hold of its own: the turn's hold stays whole for the next model.
        Cancelled, it is charged all the same.

        Raises:
            QuotaExceeded, BudgetExceeded: There is no room for it besides the turn's hold; nothing is noted.
            Fenced: Another attempt has taken over.
        """
        tried = self._tried[turn]
        model = tried[-1].model
        if not usage.counted_tokens:
            tried[-1] = Tried(model, code)
            return
        entry = turn + len(tried) * GIVEN_UP
        try:
            await self._hold(entry, usage.counted_tokens)
        except asyncio.CancelledError:
            self._note(entry, usage, model)
            raise
        self._note(entry, usage, model)
        tried[-1] = Tried(model, code)
        await self.settle_noted(entry)

    async def settle(self, turn: int, usage: Usage, messages: Sequence[Mapping[str, Any]]) -> None:
        """Settle a turn now, and store the events and messages so far with it.

        Raises:
            Fenced: Another attempt has taken over; the usage is settled all the same.
        """
        settlement = self._note(turn, usage)
        await self._held()
        written = replace(settlement, messages=_encode(messages), boundary=self._pen.log.head)
        await self._with_events(lambda block: self._store.settle(written, self._now_ms(), block))
        del self._unwritten[turn]

    def settle_at_end(self, turn: int, usage: Usage) -> None:
        """Settle a turn with the invocation's ending."""
        self._note(turn, usage)

    async def settle_noted(self, turn: int) -> None:
        """Write now what `settle_at_end` has noted of a turn, if it has; cut short, the ending has it."""
        settlement = self._unwritten.get(turn)
        if settlement is None:
            return
        await self._held()
        await persist(lambda: self._store.settle(settlement, self._now_ms()))
        del self._unwritten[turn]

    async def complete(self, turn: int, messages: Sequence[Mapping[str, Any]]) -> None:
        """Store what a settled turn added to the conversation, with its events.

        Raises:
            Fenced: Another attempt has taken over.
        """
        await self._held()
        completed = Turn(turn, _encode(messages), self._pen.log.head)
        invocation_id, attempt = self._invocation.invocation_id, self._invocation.attempt
        await self._with_events(
            lambda block: self._store.complete_turn(invocation_id, attempt, completed, self._now_ms(), block)
        )

    async def _with_events(self, decide: Callable[[Block | None], Awaitable[object]]) -> None:
        """Make a decision with the events so far; if that is cut short, the ending has the events."""
        block = await self._pen.take()
        try:
            await persist(lambda: decide(block))
        except BaseException:
            self._pen.put_back(block)
            raise
        self._pen.mark_stored(block)

    def _note(self, turn: int, usage: Usage, model: str | None = None) -> Settlement:
        """Note a settlement; the models that its turn has asked are in it."""
        invocation = self._invocation
        tried = tuple(self._tried.get(turn, ()))
        self.total = self.total.plus(usage)
        self.tried = all_tried(self.tried, tried)
        settlement = Settlement(
            invocation_id=invocation.invocation_id,
            attempt=invocation.attempt,
            turn=turn,
            sub=invocation.sub,
            runtime_id=invocation.runtime_id,
            model=model or (tried[-1].model if tried else self._model),
            usage=usage,
            tried=tried,
        )
        self._unwritten[turn] = settlement
        return settlement


def _encode(messages: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(messages).encode()  # in ASCII: a tool's input may escape half a character


def reservation_expires_at_ms(deadline_at_ms: int) -> int:
    """Return when a hold lapses at the latest: a backstop, since settlement removes it long before."""
    return deadline_at_ms + RESERVATION_GRACE_MS


async def persist(decide: Callable[[], Awaitable[_T]]) -> _T:
    """Ask the store until it answers, backing off; the deadline or the drain cancels it."""
    retry_s, longest_s = PERSIST_RETRY_S
    while True:
        try:
            return await decide()
        except StoreUnavailable:
            logger.warning("a decision waits for the store", extra={"retry_s": retry_s})
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, longest_s)
