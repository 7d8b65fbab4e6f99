"""What API Gateway and WAF answer themselves: problem documents like the service's, with a request id and
CORS.

`api` and `waf` use it. Texts are constants: what API Gateway would say itself names its own parts, and is
not always valid inside JSON. Templates are not VTL; only `$context` variables would be replaced:
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-gatewayResponse-definition.html
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PROBLEM_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of answer of API Gateway's; without a status it keeps the one that the fault has."""

    kind: str
    status: int | None
    code: str
    title: str
    detail: str = ""
    retry_after_s: int | None = None
    challenge: bool = False

    def document(self) -> str:
        """Return the problem document, as the service would write it."""
        problem: dict[str, object] = {"type": f"urn:headrace:problem:{self.code}", "title": self.title}
        if self.status is not None:
            problem["status"] = self.status
        problem["code"] = self.code
        if self.detail:
            problem["detail"] = self.detail
        if self.retry_after_s:
            problem["retryable"] = True
        return json.dumps(problem)

    def headers(self, cors_origins: Sequence[str]) -> dict[str, str]:
        """Return the headers, as values that API Gateway maps: constants in quotes, or `context.`."""
        headers = {
            "Content-Type": f"'{PROBLEM_TYPE}'",
            "Cache-Control": "'no-store'",
            "X-Content-Type-Options": "'nosniff'",
            "X-Request-Id": "context.requestId",
        }
        if self.retry_after_s is not None:
            headers["Retry-After"] = f"'{self.retry_after_s}'"
        if self.challenge:
            headers["WWW-Authenticate"] = "'Bearer'"
        if cors_origins:
            headers["Access-Control-Allow-Origin"] = f"'{allowed_origin(cors_origins)}'"
            headers["Access-Control-Expose-Headers"] = "'Retry-After, X-Request-Id'"
        return headers


_REFUSED: Final = "The edge refused this request"
_FAILED: Final = "The edge could not serve this request"
_NOTHING: Final = "There is nothing here that you may see"
_INVALID: Final = "The request is not valid"
_TOO_LARGE: Final = "The request body is larger than this runtime takes"
_NOT_JSON: Final = "The request body must be application/json"
# Codes that the service has, too, have its titles.
REFUSALS: Final = (
    Refusal("DEFAULT_4XX", None, "edge-refused", _REFUSED),
    Refusal("DEFAULT_5XX", None, "edge-failed", _FAILED, retry_after_s=1),
    Refusal("UNAUTHORIZED", 401, "unauthenticated", "A valid ID token is required", challenge=True),
    Refusal("ACCESS_DENIED", 403, "edge-refused", _REFUSED),
    Refusal("WAF_FILTERED", 403, "edge-refused", _REFUSED),
    # What API Gateway calls a missing token is a path or method that it does not have.
    Refusal("MISSING_AUTHENTICATION_TOKEN", 404, "not-found", _NOTHING, "There is no such path or method."),
    Refusal("RESOURCE_NOT_FOUND", 404, "not-found", _NOTHING, "There is no such path."),
    Refusal("BAD_REQUEST_BODY", 400, "invalid-request", _INVALID, "The body must be a JSON object."),
    Refusal("BAD_REQUEST_PARAMETERS", 400, "invalid-request", _INVALID, "A parameter is missing."),
    Refusal("REQUEST_TOO_LARGE", 413, "body-too-large", _TOO_LARGE),
    Refusal("UNSUPPORTED_MEDIA_TYPE", 415, "unsupported-media-type", _NOT_JSON),
    Refusal("THROTTLED", 429, "throttled", "Too many requests", retry_after_s=1),
    Refusal("INTEGRATION_FAILURE", 502, "edge-failed", _FAILED, "The service can't be reached.", 1),
    Refusal(
        "INTEGRATION_TIMEOUT", 504, "edge-timeout", "The service was silent for too long", retry_after_s=1
    ),
)
# WAF's own answer to too many requests of one address; it can't be of another type than application/json.
RATE_LIMITED: Final = Refusal("", 429, "throttled", "Too many requests from this address", retry_after_s=60)


def allowed_origin(cors_origins: Sequence[str]) -> str:
    """Return the origin that may read a refusal: gateway responses can't choose among several.

    A refusal says nothing that is anybody's, and no answer depends on cookies.
    """
    return cors_origins[0] if len(cors_origins) == 1 else "*"
