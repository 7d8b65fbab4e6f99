"""The example agents stream through the stack of `make run`, with scripts and with the small model.

Those of Strands run the service in the environment that `make test` makes for it (`.venv-strands`).
"""

import tomllib
from pathlib import Path
from typing import Final

import pytest

from local.answers import answer, tool_call
from local.process import ROOT
from local.stack import Stack
from tests.e2e.client import calling

MODEL: Final = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
STRANDS_PYTHON: Final = ROOT / ".venv-strands" / "bin" / "python"
PROMPT: Final = "What does a headrace do?"
ANSWER: Final = "It carries water to the wheel."


@pytest.fixture(params=["research", "strands"])
def example(request: pytest.FixtureRequest) -> tuple[str, Path | None]:
    """Give an example and the Python that runs its service."""
    name: str = request.param
    if name == "strands" and not (ROOT / ".venv-strands" / ".installed").exists():
        pytest.skip("the Strands example needs .venv-strands: make test, or make .venv-strands/.installed")
    return name, STRANDS_PYTHON if name == "strands" else None


@pytest.mark.promise("agent-calls-metered")
async def test_an_example_calls_its_tools_streams_its_answer_and_is_metered(
    example: tuple[str, Path | None], tmp_path: Path
) -> None:
    name, python = example
    catalog = ROOT / "examples" / f"{name}.toml"
    async with (
        Stack(tmp_path, catalog=catalog, answers="scripts", service_python=python) as stack,
        calling(stack) as ann,
    ):
        await stack.bedrock.script(
            MODEL,
            tool_call("search", {"query": "the sluice"}, input_tokens=100, output_tokens=10),
            tool_call("read", {"title": "sluice"}, input_tokens=200, output_tokens=20),
            answer(ANSWER, input_tokens=300, output_tokens=30),
        )
        async with ann.submit(PROMPT, name) as stream:
            await stream.whole()
        requests = await stack.bedrock.requests()
        _, record = await ann.get(stream.location)
        _, usage = await ann.get("/usage")

    results = [request["messages"][-1]["content"] for request in requests[1:]]
    assert record["state"] == "completed", stack.services[0].log()
    assert record["result"]["text"].endswith(ANSWER)
    assert [event.type for event in stream.events].count("messageStop") == 3
    assert "sluice" in str(results[0])
    assert "lets in as much water as the mill needs" in str(results[1])
    assert [tool["toolSpec"]["name"] for tool in requests[0]["toolConfig"]["tools"]] == ["search", "read"]
    assert usage["windows"][0]["used"] == 660
    assert (usage["windows"][0]["reserved"], usage["runningInvocations"]) == (0, 0)


async def test_an_example_streams_from_the_small_model(
    example: tuple[str, Path | None], tmp_path: Path
) -> None:
    name, python = example
    catalog = (ROOT / "examples" / f"{name}.toml").read_text().replace("= 512", "= 24")
    async with Stack(tmp_path, catalog=catalog, service_python=python) as stack, calling(stack) as ann:
        async with ann.submit(PROMPT, name) as stream:
            await stream.whole()
        _, record = await ann.get(stream.location)

    assert record["state"] == "completed", stack.services[0].log()
    assert record["result"]["text"].strip()
    assert record["usage"]["outputTokens"] > 0


def test_each_example_has_a_catalog_of_its_own() -> None:
    catalogs = {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "examples").glob("*.toml")}

    assert {name: list(catalog["runtimes"]) for name, catalog in catalogs.items()} == {
        "research": ["research"],
        "strands": ["strands"],
    }
