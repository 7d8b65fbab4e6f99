"""The windows of a quota: which buckets count at a moment, and what to tell a principal that has no room.

Pure functions. The stores call them inside their decisions, so that every store counts and refuses alike.

    10min:2026-11-21:16:40   daily     the buckets that overlap (now - 24 h, now], the oldest counted whole
    monthly:2026-11          monthly   the calendar month, UTC

A bucket's id sorts as its time does. A bucket that a process with a faster clock wrote ahead counts too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from service.config import Limits
from service.errors import BudgetExceeded, ConcurrencyExceeded, QuotaExceeded
from service.stores import BUCKET_S, WINDOW_S

BUCKET_PREFIX: Final = "10min:"
BUCKET_PREFIX_END: Final = "10min;"
"""The first text after every bucket's id: `;` follows `:`."""
MONTH_PREFIX: Final = "monthly:"

KEEP_BUCKETS_S: Final = 25 * 3600
KEEP_MONTHS: Final = 13

CONCURRENCY_RETRY_S: Final = 1.0
# Room that waits for running calls to settle comes at no known time, but within seconds to minutes.
SETTLING_RETRY_S: Final = 5.0

_BUCKET_MS: Final = BUCKET_S * 1000
_DAY_MS: Final = 24 * 3600 * 1000
_BUCKET_FORMAT: Final = f"{BUCKET_PREFIX}%Y-%m-%d:%H:%M"
_MONTH_FORMAT: Final = f"{MONTH_PREFIX}%Y-%m"


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was counted in one bucket of the daily window."""

    period_id: str
    tokens: int

    @property
    def ages_out_at_ms(self) -> int:
        """The first moment at which no part of the bucket lies within the last 24 hours."""
        start = datetime.strptime(self.period_id, _BUCKET_FORMAT).replace(tzinfo=UTC)
        return int(start.timestamp() + BUCKET_S + WINDOW_S) * 1000


def bucket_id(at_ms: int) -> str:
    """Return the id of the bucket that a moment falls into."""
    return _text(at_ms - at_ms % _BUCKET_MS, _BUCKET_FORMAT)


def oldest_bucket_id(now_ms: int) -> str:
    """Return the id of the oldest bucket that still counts: the one that holds the moment 24 hours ago."""
    return bucket_id(now_ms - WINDOW_S * 1000)


def month_id(at_ms: int) -> str:
    """Return the id of the calendar month (UTC) that a moment falls into."""
    return _text(at_ms - at_ms % _DAY_MS, _MONTH_FORMAT)


def month_bounds_ms(at_ms: int) -> tuple[int, int]:
    """Return where the month of a moment begins, and where the next one does."""
    begin = _utc(at_ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    return int(begin.timestamp()) * 1000, int(end.timestamp()) * 1000


def oldest_kept(now_ms: int) -> tuple[str, str]:
    """Return the ids of the oldest bucket and the oldest month that a purge keeps."""
    months = _utc(now_ms).year * 12 + _utc(now_ms).month - 1 - KEEP_MONTHS
    return (
        bucket_id(now_ms - (KEEP_BUCKETS_S + BUCKET_S) * 1000),
        f"{MONTH_PREFIX}{months // 12:04}-{months % 12 + 1:02}",
    )


def iso(at_ms: int) -> str:
    """Write a moment as the API does: UTC, to the second."""
    return _utc(at_ms).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_budget(limits: Limits, *, used_tokens: int, requested_tokens: int) -> None:
    """Refuse a hold that one invocation's budget has no room for.

    Raises:
        BudgetExceeded: What the invocation has used and holds, and this hold, are over its budget.
    """
    limit = limits.invocation_tokens
    if used_tokens + requested_tokens > limit:
        raise BudgetExceeded(
            f"The next model call needs up to {requested_tokens:,} tokens and this invocation has used or"
            f" holds {used_tokens:,}: that is over its budget of {limit:,}.",
            extra={"budget": {"limit": limit, "used": used_tokens, "requested": requested_tokens}},
        )


def check_concurrency(limits: Limits, *, running: int) -> None:
    """Refuse a further invocation of a principal that runs as many as it may.

    Raises:
        ConcurrencyExceeded: It does.
    """
    limit = limits.concurrent_invocations
    if running >= limit:
        raise ConcurrencyExceeded(
            f"{running} of your invocations are running and the limit is {limit}: wait until one has ended.",
            retry_after_s=CONCURRENCY_RETRY_S,
            extra={"limit": limit, "running": running},
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a principal stands at a moment, as read by the decision that is about to be made."""

    now_ms: int
    day_tokens: int
    month_tokens: int
    reserved_tokens: int

    def fits(self, limits: Limits, requested_tokens: int) -> bool:
        """Tell whether both windows have room for a hold."""
        taken = self.reserved_tokens + requested_tokens
        return (
            self.day_tokens + taken <= limits.daily_tokens
            and self.month_tokens + taken <= limits.monthly_tokens
        )

    def refusal(self, limits: Limits, requested_tokens: int, buckets: Sequence[Bucket]) -> QuotaExceeded:
        """Say why a hold that does not fit is refused: the window that has room last, and when that is.

        Args:
            limits: The principal's.
            requested_tokens: The hold.
            buckets: The daily window's, oldest first.
        """
        shortages = []
        if self.day_tokens + self.reserved_tokens + requested_tokens > limits.daily_tokens:
            day = self._shortage("daily", limits.daily_tokens, self.day_tokens, requested_tokens)
            shortages.append(day.ageing(buckets))
        if self.month_tokens + self.reserved_tokens + requested_tokens > limits.monthly_tokens:
            month = self._shortage("monthly", limits.monthly_tokens, self.month_tokens, requested_tokens)
            shortages.append(month.room_from(month_bounds_ms(self.now_ms)[1]))
        return max(shortages, key=lambda shortage: shortage.urgency).refusal()

    def _shortage(self, name: str, limit: int, used: int, requested: int) -> "_Shortage":
        return _Shortage(name, limit, used, self.reserved_tokens, requested, self.now_ms)


