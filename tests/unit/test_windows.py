import pytest

from service.stores.windows import (
    Bucket,
    bucket_id,
    iso,
    month_bounds_ms,
    month_id,
    oldest_bucket_id,
    oldest_kept,
)
from tests.clock import START_AT_MS

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("offset_ms", "expected"),
    [
        (-1, "10min:2026-11-21:16:30"),
        (0, "10min:2026-11-21:16:40"),
        (599_999, "10min:2026-11-21:16:40"),
        (600_000, "10min:2026-11-21:16:50"),
    ],
)
def test_a_moment_belongs_to_the_bucket_that_began_last(offset_ms: int, expected: str) -> None:
    assert bucket_id(START_AT_MS + offset_ms) == expected


def test_the_oldest_bucket_that_counts_holds_the_moment_24_hours_ago() -> None:
    assert oldest_bucket_id(START_AT_MS - 1) == "10min:2026-11-20:16:30"
    assert oldest_bucket_id(START_AT_MS) == "10min:2026-11-20:16:40"


def test_a_bucket_ages_out_24_hours_after_its_end() -> None:
    assert Bucket("10min:2026-11-21:16:40", 1).ages_out_at_ms == START_AT_MS + 600_000 + 24 * HOUR_MS


@pytest.mark.parametrize(
    ("at_ms", "month", "begins", "ends"),
    [
        (1_795_279_200_000, "monthly:2026-11", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        (1_798_761_599_999, "monthly:2026-12", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        (1_798_761_600_000, "monthly:2027-01", "2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z"),
        (1_835_481_600_000, "monthly:2028-03", "2028-03-01T00:00:00Z", "2028-04-01T00:00:00Z"),
        (1_835_481_599_999, "monthly:2028-02", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
    ],
)
def test_months_are_those_of_utc(at_ms: int, month: str, begins: str, ends: str) -> None:
    assert month_id(at_ms) == month
    assert tuple(map(iso, month_bounds_ms(at_ms))) == (begins, ends)


@pytest.mark.parametrize(
    ("now_ms", "kept"),
    [
        (START_AT_MS, ("10min:2026-11-20:15:30", "monthly:2025-10")),
        (1_767_225_600_000, ("10min:2025-12-30:22:50", "monthly:2024-12")),  # 2026-01-01T00:00:00Z
    ],
)
def test_what_is_kept_is_a_bucket_for_25_hours_and_a_month_for_13(now_ms: int, kept: tuple[str, str]) -> None:
    assert oldest_kept(now_ms) == kept
