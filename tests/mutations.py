"""Ways in which the template of the edge may be wrong, and which end-to-end check finds each.

A mutation is written twice: as it stands in the template, and in the extract of it. `tests/stacks` holds that
the one gives the other, where the CDK runs; `tests/e2e/test_mutations.py` enforces the extract with a local
gateway, in front of a real service, and sees the check fail.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.edge import SUBMISSION, method_of

Extract = dict[str, Any]
Change = Callable[[Extract], None]

_POST: Final = "ApiRestruntimesruntimeIdinvocationsPOST"
_USAGE: Final = "ApiRestusageGET"


@dataclass(frozen=True)
class Mutation:
    """One fault of the template. `in_template` changes the properties of the resource whose logical id begins
    with `resource`, by dotted paths; None there takes away, and for all of it the resource itself. `scale` is
    how long a second of the gateway's is while the check runs."""

    name: str
    resource: str
    in_template: Mapping[str, Any] | None
    in_extract: Change
    caught_by: str
    scale: float = 1.0

    def of_template(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """Return the resources of a template with this fault."""
        changed = copy.deepcopy(dict(resources))
        (name,) = [name for name in changed if name.startswith(self.resource)]
        if self.in_template is None:
            del changed[name]
            return changed
        for place, value in self.in_template.items():
            *parents, last = place.split(".", 1) if place.startswith("Integration.") else [place]
            properties = changed[name]["Properties"]
            for parent in parents:
                properties = properties[parent]
            if value is None:
                del properties[last]
            else:
                properties[last] = value
        return changed

    def of_extract(self, extract: Mapping[str, Any]) -> Extract:
        """Return the extract of a template with this fault."""
        changed = copy.deepcopy(dict(extract))
        self.in_extract(changed)
        return changed


def _submission(**members: Any) -> Change:
    def change(extract: Extract) -> None:
        method_of(extract, *SUBMISSION).update(members)

    return change


def _way(**members: Any) -> Change:
    def change(extract: Extract) -> None:
        method_of(extract, *SUBMISSION)["integration"].update(members)

    return change


def _usage_gone(extract: Extract) -> None:
    extract["methods"].remove(method_of(extract, "GET", "/usage"))


def _audience(expression: str | None) -> Change:
    def change(extract: Extract) -> None:
        for authorizer in extract["authorizers"].values():
            authorizer["audience"] = expression

    return change


def _unreadable_refusal(extract: Extract) -> None:
    extract["refusals"]["UNAUTHORIZED"]["headers"] = {}


_REQUEST_ID: Final = {"integration.request.header.X-Request-Id": "context.requestId"}
_RUNTIME: Final = {"integration.request.path.runtimeId": "method.request.path.runtimeId"}
_SETS: Final = "Integration.RequestParameters"
_TARGET: Final = "Integration.IntegrationTarget"
_LINK: Final = "Integration.ConnectionId"
_URI: Final = "Integration.Uri"
_EXPRESSION: Final = "IdentityValidationExpression"
_PUBLIC: Final = {"AuthorizationType": "NONE", "AuthorizerId": None}
_UNCHECKED: Final = {"parameters": False, "body": False}
_WRONG: Final = "http://x/wrong"
_AUTHORIZER: Final = "ApiAuthorizer"
_REFUSAL: Final = "ApiRestUnauthorized"

_POSTS: Final[tuple[tuple[str, Mapping[str, Any], Change, str, float], ...]] = (
    ("buffered", {"Integration.ResponseTransferMode": "BUFFERED"}, _way(mode="BUFFERED"), "streams", 0.01),
    ("29 s", {"Integration.TimeoutInMillis": None}, _way(timeout_ms=29_000), "lasts", 0.0025),
    ("no authorizer", _PUBLIC, _submission(authorizer=None), "refuses", 1.0),
    ("no validation", {"RequestValidatorId": None}, _submission(validates=_UNCHECKED), "refuses", 1.0),
    ("no target", {_TARGET: None}, _way(target=None), "serves", 1.0),
    ("no link", {_LINK: None}, _way(connection=None), "serves", 1.0),
    ("wrong path", {_URI: _WRONG}, _way(uri=_WRONG), "serves", 1.0),
    ("no parameter", {_SETS: _REQUEST_ID}, _way(sets=_REQUEST_ID), "serves", 1.0),
    ("no request id", {_SETS: _RUNTIME}, _way(sets=_RUNTIME), "serves", 1.0),
)
MUTATIONS: Final = (
    *(Mutation(name, _POST, there, here, check, scale) for name, there, here, check, scale in _POSTS),
    Mutation("any audience", _AUTHORIZER, {_EXPRESSION: None}, _audience(None), "refuses"),
    Mutation("wrong audience", _AUTHORIZER, {_EXPRESSION: "^other$"}, _audience("^other$"), "serves"),
    Mutation("unreadable refusal", _REFUSAL, {"ResponseParameters": None}, _unreadable_refusal, "refuses"),
    Mutation("method gone", _USAGE, None, _usage_gone, "serves"),
)
