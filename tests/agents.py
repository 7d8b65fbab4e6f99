"""Agents under test: a `PythonRuntime` of a function, its scripted model, and what it did to the recorder."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from service.config import RuntimeConfig
from service.errors import HeadraceError
from service.runtimes import InvocationInput, Outcome
from service.runtimes.python import Agent, PythonRuntime
from service.runtimes.python_agent import AgentInvocation
from tests.fakes import ScriptedModel, Step, answer
from tests.unit.test_converse import Recorder

Loop = asyncio.AbstractEventLoop
MESSAGES = ({"role": "user", "content": [{"text": "What is a headrace?"}]},)
GIVEN = InvocationInput(
    invocation_id="inv_1",
    runtime_id="agent",
    sub="user-1",
    groups=("editors",),
    session_id="session-1",
    messages=MESSAGES,
    max_tokens=100,
    request_metadata={"team": "search"},
)
BOUND = 64 + 16 + 19  # of a call with these messages alone


def runtime_of(
    agent: Agent, loop: Loop, *calls: list[Step], **keys: Any
) -> tuple[PythonRuntime, ScriptedModel]:
    config = RuntimeConfig("agent", "python", entry="m:f", models=("bedrock/m-1", "bedrock/m-2"), **keys)
    model = ScriptedModel(*(calls or [answer("A head", "race.")]))
    return PythonRuntime(config, agent, {"bedrock": model}, loop, usage_grace_s=1.0), model


async def forward(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    async for event in invocation.model("bedrock/m-1").converse(messages=invocation.messages):
        yield event


async def outcome_of(
    runtime: PythonRuntime, recorder: Recorder, given: InvocationInput = GIVEN
) -> Outcome | HeadraceError:
    try:
        return await runtime.run(given, recorder)
    except HeadraceError as error:
        return error


def ledger_of(recorder: Recorder) -> list[tuple[Any, ...]]:
    return [did for did in recorder.did if did[0] not in ("show", "enter")]


# -- agents of `headrace.toml`, by their entry


async def designed(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Forward a model's answer: the example of the documents."""
    async for event in invocation.model("bedrock/model-1").converse(messages=invocation.messages):
        yield event


async def twice(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    """Ask twice, of which the second time may be too much."""
    for _ in range(2):
        async for event in invocation.model().converse(messages=invocation.messages):
            yield event


def synchronous(invocation: AgentInvocation) -> Any:
    """Yield as a generator that blocks."""
    yield invocation.prompt


async def silent(invocation: AgentInvocation) -> str:
    """Return instead of yielding."""
    return invocation.prompt


def plain(invocation: AgentInvocation) -> str:
    """Do nothing of it."""
    return invocation.prompt


async def greedy(invocation: AgentInvocation, more: str) -> AsyncGenerator[str]:
    """Want more than there is."""
    yield invocation.prompt + more


VALUE = 42
