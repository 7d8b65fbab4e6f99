"""Tools: what is refused at start, what the model hears of a call, and what cancelling one leaves behind."""

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from service.config import ConfigError
from service.tools import Tool, ToolCall, ToolError, ToolResult, Tools, tool
from tests.clock import START_S, ManualClock

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


# ---------------------------------------------------------------- at start


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a deployer's module `deployed_tools` where it can be imported."""

    def put(source: str) -> None:
        head = "from service.tools import ToolCall, ToolError, tool\n"
        (tmp_path / "deployed_tools.py").write_text(head + source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "deployed_tools", raising=False)

    return put


async def test_a_tool_is_imported_described_and_called(deployed: Callable[[str], None]) -> None:
    deployed("""
@tool(description="Search the handbook.", idempotent=True, input_schema={
    "type": "object", "properties": {"query": {"type": "string"}}, "required": ("query",)})
async def search(arguments, call):
    return {"arguments": arguments, "key": call.idempotency_key, "sub": call.sub}

@tool(description="Send a letter.", input_schema={"type": "object"}, name="send-letter")
async def send(arguments, call):
    return "sent"
""")

    tools = Tools.load(["deployed_tools:search", "deployed_tools:send"])

    assert tools.specs == (
        {
            "name": "search",
            "description": "Search the handbook.",
            "inputSchema": {
                "json": {
                    "type": "object",
                    "properties": {"query": {"type": "string"}},
                    "required": ["query"],
                }
            },
        },
        {"name": "send-letter", "description": "Send a letter.", "inputSchema": {"json": {"type": "object"}}},
    )
    assert [tools.is_idempotent(name) for name in ("search", "send-letter", "unknown")] == [
        True,
        False,
        False,
    ]
    assert await tools.run(CALL, "search", b'{"query": "leave"}') == ToolResult(
        "success",
        [{"json": {"arguments": {"query": "leave"}, "key": "inv_1:2:tooluse_1", "sub": "user-1"}}],
        outcome_known=True,
    )
    assert await tools.run(CALL, "send-letter", b"{}") == ToolResult("success", [{"text": "sent"}])


def test_without_tools_there_is_nothing_to_send() -> None:
    tools = Tools.load([])

    assert (tools.specs, bool(tools), bool(Tools([a_tool(str)]))) == ((), False, True)


@pytest.mark.promise("unknown-names-stop-start")
def test_all_faults_of_all_tools_are_listed_at_once(deployed: Callable[[str], None]) -> None:
    deployed("""
async def undeclared(arguments, call): ...

@tool(description="x", input_schema={"type": "object"})
def blocking(arguments, call): ...

@tool(description=" ", input_schema={"type": "string"}, name="no spaces", timeout_s=0)
async def wrong(arguments, call): ...

@tool(description="x", input_schema={"type": "object", "properties": []})
async def bad_schema(arguments, call): ...

@tool(description="x", input_schema={"type": "object"}, name="bad_schema")
async def same_name(arguments, call): ...

@tool(description="x", input_schema={"type": "object", "default": {1, 2}})
async def not_json(arguments, call): ...
""")
    (Path(sys.path[0]) / "deployed_broken.py").write_text("raise LookupError('no such setting')")
    names = ["undeclared", "missing", "blocking", "wrong", "bad_schema", "same_name", "not_json"]

    with pytest.raises(ConfigError) as caught:
        Tools.load([f"deployed_tools:{name}" for name in names] + ["deployed_broken:x", "no_such_module:x"])

    assert caught.value.faults == [
        "tool deployed_tools:undeclared is not a tool: decorate it with service.tools.tool",
        "tool deployed_tools:missing is not there: deployed_tools has no missing",
        "tool deployed_broken:x can't be imported: LookupError: no such setting",
        "tool no_such_module:x can't be imported: ModuleNotFoundError: No module named 'no_such_module'",
        (
            "tool blocking: it must be an async function: "
            "any other stops every stream of the process while it runs"
        ),
        "tool no spaces: its name must have 1 to 64 letters, digits, underscores and hyphens",
        "tool no spaces: its description is blank: the model chooses by it",
        "tool no spaces: its timeout_s must be more than 0",
        'tool no spaces: its input_schema must have "type": "object" at its top',
        "tool bad_schema: its input_schema is not JSON Schema: $.properties: [] is not of type 'object'",
        "tool not_json: its input_schema can't be written as JSON: Type is not JSON serializable: set",
        "tool bad_schema: 2 tools have this name",
    ]


