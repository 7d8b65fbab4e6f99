"""What an OpenAI-compatible server's refusals and failures are in the service's errors: by code and status.

`models.openai_compat` maps with it. The text of an error never leaves this module. `billed` is the class's
own here: a refusal generated nothing, a failure or a timeout may have; the caller sets it where the answer
had begun.

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": "model_not_found"}}
    vLLM has a status as `code`: {"error": {"message": "...", "type": "BadRequestError", "code": 400}}
    an older vLLM has no `error`: {"object": "error", "message": "...", "type": "...", "code": 400}

Sources: https://platform.openai.com/docs/guides/error-codes, and the types that
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/server-common.cpp (`format_error_response`) and
https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/openai/engine/protocol.py (`ErrorInfo`) send.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from service.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_CODES: Final[Mapping[str, type[UpstreamError]]] = {
    "authentication_error": UpstreamMisconfigured,
    "billing_hard_limit_reached": UpstreamMisconfigured,
    "insufficient_quota": UpstreamMisconfigured,  # a 429, but no waiting helps
    "invalid_api_key": UpstreamMisconfigured,
    "model_not_found": UpstreamMisconfigured,
    "not_supported_error": UpstreamMisconfigured,
    "permission_error": UpstreamMisconfigured,
    "unsupported_parameter": UpstreamMisconfigured,  # `max_tokens`, say: ours to choose, not the caller's
    "context_length_exceeded": UpstreamRejected,
    "exceed_context_size_error": UpstreamRejected,
    "rate_limit_exceeded": UpstreamThrottled,
    "unavailable_error": UpstreamUnavailable,  # llama.cpp while it loads the model
}
_STATUSES: Final[Mapping[int, type[UpstreamError]]] = {
    401: UpstreamMisconfigured,
    402: UpstreamMisconfigured,
    403: UpstreamMisconfigured,
    404: UpstreamMisconfigured,
    405: UpstreamMisconfigured,
    408: UpstreamTimeout,
    429: UpstreamThrottled,
    501: UpstreamMisconfigured,
    503: UpstreamUnavailable,
    504: UpstreamTimeout,
}
_DETAILS: Final[Mapping[type[UpstreamError], str]] = {
    UpstreamRejected: "The model does not accept this request: check its messages and the model's limits.",
    UpstreamMisconfigured: "The model backend refuses this deployment's key, model or address.",
    UpstreamThrottled: "The model backend is throttling this deployment: try again later.",
    UpstreamUnavailable: "The model backend is not available: try again later.",
    UpstreamTimeout: "The model did not answer in time.",
    UpstreamFailed: "The model backend failed while it made the answer.",
}
MAX_RETRY_AFTER_S: Final = 3600.0
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_SHOWN_CODE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)


class KeyRefused(UpstreamMisconfigured):
    """The server does not accept the API key (401): it may have been rotated a moment ago."""


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Map an answer that is no 200; its `__cause__` carries the code for the log."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = {}
    error = error_in(document) or {}
    refusal = _mapped(error, status)
    if status == 401:
        refusal = KeyRefused(refusal.detail)
    if isinstance(refusal, UpstreamThrottled | UpstreamUnavailable):
        refusal.retry_after_s = _retry_after_s(headers.get("retry-after", ""))
    refusal.__cause__ = ForeignError(_code_in(error) or str(status))
    return refusal


def stream_failure_of(error: Mapping[str, Any]) -> UpstreamError:
    """Map an error that came as an event of a stream."""
    code = error.get("code")
    failure = _mapped(error, code if type(code) is int else 500)
    failure.__cause__ = ForeignError(_code_in(error))
    return failure


def error_in(document: Any) -> Mapping[str, Any] | None:
    """Return the error that a body or an event holds, None if it is none."""
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):  # Ollama and some proxies: a bare text
        return {}
    return document if document.get("object") == "error" else None


class ForeignError(Exception):
    """Stands for the upstream's error in the log: its code, if that is one, and none of its text."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def foreign_code(exc: BaseException | None) -> str:
    """Return the code that a log line may hold: the upstream's, or the name of the exception's class."""
    if isinstance(exc, ForeignError):
        return exc.code
    return type(exc).__name__ if exc is not None else ""


def _mapped(error: Mapping[str, Any], status: int) -> UpstreamError:
    named = (_CODES.get(name) for name in (error.get("code"), error.get("type")) if isinstance(name, str))
    kind = (
        next((kind for kind in named if kind is not None), None) or _STATUSES.get(status) or _by_class(status)
    )
    return kind(_DETAILS[kind])


def _by_class(status: int) -> type[UpstreamError]:
    if 400 <= status < 500:
        return UpstreamRejected
    # A redirect is not followed: the key would go with it.
    return UpstreamMisconfigured if 300 <= status < 400 else UpstreamFailed


def _code_in(error: Mapping[str, Any]) -> str:
    for value in (error.get("code"), error.get("type")):
        if isinstance(value, str | int) and _SHOWN_CODE.fullmatch(str(value)):
            return str(value)
    return ""


def _retry_after_s(value: str) -> float | None:
    """Read the seconds of a `Retry-After`; a date, which nobody sends here, is none."""
    return min(float(value), MAX_RETRY_AFTER_S) if _SECONDS.fullmatch(value) else None
