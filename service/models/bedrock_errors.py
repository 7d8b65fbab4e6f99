"""What Bedrock's refusals and failures are in the service's errors: tables by code and status, never by text.

`models.bedrock` maps with it whatever ended a call. `billed` is the class's own here: a refusal that names
its reason generated nothing, a failure or a timeout may have; the caller sets it where the answer had begun.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html (Errors) and
https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html
"""

from collections.abc import Mapping, Sequence
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    ParamValidationError,
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
    ((ParamValidationError,), UpstreamRejected),
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


def failure_of(exc: Exception, status: int) -> UpstreamError | None:
    """Map what a call raised.

    Args:
        exc: Ours stay as they are; refusals go by code or else by status, botocore's own errors by type. Of a
            refusal in no known form its parsers raise anything.
        status: That of the response, 0 if there was none.

    Returns:
        None for what is no failure of an upstream: a fault of ours, or what the receiver raised.
    """
    if isinstance(exc, UpstreamError):
        return exc
    if isinstance(exc, ClientError):
        return _known(
            foreign_code(exc), exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
        )
    if status >= 300:
        return _known("", status)
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
        case ClientError(response=response):
            return str(response.get("Error", {}).get("Code", ""))
        case ExceptionFrame(type=type_):
            return type_
        case None:
            return ""
        case _:
            return type(exc).__name__
