"""The tools that an agent may call: declared by their authors, checked at start, run within limits.

A deployer writes an async function in a module of their own, named in `headrace.toml` as `my_tools:search`:

    @tool(description="Search the handbook.", input_schema={"type": "object", "properties": {...}})
    async def search(arguments: dict[str, Any], call: ToolCall) -> str | Mapping[str, Any]: ...

`app` calls `Tools.load` once per runtime; `runtimes.converse` sends `specs` to the model and calls `run` for
each tool use. Whatever goes wrong with a tool becomes an error result, so that the model can correct itself;
nothing but cancellation leaves `run`. What an exception says reaches neither the model nor the wire nor the
log, since it may quote arguments; only the text of a `ToolError` was written for the model and goes there.
Schemas are JSON Schema 2020-12, compiled once, and fetch nothing.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html
"""

import asyncio
import importlib
import inspect
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import orjson
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from service.config import ConfigError
from service.errors import log_fields_of

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
MAX_RESULT_BYTES: Final = 100 * 1024
# Less than `runner.HAND_OVER_GRACE_S`: a tool that does not end must not cost its attempt the hand-over.
CANCEL_GRACE_S: Final = 3.0
_SHOWN_FAULTS: Final = 3
_SHOWN_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Which call this is. `idempotency_key` is the same in every attempt at it; `sub` owns the invocation."""

    invocation_id: str
    turn: int
    tool_use_id: str
    idempotency_key: str
    sub: str


Returning = Coroutine[Any, Any, str | Mapping[str, Any]]
ToolFunction = Callable[[dict[str, Any], ToolCall], Returning]


class ToolError(Exception):
    """Raised by a tool's author: its text is handed to the model as the tool's error result."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared tool. Calling it calls the author's function as it is, for the author's own tests.

    `idempotent` says that a call whose outcome is unknown may be made again with the same `idempotency_key`.
    """

    function: ToolFunction
    name: str
    description: str
    input_schema: Mapping[str, Any]
    idempotent: bool
    timeout_s: float

    def __call__(self, arguments: dict[str, Any], call: ToolCall) -> Returning:
        return self.function(arguments, call)


def tool(
    *,
    description: str,
    input_schema: Mapping[str, Any],
    idempotent: bool = False,
    timeout_s: float = 60.0,
    name: str | None = None,
) -> Callable[[ToolFunction], Tool]:
    """Declare an async function as a tool, named like it unless `name` is given; `Tools` checks all of it."""

    def declare(function: ToolFunction) -> Tool:
        own_name = getattr(function, "__name__", "") if name is None else name
        return Tool(function, own_name, description, input_schema, idempotent, timeout_s)

    return declare


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model is told: `status` and `content` are those of a Converse `toolResult` block."""

    status: Literal["success", "error"]
    content: list[dict[str, Any]]
    outcome_known: bool = True


