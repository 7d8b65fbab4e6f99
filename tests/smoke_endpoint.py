"""An endpoint for the tests of `headrace smoke`: answers as the contract has it, until a test spoils it.

Every answer goes through `spoil(request, reply)`, which may return another one. Invocations are numbered;
the first streams at once and whole, what is followed or cancelled later is under way until the reader has
hung up. Time passes in step with the client: a piece is sent when the one before has been read.
"""

import base64
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from tests.cli_server import HOLD, LIMIT_S, Reply, Request, document, problem

Step = Callable[[socket.socket], None]
Spoil = Callable[[Request, Reply], Reply]


def id_token(sub: str) -> str:
    """Return what has the form of an ID token."""
    parts = [{"alg": "RS256", "kid": "1"}, {"sub": sub, "token_use": "id", "exp": 1795280400}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, f"signature-of-{sub}"])


ANN: Final = id_token("ann")
BEN: Final = id_token("ben")
USED: Final = {"inputTokens": 30, "outputTokens": 6, "cacheReadInputTokens": 5, "cacheWriteInputTokens": 2}
CHARGED: Final = 38
WORDS: Final = [f"word{number} " for number in range(6)]
UNDER_WAY: Final = 5  # events: invocationStarted, messageStart, three deltas
INVOCATIONS: Final = "/runtimes/writer/invocations"


