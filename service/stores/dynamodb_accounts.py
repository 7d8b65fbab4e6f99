"""Principals' accounts in DynamoDB: the one condition that admits exactly, and what they have used.

`dynamodb_ledger`, `dynamodb_records` and `dynamodb_pauses` call it; it calls `dynamodb_client`.

A condition can compare, but not calculate, so both quotas are brought to one comparison of one attribute:

    committed <= min(daily + aged, monthly + before_month) - requested

    committed      all that was ever settled, and what is held now: the account's own counter
    aged           all that was settled in buckets which have left the daily window
    before_month   all that was settled before this month

What is on the right only grows while time passes, and never changes by what anybody settles or holds: so
parallel admissions share the comparison and lose no races, and a value read long ago is at most too small.
`aged` and `before_month` are a `Horizon`. It is carried in the account, moved on by whoever admits, and is
true wherever it stands: buckets that have left the window change no more, so their sum needs no snapshot.
Where the account was left alone for so long that buckets may be gone (TTL), or a month has begun, the horizon
is calculated anew from what one serializable read shows (`docs/decisions/0011-exact-admission.md`).

Invariants: every hold is one reservation row, one entry in its record and its tokens in `committed`, moved in
one transaction; a hold that has lapsed is taken off the account before anybody is refused for it.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import lru_cache
from typing import Any, Final

from service.config import Limits
from service.invocations import Usage
from service.stores import WINDOW_S, Account, Hold, Window
from service.stores.dynamodb_client import (
    DynamoClient,
    Item,
    Refused,
    Write,
    delete,
    put,
    update,
)
from service.stores.dynamodb_horizon import (
    ACCOUNT,
    BUCKET_MS,
    COUNTERS,
    Horizon,
    account_key,
    advance,
    buckets,
    read_horizon,
    survey,
    used_in,
)
from service.stores.dynamodb_items import call_name, record_key
from service.stores.dynamodb_turns import Turns, busy
from service.stores.windows import (
    BUCKET_PREFIX,
    KEEP_BUCKETS_S,
    KEEP_MONTHS,
    Standing,
    bucket_id,
    check_concurrency,
    iso,
    month_bounds_ms,
    month_id,
    oldest_bucket_id,
)

RESERVATION_PREFIX: Final = "reservation:"
RESERVATION_PREFIX_END: Final = "reservation;"
KNOWN_PRINCIPALS: Final = 10_000
ROUNDS: Final = 8
"""How often a decision is made anew because what it rests on has changed."""

# A settlement deletes a row. One that time to live deleted would stay on the account for ever, unseen.
_ROWS_STAY_S: Final = 400 * 24 * 3600

_COUNT: Final = "SET #timestamp = :timestamp, #ttl = :ttl ADD " + ", ".join(
    f"#{name} :{name}" for name in COUNTERS
)

Commit = Callable[[Write], Awaitable[None]]


class Accounts:
    """The accounts of all principals, as this process uses them."""

    def __init__(self, client: DynamoClient, usage_table: str, invocations_table: str) -> None:
        self._client = client
        self._usage = usage_table
        self._invocations = invocations_table
        self._known: OrderedDict[str, Horizon] = OrderedDict()
        self._turns = Turns(client.deadline_s)

    def turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """Wait for this decision's turn on an account, so that decisions of one process never conflict.

        So do the model calls of an invocation that run beside one another: each changes its record. They wait
        for their turn on it, by its id, before they read it, and then for that on its account.

        Raises:
            StoreUnavailable: Those before it have taken too long.
        """
        return self._turns.turn(name)

    # ------------------------------------------------------------ holding

    async def hold(self, hold: Hold, limits: Limits, now_ms: int, commit: Commit, *, starts: bool) -> None:
        """Take tokens, and with `starts` a concurrency slot, in a transaction of the caller's.

        Args:
            commit: Makes the transaction, whose first write it is given; called at this decision's turn.

        Raises:
            ConcurrencyExceeded, QuotaExceeded: There is no room.
            Refused: Another condition of the transaction failed.
        """
        for _ in range(ROUNDS):
            async with self.turn(hold.sub):
                horizon, exists = await self._current(hold.sub, now_ms)
                try:
                    await commit(self._take(hold, limits, horizon, exists=exists, starts=starts))
                except Refused as refused:
                    if set(refused.found) != {0}:
                        raise
                    account = refused.found[0]
                    if account:
                        self._remember(hold.sub, horizon)  # it is true whether there is room or not
                else:
                    self._remember(hold.sub, horizon)
                    return
            # Its turn is over: many may be refused at once, and nobody waits for what they read.
            horizon = await self._explain(hold, limits, account, now_ms, starts=starts)
            if account:
                self._remember(hold.sub, horizon)
        raise busy()

    async def _current(self, sub: str, now_ms: int) -> tuple[Horizon, bool]:
        """Return the horizon at this moment, and whether there is an account."""
        known = self._known.get(sub)
        exists = known is not None
        if known is None:
            item = await self._client.get(self._usage, account_key(sub))
            exists, known = item is not None, read_horizon(item)
        return await advance(self._client, self._usage, sub, known, now_ms, exists=exists), exists

    def _take(self, hold: Hold, limits: Limits, horizon: Horizon, *, exists: bool, starts: bool) -> Write:
        room = horizon.room(limits, hold.tokens)
        if not exists:
            # Without an item there is nothing to compare: it is 0, and `room` is known here.
            fits = room >= 0 and (limits.concurrent_invocations > 0 or not starts)
            condition = "attribute_not_exists(#user_id)" if fits else "attribute_exists(#user_id)"
            compared: dict[str, Any] = {}
        else:
            condition, compared = "#committed_tokens <= :room", {"room": room}
            if starts:
                condition += " AND #running < :concurrent"
                compared["concurrent"] = limits.concurrent_invocations
        return update(
            self._usage,
            account_key(hold.sub),
            "SET #aged_before = :aged_before, #aged_tokens = :aged_tokens, #month = :month,"
            " #before_month_tokens = :before_month_tokens"
            " ADD #committed_tokens :tokens, #settled_tokens :none, #running :running",
            condition,
            **horizon.attributes(),
            tokens=hold.tokens,
            none=0,
            running=int(starts),
            **compared,
        )

    async def _explain(
        self, hold: Hold, limits: Limits, account: Item, now_ms: int, *, starts: bool
    ) -> Horizon:
        """Find out why there was no room: refuse, or return what to try again with.

        `account` is the item that the transaction met, so what is refused here had no room at that moment.
        """
        if starts:
            check_concurrency(limits, running=account.get("running", 0))
        committed, settled = account.get("committed_tokens", 0), account.get("settled_tokens", 0)
        known = read_horizon(account)
        horizon = await advance(self._client, self._usage, hold.sub, known, now_ms, exists=bool(account))
        if account and committed > horizon.room(limits, hold.tokens):
            # What settled late, by a clock that is behind, is in an old period and on no horizon yet.
            horizon = await survey(self._client, self._usage, hold.sub, now_ms)
        if committed <= horizon.room(limits, hold.tokens):
            return horizon
        statement = await self._statement(hold.sub, now_ms)
        if await self._lapse(hold.sub, statement, now_ms):
            return horizon
        standing = Standing(
            now_ms,
            day_tokens=settled - horizon.aged_tokens,
            month_tokens=settled - horizon.before_month_tokens,
            reserved_tokens=committed - settled,
        )
        raise standing.refusal(limits, hold.tokens, buckets(statement))

    async def _lapse(self, sub: str, statement: Sequence[Item], now_ms: int) -> int:
        """Take holds whose time is over off the account; their records remember them, to be settled."""
        lapsed = 0
        for row in statement:
            if not row["period_id"].startswith(RESERVATION_PREFIX) or row["expires_at_ms"] > now_ms:
                continue
            _, invocation_id, attempt, turn = row["period_id"].split(":")
            name, tokens = call_name(int(attempt), int(turn)), row["tokens"]
            expired = delete(
                self._usage,
                {"user_id": sub, "period_id": row["period_id"]},
                "#expires_at_ms <= :now",
                now=now_ms,
            )
            noted = update(
                self._invocations,
                record_key(invocation_id),
                "SET #holds.#name = :lapsed",
                "#holds.#name = :tokens",
                names={"name": name},
                lapsed=-tokens,
                tokens=tokens,
            )
            with suppress(Refused):  # it was settled meanwhile
                async with self.turn(sub):
                    await self._client.write_together([expired, self.change(sub, committed=-tokens), noted])
            lapsed += 1
        return lapsed

    # ------------------------------------------------------------ writes of other decisions

    def reservation(self, hold: Hold) -> Write:
        """Write the row of a hold."""
        row = {
            **self.reservation_key(hold.sub, hold.invocation_id, call_name(hold.attempt, hold.turn)),
            "tokens": hold.tokens,
            "expires_at_ms": hold.expires_at_ms,
            "ttl": hold.expires_at_ms // 1000 + _ROWS_STAY_S,
        }
        return put(self._usage, row, "attribute_not_exists(#user_id)")

    def unreserve(self, sub: str, invocation_id: str, name: str) -> Write:
        """Delete the row of a hold."""
        return delete(self._usage, self.reservation_key(sub, invocation_id, name))

    @staticmethod
    def reservation_key(sub: str, invocation_id: str, name: str) -> Item:
        period_id = f"{RESERVATION_PREFIX}{invocation_id}:{name.replace('.', ':')}"
        return {"user_id": sub, "period_id": period_id}

    def change(self, sub: str, *, committed: int = 0, settled: int = 0, running: int = 0) -> Write:
        """Move the counters of an account, which is there."""
        return update(
            self._usage,
            account_key(sub),
            "ADD #committed_tokens :committed, #settled_tokens :settled, #running :running",
            committed=committed,
            settled=settled,
            running=running,
        )

    def count(self, sub: str, usage: Usage, now_ms: int) -> list[Write]:
        """Count what was used in the bucket and in the month of this moment."""
        counted: dict[str, Any] = dict(zip(COUNTERS, usage, strict=False))
        return [
            update(
                self._usage,
                {"user_id": sub, "period_id": period_id},
                _COUNT,
                timestamp=timestamp,
                ttl=ttl,
                **counted,
            )
            for period_id, timestamp, ttl in _periods(now_ms - now_ms % BUCKET_MS)
        ]

    # ------------------------------------------------------------ reading

    async def account(self, sub: str, now_ms: int) -> Account:
        """Return what a principal has used, holds and runs: one query."""
        statement = await self._statement(sub, now_ms)
        counted = buckets(statement)
        month = month_id(now_ms)
        items = {item["period_id"]: item for item in statement}
        begins_ms, ends_ms = month_bounds_ms(now_ms)
        reserved = sum(
            item["tokens"]
            for period_id, item in items.items()
            if period_id.startswith(RESERVATION_PREFIX) and item["expires_at_ms"] > now_ms
        )
        this_month = [items[month]] if month in items else []
        day = [item for period_id, item in items.items() if period_id.startswith(BUCKET_PREFIX)]
        return Account(
            (
                Window(
                    "daily",
                    WINDOW_S,
                    used_in(day),
                    counted[0].ages_out_at_ms if counted else now_ms,
                ),
                Window(
                    "monthly",
                    (ends_ms - begins_ms) // 1000,
                    used_in(this_month),
                    ends_ms,
                ),
            ),
            reserved,
            items[ACCOUNT]["running"] if ACCOUNT in items else 0,
        )

    async def _statement(self, sub: str, now_ms: int) -> list[Item]:
        """Return all that counts of a principal: the window's buckets, the account, months, reservations."""
        return await self._client.query(
            self._usage,
            "#user_id = :sub AND #period_id BETWEEN :oldest AND :end",
            sub=sub,
            oldest=oldest_bucket_id(now_ms),
            end=RESERVATION_PREFIX_END,
        )

    def _remember(self, sub: str, horizon: Horizon) -> None:
        self._known[sub] = horizon
        self._known.move_to_end(sub)
        if len(self._known) > KNOWN_PRINCIPALS:
            self._known.popitem(last=False)


@lru_cache(maxsize=64)  # of late settlements too
def _periods(bucket_ms: int) -> Sequence[tuple[str, str, int]]:
    """Return id, timestamp and ttl of the bucket that begins then, and of its month."""
    begins_ms, ends_ms = month_bounds_ms(bucket_ms)
    keep_month_s = KEEP_MONTHS * 31 * 24 * 3600
    return (
        (bucket_id(bucket_ms), iso(bucket_ms), (bucket_ms + BUCKET_MS) // 1000 + KEEP_BUCKETS_S),
        (month_id(bucket_ms), iso(begins_ms), ends_ms // 1000 + keep_month_s),
    )
