"""Streams through real processes: what one client or the upstream does, and what the others see of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from local.answers import answer, refusal, tool_call
from local.scripts import NEVER, Cut, Head, Raise, Script, Wait, Wire
from local.stack import Stack
from tests.e2e.client import CATALOG, Caller, calling, ended

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "writer-model"
WORDS = [f"word{number} " for number in range(40)]
BROKEN = {
    "cut": (answer(deltas=WORDS).first(9).then(Cut()), "upstream-failed"),
    "cut-in-frame": (answer(deltas=WORDS).over(Wire(cut_after_bytes=1500)), "upstream-failed"),
    "no-message-stop": (answer(deltas=WORDS).first(9), "upstream-failed"),
    "exception": (answer(deltas=WORDS).first(9).then(Raise("modelStreamErrorException")), "upstream-failed"),
    "throttled": (answer(deltas=WORDS).first(9).then(Raise("throttlingException")), "upstream-throttled"),
    "stall": (answer(deltas=WORDS).first(9).then(Wait(NEVER)), "upstream-timeout"),
    "silence": (Script((Head(), Wait(NEVER))), "upstream-timeout"),
}
# Each has a runtime and a model of its own: together they would open the breaker of one that others call.
RUNTIME = """
[runtimes.{name}]
kind = "converse"
model = "bedrock/{name}-model"
max_output_tokens = 1000
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory: Path = tmp_path_factory.mktemp("stack")
    catalog = CATALOG.replace("upstream_silence_s = 60", "upstream_silence_s = 3")
    catalog += "".join(RUNTIME.format(name=name) for name in BROKEN)
    async with Stack(directory, catalog=catalog, answers="scripts") as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stack: Stack) -> AsyncIterator[Caller]:
    async with calling(stack) as caller:
        yield caller


async def test_an_answer_streams_to_its_terminal_event(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer(deltas=WORDS, input_tokens=12))

    async with ann.submit() as stream:
        await stream.whole()

    assert stream.response.status == 200
    assert [event.type for event in stream.events] == [
        "invocationStarted",
        "messageStart",
        *["contentBlockDelta"] * 40,
        "contentBlockStop",
        "messageStop",
        "metadata",
        "invocationCompleted",
    ]
    assert [event.last_event_id for event in stream.events] == [f"1.{seq}" for seq in range(1, 47)]


@pytest.mark.promise("reattach-exactly-once", "same-events-every-cursor")
async def test_replay_from_every_cursor_is_byte_identical(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer(deltas=WORDS))
    async with ann.submit() as stream:
        live = (await stream.whole()).removeprefix(b": connected\n")
        location = stream.location

    for event in stream.events:
        after = (await ann.events(location, event.last_event_id)).removeprefix(b": connected\n")
        assert live.endswith(after)
        assert live[: len(live) - len(after)].endswith(event.data.encode() + b"\n\n")


@pytest.mark.promise("hang-up-hurts-nobody", "job-survives-reader", "usage-after-hangup")
async def test_a_hang_up_hurts_neither_the_job_nor_another_reader(stack: Stack, ann: Caller) -> None:
    script = answer(deltas=WORDS, input_tokens=7, output_tokens=40).insert(5, Wait("hung-up"))
    await stack.bedrock.script(MODEL, script)
    async with ann.submit() as first:
        await first.until(b"word3")
        async with ann.follow(first.location) as second:
            await second.until(b"word3")
            first.response.close()
            await stack.bedrock.release("hung-up")
            whole = await second.whole()

    record = await ended(ann, first.location)
    assert whole == await ann.events(first.location)
    assert record["state"] == "completed"
    assert record["usage"]["outputTokens"] == 40
    assert record["result"] == {"text": "".join(WORDS)}


@pytest.mark.promise("slow-reader-bounded")
async def test_a_reader_that_reads_nothing_delays_nobody_and_gets_all_later(
    stack: Stack, ann: Caller
) -> None:
    big = ["x" * 8000 + " "] * 400
    await stack.bedrock.script(MODEL, answer(deltas=big).insert(2, Wait("both-read")))
    async with ann.submit() as slow:
        await slow.until(b"invocationStarted")
        async with ann.follow(slow.location) as quick:
            await quick.until(b"invocationStarted")
            await stack.bedrock.release("both-read")
            whole = await quick.whole()
        assert await slow.whole() == whole

    assert len(whole) > 400 * 8000


@pytest.mark.promise("refusal-becomes-status")
@pytest.mark.parametrize(
    ("refused", "status", "code"),
    [
        ("ResourceNotFoundException", 502, "upstream-misconfigured"),
        ("ValidationException", 400, "upstream-rejected"),
        ("AccessDeniedException", 502, "upstream-misconfigured"),
    ],
)
async def test_a_refusal_is_a_status(stack: Stack, ann: Caller, refused: str, status: int, code: str) -> None:
    await stack.bedrock.script(MODEL, refusal(refused))

    async with ann.submit() as stream:
        problem = await stream.response.json(content_type="application/problem+json")

    assert (stream.response.status, problem["status"], problem["code"]) == (status, status, code)
    assert "scripted" not in str(problem)
    _, record = await ann.get(f"/runtimes/writer/invocations/{problem['invocationId']}")
    assert record["state"] == "failed"


