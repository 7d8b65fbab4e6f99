"""The tool of a drill's jobs, and the journal in which it notes every call that was made.

The services import it by name (`jobs.CATALOG`) and run it; `audit` reads the journal. A call is noted before
its work begins, in one write to a file that is only appended to, so a process that is killed over it has
noted it. Its result depends on the key and the arguments alone: the audit can tell what it must have been.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from service.tools import ToolCall, tool

JOURNAL: Final = "DRILL_JOURNAL"
"""The environment variable that names the journal's file."""


@dataclass(frozen=True, slots=True)
class Noted:
    """One call that was made."""

    key: str
    arguments: Mapping[str, Any]
    tool_use_id: str
    pid: int
    at_ms: int


def result_of(key: str, arguments: Mapping[str, Any]) -> str:
    """Return what the tool answers to these arguments under this idempotency key."""
    return hashlib.sha256(f"{key} {json.dumps(arguments, sort_keys=True)}".encode()).hexdigest()[:16]


def read_journal(path: Path) -> list[Noted]:
    """Return the calls that were made, in the order in which they began."""
    return [Noted(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@tool(
    description="Survey a stretch of the river.",
    input_schema={
        "type": "object",
        "properties": {"stretch": {"type": "string"}, "takes_s": {"type": "number"}},
        "required": ["stretch", "takes_s"],
        "additionalProperties": False,
    },
    idempotent=True,
)
async def survey(arguments: dict[str, Any], call: ToolCall) -> str:
    """Note the call, work for `takes_s`, answer."""
    noted = Noted(call.idempotency_key, arguments, call.tool_use_id, os.getpid(), time.time_ns() // 1_000_000)
    journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, json.dumps(asdict(noted)).encode() + b"\n")
    finally:
        os.close(journal)
    await asyncio.sleep(arguments["takes_s"])
    return result_of(call.idempotency_key, arguments)
