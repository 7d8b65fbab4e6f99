"""What the upstream of a drill answers: a script for every call, by its request alone.

`local.bedrock` runs `choose` in its own process (`--choose tests.e2e.drill.script:choose`). The job is in the
prompt, the turn follows from the messages, attempt and call id from the request's metadata. Two attempts at
one turn get different answers, as from a real model: other words, other arguments for the tools. An answer
begins with the tools' results as the model was told them (`HEARD`). A few calls are throttled once.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from local.answers import delta, metadata, refusal
from local.converse import ConverseRequest
from local.scripts import Delay, Emit, Script, Step
from tests.e2e.drill.jobs import CANARY, Job, seeded

CALL_METADATA: Final = "headrace:call"
"""Of the request's metadata: which call it is, as ``<invocation_id>:<attempt>:<turn>``."""
HEARD: Final = "heard"
THROTTLED_SHARE: Final = 0.02


class Upstream:
    """Chooses scripts; remembers which calls it has throttled."""

    def __init__(self) -> None:
        self._throttled: set[str] = set()

    def __call__(self, request: ConverseRequest) -> Script:
        job = Job.asked_for(request.messages[0][1][0]["text"])
        turn = sum(role == "assistant" for role, _ in request.messages) + 1
        call_id = request.request_metadata.get(CALL_METADATA, "")
        rng = seeded(job.seed, job.number, turn, call_id.partition(":")[2])
        if rng.random() < THROTTLED_SHARE and call_id not in self._throttled:
            self._throttled.add(call_id)
            return refusal("ThrottlingException")
        steps: list[Step] = [Emit("messageStart", {"role": "assistant"})]
        steps += _words(job, turn, rng, list(_heard(request.messages[-1][1])))
        if turn < job.turns:
            steps += _tool_uses(turn, rng)
        steps.append(Emit("messageStop", {"stopReason": "tool_use" if turn < job.turns else "end_turn"}))
        generated = sum(1 for step in steps if isinstance(step, Emit) and step.event == "contentBlockDelta")
        return Script((*steps, metadata(len(json.dumps(request.body)) // 8, generated)))


def _heard(content: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for block in content:
        match block:
            case {"toolResult": {"toolUseId": tool_use_id, "status": status, "content": [{"text": text}]}}:
                yield f"{HEARD} {tool_use_id} {status} {text}\n"
            case {"toolResult": result}:
                yield f"{HEARD} {result['toolUseId']} in another form\n"


def _words(job: Job, turn: int, rng: random.Random, heard: Sequence[str]) -> list[Step]:
    pause_s = rng.uniform(0.01, 0.05)
    filling = "~" * 3000 if job.wide else ""
    steps: list[Step] = [delta({"text": text}) for text in heard]
    for number in range(rng.randint(10, 30)):
        word = f"{CANARY}-{job.number}.{turn}.{number}.{rng.getrandbits(32):x}{filling} "
        steps += [Delay(pause_s), delta({"text": word})]
    return [*steps, Emit("contentBlockStop", {"contentBlockIndex": 0})]


def _tool_uses(turn: int, rng: random.Random) -> Iterator[Step]:
    for index in range(1, rng.choice((2, 2, 3))):
        tool_use_id = f"tooluse_{turn}_{index}_{rng.getrandbits(32):x}"
        arguments = {
            "stretch": f"{CANARY}-{rng.getrandbits(32):x}",
            "takes_s": round(rng.uniform(0.1, 1.0), 3),
        }
        raw = json.dumps(arguments)
        start = {"toolUse": {"toolUseId": tool_use_id, "name": "survey"}}
        yield Emit("contentBlockStart", {"contentBlockIndex": index, "start": start})
        for piece in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
            yield delta({"toolUse": {"input": piece}}, index=index)
        yield Emit("contentBlockStop", {"contentBlockIndex": index})


choose: Final = Upstream()
