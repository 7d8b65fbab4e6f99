"""The Bedrock endpoint's test controls, both ends of them: none of this is in Bedrock.

A test in another process drives the endpoint of a `stack.Stack` with `BedrockControl`; `bedrock` answers with
`respond`::

    PUT  /scripts/{modelId}   a list of scripts: calls take one after the other, the last repeats
    POST /signals/{name}      releases every script that waits for it, now or later
    GET  /account             what was generated per call; ?started=2&ended=1&waiting=go waits until it is so
    GET  /requests            the bodies of the calls, oldest first
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import aiohttp

from local.account import Call
from local.http_server import Connection, Request
from local.playbook import Playbook
from local.scripts import Script


class BedrockControl:
    """The controls of the endpoint at `url`, which lives in another process."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def script(self, model_id: str, *scripts: Script) -> None:
        """Answer the next calls of this model with these scripts, one after the other; the last one
        repeats."""
        await self._call(
            "PUT", f"scripts/{quote(model_id, safe='')}", [script.to_json() for script in scripts]
        )

    async def release(self, signal: str) -> None:
        """Let every script go on that waits for this signal, now or later."""
        await self._call("POST", f"signals/{quote(signal, safe='')}")

    async def account(
        self, *, started: int = 0, ended: int = 0, waiting: str | None = None, timeout_s: float = 10.0
    ) -> list[Call]:
        """Return the calls once so many have started and ended and one waits for the signal `waiting`.

        Raises:
            TimeoutError: It did not come to that.
        """
        query: dict[str, Any] = {"started": started, "ended": ended, "timeout_s": timeout_s}
        if waiting is not None:
            query["waiting"] = waiting
        return [Call(**fields) for fields in await self._call("GET", "account", query=query)]

    async def requests(self) -> list[Mapping[str, Any]]:
        """Return the bodies of the calls, oldest first."""
        bodies: list[Mapping[str, Any]] = await self._call("GET", "requests")
        return bodies

    async def _call(
        self, method: str, path: str, body: object = None, *, query: Mapping[str, Any] | None = None
    ) -> Any:
        url = f"{self.url}/{path}"
        raw = None if body is None else io.BytesIO(json.dumps(body).encode())
        async with self._session.request(method, url, params=query, data=raw) as response:
            value = await response.json()
            if response.status == 408:
                raise TimeoutError(value["message"])
            if response.status != 200:
                raise ValueError(value["message"])
            return value


async def respond(playbook: Playbook, request: Request, connection: Connection) -> bool:
    """Answer a request for the controls; False if it is for something else."""
    try:
        match (request.method, *request.segments):
            case "GET", "account":
                value: object = await _account(playbook, request.query)
            case "GET", "requests":
                value = list(playbook.requests)
            case "PUT", "scripts", model_id:
                playbook.script(model_id, *map(Script.from_json, json.loads(request.body)))
                value = None
            case "POST", "signals", name:
                playbook.release(name)
                value = None
            case _:
                return False
    except TimeoutError:
        await connection.answer(408, {"message": "It did not come to that."})
    except (ValueError, TypeError) as error:
        await connection.answer(400, {"message": str(error)})
    else:
        await connection.answer(200, value)
    return True


async def _account(playbook: Playbook, query: Mapping[str, str]) -> list[dict[str, Any]]:
    calls = await playbook.account.when(
        started=int(query.get("started", 0)),
        ended=int(query.get("ended", 0)),
        waiting=query.get("waiting"),
        timeout_s=float(query.get("timeout_s", 10)),
    )
    return [asdict(call) for call in calls]
