"""Agents that the services of e2e tests run: `test_agents` names them in its catalog.

Each finds the directory of its test in its prompt: what it notes there, the test can read.
"""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from service.runtimes.python_agent import AgentInvocation


def directory(invocation: AgentInvocation) -> Path:
    return Path(invocation.prompt)


async def writes(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Note that it runs, forward a model's answer, and note how it ended."""
    with (directory(invocation) / "runs").open("a") as runs:
        runs.write(f"{invocation.idempotency_key} {invocation.attempt}\n")
    try:
        async for event in invocation.model().converse(messages=invocation.messages):
            yield event
    except asyncio.CancelledError:
        (directory(invocation) / "cancelled").touch()
        raise


async def spins(invocation: AgentInvocation) -> AsyncGenerator[str]:
    """Hold its thread, and the interpreter as far as it goes, until the test says so."""
    yield "Before. "
    await asyncio.sleep(0.1)
    while not (directory(invocation) / "released").exists():
        pass
    yield "After."


async def stays(invocation: AgentInvocation) -> AsyncGenerator[str]:
    """Swallow its cancellation."""
    yield "Here I am."
    while not (directory(invocation) / "released").exists():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            (directory(invocation) / "cancelled").touch()
