"""A Strands agent as a python runtime: the framework's loop and tools, Headrace's metered model.

`examples/strands.toml` names `run`. `HeadraceModel` is all that it takes: a model provider of Strands that
asks the invocation's model, so that every call is held, settled and counted like any other. It imports
`strands`, which is in an environment of its own (requirements/strands.in).
"""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from strands import Agent, tool
from strands.models import Model
from strands.types.exceptions import MaxTokensReachedException

from examples.notes import NOTES, found
from service.agents import AgentInvocation, AgentModel, Event

SYSTEM = "Answer in a few plain sentences. Look into the notes with your tools before you answer."


@tool
async def search(query: str) -> list[str]:
    """Find notes by words.

    Args:
        query: Words to look for.

    Returns:
        The titles of the notes.
    """
    return found(query)


@tool
async def read(title: str) -> str:
    """Read a note.

    Args:
        title: The note's title.
    """
    return NOTES.get(title, f"There is no such note. Notes: {', '.join(NOTES)}.")


class HeadraceModel(Model):
    """A model provider of Strands that calls the models of one invocation."""

    def __init__(self, model: AgentModel) -> None:
        self._model = model
        self._config: dict[str, Any] = {"model_id": model.name}

    def update_config(self, **model_config: Any) -> None:
        """Take configuration that this provider has no use for."""
        self._config.update(model_config)

    def get_config(self) -> dict[str, Any]:
        """Return what `update_config` was told, and the model's name."""
        return self._config

    def stream(
        self, messages: Any, tool_specs: Any = None, system_prompt: str | None = None, **_: Any
    ) -> AsyncIterable[Any]:
        """Call the model; Strands and Headrace speak the same events."""
        return self._model.converse(messages=messages, tools=tool_specs or (), system=system_prompt or "")

    def structured_output(self, *_: Any, **__: Any) -> AsyncGenerator[Any]:
        """Refuse: this example has no structured output."""
        raise NotImplementedError


async def run(invocation: AgentInvocation) -> AsyncGenerator[Event]:
    """Run the agent on the conversation, and forward what its model says, turn after turn."""
    invocation.progress("thinking")
    agent = Agent(
        model=HeadraceModel(invocation.model()),
        messages=invocation.messages[:-1],
        system_prompt=SYSTEM,
        tools=[search, read],
        callback_handler=None,  # it would print what the model says
    )
    try:
        async for told in agent.stream_async(invocation.messages[-1]["content"]):
            if "event" in told:  # as the model sent it; the rest is Strands' own
                yield told["event"]
    except MaxTokensReachedException:
        return  # what was said stands, and its messageStop says why it ends