class Tools:
    """The tools of one runtime; false without any. `specs` are their Bedrock `toolSpec` values, in order."""

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        *,
        max_result_bytes: int = MAX_RESULT_BYTES,
        cancel_grace_s: float = CANCEL_GRACE_S,
    ) -> None:
        """Check the declarations and compile their schemas.

        Raises:
            ConfigError: All faults of all declarations.
        """
        faults = [fault for each in tools for fault in _declaration_faults(each)]
        counts = Counter(each.name for each in tools)
        faults += [f"tool {name}: {n} tools have this name" for name, n in counts.items() if n > 1]
        if faults:
            raise ConfigError(faults)
        # Copied through JSON: what the author's module does to a schema later changes nothing here.
        schemas = {each.name: orjson.loads(orjson.dumps(dict(each.input_schema))) for each in tools}
        self._tools = {each.name: each for each in tools}
        self._validators: dict[str, Validator] = {
            name: Draft202012Validator(schema, registry=Registry()) for name, schema in schemas.items()
        }
        self._max_result_bytes = max_result_bytes
        self._cancel_grace_s = cancel_grace_s
        self._stopping: set[asyncio.Task[Any]] = set()
        self.specs: tuple[Mapping[str, Any], ...] = tuple(
            {"name": each.name, "description": each.description, "inputSchema": {"json": schemas[each.name]}}
            for each in tools
        )

    @classmethod
    def load(cls, entries: Sequence[str]) -> "Tools":
        """Import the tools that `entries` name as "package.module:function".

        Raises:
            ConfigError: Everything that can't be imported or is no tool, and all faults of the declarations.
        """
        found = {entry: _import_tool(entry) for entry in entries}
        faults = [f"tool {entry} {what}" for entry, what in found.items() if isinstance(what, str)]
        try:
            tools = cls([each for entry in entries if isinstance(each := found[entry], Tool)])
        except ConfigError as error:
            raise ConfigError(faults + error.faults) from error
        if faults:
            raise ConfigError(faults)
        return tools

    def __bool__(self) -> bool:
        return bool(self._tools)

    def may_repeat(self, name: str) -> bool:
        """Tell whether a call whose outcome is unknown may be made again: never of a tool that is gone."""
        return name in self._tools and self._tools[name].idempotent

    def refusal(self, call: ToolCall, name: str, raw_input: bytes) -> ToolResult | None:
        """Return what to tell the model of a call that can't be made; None if it can."""
        chosen = self._tools.get(name)
        if chosen is None:
            return _failed(f"There is no such tool. The tools are: {', '.join(self._tools) or 'none'}.")
        try:
            faults = _input_faults(self._validators[name], _arguments(raw_input))
        except orjson.JSONDecodeError:
            return _failed("The input is not valid JSON. Call the tool again with a JSON object.")
        except Exception as error:  # noqa: BLE001  a schema may be valid, and too much for its validator
            _log_failure(chosen, call, error)
            return _failed("The tool failed.")
        return _failed(f"The input does not fit the tool's schema: {'; '.join(faults)}") if faults else None

    async def run(self, call: ToolCall, name: str, raw_input: bytes) -> ToolResult:
        """Make one call and return what to tell the model; `raw_input` is the input as the model streamed it.

        Cancellation cancels the tool, waits for its end for at most `cancel_grace_s`, and propagates. A tool
        that goes on nevertheless is reported in the log and left alone: asyncio has no way to stop it.
        """
        refused = self.refusal(call, name, raw_input)
        if refused is not None:
            return refused
        chosen = self._tools[name]
        try:
            return await self._call(chosen, _arguments(raw_input), call)
        except ToolError as error:
            return self._as_result(chosen, call, str(error), "error")
        except Exception as error:  # noqa: BLE001  foreign code: the model hears that it failed, the log where
            _log_failure(chosen, call, error)
            return _failed("The tool failed.")

    async def _call(self, chosen: Tool, arguments: dict[str, Any], call: ToolCall) -> ToolResult:
        """Run the function as a task of its own, so that its being cancelled can be told from ours."""
        task = asyncio.create_task(chosen.function(arguments, call), name=f"tool {chosen.name}")
        task.add_done_callback(_take_exception)
        try:
            done, _ = await asyncio.wait({task}, timeout=chosen.timeout_s)
        finally:
            if not task.done():
                await self._stop(task, chosen, call)
        if not done:
            return self._refused(chosen, call, f"The tool was stopped after {chosen.timeout_s:g} s.")
        if task.cancelled():
            return self._refused(chosen, call, "The tool cancelled itself.")
        return self._as_result(chosen, call, task.result(), "success")

    async def _stop(self, task: asyncio.Task[Any], chosen: Tool, call: ToolCall) -> None:
        self._stopping.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._stopping.discard)
        task.cancel()
        await asyncio.wait({task}, timeout=self._cancel_grace_s)
        if not task.done():
            logger.error("tool ignores its cancellation", extra=_fields(chosen, call))

    def _as_result(
        self, chosen: Tool, call: ToolCall, returned: object, status: Literal["success", "error"]
    ) -> ToolResult:
        if not isinstance(returned, str | Mapping):
            return self._refused(chosen, call, "The tool returned neither text nor an object.")
        try:
            encoded = orjson.dumps(returned if isinstance(returned, str) else dict(returned))
        except orjson.JSONEncodeError:
            return self._refused(chosen, call, "The tool's result can't be written as JSON.")
        if len(encoded) > self._max_result_bytes:
            size = f"{len(encoded)} bytes, more than the {self._max_result_bytes} that are allowed"
            return self._refused(chosen, call, f"The tool's result has {size}. Ask for less.")
        if not isinstance(returned, str):
            # Read back: a copy that the tool doesn't share, of JSON's types only (a datetime becomes text).
            return ToolResult(status, [{"json": orjson.loads(encoded)}])
        # Bedrock refuses blank text, and the whole invocation with it.
        blank = not returned or returned.isspace()
        return ToolResult(status, [{"text": "The tool gave no text." if blank else returned}])

    def _refused(self, chosen: Tool, call: ToolCall, reason: str) -> ToolResult:
        logger.warning("tool gave no usable result", extra={**_fields(chosen, call), "reason": reason})
        return _failed(reason)


