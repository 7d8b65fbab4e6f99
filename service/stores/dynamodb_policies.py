"""What operators have decided about principals, in DynamoDB's usage table: two partitions, read whole.

`stores.dynamodb` calls these functions. No `sub` begins with a hyphen (Cognito's are UUIDs).

    -denied   sub:<sub>, origin_jti:<jti>     since_ms, until_ms, ttl
    -limits   <sub>                           the overridden fields
"""

from collections.abc import Mapping
from typing import Any, Final

from service.stores import Denial, Policies
from service.stores.dynamodb_client import Item, Refused, delete, put, update
from service.stores.dynamodb_records import Tables

DENIED: Final = "-denied"
LIMITS: Final = "-limits"


async def load(tables: Tables, now_ms: int) -> Policies:
    """Return what holds now."""
    denials = await tables.client.query(tables.usage, "#user_id = :pk", pk=DENIED)
    overrides = await tables.client.query(tables.usage, "#user_id = :pk", pk=LIMITS)
    denied = {
        item["period_id"]: Denial(item["since_ms"], item.get("until_ms"))
        for item in denials
        if item.get("until_ms") is None or item["until_ms"] > now_ms
    }
    return Policies(denied, {item["period_id"]: _fields(item) for item in overrides})


async def deny(tables: Tables, subject: str, now_ms: int, until_ms: int | None) -> None:
    """Write a denial over the one that there is."""
    ttl = None if until_ms is None else until_ms // 1000
    item = {"user_id": DENIED, "period_id": subject, "since_ms": now_ms, "until_ms": until_ms, "ttl": ttl}
    await tables.client.write(put(tables.usage, item))


async def allow(tables: Tables, subject: str) -> bool:
    """Delete a denial; returns whether there was one."""
    there = delete(tables.usage, {"user_id": DENIED, "period_id": subject}, "attribute_exists(#user_id)")
    try:
        await tables.client.write_together([there])  # its token tells a lost answer from a refusal
    except Refused:
        return False
    return True


async def set_limits(tables: Tables, sub: str, overrides: Mapping[str, int] | None) -> None:
    """Override fields besides those that are; None: none any more."""
    key = {"user_id": LIMITS, "period_id": sub}
    if overrides is None:
        await tables.client.write(delete(tables.usage, key))
    elif overrides:
        change = "SET " + ", ".join(f"#{name} = :{name}" for name in overrides)
        values: dict[str, Any] = dict(overrides)
        await tables.client.write(update(tables.usage, key, change, **values))


def _fields(item: Item) -> dict[str, int]:
    return {name: value for name, value in item.items() if name not in ("user_id", "period_id")}
