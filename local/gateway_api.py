"""The API that the local gateway enforces, read from the extract of the template: stage, methods, targets.

`gateway` makes one of `local/gateway.json` (`infra/extract.py` draws its shape) and asks it for the method of
each request. Pure. What the extract does not say is not there: a method without a target has none, and its
requests fail as API Gateway's would. What this stand-in does not know (another kind of authorizer, a greedy
path) stops the start instead of being let through.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

EXTRACT: Final = Path(__file__).with_name("gateway.json")
"""The API part of the template, as `make synth` writes it."""

_REFERENCE: Final = re.compile(r"\$\{(\w+\.\w+)(?:\.\w+)?\}")
_PORTS: Final = {"http": 80, "https": 443}
_BALANCER: Final = "AWS::ElasticLoadBalancingV2::LoadBalancer"
_LINK: Final = "AWS::ApiGatewayV2::VpcLink"
_POOL: Final = "AWS::Cognito::UserPool"
_CLIENT: Final = "AWS::Cognito::UserPoolClient"


class Refused(Exception):
    """API Gateway answers itself, with the gateway response of this kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Integration:
    """Where a method's requests go, and how their answers come back."""

    kind: str
    connection: str | None
    target: str | None
    method: str
    uri: str
    mode: str
    timeout_s: float
    sets: Mapping[str, str]

    @property
    def streams(self) -> bool:
        """Whether the answer is passed on as it comes."""
        return self.mode == "STREAM"


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one path; `schemas` are the models of its body by media type."""

    method: str
    path: str
    authorizer: str | None
    requires: tuple[str, ...]
    checks_parameters: bool
    checks_body: bool
    schemas: Mapping[str, Mapping[str, Any]]
    integration: Integration


@dataclass(frozen=True, slots=True)
class Authorizer:
    """Whose tokens get past a method; `audience` is the expression that `aud` must match."""

    header: str
    audience: re.Pattern[str] | None
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What API Gateway allows."""

    header_bytes: int
    body_bytes: int
    buffered_body_bytes: int
    buffered_timeout_s: float
    stream_timeout_s: float
    stream_idle_s: float
    stream_free_bytes: int
    stream_bytes_per_s: float
    requests_per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Api:
    """One stage of one API. `refusals` are its gateway responses, as the extract has them."""

    stage: str
    limits: Limits
    methods: Mapping[str, Mapping[str, Method]]
    authorizers: Mapping[str, Authorizer]
    refusals: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, extract: Mapping[str, Any], client_ids: Sequence[str]) -> Self:
        """Read an extract; `client_ids` are the local issuer's, in place of the app clients of the pool.

        Raises:
            ValueError: It has something that this stand-in does not know.
        """
        references = extract["references"]
        methods: dict[str, dict[str, Method]] = {}
        for each in extract["methods"]:
            if "+}" in each["path"] or each["method"] == "ANY":
                raise ValueError(
                    f"{each['method']} {each['path']}: only explicit methods and paths are known"
                )
            methods.setdefault(each["path"], {})[each["method"]] = _method(each, extract["models"])
        return cls(
            stage=extract["stage"],
            limits=_limits(extract["limits"], extract["throttle"]),
            methods=methods,
            authorizers={
                name: _authorizer(name, each, references, client_ids)
                for name, each in extract["authorizers"].items()
            },
            refusals=extract["refusals"],
            references=references,
        )

    def find(self, method: str, raw_path: str) -> tuple[Method, dict[str, str]]:
        """Return the method of a path (without the stage), and its path parameters as they were sent.

        Raises:
            Refused: There is none. API Gateway calls that a missing token.
        """
        segments = raw_path.split("/")
        fitting = [path for path in self.methods if _fits(path.split("/"), segments)]
        for path in sorted(fitting):  # a name goes before a parameter: `{` comes after all letters
            if found := self.methods[path].get(method):
                pairs = zip(path.split("/"), segments, strict=True)
                return found, {part[1:-1]: sent for part, sent in pairs if part.startswith("{")}
        raise Refused("MISSING_AUTHENTICATION_TOKEN")

    def check_way(self, integration: Integration) -> None:
        """See to it that an integration leads to the load balancer.

        Raises:
            Refused: It does not: no target, no link, nothing that listens for the URI.
        """
        balancer = self.references.get(_referred(integration.target), {})
        if integration.kind != "HTTP_PROXY" or balancer.get("type") != _BALANCER:
            # CloudFormation would refuse a link of the second kind without a target; who got past it would
            # see an invalid endpoint.
            raise Refused("API_CONFIGURATION_ERROR")
        url = urlsplit(_REFERENCE.sub("balancer", integration.uri))
        listens = {(each["protocol"].lower(), each["port"]) for each in balancer["listeners"]}
        link = self.references.get(_referred(integration.connection), {})
        if link.get("type") != _LINK or (url.scheme, url.port or _PORTS.get(url.scheme)) not in listens:
            raise Refused("INTEGRATION_FAILURE")


def _method(each: Mapping[str, Any], models: Mapping[str, Any]) -> Method:
    integration = each["integration"]
    return Method(
        method=each["method"],
        path=each["path"],
        authorizer=each["authorizer"],
        requires=tuple(each["requires"]),
        checks_parameters=each["validates"]["parameters"],
        checks_body=each["validates"]["body"],
        schemas={media: models[name] for media, name in each["models"].items()},
        integration=Integration(
            kind=integration["type"],
            connection=integration["connection"],
            target=integration["target"],
            method=integration["method"],
            uri=integration["uri"],
            mode=integration["mode"],
            timeout_s=integration["timeout_ms"] / 1000,
            sets=integration["sets"],
        ),
    )


def _authorizer(
    name: str, each: Mapping[str, Any], references: Mapping[str, Any], client_ids: Sequence[str]
) -> Authorizer:
    pools = [references.get(_referred(pool), {}).get("type") for pool in each["user_pools"]]
    if each["type"] != "COGNITO_USER_POOLS" or set(pools) != {_POOL}:
        raise ValueError(f"{name}: only authorizers of user pools are known")
    audience = each["audience"]
    if audience is None:
        return Authorizer(each["header"], None, each["ttl_s"])

    def local(found: re.Match[str]) -> str:
        if references[found[1]]["type"] != _CLIENT:
            raise ValueError(f"{name}: {found[0]} is no client of the pool")
        return f"(?:{'|'.join(map(re.escape, client_ids))})"

    return Authorizer(each["header"], re.compile(_REFERENCE.sub(local, audience)), each["ttl_s"])


def _limits(limits: Mapping[str, Any], throttle: Mapping[str, Any]) -> Limits:
    seconds = {name[:-3] + "_s": value / 1000 for name, value in limits.items() if name.endswith("_ms")}
    rest = {name: value for name, value in limits.items() if not name.endswith("_ms")}
    return Limits(**seconds, **rest, **throttle)


def _fits(path: Sequence[str], segments: Sequence[str]) -> bool:
    return len(path) == len(segments) and all(
        bool(sent) if part.startswith("{") else part == unquote(sent)
        for part, sent in zip(path, segments, strict=True)
    )


def _referred(text: str | None) -> str:
    found = _REFERENCE.fullmatch(text or "")
    return found[1] if found else ""
