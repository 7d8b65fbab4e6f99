"""What a python agent is given: its invocation, and the models that it may call.

The only part of Headrace that an agent's author sees, by way of `service.agents` (docs/agents.md teaches it):

    async def run(invocation: AgentInvocation) -> AsyncIterator[str | dict[str, Any]]:
        invocation.progress("thinking")
        model = invocation.model("bedrock/us.amazon.nova-lite-v1:0")
        async for event in model.converse(messages=invocation.messages):
            yield event

`runtimes.python` makes it. All of it is used in the agent's own thread and loop; what the service must do is
posted to it (`python_bridge`).
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from service.config import RuntimeConfig
from service.runtimes import InvocationInput
from service.runtimes.heard import Heard
from service.runtimes.python_bridge import CallStream, Outbox, post
from service.runtimes.python_calls import PHASE, Asked, ModelCalls
from service.runtimes.python_output import parse

MAX_PROGRESS: Final = 64  # characters

Event = dict[str, Any]
"""An event of ConverseStream: a dict with one key, its type."""


class AgentInvocation:
    """One invocation, as its agent sees it.

    Attributes:
        invocation_id, runtime_id, session_id: As the API has them; the session may be None.
        attempt: 1, or more where an agent that is `restartable` runs again.
        sub, groups: Who asks.
        request_metadata: As submitted.
        max_tokens: The most that one model call may generate, as submitted, and what it may without a word.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        given: InvocationInput,
        attempt: int,
        remaining_s: Callable[[], float],
        outbox: Outbox,
        calls: ModelCalls,
        here: asyncio.AbstractEventLoop,
    ) -> None:
        self.invocation_id = given.invocation_id
        self.runtime_id = given.runtime_id
        self.session_id = given.session_id
        self.attempt = attempt
        self.sub = given.sub
        self.groups = given.groups
        self.request_metadata = dict(given.request_metadata)
        self.max_tokens = given.max_tokens
        self._config = config
        self._given = given
        self._remaining_s = remaining_s
        self._outbox = outbox
        self._calls = calls
        self._here = here

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as submitted: Bedrock Converse messages, a copy of yours."""
        copy: list[dict[str, Any]] = _copied(self._given.messages)
        return copy

    @property
    def prompt(self) -> str:
        """The text of the last message, which is the user's."""
        content = self._given.messages[-1]["content"]
        return "\n".join(block["text"] for block in content if "text" in block)

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt, and nobody else's: for what must not be done twice elsewhere."""
        return self.invocation_id

    @property
    def remaining_s(self) -> float:
        """The seconds to the deadline."""
        return self._remaining_s()

    def progress(self, text: str) -> None:
        """Say what goes on, in heartbeats: `phase=agent:<text>`.

        Letters and digits stay, and `._:/`; anything else becomes dashes; 64 characters at most.
        """
        words = "".join(
            each if each.isalnum() or each in "._:/" else " " for each in text[: 4 * MAX_PROGRESS]
        )
        said = "-".join(words.split())[:MAX_PROGRESS]
        self._outbox.say(f"{PHASE}:{said}" if said else PHASE)

    def model(self, name: str = "") -> "AgentModel":
        """Return a model by its name in the runtime's `models`; without a name the first of them.

        Raises:
            ValueError: The runtime does not name it.
        """
        named = self._config.models
        if not named:
            raise ValueError("the runtime names no models: list what the agent calls under `models`")
        if name and name not in named:
            raise ValueError(f"the runtime's models are {', '.join(named)}: {name!r} is none of them")
        return AgentModel(name or named[0], self._converse, (self.max_tokens, self._config.max_output_tokens))

    async def _converse(self, asked: Asked) -> AsyncGenerator[Event]:
        stream = CallStream(self._here, asyncio.get_running_loop())
        post(self._here, self._calls.begin, asked, stream)
        try:
            while frames := await stream.take():
                for event in parse(frames):
                    yield event
        finally:
            post(self._here, self._calls.leave, stream)