@pytest.mark.promise("truncation-is-failure", "one-terminal-event", "unreported-usage-estimated")
@pytest.mark.parametrize("runtime", BROKEN)
async def test_an_answer_that_breaks_off_fails_and_is_metered(
    stack: Stack, ann: Caller, runtime: str
) -> None:
    script, code = BROKEN[runtime]
    await stack.bedrock.script(f"{runtime}-model", script)

    async with ann.submit(runtime=runtime) as stream:
        await stream.whole()

    terminal = [event for event in stream.events if event.type.startswith("invocation")][1:]
    assert [event.type for event in terminal] == ["invocationFailed"]
    assert f'"code":"{code}"' in terminal[0].data.replace(": ", ":")
    record = await ended(ann, stream.location)
    assert record["state"] == "failed"
    assert record["usage"]["estimated"]


@pytest.mark.promise("falls-over-before-first-event", "tried-is-told")
@pytest.mark.parametrize(
    ("first", "code", "is_billed"),
    [
        (refusal("ThrottlingException"), "upstream-throttled", False),
        (refusal("ServiceUnavailableException"), "upstream-unavailable", False),
        (Script((Head(), Raise("throttlingException"))), "upstream-throttled", True),
        (Script((Head(), Wait(NEVER))), "upstream-timeout", True),
    ],
    ids=["throttled", "unavailable", "throttled-in-stream", "silent"],
)
async def test_a_first_model_that_does_not_begin_falls_over_to_the_second(
    stack: Stack, ann: Caller, first: Script, code: str, is_billed: bool
) -> None:
    await stack.bedrock.script("first-model", first)
    await stack.bedrock.script("second-model", answer(deltas=WORDS, input_tokens=7, output_tokens=40))

    async with ann.submit(runtime="pair") as stream:
        await stream.whole()
    record = await ended(ann, stream.location)

    kinds = [event.type for event in stream.events]
    assert (stream.response.status, kinds[:2], kinds[-1]) == (
        200,
        ["invocationStarted", "messageStart"],
        "invocationCompleted",
    )
    assert record["result"] == {"text": "".join(WORDS)}
    assert record["tried"] == [
        {"model": "bedrock/first-model", "code": code, "calls": 1},
        {"model": "bedrock/second-model", "calls": 1},
    ]
    assert (record["usage"]["outputTokens"], record["usage"].get("estimated", False)) == (40, is_billed)
    assert (record["usage"]["inputTokens"] > 7) is is_billed


@pytest.mark.promise("heartbeat-before-first-token")
async def test_heartbeats_come_while_the_model_is_silent(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer("Late.").insert(0, Wait("heard")))

    async with ann.submit() as stream:
        await stream.until(b": heartbeat phase=model turn=1 elapsed_s=1\n")
        await stack.bedrock.release("heard")
        await stream.whole()

    assert stream.body.startswith(b": connected\n")
    assert stream.events[-1].type == "invocationCompleted"


@pytest.mark.promise("usage-equals-metadata")
async def test_usage_is_the_sum_of_the_metadata_over_turns(stack: Stack, ann: Caller) -> None:
    turns = [
        tool_call("multiply", {"a": 6, "b": 7}, input_tokens=100, output_tokens=20),
        answer("42", input_tokens=150, output_tokens=3, usage={"cacheReadInputTokens": 9}),
    ]
    await stack.bedrock.script("reckoner-model", *turns)
    async with calling(stack, "bob") as bob:
        async with bob.submit("6 times 7?", runtime="reckoner") as stream:
            await stream.whole()
        _, usage = await bob.get("/usage")

    kinds = [event.type for event in stream.events]
    assert [kind for kind in kinds if kind.startswith("tool")] == ["toolStarted", "toolFinished"]
    assert [(window["used"], window["reserved"]) for window in usage["windows"]] == [(273, 0)] * 2


@pytest.mark.promise("bytes-pass-through")
async def test_events_pass_in_any_pieces(stack: Stack, ann: Caller) -> None:
    bodies = []
    for wire in (Wire(), Wire(bytes_per_write=1), Wire(frames_per_write=5)):
        await stack.bedrock.script(MODEL, answer("Any pieces at all.").over(wire))
        async with ann.submit() as stream:
            await stream.whole()
        bodies.append([event.data for event in stream.events[1:-2]])

    assert bodies[0] == bodies[1] == bodies[2]


async def test_many_callers_stream_at_once(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer(deltas=WORDS, delay_s=0.005))

    async def one() -> int:
        async with ann.submit() as stream:
            await stream.whole()
            return len(stream.events)

    assert await asyncio.gather(*(one() for _ in range(40))) == [46] * 40


@pytest.mark.promise("no-content-in-logs")
async def test_no_log_of_any_process_holds_prompt_answer_or_token(stack: Stack, ann: Caller) -> None:
    await stack.bedrock.script(MODEL, answer("canary-answer tells."), refusal("ValidationException"))
    for _ in range(2):
        async with ann.submit("canary-prompt") as stream:
            await stream.response.read()

    logs = "".join(process.log() for process in stack.processes)

    assert '"message":"attempt"' in logs
    assert "canary" not in logs
    assert ann.token not in logs
    assert ann.token.split(".")[2] not in logs
    assert "word3" not in logs
