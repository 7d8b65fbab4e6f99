"""What has aged out of a principal's quota windows, in DynamoDB: the right side of the one comparison.

`dynamodb_accounts` calls it, and says what it is for.

The chain: buckets that have left the daily window change no more, so `advance` adds them to what had aged out
before, as long as they are there (25 h after their end). Where the chain is broken, `survey` calculates the
horizon anew from what one serializable read shows.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from service.config import Limits
from service.invocations import Usage
from service.stores import BUCKET_S, WINDOW_S
from service.stores.dynamodb_client import DynamoClient, Item
from service.stores.windows import (
    BUCKET_PREFIX,
    BUCKET_PREFIX_END,
    KEEP_BUCKETS_S,
    Bucket,
    bucket_id,
    month_id,
    oldest_bucket_id,
)

ACCOUNT: Final = "account"
BUCKET_MS: Final = BUCKET_S * 1000
COUNTERS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
# Buckets are there for 25 h after their end; a sum over those before the window needs all of them.
_SUMMABLE_MS: Final = (KEEP_BUCKETS_S - BUCKET_S) * 1000


class Horizon(NamedTuple):
    """What has aged out of both windows: of all that was ever settled, what counts no more.

    `aged_tokens` were settled in buckets before `oldest`, `before_month_tokens` before `month`.
    """

    oldest: str
    aged_tokens: int
    month: str
    before_month_tokens: int

    def room(self, limits: Limits, requested_tokens: int) -> int:
        """Return what may be committed at most so that a hold of this size still fits."""
        day = limits.daily_tokens + self.aged_tokens
        month = limits.monthly_tokens + self.before_month_tokens
        return min(day, month) - requested_tokens

    def attributes(self) -> dict[str, Any]:
        """Return what the account says of it."""
        return {
            "aged_before": self.oldest,
            "aged_tokens": self.aged_tokens,
            "month": self.month,
            "before_month_tokens": self.before_month_tokens,
        }


async def advance(
    client: DynamoClient, usage_table: str, sub: str, known: Horizon | None, now_ms: int, *, exists: bool
) -> Horizon:
    """Bring a horizon to this moment; one that another process's faster clock has moved on stays."""
    oldest, month = oldest_bucket_id(now_ms), month_id(now_ms)
    if known is None:
        return await survey(client, usage_table, sub, now_ms) if exists else Horizon(oldest, 0, month, 0)
    if known.month < month or known.oldest < bucket_id(now_ms - _SUMMABLE_MS):
        return await survey(client, usage_table, sub, now_ms)
    if known.oldest >= oldest:
        return known
    left = await client.query(
        usage_table,
        "#user_id = :sub AND #period_id BETWEEN :since AND :until",
        sub=sub,
        since=known.oldest,
        until=bucket_id(now_ms - WINDOW_S * 1000 - BUCKET_MS),
    )
    return known._replace(oldest=oldest, aged_tokens=known.aged_tokens + sum(map(counted_tokens, left)))


async def survey(client: DynamoClient, usage_table: str, sub: str, now_ms: int) -> Horizon:
    """Calculate the horizon from what is there.

    Settlements that are being committed are in the account and not yet in the bucket, or the other way
    round, for whoever reads one after the other. So what they may touch is read together; all other
    buckets change no more.
    """
    oldest, month = oldest_bucket_id(now_ms), month_id(now_ms)
    moving = [bucket_id(now_ms + step * BUCKET_MS) for step in (-1, 0, 1)]
    keys = [account_key(sub), *({"user_id": sub, "period_id": each} for each in (month, *moving))]
    together = await client.get_together([(usage_table, key) for key in keys])
    account, month_item, *recent = together
    window = await client.query(
        usage_table,
        "#user_id = :sub AND #period_id BETWEEN :oldest AND :end",
        sub=sub,
        oldest=oldest,
        end=BUCKET_PREFIX_END,
    )
    settled = account["settled_tokens"] if account else 0
    counted = sum(counted_tokens(item) for item in window if item["period_id"] not in moving)
    counted += sum(counted_tokens(item) for item in recent if item)
    month_tokens = counted_tokens(month_item) if month_item else 0
    return Horizon(oldest, settled - counted, month, settled - month_tokens)


def account_key(sub: str) -> Item:
    return {"user_id": sub, "period_id": ACCOUNT}


def read_horizon(account: Item | None) -> Horizon | None:
    """Return the horizon that an account carries, if it does."""
    if not account or "aged_before" not in account:
        return None
    return Horizon(
        account["aged_before"], account["aged_tokens"], account["month"], account["before_month_tokens"]
    )


def used_in(items: Sequence[Item]) -> Usage:
    """Add up what buckets or months count."""
    return Usage(*(sum(item.get(name, 0) for item in items) for name in COUNTERS))


def counted_tokens(item: Item) -> int:
    """Return what a bucket or month counts against a quota."""
    return used_in([item]).counted_tokens


def buckets(statement: Sequence[Item]) -> list[Bucket]:
    """Return the daily window's buckets that count anything, oldest first."""
    counted = (
        Bucket(item["period_id"], counted_tokens(item))
        for item in statement
        if item["period_id"].startswith(BUCKET_PREFIX)
    )
    return [bucket for bucket in counted if bucket.tokens]