class AgentModel:
    """A model that an agent may call; every call is a turn: held before it, settled after it."""

    def __init__(
        self,
        name: str,
        converse: Callable[[Asked], AsyncGenerator[Event]],
        max_tokens: tuple[int, int],
    ) -> None:
        self.name = name
        self._converse = converse
        self._usual_tokens, self._most_tokens = max_tokens

    def converse(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
    ) -> AsyncGenerator[Event]:
        """Call the model and return its events, as boto3's `converse_stream` has them.

        The call begins with the first event that is asked for. Closing the generator, or leaving a loop over
        it, ends the call; it is settled by what it used. Calls may run beside one another.

        Args:
            messages: Bedrock Converse messages; members of `bytes` as bytes or as base64.
            system: Instructions.
            tools: `toolSpec`s of Converse, with or without their `{"toolSpec": ...}`.
            max_tokens: The most that it may generate, at most the runtime's `max_output_tokens`.

        Raises, while it is iterated:
            QuotaExceeded, BudgetExceeded: There is no room for it.
            TurnsExhausted: The runtime's `max_turns` calls have been made.
            UpstreamError: The model backend refused it, or broke off.

        Raises:
            ValueError: An argument is wrong.
        """
        if not messages:
            raise ValueError("messages must not be empty")
        tokens = self._usual_tokens if max_tokens is None else max_tokens
        if type(tokens) is not int or not 1 <= tokens <= self._most_tokens:
            raise ValueError(f"max_tokens must be from 1 to {self._most_tokens}, the runtime's limit")
        try:
            asked = Asked(
                self.name,
                _copied(messages),
                system,
                _copied([tool.get("toolSpec", tool) for tool in tools]),
                tokens,
            )
        except (TypeError, AttributeError) as error:
            raise ValueError("messages and tools must be what JSON can hold") from error
        if fault := _fault(system, asked.messages, asked.tools):
            raise ValueError(fault)
        return self._converse(asked)


def _fault(system: Any, messages: Any, tools: Any) -> str | None:
    """Say which argument has not the shape that the ledger and every upstream read; None if all have."""
    if not isinstance(system, str):
        return "system must be text"
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return "messages must be those of Converse: each has a role, and as content a list of blocks"
    if not all(map(_is_tool, tools)):
        return "tools must be those of Converse: each has a name, and as inputSchema {'json': ...}"
    return None


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": [*blocks]}:
            return all(map(_is_block, blocks))
    return False


def _is_block(block: Any) -> bool:
    match block:
        case {"text": text}:
            return isinstance(text, str)
        case {"toolUse": use}:
            return _is_dict_of(use, "toolUseId", "input") and isinstance(use.get("name"), str)
        case {"toolResult": result}:
            return _is_dict_of(result, "toolUseId") and isinstance(result.get("content"), list)
    return isinstance(block, dict)


def _is_dict_of(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


def _is_tool(tool: Any) -> bool:
    match tool:
        case {"name": str(), "inputSchema": {"json": dict()}}:
            return True
    return False


def message_of(events: Iterable[Event]) -> dict[str, Any]:
    """Return the model's message that the events of one call add up to, for the messages of the next call.

    Its content may hold `toolUse` blocks, each to be answered by a `toolResult` in the message behind it.
    Input that is no JSON object is `{}`.
    """
    heard = Heard(lambda _: None, input_bound=0, max_output=0, keep=True)
    frames = [
        (kind.encode(), json.dumps(value).encode()) for event in events for kind, value in event.items()
    ]
    heard(frames)
    return dict(heard.assistant_message())


def _copied(value: Any) -> Any:
    """Copy a value through JSON, so that two threads never share it; bytes become base64."""
    try:
        return orjson.loads(orjson.dumps(value, default=_plain))
    except orjson.JSONEncodeError:  # half a character: only the slower one takes it
        return json.loads(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError("not JSON")
