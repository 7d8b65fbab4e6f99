"""Tools: what the model hears of a call."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from service.tools import ToolCall, ToolError, ToolResult, Tools, tool
from tests.clock import START_S, ManualClock
from tests.probing import (
    ANYTHING,
    CALL,
    CANARY,
    a_tool,
    everything_logged,
    failed,
    fields,
    forever,
    run_probe,
)


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