@pytest.mark.parametrize("tools", [["missing"], ["search", "missing"]])
def test_good_tools_do_not_hide_one_that_is_missing(
    deployed: Callable[[str], None], tools: list[str]
) -> None:
    deployed("""
@tool(description="Search.", input_schema={"type": "object"})
async def search(arguments, call): ...
""")

    with pytest.raises(ConfigError) as caught:
        Tools.load([f"deployed_tools:{name}" for name in tools])

    assert caught.value.faults == ["tool deployed_tools:missing is not there: deployed_tools has no missing"]


@pytest.mark.parametrize(
    "reference",
    ["https://example.com/schema.json", "other.json#/x", "#/$defs/missing", "#no-such-anchor"],
)
def test_a_schema_refers_to_nothing_outside_itself(reference: str) -> None:
    @tool(
        description="Refers elsewhere.",
        input_schema={"type": "object", "properties": {"a": {"anyOf": [{"$ref": reference}]}}},
    )
    async def refers(arguments: dict[str, Any], call: ToolCall) -> str:
        return "unreachable"

    with pytest.raises(ConfigError) as caught:
        Tools([refers])

    assert caught.value.faults == [
        f"tool refers: its input_schema refers to {reference}, which is not in it; nothing is fetched"
    ]


async def test_a_schema_may_refer_to_itself() -> None:
    nested = {"type": "object", "properties": {"child": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}}}

    @tool(description="A tree.", input_schema=nested | {"$defs": {"leaf": {"type": "integer"}}})
    async def tree(arguments: dict[str, Any], call: ToolCall) -> Mapping[str, Any]:
        return arguments

    tools = Tools([tree])

    assert await tools.run(CALL, "tree", b'{"child": {"leaf": 1}}') == ToolResult(
        "success", [{"json": {"child": {"leaf": 1}}}]
    )
    assert await tools.run(CALL, "tree", b'{"child": {"leaf": "x"}}') == failed(
        "The input does not fit the tool's schema: $.child.leaf: 'x' is not of type 'integer'"
    )


async def test_a_schema_that_its_author_changes_later_stays_what_was_checked() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}

    @tool(description="Counts.", input_schema=schema)
    async def count(arguments: dict[str, Any], call: ToolCall) -> str:
        return "unreachable"

    tools = Tools([count])
    schema["properties"]["n"] = {}

    result = await tools.run(CALL, "count", b'{"n": "x"}')

    assert result == failed("The input does not fit the tool's schema: $.n: 'x' is not of type 'integer'")
    assert tools.specs[0]["inputSchema"]["json"]["properties"] == {"n": {"type": "integer"}}


async def test_the_authors_own_tests_call_a_tool_like_the_function_that_it_is() -> None:
    assert await a_tool(lambda: "as it is")({}, CALL) == "as it is"


# ---------------------------------------------------------------- what the model hears


@pytest.mark.parametrize("raw_input", [b"", b" \n", b"{}"])
async def test_no_input_is_an_empty_object(raw_input: bytes) -> None:
    seen: list[Any] = []

    @tool(description="Takes nothing.", input_schema=ANYTHING)
    async def takes_nothing(arguments: dict[str, Any], call: ToolCall) -> str:
        seen.append((arguments, call))
        return "ok"

    result = await Tools([takes_nothing]).run(CALL, "takes_nothing", raw_input)

    assert result == ToolResult("success", [{"text": "ok"}])
    assert seen == [({}, CALL)]


@pytest.mark.promise("tool-errors-go-to-model")
@pytest.mark.parametrize(
    ("name", "raw_input", "text"),
    [
        ("serach", b"{}", "There is no such tool. The tools are: search."),
        ("search", b'{"query": ', "The input is not valid JSON. Call the tool again with a JSON object."),
        ("search", b'{"query": NaN}', "The input is not valid JSON. Call the tool again with a JSON object."),
        ("search", b"[]", "The input does not fit the tool's schema: $: [] is not of type 'object'"),
        (
            "search",
            b'{"limit": "ten", "kind": "z", "x": 1, "y": [0]}',
            (
                "The input does not fit the tool's schema: $.limit: 'ten' is not of type 'integer'; "
                "$.kind: 'z' is not one of ['a', 'b']; $: 'query' is a required property"
            ),
        ),
        (
            "search",
            b'{"query": "%b"}' % (b"q" * 1000),
            "The input does not fit the tool's schema: $.query: must satisfy maxLength: 100",
        ),
    ],
)
async def test_a_call_that_does_not_fit_tells_the_model_why_and_does_not_run(
    name: str, raw_input: bytes, text: str
) -> None:
    properties = {
        "limit": {"type": "integer"},
        "kind": {"enum": ["a", "b"]},
        "query": {"type": "string", "maxLength": 100},
    }
    runs: list[Any] = []

    @tool(
        description="Search.",
        input_schema={
            "type": "object",
            "properties": properties,
            "required": ["query"],
            "additionalProperties": False,
        },
    )
    async def search(arguments: dict[str, Any], call: ToolCall) -> str:
        runs.append(arguments)
        return "ran"

    result = await Tools([search]).run(CALL, name, raw_input)

    assert result == failed(text)
    assert runs == []


