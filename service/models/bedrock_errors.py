"""What Bedrock's refusals and failures are in the service's errors: tables by code and status, never by text.

`models.bedrock` maps with it whatever ended a call. `billed` is the class's own here: a refusal that names
its reason generated nothing, a failure or a timeout may have; the caller sets it where the answer had begun.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html (Errors) and
https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import orjson
from botocore.exceptions import (
    BotoCoreError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
)

from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.models.eventstream import ExceptionFrame, StreamEnded

_CODES: Final[Mapping[str, type[UpstreamError]]] = {
    "AccessDeniedException": UpstreamMisconfigured,
    "ExpiredToken": UpstreamMisconfigured,
    "ExpiredTokenException": UpstreamMisconfigured,
    "IncompleteSignature": UpstreamMisconfigured,
    "InvalidClientTokenId": UpstreamMisconfigured,
    "InvalidSignatureException": UpstreamMisconfigured,
    "MissingAuthenticationToken": UpstreamMisconfigured,
    "NotAuthorized": UpstreamMisconfigured,
    "OptInRequired": UpstreamMisconfigured,
    "ResourceNotFoundException": UpstreamMisconfigured,
    "UnrecognizedClientException": UpstreamMisconfigured,
    "ServiceQuotaExceededException": UpstreamRejected,
    "ValidationException": UpstreamRejected,
    "ModelNotReadyException": UpstreamThrottled,
    "ThrottlingException": UpstreamThrottled,
    "TooManyRequestsException": UpstreamThrottled,
    "ServiceUnavailable": UpstreamUnavailable,
    "ServiceUnavailableException": UpstreamUnavailable,
    "ModelTimeoutException": UpstreamTimeout,
    "InternalFailure": UpstreamFailed,
    "InternalServerException": UpstreamFailed,
    "ModelErrorException": UpstreamFailed,
    "ModelStreamErrorException": UpstreamFailed,
}
_STATUSES: Final[Mapping[int, type[UpstreamError]]] = {
    401: UpstreamMisconfigured,
    403: UpstreamMisconfigured,
    404: UpstreamMisconfigured,
    408: UpstreamTimeout,
    424: UpstreamFailed,
    429: UpstreamThrottled,
    503: UpstreamUnavailable,
    504: UpstreamTimeout,
}
# What botocore raises before anything is sent, the first that fits.
_LOCAL: Final[Sequence[tuple[tuple[type[Exception], ...], type[UpstreamError]]]] = (
    ((CredentialRetrievalError, MetadataRetrievalError, HTTPClientError), UpstreamUnavailable),
    ((BotoCoreError,), UpstreamMisconfigured),
)
_DETAILS: Final[Mapping[type[UpstreamError], str]] = {
    UpstreamRejected: "The model does not accept this request: check its messages and the model's limits.",
    UpstreamMisconfigured: "The model backend refuses this deployment's credentials, model or region.",
    UpstreamThrottled: "The model backend is throttling this deployment: try again later.",
    UpstreamUnavailable: "The model backend is not available: try again later.",
    UpstreamTimeout: "The model did not answer in time.",
    UpstreamFailed: "The model backend failed while it made the answer.",
}


class Refusal(Exception):
    """An answer that is not 200.

    Attributes:
        code: The service's name of the error, '' where it gives none.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code

    @classmethod
    def read(cls, status: int, headers: Mapping[str, str], body: bytes) -> Self:
        """Find the code where botocore does (botocore/parsers.py, `RestJSONParser`): `Code:uri`, `ns#Code`.

        A refusal need not come from Bedrock itself: its body may be anything.
        """
        code: Any = headers.get("x-amzn-errortype", "").partition(":")[0]
        if not code:
            try:
                document = orjson.loads(body)
            except orjson.JSONDecodeError:
                document = None
            if isinstance(document, dict):
                code = document.get("code") or document.get("Code") or document.get("__type")
        return cls(status, code.rpartition("#")[2] if isinstance(code, str) else "")


def failure_of(exc: Exception) -> UpstreamError | None:
    """Map what a call raised.

    Args:
        exc: Ours stay as they are; refusals go by code or else by status, botocore's own errors by type.

    Returns:
        None for what is no failure of an upstream: a fault of ours, or what the receiver raised.
    """
    if isinstance(exc, UpstreamError):
        return exc
    if isinstance(exc, Refusal):
        return _known(exc.code, exc.status)
    kind = next((kind for types, kind in _LOCAL if isinstance(exc, types)), None)
    return kind(_DETAILS[kind]) if kind is not None else None


def stream_failure_of(end: StreamEnded) -> UpstreamError:
    """Map what ended a stream: an exception frame by its type, anything else is damage."""
    if isinstance(end, ExceptionFrame):
        return _known(end.type[:1].upper() + end.type[1:], 500)
    return UpstreamFailed("The model's answer was damaged on its way.")


def _known(code: str, status: int) -> UpstreamError:
    by_class = UpstreamRejected if 400 <= status < 500 else UpstreamFailed
    kind = _CODES.get(code) or _STATUSES.get(status) or by_class
    return kind(_DETAILS[kind])


def foreign_code(exc: BaseException | None) -> str:
    """Return the code that a log line may hold: the upstream's, or the name of the exception's class."""
    match exc:
        case Refusal(code=code):
            return code
        case ExceptionFrame(type=type_):
            return type_
        case None:
            return ""
        case _:
            return type(exc).__name__
