"""The HTTP client behind the `headrace` command: requests with a token, answers and their lines.

Called by `cli` and the other parts of `client`; imports nothing of the service and only the standard library,
so that it is a client of the HTTP contract like any other.

- A request is sent once, and once more with a new token if its own was refused; what may be sent again after
  a break is for `client_retry` to say.
- A token goes to its endpoint and into no message.

Problem documents: https://www.rfc-editor.org/rfc/rfc9457
"""

import http.client
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 60.0  # six heartbeats of 10 s
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class ClientError(Exception):
    """A request that did not do what it was for; the text is a sentence for the user."""


class Unreachable(ClientError):
    """No connection: nothing was sent."""


class Dropped(ClientError):
    """The connection broke before the end: what was sent may have been served."""


class Refused(ClientError):
    """An HTTP status other than the expected one, and its problem document ({} if there is none)."""

    def __init__(self, status: int, title: str, problem: dict[str, Any], retry_after_s: int | None) -> None:
        super().__init__(f"HTTP {status} {title}")
        self.status = status
        self.title = title
        self.problem = problem
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Pacing:
    """Time and chance, as the client meets them."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    idle_timeout_s: float = IDLE_TIMEOUT_S


class Answer:
    """One HTTP response; every break while it is read is `Dropped`. Leaving it closes its connection."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def read(self) -> bytes:
        """Return the whole body."""
        with _drops():
            return self._response.read()

    def document(self) -> Any:
        """Return the body's JSON; None if it is not JSON."""
        try:
            return json.loads(self.read())
        except ValueError:
            return None

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; a body that is cut ends with `Dropped`."""
        while True:
            with _drops():
                received = self._response.read1(65536)
            if not received:
                return
            yield received

    def lines(self) -> Iterator[bytes]:
        """Yield each complete line as it arrives, without its newline; not empty ones, nor a cut last one."""
        rest = b""
        for received in self.pieces():
            *complete, rest = (rest + received).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise Dropped(f"a line of the stream is longer than {MAX_LINE_BYTES} bytes")
            yield from (line for line in complete if line.strip())

    def refusal(self) -> Refused:
        """Describe this answer as an error: its problem document, or what an API Gateway says instead."""
        problem: Any = None
        with suppress(Dropped):
            problem = self.document()
        problem = problem if isinstance(problem, dict) else {}
        if "detail" not in problem and isinstance(problem.get("message"), str):
            problem["detail"] = problem["message"]
        after = self.headers.get("Retry-After", "")
        retry_after_s = int(after) if re.fullmatch(r"[0-9]{1,6}", after, re.ASCII) else None
        title = problem.get("title") or self._response.reason or "no reason given"
        return Refused(self.status, str(title), problem, retry_after_s)


def exchange(
    url: str, pacing: Pacing, *, method: str = "GET", headers: Mapping[str, str], body: bytes | None = None
) -> Answer:
    """Send one request on a connection of its own and return as soon as the answer's headers are there.

    Raises:
        Unreachable: Nothing was sent.
        Dropped: Something was sent, and no answer came.
    """
    address = urlsplit(url)
    target = address.path + (f"?{address.query}" if address.query else "")
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.connect()
    except OSError as exc:
        connection.close()
        raise Unreachable(f"nothing answers at {address.scheme}://{address.netloc} ({_reason(exc)})") from exc
    connection.sock.settimeout(pacing.idle_timeout_s)
    try:
        with _drops():
            # A server may refuse a body before it has read all of it: its answer says why, not the pipe.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, {"User-Agent": "headrace-cli", **headers})
            return Answer(connection, connection.getresponse())
    except Dropped:
        connection.close()
        raise


class Bearer:
    """The token of one endpoint, got from `source` when it is needed and again once it is no longer good."""

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source
        self._token: str | None = None

    def token(self) -> str:
        if self._token is None:
            self._token = self._source()
        return self._token

    def forget(self) -> None:
        """Ask the source again at the next request."""
        self._token = None

    def renew(self) -> bool:
        """Ask the source for a token now; False if it has only the one that was refused."""
        refused, self._token = self._token, self._source()
        return self._token != refused


class Endpoint:
    """A Headrace service at `url` (scheme, host, maybe a stage; no slash at the end)."""

    def __init__(self, url: str, bearer: Bearer, pacing: Pacing) -> None:
        self.url = url
        self.bearer = bearer
        self.pacing = pacing

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a GET.

        Raises:
            Refused: The answer is not 200.
        """
        return self._request("GET", path, headers or {}, None, (200,))

    def get_document(self, path: str) -> dict[str, Any]:
        """Return the JSON object at `path`."""
        with self.get(path, {"Accept": "application/json"}) as answer:
            document = answer.document()
        if not isinstance(document, dict):
            raise ClientError(
                f"{self.url}{path} answered with something that is not a JSON object: check --url"
            )
        return document

    def post(
        self, path: str, document: Any, headers: Mapping[str, str], *, expected: tuple[int, ...]
    ) -> Answer:
        """Send a POST with a JSON document, or without a body if it is None.

        Raises:
            Refused: The answer has none of the expected statuses.
            Dropped: No answer came: whether the service took it is not known.
        """
        body = None if document is None else json.dumps(document).encode()
        kind = {} if document is None else {"Content-Type": "application/json"}
        return self._request("POST", path, {**kind, **headers}, body, expected)

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        expected: tuple[int, ...],
    ) -> Answer:
        """Send a request; a token that is refused is renewed once, since nothing was done with it."""
        answer = self._send(method, path, headers, body)
        if answer.status == 401:
            with answer:
                refusal = answer.refusal()
            if not self.bearer.renew():
                raise refusal
            answer = self._send(method, path, headers, body)
        if answer.status in expected:
            return answer
        with answer:
            raise answer.refusal()

    def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        signed = {"Authorization": f"Bearer {self.bearer.token()}", **headers}
        return exchange(self.url + path, self.pacing, method=method, headers=signed, body=body)


def invocation_path(runtime_id: str, invocation_id: str) -> str:
    """Return the path of an invocation's record; a runtime id may be an ARN."""
    return f"/runtimes/{quote(runtime_id, safe='')}/invocations/{quote(invocation_id, safe='')}"


def submitted_id(answer: Answer) -> str | None:
    """Return the id of the invocation that a POST started, from its `Location`."""
    return answer.headers.get("Location", "").rstrip("/").rpartition("/")[2] or None


@contextmanager
def _drops() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as exc:
        raise Dropped(f"the connection broke ({_reason(exc)})") from exc


def _reason(exc: Exception) -> str:
    """Name a foreign failure for the user; its own text may hold what was sent."""
    if isinstance(exc, TimeoutError):
        return "timed out"
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