def _arguments(raw_input: bytes) -> Any:
    # For a tool without parameters models often stream no input at all.
    return orjson.loads(raw_input.strip() or b"{}")


def _failed(text: str) -> ToolResult:
    return ToolResult("error", [{"text": text}])


def _take_exception(task: asyncio.Task[Any]) -> None:
    """Mark the task's exception as seen: asyncio would log it, message and all, if nobody asked any more."""
    if not task.cancelled():
        task.exception()


def _fields(chosen: Tool, call: ToolCall) -> dict[str, Any]:
    return {"tool": chosen.name, "invocation_id": call.invocation_id, "turn": call.turn}


def _log_failure(chosen: Tool, call: ToolCall, error: Exception) -> None:
    """Log where it failed, without what the exception says."""
    logger.warning("tool failed", extra=_fields(chosen, call) | log_fields_of(error))


def _input_faults(validator: Validator, arguments: Any) -> list[str]:
    return [_shown(error) for error in islice(validator.iter_errors(arguments), _SHOWN_FAULTS)]


def _shown(error: ValidationError) -> str:
    """Say what is wrong; jsonschema's sentence quotes the value, so a long one gives way to the rule."""
    if len(error.message) > _SHOWN_CHARACTERS:
        text = f"must satisfy {error.validator}: {orjson.dumps(error.validator_value).decode()}"
    else:
        text = error.message
    return f"{error.json_path[:_SHOWN_CHARACTERS]}: {text[:_SHOWN_CHARACTERS]}"


def _import_tool(entry: str) -> Tool | str:
    """Return the tool, or what is wrong with the entry."""
    module_name, _, function_name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001  importing runs the deployer's module, which may raise anything
        return f"can't be imported: {type(error).__name__}: {error}"
    found = getattr(module, function_name, None)
    if found is None:
        return f"is not there: {module_name} has no {function_name}"
    return found if isinstance(found, Tool) else "is not a tool: decorate it with service.tools.tool"


def _declaration_faults(declared: Tool) -> list[str]:
    faults: list[str] = []
    if not _NAME.fullmatch(declared.name):
        faults.append("its name must have 1 to 64 letters, digits, underscores and hyphens")
    if not declared.description.strip():
        faults.append("its description is blank: the model chooses by it")
    if not 0 < declared.timeout_s < math.inf:
        faults.append("its timeout_s must be more than 0")
    if fault := _schema_fault(declared.input_schema):
        faults.append(f"its input_schema {fault}")
    if not inspect.iscoroutinefunction(declared.function):
        faults.append(
            "it must be an async function: any other stops every stream of the process while it runs"
        )
    return [f"tool {declared.name}: {fault}" for fault in faults]


def _schema_fault(schema: Mapping[str, Any]) -> str | None:
    try:
        document = orjson.loads(orjson.dumps(dict(schema)))
    except orjson.JSONEncodeError as error:
        return f"can't be written as JSON: {error}"
    if document.get("type") != "object":
        return 'must have "type": "object" at its top'
    try:
        Draft202012Validator.check_schema(document)
    except SchemaError as error:
        return f"is not JSON Schema: {error.json_path}: {error.message}"
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(document))
    for reference in _references(document):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return f"refers to {reference}, which is not in it; nothing is fetched"
    return None


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
