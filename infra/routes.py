"""The HTTP contract as API Gateway publishes it: every method, and how its answer travels.

`api` makes the methods of it; a test keeps it equal to the service's routes. `/ping` and `/ready` are for
the load balancer and stay inside. Names of path parameters are those of docs/api.md.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PublicRoute:
    """One method of the API; `streams` says that the answer is passed on as it comes."""

    method: str
    path: str
    streams: bool = False
    has_body: bool = False


_INVOCATIONS: Final = "/runtimes/{runtimeId}/invocations"
_INVOCATION: Final = f"{_INVOCATIONS}/{{invocationId}}"

ROUTES: Final = (
    PublicRoute("GET", "/runtimes"),
    PublicRoute("POST", _INVOCATIONS, streams=True, has_body=True),
    PublicRoute("GET", _INVOCATIONS),
    PublicRoute("GET", _INVOCATION),
    PublicRoute("GET", f"{_INVOCATION}/events", streams=True),
    PublicRoute("POST", f"{_INVOCATION}/cancel"),
    PublicRoute("POST", f"{_INVOCATION}/resume"),
    PublicRoute("GET", "/usage"),
)
SUBMISSION: Final = ROUTES[1]
