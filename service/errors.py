"""What can go wrong, as one tree; each leaf is one stable `code` of the HTTP contract.

    HeadraceError
    ├── Rejected            the caller's reason (4xx)
    │   ├── InvalidRequest          invalid-request          400
    │   ├── InvalidCursor           invalid-cursor           400
    │   ├── Unauthenticated         unauthenticated          401
    │   ├── Denied                  denied                   403
    │   ├── NotFound                not-found                404
    │   ├── MethodNotAllowed        method-not-allowed       405
    │   ├── NotAcceptable           not-acceptable           406
    │   ├── AlreadyEnded            already-ended            409
    │   ├── BodyTooLarge            body-too-large           413
    │   ├── UnsupportedMediaType    unsupported-media-type   415
    │   ├── BudgetExceeded          budget-exceeded          422
    │   ├── IdempotencyMismatch     idempotency-mismatch     422
    │   ├── QuotaExceeded           quota-exceeded           429
    │   ├── ConcurrencyExceeded     concurrency-exceeded     429
    │   └── TooManyReaders          too-many-readers         429
    ├── Shed                ours, before any work was done (503)
    │   ├── Overloaded              overloaded               503
    │   ├── Draining                draining                 503
    │   ├── IssuerUnavailable       issuer-unavailable       503
    │   └── StoreUnavailable        store-unavailable        503
    ├── UpstreamError       the model backend's
    │   ├── UpstreamRejected        upstream-rejected        400
    │   ├── UpstreamMisconfigured   upstream-misconfigured   502
    │   ├── UpstreamFailed          upstream-failed          502
    │   ├── UpstreamThrottled       upstream-throttled       503
    │   ├── UpstreamUnavailable     upstream-unavailable     503
    │   └── UpstreamTimeout         upstream-timeout         504
    └── InvocationError     the job's own endings
        ├── TurnsExhausted          turns-exhausted          422
        ├── PauseExpired            pause-expired            429
        ├── OutcomeUnknown          outcome-unknown          500
        ├── AgentFailed             agent-failed             500
        ├── AttemptsExhausted       attempts-exhausted       503
        ├── RuntimeGone             runtime-gone             503
        ├── DeadlineExceeded        deadline-exceeded        504
        └── InternalError           internal-error           500

`Fenced` stands apart: it never reaches a caller.

Raised by every module of the service, turned into problem documents (RFC 9457) by `api` before the first
byte and by `runner` after it. Adapters map foreign exceptions to these by type and code, never by text.
"""

import traceback
from collections.abc import Mapping
from typing import Any, ClassVar, Final

LOGGED_CAUSES: Final = 5
PROBLEM_TYPE_PREFIX = "urn:headrace:problem:"


class HeadraceError(Exception):
    """A failure with a stable code.

    Args:
        detail: One or two sentences for the caller: what is wrong and what to do. Never foreign text.
        retry_after_s: Seconds until a retry may succeed; becomes `Retry-After`.
        extra: Further members of the problem document (JSON values).
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong inside the service"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.extra: dict[str, Any] = dict(extra or {})

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.retryable

    def problem(self, **members: Any) -> dict[str, Any]:
        """Return the RFC 9457 problem document; `members` come last (`instance`, `invocationId`)."""
        document: dict[str, Any] = {
            "type": PROBLEM_TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
        }
        if self.detail:
            document["detail"] = self.detail
        if self.is_retryable:
            document["retryable"] = True
        return document | self.extra | members


class Rejected(HeadraceError):
    """Refused for the caller's reason."""


class InvalidRequest(Rejected):
    code, status = "invalid-request", 400
    title = "The request is not valid"


class InvalidCursor(Rejected):
    code, status = "invalid-cursor", 400
    title = "The cursor was never issued by this invocation"


class Unauthenticated(Rejected):
    code, status = "unauthenticated", 401
    title = "A valid ID token is required"


class Denied(Rejected):
    # Not RFC 6750's 401: a client would get a new token and come back, and a refreshed one is denied too.
    code, status = "denied", 403
    title = "Access is denied"


class NotFound(Rejected):
    code, status = "not-found", 404
    title = "There is nothing here that you may see"


class MethodNotAllowed(Rejected):
    code, status = "method-not-allowed", 405
    title = "This path does not answer that method"


class NotAcceptable(Rejected):
    code, status = "not-acceptable", 406
    title = "None of the accepted media types can be produced"


class AlreadyEnded(Rejected):
    code, status = "already-ended", 409
    title = "This invocation has ended"


