"""What API Gateway answers itself: a gateway response of the template, or what stands in for it.

`gateway` asks for one by its kind. A kind that the API has not customized has the response of its class
(`DEFAULT_4XX`, `DEFAULT_5XX`) with its own status:
https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html.
Of the templates the one for JSON is taken, whatever was accepted. Texts may name `$context.requestId`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

STATUSES: Final[Mapping[str, int]] = {
    "API_CONFIGURATION_ERROR": 500,
    "AUTHORIZER_CONFIGURATION_ERROR": 500,
    "BAD_REQUEST_BODY": 400,
    "BAD_REQUEST_PARAMETERS": 400,
    "INTEGRATION_FAILURE": 504,
    "INTEGRATION_TIMEOUT": 504,
    "MISSING_AUTHENTICATION_TOKEN": 403,
    "REQUEST_TOO_LARGE": 413,
    "THROTTLED": 429,
    "UNAUTHORIZED": 401,
    # Not a type of API Gateway's: what it does beyond 10,240 bytes of headers is not documented.
    "HEADERS_TOO_LARGE": 431,
}


def answer(refusals: Mapping[str, Mapping[str, Any]], kind: str, request_id: str) -> web.Response:
    """Return the gateway response of a kind."""
    fallback: Mapping[str, Any] = {"status": None, "headers": {}, "bodies": {}}
    default = refusals.get(f"DEFAULT_{STATUSES[kind] // 100}XX", fallback)
    refusal = refusals.get(kind, default)
    headers = {"Content-Type": "application/json", "x-amzn-RequestId": request_id}
    for name, mapped in refusal["headers"].items():
        if mapped == "context.requestId":
            headers[name] = request_id
        elif mapped.startswith("'"):
            headers[name] = mapped[1:-1]
    body = refusal["bodies"].get("application/json") or json.dumps({"message": kind})
    return web.Response(
        status=refusal["status"] or default["status"] or STATUSES[kind],
        headers=headers,
        body=body.replace("$context.requestId", request_id).encode(),
    )


def no_such_stage() -> web.Response:
    """Return what the endpoint says that all APIs share: there is no API yet whose response it could be."""
    return web.json_response({"message": "Forbidden"}, status=403)
