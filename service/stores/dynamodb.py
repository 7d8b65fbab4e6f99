"""DynamoDB as the store: what a fleet shares. Two tables; what one decision writes is one transaction.

    usage table                       user_id, period_id
    <sub>  10min:2026-11-21:16:40     input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
                                      timestamp, ttl (25 h after the bucket's end)
    <sub>  monthly:2026-11            the same counters; ttl after 13 months
    <sub>  reservation:<inv>:<a>:<t>  tokens, expires_at_ms, ttl: the hold of attempt a's turn t
    <sub>  account                    committed_tokens, settled_tokens, running; aged_before, aged_tokens,
                                      month, before_month_tokens: see `dynamodb_accounts`
    -denied, -limits                  see `dynamodb_policies`

    invocations table                 pk, sk
    <inv>  record                     what the port shows; fence, holder, holds, ledger: see `Record`.
                                      Index `held` (holder, held_at_ms): while it has not ended.
                                      Index `listed` (listing, listed_at): what a principal has of a runtime.
    <inv>  input                      where it is too large for the record
    <inv>  turn:00002                 messages, boundary: what turn 2 has added to the conversation
    <inv>  event:0001:000000040       the block of events that ends with 1.40
    <inv>  part:...                   pieces of an input or turn that is larger than 300 KB
    leases             <owner>        expires_at_ms: one per process
    signals:<owner>    <inv>          the owner is to cancel it
    idempotency:<key>  idempotency    body (digest), invocation_id, expires_at_ms, ttl

`app` opens it; `admission`, `runner`, `log`, `follow`, `ledger` and `api` call it through the port:

    DynamoStore ──> dynamodb_records     records, admission, content     ──> dynamodb_accounts: quotas, exact
                ──> dynamodb_attempts    fence, settlement, endings      ──> dynamodb_ledger: one change
                ──> dynamodb_takeover    leases, claims
                ──> dynamodb_events      event logs
                ──> dynamodb_pauses, dynamodb_signals, dynamodb_policies
                    dynamodb_client      calls, retries                    dynamodb_items     items and keys
                    dynamodb_values      values, expressions               dynamodb_turns     on an account
                    dynamodb_tables      what the tables must look like    dynamodb_connection

Reads that decide are strongly consistent; what an attempt remembers of its record (`dynamodb_records.Known`)
is asked for again by the conditions of what it writes. Time to live deletes content after the latest time at
which it may be needed, and a record once its ledger is old; until then reads ignore what is over.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from service.config import Limits
from service.errors import StoreUnavailable
from service.events import Block, EventId, event_type, is_terminal
from service.invocations import Invocation, State
from service.stores import (
    Account,
    Claim,
    Ending,
    EventBlock,
    HandOver,
    Hold,
    NewInvocation,
    Pause,
    Paused,
    Policies,
    Settlement,
    Turn,
)
from service.stores import dynamodb_attempts as attempts
from service.stores import dynamodb_events as events
from service.stores import dynamodb_pauses as pauses
from service.stores import dynamodb_policies as policies
from service.stores import dynamodb_records as records
from service.stores import dynamodb_signals as signals
from service.stores import dynamodb_takeover as takeover
from service.stores.dynamodb_accounts import Accounts
from service.stores.dynamodb_client import (
    DEADLINE_S,
    RETRY_AFTER_S,
    Call,
    DynamoClient,
    put,
)
from service.stores.dynamodb_connection import connected
from service.stores.dynamodb_items import lease_key
from service.stores.dynamodb_tables import INVOCATIONS, USAGE, check_tables

RETENTION_S: Final = 24 * 3600.0
CONTENT_S: Final = 8 * 3600 + 48 * 3600 + RETENTION_S
"""Of what is written now: the longest deadline, the longest pause, and the retention after the end."""
LEDGER_S: Final = 400 * 24 * 3600.0


_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")
_Store = TypeVar("_Store", bound="DynamoStore")


def _decision(
    method: Callable[Concatenate[_Store, _Asked], Coroutine[Any, Any, _Answer]],
) -> Callable[Concatenate[_Store, _Asked], Coroutine[Any, Any, _Answer]]:
    """Count a call of the port while it runs, and refuse it once the store is closed."""

    async def decided(store: _Store, /, *args: _Asked.args, **named: _Asked.kwargs) -> _Answer:
        store.called()
        try:
            return await method(store, *args, **named)
        finally:
            store.answered()

    return wraps(method)(decided)


class DynamoStore:
    """`Store` on DynamoDB; made by `open`, used from the event loop that opened it."""

    def __init__(self, tables: records.Tables) -> None:
        self._tables = tables
        self._leased: set[str] = set()
        self._pens = events.Pens()
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.waiting = 0
        """How many calls have no answer yet (a test on manual time waits while there are some)."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        usage_table: str,
        invocations_table: str,
        retention_s: float = RETENTION_S,
        content_s: float = CONTENT_S,
        deadline_s: float = DEADLINE_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        probe: bool = False,
        connect: Callable[[], AbstractAsyncContextManager[Call]] = connected,
        wrap: Callable[[Call], Call] = lambda call: call,
    ) -> AsyncIterator[Self]:
        """Connect, and check that the tables of these names are there and fit.

        Args:
            retention_s: For how long an ended invocation is shown.
            content_s: After how long what is written now may be deleted.
            deadline_s: How long a call is tried before it is `StoreUnavailable`.
            now_ms: The clock by which an ended invocation is not shown any more.
            probe: Whether to find out now if we may do all that the service does.
            connect: Opens the connection; one that is shared opens many stores fast.
            wrap: Stands between the store and its connection; tests put faults there.

        Raises:
            ConfigError: No region, no credentials; a table is not there, has other keys, or is not ours.
        """
        async with connect() as call:
            client = DynamoClient(wrap(call), deadline_s=deadline_s)
            await check_tables(client, {USAGE: usage_table, INVOCATIONS: invocations_table}, probe=probe)
            accounts = Accounts(client, usage_table, invocations_table)
            names = (usage_table, invocations_table)
            tables = records.Tables(client, *names, accounts, retention_s, content_s, LEDGER_S, now_ms)
            store = cls(tables)
            try:
                yield store
            finally:
                await store.aclose()

    def called(self) -> None:
        """Note that a call is under way; once the store is closed there are none."""
        if self._closed:
            raise StoreUnavailable("The store is closed.", retry_after_s=RETRY_AFTER_S)
        self.waiting += 1
        self._idle.clear()

    def answered(self) -> None:
        """Note that it is over."""
        self.waiting -= 1
        if not self.waiting:
            self._idle.set()

    @_decision
    async def create_invocation(self, new: NewInvocation, limits: Limits, now_ms: int) -> Invocation:
        """See `Store`. A repeated call with the same id returns what there is."""
        await self._ensure_lease(new.owner)
        created = await records.create(self._tables, new, limits, now_ms)
        if created.invocation_id == new.invocation_id and created.state is State.RUNNING:
            self._pens.begin(created.invocation_id, created.attempt)
        return created

    @_decision
    async def load_invocation(self, invocation_id: str) -> Invocation | None:
        """See `Store`."""
        record = await records.load(self._tables, invocation_id)
        return None if record is None else record.shown

    @_decision
    async def list_invocations(
        self, sub: str, runtime_id: str, *, before: str | None, limit: int
    ) -> list[Invocation]:
        """See `Store`. Eventually consistent: one that began a moment ago may be missing."""
        return await records.list_newest(self._tables, sub, runtime_id, before, limit)

    @_decision
    async def reserve(self, hold: Hold, limits: Limits, now_ms: int) -> None:
        """See `Store`. A repeated call leaves the first hold as it is."""
        await attempts.reserve(self._tables, hold, limits, now_ms)

    @_decision
    async def settle(self, settlement: Settlement, now_ms: int, block: Block | None = None) -> bool:
        """See `Store`."""
        if (settlement.messages is None) != (settlement.boundary is None):
            raise ValueError("messages and boundary make a turn together")
        self._pens.check(settlement.invocation_id, settlement.attempt, block, settlement.boundary)
        settled = await attempts.settle(self._tables, settlement, now_ms, block)
        self._pens.wrote(settlement.invocation_id, block)
        return settled

    @_decision
    async def complete_turn(
        self, invocation_id: str, attempt: int, turn: Turn, now_ms: int, block: Block | None = None
    ) -> None:
        """See `Store`."""
        self._pens.check(invocation_id, attempt, block, turn.boundary)
        await attempts.complete_turn(self._tables, invocation_id, attempt, turn, now_ms, block)
        self._pens.wrote(invocation_id, block)

    @_decision
    async def append_events(self, blocks: Sequence[EventBlock], now_ms: int) -> frozenset[str]:
        """See `Store`, but not in one transaction: each block for itself, in order."""
        return await events.append(self._tables, self._pens, blocks, now_ms)

    @_decision
    async def read_events(self, invocation_id: str, after: EventId, *, limit_bytes: int) -> list[Block]:
        """See `Store`."""
        return await events.read(self._tables, invocation_id, after, limit_bytes)

    @_decision
    async def finish(self, ending: Ending, now_ms: int) -> None:
        """See `Store`.

        Raises:
            ValueError: The state or the last event is not terminal.
        """
        if not (ending.state.is_terminal and ending.block.events and is_terminal(ending.block.events[-1])):
            raise ValueError("an ending has a terminal state and a terminal event")
        self._pens.check(ending.invocation_id, ending.attempt, ending.block)
        await attempts.finish(self._tables, ending, now_ms)
        self._pens.end(ending.invocation_id, ending.attempt)

    @_decision
    async def hand_over(self, given: HandOver, now_ms: int) -> None:
        """See `Store`."""
        await attempts.hand_over(self._tables, given, now_ms)
        self._pens.end(given.invocation_id, given.attempt)

    @_decision
    async def pause(self, pause: Pause, now_ms: int) -> None:
        """See `Store`.

        Raises:
            ValueError: The last event is not `invocationPaused`.
        """
        if not pause.block.events or event_type(pause.block.events[-1]) != b"invocationPaused":
            raise ValueError("a pause ends with invocationPaused")
        self._pens.check(pause.invocation_id, pause.attempt, pause.block)
        await pauses.pause(self._tables, pause, now_ms)
        self._pens.end(pause.invocation_id, pause.attempt)

    @_decision
    async def list_paused(
        self, now_ms: int, *, limit: int, runtimes: Collection[str] | None = None
    ) -> list[Paused]:
        """See `Store`. Eventually consistent."""
        return await pauses.list_due(self._tables, now_ms, limit, runtimes)

    @_decision
    async def postpone(self, invocation_id: str, attempt: int, look_at_ms: int) -> None:
        """See `Store`. One whose cancellation is asked for stays due."""
        await pauses.postpone(self._tables, invocation_id, attempt, look_at_ms)

    @_decision
    async def resume(
        self, invocation_id: str, attempt: int, owner: str, now_ms: int, *, limits: Limits | None
    ) -> Claim:
        """See `Store`."""
        await self._ensure_lease(owner)
        claim = await pauses.resume(self._tables, invocation_id, attempt, owner, now_ms, limits)
        self._pens.begin(invocation_id, claim.invocation.attempt)
        return claim

    @_decision
    async def request_cancel(self, invocation_id: str, now_ms: int) -> Invocation | None:
        """See `Store`."""
        return await signals.request_cancel(self._tables, invocation_id, now_ms)

    @_decision
    async def cancel_requests(self, owner: str) -> frozenset[str]:
        """See `Store`."""
        return await signals.cancel_requests(self._tables, owner)

    @_decision
    async def note_read(self, invocation_ids: Collection[str], now_ms: int) -> None:
        """See `Store`. Where a later time is noted already, it stays."""
        await signals.note_read(self._tables, frozenset(invocation_ids), now_ms)

    @_decision
    async def unread(self, owner: str, since_ms: int) -> frozenset[str]:
        """See `Store`."""
        return await signals.unread(self._tables, owner, since_ms)

    @_decision
    async def owned(self, owner: str) -> Mapping[str, int]:
        """See `Store`."""
        return await takeover.owned(self._tables, owner, self._pens)

    @_decision
    async def account(self, sub: str, now_ms: int) -> Account:
        """See `Store`. With nothing used, the daily window resets now."""
        return await self._tables.accounts.account(sub, now_ms)

    @_decision
    async def policies(self, now_ms: int) -> Policies:
        """See `Store`."""
        return await policies.load(self._tables, now_ms)

    @_decision
    async def deny(self, subject: str, now_ms: int, until_ms: int | None = None) -> None:
        """See `Store`."""
        await policies.deny(self._tables, subject, now_ms, until_ms)

    @_decision
    async def allow(self, subject: str) -> bool:
        """See `Store`."""
        return await policies.allow(self._tables, subject)

    @_decision
    async def set_limits(self, sub: str, overrides: Mapping[str, int] | None) -> None:
        """See `Store`."""
        await policies.set_limits(self._tables, sub, overrides)

    @_decision
    async def renew_lease(self, owner: str, expires_at_ms: int) -> None:
        """See `Store`."""
        lease = {**lease_key(owner), "expires_at_ms": expires_at_ms}
        await self._tables.client.write(put(self._tables.invocations, lease))
        self._leased.add(owner)

    @_decision
    async def claim_expired(
        self,
        owner: str,
        now_ms: int,
        *,
        limit: int,
        running: Collection[str] | None = None,
        runtimes: Collection[str] | None = None,
    ) -> list[Claim]:
        """See `Store`."""
        await self._ensure_lease(owner)
        claims = await takeover.claim_expired(self._tables, owner, now_ms, limit, running, runtimes)
        for claim in claims:
            self._pens.begin(claim.invocation.invocation_id, claim.invocation.attempt)
        return claims

    @_decision
    async def purge(self, now_ms: int, retention_s: float) -> int:
        """Delete the leases of processes that left nothing behind; the rest is deleted by time to live."""
        await takeover.purge_leases(self._tables, now_ms)
        return 0

    async def aclose(self) -> None:
        """See `Store`. Later calls are `StoreUnavailable`; the connections close with `open`'s block."""
        self._closed = True
        await self._idle.wait()

    async def _ensure_lease(self, owner: str) -> None:
        if owner not in self._leased:
            await records.ensure_lease(self._tables, owner)
            self._leased.add(owner)