class BodyTooLarge(Rejected):
    code, status = "body-too-large", 413
    title = "The request body is larger than this runtime takes"


class UnsupportedMediaType(Rejected):
    code, status = "unsupported-media-type", 415
    title = "The request body must be application/json"


class BudgetExceeded(Rejected):
    code, status = "budget-exceeded", 422
    title = "The token budget of this invocation does not allow the next model call"


class IdempotencyMismatch(Rejected):
    code, status = "idempotency-mismatch", 422
    title = "This idempotency key has been used for another request"


class QuotaExceeded(Rejected):
    code, status = "quota-exceeded", 429
    title = "The token quota is used up"
    retryable = True

    @property
    def is_retryable(self) -> bool:
        """Whether time makes room; a call that is larger than the whole quota never fits."""
        return self.retry_after_s is not None


class ConcurrencyExceeded(Rejected):
    code, status = "concurrency-exceeded", 429
    title = "Too many invocations of yours are running"
    retryable = True


class TooManyReaders(Rejected):
    code, status = "too-many-readers", 429
    title = "Too many streams of yours are open"
    retryable = True


class Shed(HeadraceError):
    """Refused for our reason, before any work was done."""

    status = 503
    retryable = True


class Overloaded(Shed):
    code = "overloaded"
    title = "This process has no room for more work"


class Draining(Shed):
    code = "draining"
    title = "This process is going away; another one takes over"


class IssuerUnavailable(Shed):
    code = "issuer-unavailable"
    title = "The token issuer's keys could not be loaded"


class StoreUnavailable(Shed):
    code = "store-unavailable"
    title = "The store does not answer"


class UpstreamError(HeadraceError):
    """The model backend refused or failed.

    `billed` says what must be metered when the upstream reported no usage: False only where it is certain
    that the model generated nothing and was not asked to (a refusal, a connection never made).
    """

    billed: bool = False


class UpstreamRejected(UpstreamError):
    code, status = "upstream-rejected", 400
    title = "The model backend does not accept this request"


class UpstreamMisconfigured(UpstreamError):
    code, status = "upstream-misconfigured", 502
    title = "The model backend refuses this deployment: its operator must look"


class UpstreamFailed(UpstreamError):
    code, status, billed = "upstream-failed", 502, True
    title = "The model's answer broke off"
    retryable = True


class UpstreamThrottled(UpstreamError):
    code, status = "upstream-throttled", 503
    title = "The model backend is throttling this deployment"
    retryable = True


class UpstreamUnavailable(UpstreamError):
    code, status = "upstream-unavailable", 503
    title = "The model backend can't be reached or is not available"
    retryable = True


class UpstreamTimeout(UpstreamError):
    code, status, billed = "upstream-timeout", 504, True
    title = "The model backend was silent for too long"
    retryable = True


class InvocationError(HeadraceError):
    """The job ended for a reason of its own."""


class TurnsExhausted(InvocationError):
    code, status = "turns-exhausted", 422
    title = "The agent did not finish within its limit of turns"


class PauseExpired(InvocationError):
    code, status = "pause-expired", 429
    title = "The invocation waited for quota for longer than it may"
    retryable = True


class OutcomeUnknown(InvocationError):
    code, status = "outcome-unknown", 500
    title = "What must not be done twice may or may not have been done"


class AgentFailed(InvocationError):
    code, status = "agent-failed", 500
    title = "The agent failed"


class AttemptsExhausted(InvocationError):
    code, status = "attempts-exhausted", 503
    title = "Every process that ran this invocation went away before it was finished"
    retryable = True


class RuntimeGone(InvocationError):
    code, status = "runtime-gone", 503
    title = "The runtime of this invocation is no longer served"


class DeadlineExceeded(InvocationError):
    code, status = "deadline-exceeded", 504
    title = "The invocation reached its deadline"


class InternalError(InvocationError):
    code, status = "internal-error", 500
    title = "Something went wrong inside the service"


class Fenced(Exception):
    """This attempt lost its invocation to a later one: nothing that it writes counts any more."""


def log_fields_of(error: BaseException) -> dict[str, str]:
    """Return what may be logged of an exception of foreign code: where and of which type, of its causes too.

    What it says may quote a prompt, a tool's arguments, a name of a file that a caller chose.
    """
    stacks: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(stacks) < LOGGED_CAUSES:
        stacks.append(f"{type(cause).__qualname__}\n{''.join(traceback.format_tb(cause.__traceback__))}")
        cause = cause.__cause__ or cause.__context__
    return {"error_type": type(error).__qualname__, "stack": "caused by ".join(stacks)}