class StepClock:
    """A clock that stands still until a server has seen the client look at it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._looks = 0
        self._seen = 0
        self._changed = threading.Condition()

    def now(self) -> float:
        with self._changed:
            self._looks += 1
            self._changed.notify_all()
            return self._now_s

    def begin(self, _: socket.socket) -> None:
        """Count looks from here on."""
        with self._changed:
            self._seen = self._looks

    def skipping(self, seconds: float) -> Step:
        """Return a step that lets time pass, whether the client looks or not."""

        def step(_: socket.socket) -> None:
            with self._changed:
                self._now_s += seconds

        return step

    def passing(self, seconds: float) -> Step:
        """Return a step that waits until the client has looked once more, then lets time pass."""

        def step(connection: socket.socket) -> None:
            with self._changed:
                for _ in range(int(LIMIT_S / 0.02)):
                    if self._changed.wait_for(lambda: self._looks > self._seen, 0.02):
                        break
                    if _is_closed(connection):
                        raise BrokenPipeError
                else:
                    raise TimeoutError("the client did not look")
                self._seen = self._looks
                self._now_s += seconds

        return step


@dataclass
class Job:
    """One invocation."""

    number: int
    key: str
    prompt: str
    events: list[tuple[str, dict[str, Any]]]
    is_running: bool = False

    @property
    def path(self) -> str:
        return f"{INVOCATIONS}/inv_{self.number}"

    @property
    def text(self) -> str:
        return "".join(value["delta"]["text"] for kind, value in self.events if kind == "contentBlockDelta")

    def record(self) -> dict[str, Any]:
        kind, value = self.events[-1]
        state = "running" if self.is_running else kind.removeprefix("invocation").lower()
        shown = {"invocationId": f"inv_{self.number}", "runtimeId": "writer", "state": state, "usage": USED}
        if not self.is_running:
            shown["terminalEvent"] = {"id": f"1.{len(self.events)}", kind: value}
        return shown | {"result": {"text": self.text}}


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def frame(number: int, kind: str, value: dict[str, Any]) -> bytes:
    return f"id: 1.{number}\nevent: {kind}\ndata: {json.dumps({kind: value})}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class SmokeEndpoint:
    """The state of the endpoint; `answer` is what a `CliServer` always calls."""

    spoil: Spoil = lambda _, reply: reply
    clock: StepClock = field(default_factory=StepClock)
    jobs: list[Job] = field(default_factory=list)
    charged: int = 1000

    def answer(self, request: Request) -> Reply:
        return self.spoil(request, self._answer(request))

    def _answer(self, request: Request) -> Reply:
        owner = request.headers.get("authorization")
        if owner not in (f"Bearer {ANN}", f"Bearer {BEN}"):
            detail = "A valid ID token is required."
            return problem(401, "unauthenticated", "Nope", detail, WWW_Authenticate="Bearer")
        method, _, target = request.line.partition(" ")
        path = (
            unquote(target).partition("?")[0].replace("/runtimes/arn:aws:bedrock-agentcore:us-east-1:", "/")
        )
        path = path.replace("/123456789012:runtime/", "/runtimes/")
        missing = problem(404, "not-found", "Nope", "There is no such path.")
        if path == "/runtimes":
            return document({"runtimes": [{"runtimeId": "writer", "maxOutputTokens": 512}]})
        if path == "/usage":
            return self._usage(request.headers.get("x-request-id", "made-here"))
        if path == INVOCATIONS and method == "GET":
            return document({"invocations": [job.record() for job in reversed(self.jobs)]})
        if path == INVOCATIONS:
            return self._submit(request)
        job = next((job for job in self.jobs if f"{path}/".startswith(f"{job.path}/")), None)
        if job is None or owner != f"Bearer {ANN}":
            return missing
        if path.endswith("/events"):
            return self._follow(job, int(request.headers.get("last-event-id", "1.0").removeprefix("1.")))
        if path.endswith("/cancel"):
            job.is_running = False
            job.events = job.events[:UNDER_WAY]
            job.events.append(("invocationCancelled", {"reason": "requested", "usage": USED}))
            return document(job.record(), "202 Accepted")
        return document(job.record())

    def _usage(self, request_id: str) -> Reply:
        window = {"name": "daily", "used": self.charged, "reserved": 0, "resetsAt": "2026-11-22T16:50:00Z"}
        return document({"windows": [window], "runningInvocations": 0}, X_Request_Id=request_id)

    def _submit(self, request: Request) -> Reply:
        key = request.headers.get("idempotency-key", "")
        known = next((job for job in self.jobs if key and job.key == key), None)
        if known is not None and known.prompt != request.body["prompt"]:
            return problem(422, "idempotency-mismatch", "Nope", "Another body.")
        job = known or self._start(key, request.body["prompt"])
        if "prefer" in request.headers:
            job.is_running = True
            headers = {"Location": job.path, "Preference_Applied": "respond-async"}
            return document(job.record(), "202 Accepted", **headers)
        if known is None and job.number > 1:
            job.is_running = True
            return [*self._stream(job, 0)[: UNDER_WAY + 2], HOLD]
        self.charged += 0 if known else CHARGED
        reply = self._stream(job, 0)
        return reply if known else self._in_step(reply)

    def _start(self, key: str, prompt: str) -> Job:
        number = len(self.jobs) + 1
        started = {"invocationId": f"inv_{number}", "runtimeId": "writer", "attempt": 1}
        events: list[tuple[str, dict[str, Any]]] = [("invocationStarted", started), ("messageStart", {})]
        events += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in WORDS]
        events += [("messageStop", {"stopReason": "end_turn"}), ("metadata", {"usage": USED})]
        events += [("invocationCompleted", {"stopReason": "end_turn", "usage": USED})]
        self.jobs.append(Job(number, key, prompt, events))
        return self.jobs[-1]

    def _follow(self, job: Job, after: int) -> Reply:
        reply = self._stream(job, after)
        if not job.is_running:
            return reply
        job.is_running = False  # it ends while nobody reads
        return [*reply[: UNDER_WAY + 2], HOLD]

    def _stream(self, job: Job, after: int) -> list[bytes]:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        head += f"Cache-Control: no-store, no-transform\r\nLocation: {job.path}\r\n\r\n"
        frames = [frame(number, *event) for number, event in enumerate(job.events, 1) if number > after]
        return [head.encode(), *map(chunk, [b": connected\n", *frames]), b"0\r\n\r\n"]

    def _in_step(self, reply: list[bytes]) -> Reply:
        head, *chunks, end = reply
        steps: list[bytes | Step] = [self.clock.begin, head]
        for piece in chunks:
            steps += [self.clock.passing(0.3), piece]
        return [*steps, self.clock.passing(0.0), end]
