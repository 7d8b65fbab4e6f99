"""What `headrace smoke` needs for every check, and the checks of refusals: who and what must get nothing.

Called by the other `cli_smoke*`; calls `client_probe`. A check returns what it saw, as a line,
or raises `NotHeld` (with what to do) or `Skipped`; what else breaks on the way is a `ClientError` and counts
as not held. What it notices beside goes into `Visit.noticed`.

Refusals are asked for where they cost nothing: a submission without a prompt would be a 400 if its token were
taken.
"""

import base64
import json
import secrets
import uuid
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final
from urllib.parse import quote, urlsplit

from service.client import invocation_path
from service.client_probe import SSE, Heard, Probe, Reply

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ARN: Final = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/"
EDGE_ID: Final = "x-amzn-requestid"  # API Gateway's own, in every answer


class NotHeld(Exception):
    """A check found what must not be; the text says what, and what to do."""


class Skipped(Exception):
    """A check could not be made; the text says why."""


@dataclass(slots=True)
class Visit:
    """One run: what is asked with, and what its answers leave for later checks.

    Attributes:
        running: Paths of invocations that were started and not seen to end.
        streamed: The whole answer of the first invocation, submitted with `key`.
        detached: Id of the second one, submitted without a stream; `resumed` is its log.
    """

    probe: Probe
    runtime_id: str
    prompt: str
    max_tokens: int
    most_tokens: int
    other_token: str | None
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    noticed: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    usage_before: dict[str, Any] | None = None
    streamed_id: str | None = None
    streamed: Heard | None = None
    detached_id: str | None = None
    resumed: Heard | None = None

    @property
    def submission(self) -> str:
        """The request that submits."""
        return f"POST /runtimes/{quote(self.runtime_id, safe='')}/invocations"

    @property
    def job(self) -> dict[str, Any]:
        """The body of a submission."""
        return {"prompt": self.prompt, "maxTokens": self.max_tokens}

    @property
    def token(self) -> str:
        """The caller's token."""
        return self.probe.endpoint.bearer.token()

    def path(self, invocation_id: str) -> str:
        """The path of a record."""
        return invocation_path(self.runtime_id, invocation_id)

    def ask(self, request: str, **how: Any) -> Reply:
        """Send a request with the caller's token; see `Probe.ask`."""
        return self.probe.ask(request, token=self.token, **how)

    def listen(self, request: str, **how: Any) -> Heard:
        """Read a stream with the caller's token; see `Probe.listen`."""
        return self.probe.listen(request, token=self.token, **how)

    def submit(self, **how: Any) -> Heard:
        """Submit and read the stream; what was started is noted with its headers, the rest may never come."""
        return self.listen(self.submission, begun=self._note, **how)

    def _note(self, headers: Message) -> None:
        if location := headers.get("Location"):
            self.running.add(self.path(location.rpartition("/")[2]))

    def document(self, request: str) -> dict[str, Any]:
        """Return the JSON object that a request is answered with."""
        reply = self.ask(request)
        need(reply.status == 200 and bool(reply.document), f"{request} answered {reply}", "It must be a 200.")
        return reply.document


def need(holds: bool, seen: str, to_do: str) -> None:
    """Raise `NotHeld` unless it holds."""
    if not holds:
        raise NotHeld(f"{seen}. {to_do}")


