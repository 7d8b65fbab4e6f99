"""Tools at start: what is imported, described and refused."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.config import ConfigError
from service.tools import ToolCall, ToolResult, Tools, tool
from tests.probing import CALL, a_tool, failed


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
    repeatable = [tools.may_repeat(name) for name in ("search", "send-letter", "unknown")]
    assert repeatable == [True, False, False]
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
