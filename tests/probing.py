"""A tool under test, its call, and what was logged of it; shared by the tests of `service.tools`."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from service.tools import Tool, ToolCall, ToolResult, Tools, tool

CALL = ToolCall(
    invocation_id="inv_1", turn=2, tool_use_id="tooluse_1", idempotency_key="inv_1:2:tooluse_1", sub="user-1"
)
ANYTHING = {"type": "object"}
CANARY = "canary-7f3a"


def a_tool(body: Callable[[], Any], *, timeout_s: float = 60.0) -> Tool:
    """Return a tool that does what `body` does, plain function or coroutine."""

    @tool(description="Under test.", input_schema=ANYTHING, timeout_s=timeout_s, name="probe")
    async def probe(arguments: dict[str, Any], call: ToolCall) -> Any:
        returned = body()
        return await returned if asyncio.iscoroutine(returned) else returned

    return probe


async def run_probe(body: Callable[[], Any]) -> ToolResult:
    return await Tools([a_tool(body)]).run(CALL, "probe", b"{}")


def failed(text: str) -> ToolResult:
    return ToolResult("error", [{"text": text}], outcome_known=True)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    names = ("tool", "invocation_id", "turn", "reason", "error_type")
    return {"message": record.getMessage(), "level": record.levelname} | {
        name: getattr(record, name) for name in names if hasattr(record, name)
    }


def everything_logged(records: list[logging.LogRecord]) -> str:
    return "\n".join(repr(vars(record)) for record in records)


def forever() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()
