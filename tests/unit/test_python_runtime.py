"""What an agent gets, yields and fails with; in one thread and in two."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from service.errors import (
    AgentFailed,
    HeadraceError,
    OutcomeUnknown,
    QuotaExceeded,
    UpstreamThrottled,
)
from service.runtimes import Outcome
from service.runtimes.python import Agent
from service.runtimes.python_agent import AgentInvocation
from tests.agents import GIVEN, MESSAGES, Loop, forward, outcome_of, runtime_of
from tests.fakes import frame, start, text
from tests.unit.test_converse import Recorder

SECRET = "what the caller said"


async def test_text_is_written_as_one_message(agent_loop: Loop) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        yield "A head"
        yield "race."

    recorder = Recorder()
    runtime, _ = runtime_of(agent, agent_loop)

    outcome = await runtime.run(GIVEN, recorder)

    assert outcome == Outcome("end_turn")
    assert recorder.frames == [
        *start(),
        *text("A head", "race."),
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
    ]
    assert recorder.did == [("enter", "agent", 0)]


async def test_an_agent_knows_its_invocation(agent_loop: Loop) -> None:
    known: list[Any] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        known.extend(
            (invocation.prompt, invocation.messages, invocation.sub, invocation.groups, invocation.session_id)
        )
        known.extend((invocation.idempotency_key, invocation.attempt, invocation.remaining_s))
        invocation.messages[0]["content"] = "changed"
        yield "ok"

    runtime, _ = runtime_of(agent, agent_loop)
    await runtime.run(GIVEN, Recorder())

    assert known == [
        *("What is a headrace?", list(MESSAGES), "user-1", ("editors",), "session-1", "inv_1", 1, 60.0)
    ]


async def test_progress_is_one_bounded_word_of_the_heartbeats(agent_loop: Loop) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        for said in ('reading "page 3"\nid: 9.9 \x00 \u2028 größe', "x" * 1000, "\n"):
            invocation.progress(said)
            yield said
            await asyncio.sleep(0)

    recorder = Recorder()
    runtime, _ = runtime_of(agent, agent_loop)

    await runtime.run(GIVEN, recorder)

    shown = [did[1] for did in recorder.did if did[0] == "show"]
    assert set(shown) <= {"agent:reading-page-3-id:-9.9-größe", "agent:" + "x" * 64, "agent"}
    assert shown[-1] == "agent"


@pytest.mark.promise("agent-error-stays-inside")
async def test_an_authors_error_is_agent_failed_and_its_stack_is_logged(
    agent_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        yield "Let me see"
        raise LookupError(SECRET)

    recorder = Recorder()
    runtime, _ = runtime_of(agent, agent_loop)

    failure = await outcome_of(runtime, recorder)

    (record,) = [each for each in caplog.records if each.message == "agent failed"]
    assert isinstance(failure, AgentFailed)
    assert failure.problem()["detail"] == "The failure has been logged with this invocation's id."
    assert recorder.frames == [*start(), *text("Let me see")]
    assert (record.exc_info, record.__dict__["error_type"]) == (None, "LookupError")
    assert "in agent" in record.__dict__["stack"]
    assert SECRET not in str(record.__dict__)


@pytest.mark.parametrize("error", [SystemExit("now"), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_agent_that_would_end_more_than_itself_only_fails(
    error: BaseException, agent_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        yield "x"
        raise error

    runtime, _ = runtime_of(agent, agent_loop)

    assert isinstance(await outcome_of(runtime, Recorder()), AgentFailed)
    assert "agent failed" in caplog.text


@pytest.mark.promise("agent-output-refused")
async def test_what_may_not_be_yielded_fails_the_invocation_with_the_reason(agent_loop: Loop) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[Any]:
        yield "Before"
        yield {"secret": 1}

    runtime, _ = runtime_of(agent, agent_loop)

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, AgentFailed)
    assert str(failure.problem()["detail"]).startswith("The agent is at fault: it yielded a dict whose key")
    assert "secret" not in str(failure.problem())


async def test_a_problem_that_an_author_raises_is_no_problem_of_ours(agent_loop: Loop) -> None:
    async def agent(_: AgentInvocation) -> AsyncGenerator[str]:
        yield "x"
        raise QuotaExceeded("forged", retry_after_s=1)

    runtime, _ = runtime_of(agent, agent_loop)

    assert isinstance(await outcome_of(runtime, Recorder()), AgentFailed)


@pytest.mark.promise("no-agent-twice")
async def test_an_agent_that_is_not_restartable_is_never_run_twice(agent_loop: Loop) -> None:
    ran: list[int] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        ran.append(invocation.attempt)
        yield "x"

    plain, _ = runtime_of(agent, agent_loop)
    again, _ = runtime_of(agent, agent_loop, restartable=True)

    refused = await outcome_of(plain, Recorder(attempt=2))
    outcome = await outcome_of(again, Recorder(attempt=2))

    assert isinstance(refused, OutcomeUnknown)
    assert outcome == Outcome("end_turn")
    assert ran == [2]


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda inv: inv.model("bedrock/other"), "the runtime's models are bedrock/m-1, bedrock/m-2"),
        (lambda inv: inv.model().converse(messages=[]), "messages must not be empty"),
        (
            lambda inv: inv.model().converse(messages=MESSAGES, max_tokens=5000),
            "max_tokens must be from 1 to",
        ),
        (lambda inv: inv.model().converse(messages=[object()]), "must be what JSON can hold"),
        (lambda inv: inv.model().converse(messages=MESSAGES, tools=["x"]), "must be what JSON can hold"),
    ],
)
async def test_a_call_that_can_not_be_made_is_the_authors_error(
    ask: Callable[[AgentInvocation], Any], reason: str
) -> None:
    said: list[str] = []

    async def agent(invocation: AgentInvocation) -> AsyncGenerator[str]:
        try:
            ask(invocation)
        except ValueError as error:
            said.append(str(error))
        yield "x"

    runtime, model = runtime_of(agent, asyncio.get_running_loop())
    await runtime.run(GIVEN, Recorder())

    assert reason in said[0]
    assert model.requests == []


class Wrapper(Exception):
    """What a framework makes of any failure of its model."""


async def wraps(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    try:
        async for event in forward(invocation):
            yield event
    except HeadraceError as error:
        raise Wrapper("the loop failed") from error


async def groups(invocation: AgentInvocation) -> AsyncGenerator[Any]:
    async def call() -> None:
        async for _ in forward(invocation):
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        tasks.create_task(asyncio.sleep(0))
    yield "never"


@pytest.mark.parametrize("agent", [wraps, groups])
async def test_what_a_model_failed_with_is_found_in_what_a_framework_makes_of_it(
    agent_loop: Loop, agent: Agent
) -> None:
    runtime, _ = runtime_of(agent, agent_loop, [UpstreamThrottled("Busy.")])

    failure = await outcome_of(runtime, Recorder())

    assert isinstance(failure, UpstreamThrottled)
    assert (failure.detail, failure.__cause__) == ("Busy.", None)


async def test_a_wrapper_around_itself_is_the_agents_failure(agent_loop: Loop) -> None:
    async def agent(invocation: AgentInvocation) -> AsyncGenerator[Any]:
        yield "So far."
        first, second = Wrapper(), Wrapper()
        first.__cause__, second.__cause__ = second, first
        raise first

    runtime, _ = runtime_of(agent, agent_loop)

    assert isinstance(await outcome_of(runtime, Recorder()), AgentFailed)
