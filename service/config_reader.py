"""Reads TOML tables into dataclasses and gathers their faults; for `config` only."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, get_args, get_type_hints

_Table = TypeVar("_Table")
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)

# API Gateway takes 10 MB: https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html
MAX_BODY_BYTES: Final = 10_000_000
# API Gateway ends a stream after 15 minutes: https://docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html
MAX_SEGMENT_S: Final = 890.0
MAX_DEADLINE_S: Final = 8 * 3600.0

# What a number may be, by field name (inclusive). A field without a line here is any positive number.
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "heartbeat_s": (0.05, 60),
    "segment_s": (1, MAX_SEGMENT_S),
    "drain_s": (0, 105),  # and the rest of ECS's 120 s to end what is left
    "first_event_grace_s": (0, 10),
    "lease_s": (1, 300),
    "usage_grace_s": (0, 30),
    "abandon_s": (0.1, 3600),
    "retention_s": (24 * 3600, 1e15),  # a day: so long an Idempotency-Key attaches
    "deadline_s": (1, MAX_DEADLINE_S),
    "max_token_s": (300, 24 * 3600),
    "body_limit_bytes": (1, MAX_BODY_BYTES),
    "daily_tokens": (0, 1e15),
    "monthly_tokens": (0, 1e15),
    "concurrent_invocations": (0, 1e6),
    "max_turns": (1, 1000),
    "cleanup_s": (0, 4),  # less than `runner.HAND_OVER_GRACE_S`: its clean-up must not cost the hand-over
    "first_event_s": (0.1, 900),
    "temperature": (0, 1),
    "top_p": (0, 1),
    # https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html
    "budget_tokens": (1024, 1e6),
}
# What a string may be, by field name; any other one is any non-empty string.
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "performance": ("standard", "optimized"),
    "stream_mode": ("sync", "async"),
    "trace": ("disabled", "enabled", "enabled_full"),
}
_ANY_POSITIVE: Final = (1e-9, 1e15)
NOT_KEYS: Final = frozenset({"name", "options"})
"""Fields of a shape that its table has no key for: what it is called, and what is read on its own."""


class Reader:
    """Reads tables; `faults` are what was wrong with them, one sentence each."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def unknown_keys(self, where: str, table: Mapping[str, Any], known: Set[str]) -> None:
        """Note every key that is not known."""
        prefix = f"{where}." if where else ""
        self.faults += [
            f"{prefix}{key} is not known; known here: {', '.join(sorted(known))}"
            for key in sorted(table.keys() - known)
        ]

    def named_tables(
        self, section: str, document: Mapping[str, Any], *, any_name: bool = False
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the tables of a section, those with a good name."""
        tables = document.get(section, {})
        if not isinstance(tables, dict):
            self.faults.append(f"{section} must be tables such as [{section}.NAME]")
            return []
        good: list[tuple[str, Mapping[str, Any]]] = []
        for name, table in tables.items():
            if not any_name and not _NAME.fullmatch(name):
                self.faults.append(
                    f"{section}.{name}: a name has lower-case letters, digits and dashes, at most 63"
                )
            elif not isinstance(table, dict):
                self.faults.append(f"{section}.{name} must be a table")
            else:
                good.append((name, table))
        return good

    def table(
        self,
        where: str,
        table: Any,
        shape: type[_Table],
        given: Mapping[str, Any],
        *,
        beside: Set[str] = frozenset(),
    ) -> _Table | None:
        """Read a table; `given` are values that it need not have. A bad value is as if left out.

        Args:
            beside: Keys of the table that another shape has.
        """
        if not isinstance(table, dict):
            self.faults.append(f"{where} must be a table")
            return None
        types = {name: kind for name, kind in get_type_hints(shape).items() if name not in NOT_KEYS}
        self.unknown_keys(where, table, types.keys() | beside)
        values = dict(given)
        for name, kind in types.items():
            if name in table:
                before = len(self.faults)
                value = self._value(f"{where}.{name}", name, table[name], kind)
                if len(self.faults) == before:
                    values[name] = value
        shown: Any = shape
        needed = {each.name for each in fields(shown) if _is_needed(each)} - NOT_KEYS
        self.faults += [f"{where}.{name} is missing" for name in sorted(needed - table.keys())]
        return shape(**values) if values.keys() >= needed else None

    def _value(self, where: str, name: str, value: Any, kind: Any) -> Any:
        if isinstance(kind, UnionType):  # with None: may be left out; of a string and a list: either
            first, last = get_args(kind)
            kind = first if last is NoneType or isinstance(value, first) else last
        if isinstance(kind, type) and is_dataclass(kind):
            return self.table(where, value, kind, {})
        if kind is bool or kind == Mapping[str, Any] or kind is str:
            must_be = _fault(name, value, kind)
            if must_be:
                self.faults.append(f"{where} must be {must_be}")
            return value
        if kind == tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
                self.faults.append(f"{where} must be a list of strings")
                return ()
            return tuple(value)
        whole = kind is not float
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        low, high = _RANGES.get(name, _ANY_POSITIVE)
        if not number or not low <= value <= high:
            bounds = f" from {low:g} to {high:g}" if name in _RANGES else ", more than 0"
            self.faults.append(f"{where} must be a {'whole ' if whole else ''}number{bounds}, not {value!r}")
            return value
        return value if whole else float(value)


def _fault(name: str, value: Any, kind: Any) -> str | None:
    """Say what a flag, a document or a string must be, if it isn't."""
    if kind is bool:
        return None if isinstance(value, bool) else f"true or false, not {value!r}"
    if kind is not str:
        return None if isinstance(value, dict) and _is_json(value) else "a table of what JSON has"
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"{_one_of(_CHOICES[name])}, not {value!r}"
    return None if isinstance(value, str) and value else "a non-empty string"


def _is_needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _is_json(value: Any) -> bool:
    """Tell whether JSON has such a value: TOML has dates, infinity and NaN besides."""
    if isinstance(value, dict | list):
        return all(map(_is_json, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _one_of(choices: Sequence[str]) -> str:
    *first, last = (f'"{choice}"' for choice in choices)
    return f"{', '.join(first)} or {last}"