async def test_a_runtime_without_tools_tells_the_model_so() -> None:
    assert await Tools().run(CALL, "search", b"{}") == failed("There is no such tool. The tools are: none.")


@pytest.mark.parametrize(
    ("returned", "block"),
    [
        ("found: é\x00", {"text": "found: é\x00"}),
        ("", {"text": "The tool gave no text."}),
        (" \n", {"text": "The tool gave no text."}),
        ({}, {"json": {}}),
        (MappingProxyType({"n": 1}), {"json": {"n": 1}}),
        (
            {"at": datetime(2026, 11, 21, tzinfo=UTC), "t": (1,)},
            {"json": {"at": "2026-11-21T00:00:00+00:00", "t": [1]}},
        ),
    ],
)
async def test_a_result_is_text_or_a_json_object(returned: object, block: dict[str, Any]) -> None:
    assert await run_probe(lambda: returned) == ToolResult("success", [block])


async def test_a_result_is_a_copy_that_the_tool_can_no_longer_change() -> None:
    kept = {"rows": [1]}

    result = await run_probe(lambda: kept)
    kept["rows"].append(2)

    assert result.content == [{"json": {"rows": [1]}}]


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.promise("tool-errors-go-to-model")
@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (None, "The tool returned neither text nor an object."),
        ([1], "The tool returned neither text nor an object."),
        ({"rows": {1, 2}}, "The tool's result can't be written as JSON."),
        ({1: "x"}, "The tool's result can't be written as JSON."),
        ({"n": 2**70}, "The tool's result can't be written as JSON."),
        ("\ud800", "The tool's result can't be written as JSON."),
        (endless(), "The tool's result can't be written as JSON."),
        (
            "x" * 102_400,
            "The tool's result has 102402 bytes, more than the 102400 that are allowed. Ask for less.",
        ),
    ],
)
async def test_a_result_that_can_not_be_sent_is_an_error_that_says_so(
    returned: object, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = await run_probe(lambda: returned)

    assert result == failed(text)
    assert [fields(record) for record in caplog.records] == [
        {
            "message": "tool gave no usable result",
            "level": "WARNING",
            "tool": "probe",
            "invocation_id": "inv_1",
            "turn": 2,
            "reason": text,
        }
    ]


async def test_a_result_of_exactly_the_allowed_size_is_sent() -> None:
    assert await run_probe(lambda: "x" * 102_398) == ToolResult("success", [{"text": "x" * 102_398}])


def raises(error: BaseException) -> Callable[[], Any]:
    def body() -> Any:
        raise error

    return body


@pytest.mark.promise("tool-errors-go-to-model")
@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ToolError("There is no page 9."), failed("There is no page 9.")),
        (ToolError(" "), failed("The tool gave no text.")),
        (ToolError("\ud800"), failed("The tool's result can't be written as JSON.")),
        (TimeoutError(CANARY), failed("The tool failed.")),
        (asyncio.CancelledError(CANARY), failed("The tool cancelled itself.")),
    ],
)
async def test_only_what_the_author_wrote_for_the_model_reaches_it(
    error: BaseException, result: ToolResult
) -> None:
    assert await run_probe(raises(error)) == result


@pytest.mark.promise("tool-errors-go-to-model", "no-content-in-logs")
async def test_the_log_says_where_a_tool_failed_but_not_what_the_exception_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    @tool(description="Fails.", input_schema=ANYTHING)
    async def fails(arguments: dict[str, Any], call: ToolCall) -> str:
        try:
            return str({}[arguments["q"]])
        except KeyError as error:
            raise LookupError(f"nothing about {arguments['q']}") from error

    result = await Tools([fails]).run(CALL, "fails", b'{"q": "%b"}' % CANARY.encode())

    (record,) = [record for record in caplog.records if record.name == "service.tools"]
    assert result == failed("The tool failed.")
    assert fields(record) == {
        "message": "tool failed",
        "level": "WARNING",
        "tool": "fails",
        "invocation_id": "inv_1",
        "turn": 2,
        "error_type": "LookupError",
    }
    outer, cause = vars(record)["stack"].split("caused by ")
    assert outer.startswith("LookupError\n")
    assert outer.rstrip().count("in fails") == 1
    assert cause.startswith("KeyError\n")
    assert cause.count("in fails") == 1
    assert CANARY not in everything_logged(caplog.records)


