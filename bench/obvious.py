"""The obvious loop: aioboto3, `json.dumps`, `StreamingResponse`: `python -m bench.obvious`.

A subject of the bench (`obvious`). It is kept fair: the client is made once, its pool is large enough, the
server is the same uvicorn with uvloop and httptools. It is also kept plain: no token, no quota, no log, no
reattaching; only heartbeats, with a task and `asyncio.wait` for each event.
`AWS_ENDPOINT_URL_BEDROCK_RUNTIME` says where the upstream is.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import uvicorn
from botocore.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_HEARTBEAT_S = 10.0


async def stream_answer(client: Any, model_id: str, prompt: str) -> AsyncIterator[str]:
    """Call the model and yield SSE, with a heartbeat whenever nothing came for a while."""
    response = await client.converse_stream(
        modelId=model_id, messages=[{"role": "user", "content": [{"text": prompt}]}]
    )
    events = response["stream"].__aiter__()
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=_HEARTBEAT_S)
            if not done:
                yield ": heartbeat\n"
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield f"data: {json.dumps(event)}\n\n"
            pending = asyncio.ensure_future(anext(events))
    finally:
        pending.cancel()


async def invoke(request: Request) -> StreamingResponse:
    prompt = (await request.json())["prompt"]
    answer = stream_answer(request.app.state.client, request.path_params["runtime_id"], prompt)
    return StreamingResponse(answer, media_type="text/event-stream")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    config = Config(max_pool_connections=2000, retries={"max_attempts": 1}, read_timeout=900)
    async with aioboto3.Session().client("bedrock-runtime", config=config) as client:
        app.state.client = client
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.obvious", description="The obvious loop.")
    parser.add_argument("--port", type=int, required=True)
    app = Starlette(
        routes=[Route("/runtimes/{runtime_id}/invocations", invoke, methods=["POST"])], lifespan=lifespan
    )
    uvicorn.run(
        app,
        port=parser.parse_args().port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main()
