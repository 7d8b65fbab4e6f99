"""What holds for whoever comes through the edge, as functions that run against any edge in front of a stack.

`test_gateway` runs them against the template as it is, `test_mutations` against wrong ones, and sees them
fail. Each raises AssertionError where the promise does not hold.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from local.answers import answer
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import WAIT_S, Caller
from tests.edge import extract

MODEL: Final = "writer-model"
INVOCATIONS: Final = "/runtimes/writer/invocations"
WORDS: Final = [f"word{number} " for number in range(20)]
LONG: Final = [f"word{number} " for number in range(120)]
LONG_DELAY_S: Final = 0.05


async def streams(stack: Stack, ann: Caller) -> None:
    """An answer arrives while it is being made."""
    seen = str(uuid4())
    await stack.bedrock.script(MODEL, answer(deltas=WORDS).insert(5, Wait(seen)))
    try:
        async with ann.submit() as stream:
            await stream.until(b"word3")
            await stack.bedrock.release(seen)
            await stream.whole()
    finally:
        await stack.bedrock.release(seen)

    assert stream.events[-1].type == "invocationCompleted"


async def serves(stack: Stack, ann: Caller) -> None:
    """Every route of the contract leads to where it should, with the edge's id of the request."""
    await stack.bedrock.script(MODEL, answer(deltas=WORDS))
    async with ann.submit() as stream:
        assert stream.response.status == 200
        whole = await stream.whole()
    assert stream.events[-1].type == "invocationCompleted"
    assert stream.response.headers["X-Request-Id"] == stream.response.headers["x-amzn-RequestId"]
    location = stream.location

    record = await ann.get(location)
    answers = {
        "runtimes": await ann.get("/runtimes"),
        "list": await ann.get(INVOCATIONS),
        "usage": await ann.get("/usage"),
        "cancel": await ann.post(f"{location}/cancel"),
        "resume": await ann.post(f"{location}/resume"),
    }

    assert (record[0], record[1]["result"]) == (200, {"text": "".join(WORDS)})
    assert {name: status for name, (status, _) in answers.items()} == {
        "runtimes": 200,
        "list": 200,
        "usage": 200,
        "cancel": 409,
        "resume": 409,
    }
    assert answers["list"][1]["invocations"][0]["invocationId"] == record[1]["invocationId"]
    assert await ann.events(location) == whole


async def refuses(stack: Stack, ann: Caller) -> None:
    """Who has no ID token of our clients, or sends no JSON object, is refused by the edge itself."""
    strangers = {
        "nobody": "",
        "forged": f"{ann.token}x",
        "expired": await stack.token(expires_in=-100),
        "access token": await stack.token(use="access"),
        "of another client": await stack.token(audience="another"),
    }
    for stranger, token in strangers.items():
        for method, path in PROTECTED:
            said = await _refusal(Caller(ann.session, ann.url, token), method, path, '{"prompt":"Tell me."}')
            assert said == _own("UNAUTHORIZED"), f"{stranger}: {method} {path}"
    assert await _refusal(ann, "POST", INVOCATIONS, "[1]") == _own("BAD_REQUEST_BODY")
    assert await _refusal(ann, "GET", "/nothing") == _own("MISSING_AUTHENTICATION_TOKEN")


PROTECTED: Final = (
    ("GET", "/runtimes"),
    ("POST", INVOCATIONS),
    ("GET", INVOCATIONS),
    ("GET", f"{INVOCATIONS}/inv_1"),
    ("GET", f"{INVOCATIONS}/inv_1/events"),
    ("POST", f"{INVOCATIONS}/inv_1/cancel"),
    ("POST", f"{INVOCATIONS}/inv_1/resume"),
    ("GET", "/usage"),
)


@dataclass(frozen=True)
class Refusal:
    """Of a refusal what a client decides by."""

    status: int
    problem: Mapping[str, Any]
    origin: str | None


def _own(kind: str) -> Refusal:
    """Return what the edge says of its own accord: the service would give a detail and its own headers."""
    refusal = extract()["refusals"][kind]
    problem = json.loads(refusal["bodies"]["application/problem+json"])
    return Refusal(refusal["status"], problem, refusal["headers"]["Access-Control-Allow-Origin"].strip("'"))


async def _refusal(caller: Caller, method: str, path: str, body: str = "") -> Refusal:
    headers = {"Authorization": f"Bearer {caller.token}", "Content-Type": "application/json"}
    asked = caller.session.request(method, caller.url + path, headers=headers, data=body or None)
    async with asyncio.timeout(WAIT_S), asked as response:
        allowed = response.headers.get("Access-Control-Allow-Origin")
        return Refusal(response.status, await response.json(content_type=None), allowed)


async def lasts(stack: Stack, ann: Caller) -> None:
    """An answer that takes longer than the edge lets a response last arrives whole, once and in order, and
    the edge never has to cut."""
    ends = await read_long(stack, ann, never="cut")

    assert len(ends) > 2
    assert set(ends[:-1]) == {"reconnect"}


async def read_long(stack: Stack, ann: Caller, *, never: str = "") -> list[str]:
    """Read a long answer as a client does that only knows "come back with the last id"; return how each
    response ended, with a type of event or `cut`; none must end as `never` says."""
    await stack.bedrock.script(MODEL, answer(deltas=LONG, delay_s=LONG_DELAY_S))
    ids: list[str] = []
    text, ends, location = "", list[str](), ""
    async with asyncio.timeout(2 * WAIT_S):
        while not ends or ends[-1] in ("reconnect", "cut"):
            opened = ann.follow(location, ids[-1] if ids else "") if location else ann.submit()
            async with opened as stream:
                assert stream.response.status == 200
                location = location or stream.location
                was_cut = await stream.to_its_end()
            for event in stream.events:
                if event.type == "contentBlockDelta":
                    text += json.loads(event.data)["contentBlockDelta"]["delta"]["text"]
                if event.type != "reconnect":
                    ids.append(event.last_event_id)
            ends.append("cut" if was_cut else stream.events[-1].type)
            assert ends[-1] != never

    assert ends[-1] == "invocationCompleted"
    assert text == "".join(LONG)
    assert ids == [f"1.{seq}" for seq in range(1, len(LONG) + 7)]
    return ends


Check = Callable[[Stack, Caller], Awaitable[None]]
CHECKS: Final[Mapping[str, Check]] = {
    "streams": streams,
    "serves": serves,
    "refuses": refuses,
    "lasts": lasts,
}
