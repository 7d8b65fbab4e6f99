"""What the bench's upstream says: plans, marks, frames; and a load on its way to the client."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from bench.loads import Asking, Load
from bench.script import CHAT, DELTA_MARK, FRAMES, SSE, Plan
from service.models.eventstream import Decoder

PLAN = Plan(first_ms=1, deltas=5, interval_us=1000)
SILENT = Plan(first_ms=1, deltas=2, interval_us=360_000_000)


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, burst=4, stamped=True), SILENT])
def test_a_plan_is_read_back_from_its_model_id(plan: Plan) -> None:
    assert Plan.parse(plan.model_id) == plan


@pytest.mark.parametrize("name", ["bench-1-0-1-1", "bench-1-1-1-0", "bench-1-2-3", "anthropic.claude"])
def test_what_is_no_plan_is_none(name: str) -> None:
    assert Plan.parse(name) is None


def test_frames_are_what_the_service_decodes() -> None:
    _length, frame = FRAMES.held(7).removesuffix(b"\r\n").split(b"\r\n", 1)

    ((event_type, payload),) = Decoder().feed(frame)

    assert event_type == b"contentBlockDelta"
    assert json.loads(payload)["delta"]["text"] == "~held=7us" + "." * 19


@pytest.mark.parametrize("lines", [FRAMES, SSE, CHAT], ids=["frames", "sse", "chat"])
def test_every_delta_has_one_mark_and_nothing_else_has(lines: Any) -> None:
    mark = DELTA_MARK.encode()

    assert lines.deltas(3, 20).count(mark) == 20
    assert (lines.held(1).count(mark), lines.stamped(1).count(mark)) == (1, 1)
    assert (lines.head.count(mark), lines.end(20).count(mark)) == (0, 0)


def test_a_load_survives_its_pipe() -> None:
    asking = Asking(["POST / HTTP/1.1\r\n\r\n"], DELTA_MARK, "[DONE]", 5)
    given = Load(8080, asking, "window", beside=asking, watched={"subject": 7})

    assert Load.read(json.dumps(asdict(given))) == given