@dataclass(frozen=True, slots=True)
class _Shortage:
    """One window without room; `room_at_ms` None: no passing of time alone makes room."""

    name: str
    limit: int
    used: int
    reserved: int
    requested: int
    now_ms: int
    room_at_ms: int | None = None

    @property
    def never(self) -> bool:
        return self.requested > self.limit

    @property
    def settling(self) -> bool:
        """Only reservations stand in the way: there is room once running calls have settled for less."""
        return self.used + self.requested <= self.limit

    @property
    def urgency(self) -> tuple[bool, int]:
        return self.never, self.room_at_ms or 0

    def room_from(self, at_ms: int) -> "_Shortage":
        if self.never or self.settling:
            return self
        return replace(self, room_at_ms=at_ms)

    def ageing(self, buckets: Iterable[Bucket]) -> "_Shortage":
        """Find the bucket with whose end the hold fits, if what is reserved now stays reserved or is used.

        Where reservations alone leave no room for the hold, some of them will have to settle for less; the
        earliest moment is then the one at which the hold would fit without them.
        """
        needed = self.used + self.requested - self.limit
        if self.reserved + self.requested <= self.limit:
            needed += self.reserved
        aged = 0
        for bucket in buckets:
            aged += bucket.tokens
            if aged >= needed:
                return self.room_from(bucket.ages_out_at_ms)
        return self

    def refusal(self) -> QuotaExceeded:
        if self.never:
            when = "A call of this size can never fit: ask for fewer tokens."
            retry_after_s = None
        elif self.room_at_ms is None:
            when = "There is room again when running calls have used less than they hold."
            retry_after_s = SETTLING_RETRY_S
        else:
            when = f"There is room from {iso(self.room_at_ms)}."
            retry_after_s = (self.room_at_ms - self.now_ms) / 1000
        return QuotaExceeded(
            f"The {self.name} quota is {self.limit:,} tokens: {self.used:,} are used, {self.reserved:,} are"
            f" held by running calls and this call needs up to {self.requested:,}. {when}",
            retry_after_s=retry_after_s,
            extra={
                "quota": {
                    "name": self.name,
                    "limit": self.limit,
                    "used": self.used,
                    "reserved": self.reserved,
                    "requested": self.requested,
                    "resetsAt": None if self.room_at_ms is None else iso(self.room_at_ms),
                }
            },
        )


@lru_cache(maxsize=64)
def _text(at_ms: int, form: str) -> str:
    """Write a moment that many decisions share: the beginning of a bucket or a day."""
    return _utc(at_ms).strftime(form)


def _utc(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)
