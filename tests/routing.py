"""The service's edge in front of endpoints that a test writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.edge import Cors, Edge, Routes
from service.problems import refuse


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand where the service's lifespan would."""
    raise AssertionError(scope["type"])


def edge(
    routes: Routes,
    lines: list[Mapping[str, Any]],
    origins: Sequence[str] = (),
    lifespan: ASGIApp = no_lifespan,
) -> Edge:
    """Return the edge of these routes; its log lines go to `lines`."""
    cors = Cors(origins, allow_headers=["Authorization"], expose_headers=["Location"])
    return Edge(routes, refuse, cors, lines.append, lifespan)
