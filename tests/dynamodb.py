"""The service's tables for tests on DynamoDB: fresh ones in the session's emulator, and a stack's own.

`tests/conftest.py` has the fixtures `emulator` and `tables`. A stack gets an emulator and tables of its own::

    async with Stack(tmp_path, catalog=CATALOG, answers="scripts", tables=STACK_TABLES) as stack:
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import uuid4

from local.dynamodb import DynamoDbLocal
from service.stores.dynamodb_tables import INVOCATIONS, USAGE

STACK_TABLES: Final[dict[str, dict[str, Any]]] = {
    USAGE.setting: USAGE.definition("usage"),
    INVOCATIONS.setting: INVOCATIONS.definition("invocations"),
}


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of two tables that nobody else uses."""

    usage: str
    invocations: str

    @property
    def names(self) -> dict[str, str]:
        """What `DynamoStore.open` wants to know."""
        return {"usage_table": self.usage, "invocations_table": self.invocations}

    @classmethod
    @contextmanager
    def created(cls, emulator: DynamoDbLocal) -> Iterator[Self]:
        """Create them, and delete them at the end."""
        suffix = uuid4().hex[:12]
        made = cls(f"usage-{suffix}", f"invocations-{suffix}")
        emulator.create_tables(USAGE.definition(made.usage), INVOCATIONS.definition(made.invocations))
        try:
            yield made
        finally:
            emulator.delete_tables(made.usage, made.invocations)
