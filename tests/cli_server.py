"""A scripted HTTP server on loopback for the tests of `headrace`: byte for byte, a reply a connection.

One thread, since the client is synchronous. A reply is a list of steps: bytes to send, `HOLD` (send no more,
wait until the peer hangs up), `RESET` (hang up rudely), a function to call with the connection; after the
last step the connection is closed. A reply may be a function of the request; `always` is one for all
requests, instead of a script. `POST /token` is the local issuer: it answers `token-1`, `token-2`, ... and
takes nothing from the script.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

LIMIT_S: Final = 20.0
"""How long any step waits for the peer before the test fails."""


class Step(Enum):
    HOLD = "hold"
    RESET = "reset"


HOLD: Final = Step.HOLD
RESET: Final = Step.RESET

Reply = Sequence[bytes | Step | Callable[[socket.socket], None]]


class Request(NamedTuple):
    """What the client sent; header names are lower case."""

    line: str
    headers: dict[str, str]
    body: Any

    @property
    def essence(self) -> tuple[str, str, str | None]:
        """The request line, the token and the cursor."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.line, token, self.headers.get("last-event-id")


class CliServer:
    """The server; in a `with` block it listens, and at the block's end the script must have been used up."""

    def __init__(
        self,
        *replies: Reply | Callable[[Request], Reply],
        always: Callable[[Request], Reply] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.token_requests: list[Any] = []
        self._replies = list(replies)
        self._always = always
        self._faults: list[str] = []
        self._is_stopping = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopping = True
        if self._is_listening:
            with socket.create_connection(self._listener.getsockname(), timeout=LIMIT_S):
                self._thread.join(LIMIT_S)
            self._listener.close()
        self._thread.join(LIMIT_S)
        if error is None:
            assert self._faults == []
            assert self._replies == []
            assert not self._thread.is_alive()

    @property
    def essences(self) -> list[tuple[str, str, str | None]]:
        return [request.essence for request in self.requests]

    def go_away(self) -> None:
        """Refuse every further connection; called by a reply, which is still sent."""
        self._listener.close()

    @property
    def _is_listening(self) -> bool:
        return self._listener.fileno() != -1

    def _serve(self) -> None:
        while self._is_listening:
            connection, _ = self._listener.accept()
            connection.settimeout(LIMIT_S)
            with connection:
                if self._is_stopping:
                    return
                try:
                    self._answer(connection)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has what it wanted
                except (OSError, ValueError) as error:
                    self._faults.append(repr(error))

    def _answer(self, connection: socket.socket) -> None:
        request = _read_request(connection)
        if request.line == "POST /token":
            self.token_requests.append(request.body)
            number = len(self.token_requests)
            tokens = {"id_token": f"token-{number}", "access_token": f"access-{number}", "expires_in": 3600}
            connection.sendall(document(tokens)[0])
            return
        self.requests.append(request)
        if not self._replies and self._always is None:
            self._faults.append(f"{request.line} is not in the script")
            return
        reply = self._always or self._replies.pop(0)
        for step in reply(request) if callable(reply) else reply:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif callable(step):
                step(connection)
            elif step is HOLD:
                connection.recv(1)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_request(connection: socket.socket) -> Request:
    with connection.makefile("rb") as reader:
        method, target, _ = reader.readline().decode("ascii").split(" ")
        headers: dict[str, str] = {}
        while line := reader.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", "0")))
    return Request(f"{method} {target}", headers, json.loads(body) if body else None)


def document(value: Any, status: str = "200 OK", **headers: str) -> list[bytes]:
    """Return a reply with a JSON body."""
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + body]


def problem(
    status: int, code: str, title: str, detail: str, *, more: Mapping[str, Any] | None = None, **headers: str
) -> list[bytes]:
    """Return a reply with a problem document; `more` are further members."""
    value = {"status": status, "code": code, "title": title, "detail": detail, **(more or {})}
    return document(value, f"{status} Nope", Content_Type="application/problem+json", **headers)


def stream(*lines: bytes, ends: bool = True, location: str | None = None) -> list[bytes]:
    """Return a reply that streams NDJSON lines, a chunk each; without `ends` it is cut after the last one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
    head += f"Location: {location}\r\n".encode() if location else b""
    chunks = [b"%x\r\n%b\n\r\n" % (len(line) + 1, line) for line in lines]
    return [head + b"\r\n", *chunks, b"0\r\n\r\n" if ends else b""]


def event(event_id: str, kind: str, **value: Any) -> bytes:
    """Return an NDJSON line of an event."""
    return b'{"id":"%b",%b' % (event_id.encode(), control(kind, **value)[1:])


def control(kind: str, **value: Any) -> bytes:
    """Return an NDJSON line without an id."""
    return json.dumps({kind: value}, separators=(",", ":")).encode()


def delta(event_id: str, text: str) -> bytes:
    """Return an NDJSON line of a text delta."""
    return event(event_id, "contentBlockDelta", contentBlockIndex=0, delta={"text": text})