@pytest.mark.promise("tool-errors-go-to-model")
async def test_a_call_that_takes_too_long_is_stopped_and_the_model_hears_of_it(clock: ManualClock) -> None:
    steps: list[tuple[str, float]] = []

    async def never() -> None:
        try:
            await forever()
        finally:
            steps.append(("cleaned up", clock.monotonic_s() - START_S))

    running = asyncio.create_task(Tools([a_tool(never, timeout_s=2.5)]).run(CALL, "probe", b"{}"))
    await clock.advance(10.0)

    assert running.result() == failed("The tool was stopped after 2.5 s.")
    assert steps == [("cleaned up", 2.5)]


# ---------------------------------------------------------------- cancellation


def forever() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def cancel_midway(body: Callable[[], Any], clock: ManualClock) -> asyncio.Task[ToolResult]:
    """Start a call, cancel it once the tool waits, and let all run until nothing can."""
    running = asyncio.create_task(Tools([a_tool(body)]).run(CALL, "probe", b"{}"))
    await clock.advance(0)
    running.cancel()
    await clock.advance(0)
    return running


async def test_cancelling_a_call_waits_for_the_tool_to_clean_up(clock: ManualClock) -> None:
    steps: list[str] = []

    async def careful() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            steps.append("cancelled")
            await asyncio.sleep(3.0)
            steps.append("cleaned up")
            raise

    running = await cancel_midway(careful, clock)
    before = (list(steps), running.done())
    await clock.advance(3.0)

    assert before == (["cancelled"], False)
    assert (steps, running.cancelled()) == (["cancelled", "cleaned up"], True)


async def test_a_tool_that_returns_in_spite_of_its_cancellation_does_not_undo_it(clock: ManualClock) -> None:
    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        return "done anyway"

    running = await cancel_midway(stubborn, clock)

    assert running.cancelled()


@pytest.mark.promise("no-content-in-logs")
async def test_a_tool_that_fails_while_it_is_cancelled_is_not_heard_of(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails_late() -> None:
        try:
            await forever()
        finally:
            raise ValueError(CANARY)

    running = await cancel_midway(fails_late, clock)
    gc.collect()  # asyncio speaks of an exception that nobody asked for when its task is collected

    assert running.cancelled()
    assert caplog.records == []


@pytest.mark.parametrize("by", ["cancellation", "timeout"])
async def test_a_tool_that_ignores_its_cancellation_holds_nobody_up_for_long(
    by: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []
    may_end = asyncio.Event()

    async def deaf() -> None:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        steps.append("ended")

    if by == "cancellation":
        running = await cancel_midway(deaf, clock)
    else:
        running = asyncio.create_task(Tools([a_tool(deaf)]).run(CALL, "probe", b"{}"))
        await clock.advance(60.0)
    await clock.advance(4.0)
    waited = not running.done()
    await clock.advance(1.0)
    told = running.cancelled() or running.result()
    may_end.set()
    await clock.advance(0)

    assert waited
    assert told == (True if by == "cancellation" else failed("The tool was stopped after 60 s."))
    assert steps == ["ended"]
    assert fields(caplog.records[0]) == {
        "message": "tool ignores its cancellation",
        "level": "ERROR",
        "tool": "probe",
        "invocation_id": "inv_1",
        "turn": 2,
    }


async def test_a_second_cancellation_does_not_wait_for_the_tool(clock: ManualClock) -> None:
    steps: list[str] = []

    async def slow_to_end() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(3.0)
            steps.append("cleaned up")

    running = await cancel_midway(slow_to_end, clock)
    running.cancel()
    await clock.advance(0)
    at_once = (running.cancelled(), list(steps))
    await clock.advance(3.0)

    assert at_once == (True, [])
    assert steps == ["cleaned up"]


async def test_a_call_cancelled_before_it_began_leaves_nothing_behind(clock: ManualClock) -> None:
    running = asyncio.create_task(Tools([a_tool(lambda: "never")]).run(CALL, "probe", b"{}"))
    running.cancel()

    await clock.advance(0)

    assert running.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.promise("no-content-in-logs")
async def test_a_call_cancelled_as_its_tool_fails_is_cancelled_in_silence(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ending = asyncio.Event()

    async def ends_now() -> None:
        await ending.wait()
        raise LookupError(CANARY)

    running = asyncio.create_task(Tools([a_tool(ends_now)]).run(CALL, "probe", b"{}"))
    await clock.advance(0)
    ending.set()
    await asyncio.sleep(0)
    running.cancel()
    await clock.advance(0)
    gc.collect()

    assert running.cancelled()
    assert caplog.records == []
