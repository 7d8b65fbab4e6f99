import json
from pathlib import Path
from typing import Any

import pytest

from tests.sse import Dispatched, SseParser

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors/sse/wpt_eventsource_format.json").read_text()
)["vectors"]


@pytest.mark.parametrize("size", [1, 7, 10**9])
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_parser_dispatches_what_a_browser_does(vector: dict[str, Any], size: int) -> None:
    stream = bytes.fromhex(vector["stream_hex"])
    parser = SseParser()

    dispatched = [
        event for at in range(0, len(stream), size) for event in parser.feed(stream[at : at + size])
    ]

    assert dispatched == [
        Dispatched(event["type"], event["data"], event["lastEventId"]) for event in vector["events"]
    ]
