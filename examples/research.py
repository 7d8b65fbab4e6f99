"""A research agent in plain Python: it looks into its notes, lets the model look further, and answers.

`examples/research.toml` names `run`. Two tools, a loop of fifteen lines, nothing but Headrace's own types.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from examples.notes import NOTES, found
from service.agents import AgentInvocation, Event, message_of

SYSTEM: Final = (
    "Answer in a few plain sentences, from the notes alone. Search for more notes if you need them."
)
TOOLS: Final = [
    {
        "name": "search",
        "description": "Find notes by words. Returns their titles.",
        "inputSchema": {
            "json": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
        },
    },
    {
        "name": "read",
        "description": "Read a note by its title.",
        "inputSchema": {
            "json": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
        },
    },
]


async def run(invocation: AgentInvocation) -> AsyncGenerator[str | Event]:
    """Search first, whatever the model would do; then ask, and call the tools that it asks for."""
    invocation.progress("searching")
    notes = "\n\n".join(NOTES[title] for title in found(invocation.prompt)) or "There are no notes on this."
    messages = invocation.messages
    messages[-1]["content"].append({"text": f"Notes:\n\n{notes}"})
    while True:
        events: list[Event] = []
        async for event in invocation.model().converse(messages=messages, system=SYSTEM, tools=TOOLS):
            events.append(event)
            yield event
        said = message_of(events)
        asked = [block["toolUse"] for block in said["content"] if "toolUse" in block]
        if not asked:
            return
        results = []
        for use in asked:
            invocation.progress(use["name"])
            results.append({"toolResult": {"toolUseId": use["toolUseId"], **call(use["name"], use["input"])}})
        messages += [said, {"role": "user", "content": results}]


def call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call a tool; what is wrong with the call is for the model, which may correct itself."""
    if name == "search" and isinstance(arguments.get("query"), str):
        return {"status": "success", "content": [{"json": {"titles": found(arguments["query"])}}]}
    if name == "read" and arguments.get("title") in NOTES:
        return {"status": "success", "content": [{"text": NOTES[arguments["title"]]}]}
    return {"status": "error", "content": [{"text": f"No such tool or note. Notes: {', '.join(NOTES)}."}]}