def claims_of(token: str) -> dict[str, Any] | None:
    """Read what a token says, unverified; None if it has not the form of one."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def refuses_no_token(visit: Visit) -> str:
    """Without a token there is nothing."""
    reply = _refused(visit, None)
    remapped = reply.headers.get("x-amzn-remapped-www-authenticate")
    challenge = reply.headers.get("WWW-Authenticate")
    # The service says why in `detail`; templates of API Gateway know nothing of the token.
    is_edges = EDGE_ID in reply.headers and "detail" not in reply.document
    visit.noticed["401"] = ", ".join(
        (
            "from API Gateway" if is_edges else "from the service",
            reply.headers.get_content_type(),
            "WWW-Authenticate "
            + (challenge or (f"as x-amzn-remapped: {remapped}" if remapped else "missing")),
        )
    )
    return "401 on GET /usage and on a submission"


def refuses_garbage(visit: Visit) -> str:
    """What is no token at all is none."""
    _refused(visit, "headrace.smoke.garbage")
    return "401 on GET /usage and on a submission"


def refuses_altered_tokens(visit: Visit) -> str:
    """A token counts as it was signed, or not at all."""
    head, payload, signature = visit.token.split(".")
    middle = len(signature) // 2
    letter = "A" if signature[middle : middle + 1] != "A" else "B"
    claims = (claims_of(visit.token) or {}) | {"sub": str(uuid.uuid4())}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    _refused(visit, f"{head}.{payload}.{signature[:middle]}{letter}{signature[middle + 1 :]}")
    _refused(visit, f"{head}.{forged}.{signature}")
    return "401 with another signature, and with another subject"


def _refused(visit: Visit, token: str | None) -> Reply:
    """Send a token that must be refused where it would show most and cost most."""
    replies = []
    for request, document in ((visit.submission, {}), ("GET /usage", None)):
        reply = visit.probe.ask(request, token=token, document=document)
        need(
            (reply.status, reply.document.get("code")) == (401, "unauthenticated"),
            f"{request} answered {reply}",
            "It must be a 401 with the problem document `unauthenticated`: look at the method's authorizer, "
            "at HEADRACE_ISSUER and at the gateway responses; let nobody in before",
        )
        replies.append(reply)
    return replies[-1]


def knows_its_paths(visit: Visit) -> str:
    """What is not there is a 404 in the form of a problem; and what the way here does to paths and ids."""
    unknown = f"GET /no-such-path-{secrets.token_hex(4)}"
    as_json, as_stream = (
        visit.ask(unknown, headers={"Accept": accept}) for accept in ("application/json", SSE)
    )
    _need_not_found(unknown, as_json, "Look at the gateway responses, and for a stage missing in the URL")
    visit.noticed["404 to a stream"] = str(as_stream)
    made_up = "inv_" + "".join(secrets.choice(ALPHABET) for _ in range(26))
    request = f"GET {visit.path(made_up)}"
    _need_not_found(request, visit.ask(request), "Look at the method and its integration's path")
    _notice_paths(visit)
    _notice_request_id(visit)
    return "404 for a path that is not there, and for an invocation that is not"


def _need_not_found(request: str, reply: Reply, to_do: str) -> None:
    need(
        (reply.status, reply.document.get("code")) == (404, "not-found"),
        f"{request} answered {reply}",
        f"It must be a 404 with the problem document `not-found`. {to_do}",
    )


def refuses_another(visit: Visit, invocation_id: str, token: str) -> None:
    """Ask for an invocation, its events and its end with somebody else's token."""
    path = visit.path(invocation_id)
    for request in (f"GET {path}", f"GET {path}/events", f"POST {path}/cancel"):
        reply = visit.probe.ask(request, token=token)
        _need_not_found(request, reply, "One user sees what is another's: let nobody in before")


def _notice_paths(visit: Visit) -> None:
    stage = urlsplit(visit.probe.endpoint.url).path
    visit.noticed["stage"] = (
        f"routes answer behind {stage}; whether the service saw it too is in its log lines (`prefixed`)"
        if stage
        else "none in the URL"
    )
    arn = quote(ARN + visit.runtime_id, safe="")
    reply = visit.ask(f"GET /runtimes/{arn}/invocations?limit=1")
    visit.noticed["ARN as runtime"] = (
        "arrives as it was sent" if reply.status == 200 else f"{reply}: clients must name the plain id"
    )


def _notice_request_id(visit: Visit) -> None:
    ours = f"smoke-{uuid.uuid4()}"
    headers = visit.ask("GET /usage", headers={"X-Request-Id": ours}).headers
    theirs, edges = headers.get("X-Request-Id"), headers.get(EDGE_ID)
    if theirs is None:
        said = "missing: nobody can find this request in a log"
    elif theirs == ours:
        said = "ours came back: nothing in front of the service sets its own"
    elif theirs == edges:
        said = "API Gateway's: the same in its access log, the service's and the answer"
    else:
        said = "not ours: something in front of the service sets it"
    visit.noticed["request id"] = said + (f" ({EDGE_ID} is {edges})" if edges and edges != theirs else "")
