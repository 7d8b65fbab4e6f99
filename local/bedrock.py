"""Bedrock's runtime endpoint on one machine: ConverseStream's wire, with a script or the small model behind
it.

``python -m local.bedrock`` is a process of the local stack; tests also run `BedrockEndpoint` in their own::

    POST /model/{modelId}/converse-stream     as Bedrock; signed with SigV4, else 403
    GET  /ready                               200 once it answers

and, for tests, the controls of control.py.

A model id with scripts is answered by them, any other by the model; without a model it is invalid. With
``--choose package.module:function`` that function picks each answer by its request. An answer's account grows
as it is generated, and a peer that hangs up stops it at once. Nothing is logged but faults.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html
"""

import argparse
import asyncio
import importlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Self
from uuid import uuid4

from local import control, converse
from local.account import Call, Outcome
from local.answers import REFUSALS, delta, metadata
from local.body import Body, CutHere, refuse
from local.http_server import Connection, Request, listening
from local.model import ModelFailed, ModelMissing, SmallModel
from local.playbook import Choose, Playbook
from local.scripts import Cut, Delay, Emit, Head, Raise, Raw, Refuse, Script, Step, Wait

_log = logging.getLogger(__name__)


class BedrockEndpoint(Playbook):
    """The endpoint: a playbook that listens on 127.0.0.1, at `url`, while its context is open."""

    def __init__(
        self,
        scripts: Mapping[str, Script | Sequence[Script]] | Choose | None = None,
        *,
        model: SmallModel | None = None,
        port: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(scripts, keep_requests=model is None)
        self._model = model
        self._port = port
        self._now = now
        self._open = AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        port = await self._open.enter_async_context(listening(self._respond, self._port))
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _respond(self, request: Request, connection: Connection) -> None:
        try:
            match (request.method, *request.segments):
                case "POST", "model", model_id, "converse-stream":
                    await self._converse_stream(model_id, request, connection)
                case "GET", "ready":
                    await connection.answer(200, {"status": "ready"})
                case _ if not await control.respond(self, request, connection):
                    unknown = "UnknownOperationException", "The operation is unknown."
                    await refuse(connection, str(uuid4()), 404, *unknown)
        except Exception:  # noqa: BLE001 - the edge of a request: a fault of one call must not end the others
            _log.exception("request failed")
            connection.cut(reset=True)

    async def _converse_stream(self, model_id: str, request: Request, connection: Connection) -> None:
        request_id = str(uuid4())
        if fault := converse.signature_fault(request.headers):
            await refuse(connection, request_id, 403, *fault)
            return
        try:
            asked = converse.parse(model_id, request.body)
        except converse.Invalid as error:
            await refuse(connection, request_id, 400, "ValidationException", str(error))
            return
        call = self.account.start(model_id, request_id, self._now_ms(), asked.request_metadata)
        body = Body(connection, request_id)
        outcome: Outcome = "failed"
        try:
            script = self.next_script(asked)
            if script is not None:
                outcome = await self._play(script, call, body)
            elif self._model is not None:
                outcome = await self._generate(self._model, asked, call, body)
            else:
                outcome = await _refused(
                    body, "ValidationException", "The provided model identifier is invalid."
                )
        except CutHere:
            outcome = "cut"
        except asyncio.CancelledError:
            outcome = "hung-up" if connection.hung_up else "stopped"
            raise
        finally:
            call.reported = body.reported
            self.account.end(call, outcome, self._now_ms())

    async def _play(self, script: Script, call: Call, body: Body) -> Outcome:
        body.wire = script.wire
        outcome: Outcome = "finished"
        call.input_tokens = next((usage["inputTokens"] for usage in _usages(script.steps)), 0)
        for step in script.steps:
            match step:
                case Emit():
                    usage = _count(step, call)
                    await body.frame(step.frame(), reports_usage=usage)
                case Raise() | Raw():
                    await body.frame(step.frame())
                    outcome = "failed" if isinstance(step, Raise) else outcome
                case Head():
                    await body.start()
                case Delay():
                    await body.flush()
                    await asyncio.sleep(step.seconds_s)
                case Wait():
                    await body.flush()
                    call.waiting = step.signal
                    self.account.changed()
                    await self.released(step.signal)
                    call.waiting = None
                case Refuse():
                    await body.refuse(step.status, step.error, step.message, step.headers)
                    return "refused"
                case Cut():
                    await body.cut(reset=step.reset)
        await body.finish()
        return outcome

    async def _generate(
        self, model: SmallModel, request: converse.ConverseRequest, call: Call, body: Body
    ) -> Outcome:
        started_s = self._now()
        try:
            async with aclosing(model.generate(request)) as pieces:
                async for piece in pieces:
                    call.input_tokens, call.output_tokens = piece.input_tokens, piece.output_tokens
                    if not body.started:
                        await body.frame(Emit("messageStart", {"role": "assistant"}).frame())
                    if piece.text:
                        await body.frame(delta({"text": piece.text}).frame())
                    if piece.stop_reason is not None:
                        await body.frame(Emit("contentBlockStop", {"contentBlockIndex": 0}).frame())
                        await body.frame(Emit("messageStop", {"stopReason": piece.stop_reason}).frame())
        except converse.Invalid as error:
            return await _refused(body, "ValidationException", str(error))
        except ModelFailed:
            _log.exception("the model failed")
            if not body.started:
                return await _refused(body, "InternalServerException", "The model failed.")
            await body.frame(Raise("modelStreamErrorException", "The model failed.").frame())
            await body.finish()
            return "failed"
        latency_ms = round((self._now() - started_s) * 1000)
        usage = metadata(call.input_tokens, call.output_tokens, latency_ms=latency_ms)
        await body.frame(usage.frame(), reports_usage=True)
        await body.finish()
        return "finished"

    def _now_ms(self) -> int:
        return round(self._now() * 1000)


async def _refused(body: Body, error: str, message: str) -> Outcome:
    await body.refuse(REFUSALS[error], error, message)
    return "refused"


def _count(step: Emit, call: Call) -> bool:
    """Add what this event generates to the account; True if it is whole and reports the usage."""
    if step.event == "contentBlockDelta":
        call.output_tokens += 1
    for usage in _usages([step]):
        call.input_tokens, call.output_tokens = usage["inputTokens"], usage["outputTokens"]
        return step.fault is None
    return False


def _usages(steps: Sequence[Step]) -> Iterator[Mapping[str, int]]:
    for step in steps:
        if isinstance(step, Emit) and step.event == "metadata":
            value = json.loads(step.value) if isinstance(step.value, str) else step.value
            if usage := value.get("usage"):
                yield usage


async def _serve(port: int, *, scripted: bool, choose: Choose | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    model = None if scripted or choose else SmallModel.load()
    try:
        async with BedrockEndpoint(choose, model=model, port=port) as endpoint:
            _log.warning("listening on %s", endpoint.url)
            await stopped.wait()
    finally:
        if model is not None:
            model.close()


def _function(entry: str) -> Choose:
    module_name, _, name = entry.partition(":")
    function: Choose = getattr(importlib.import_module(module_name), name)
    return function


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.bedrock", description="Bedrock's ConverseStream.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scripted", action="store_true", help="no model: scripts answer")
    parser.add_argument("--choose", type=_function, help="no model: this function picks each script")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_serve(arguments.port, scripted=arguments.scripted, choose=arguments.choose))
    except (ModelMissing, OSError) as error:
        raise SystemExit(f"local.bedrock: {error}") from error


if __name__ == "__main__":
    main()
