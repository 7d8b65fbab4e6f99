"""The API part of the templates, flat, as a local gateway can enforce it: `local/gateway.json`.

`python -m infra.extract cdk.out local/gateway.json` writes it after a synthesis of dev (`make synth`); a test
keeps the file equal to a fresh one. Pure: templates in, a JSON object out, so that a test may change a
template first. A method without an authorizer has null there, one whose integration names no target null in
`target`: what is not there is seen, and nothing is made up.

    stage, endpoint, throttle    name, REGIONAL, {requests_per_s, burst}
    limits                       what API Gateway allows at this endpoint: not the template's to say
    methods[]                    method, path, authorizer, requires, validates, models, integration
      integration                type, connection, target, method, uri, mode, timeout_ms, sets
    authorizers{}                type, header, audience (a regular expression for `aud`), user_pools, ttl_s
    models{}, refusals{}         JSON schemas; status, headers and bodies by kind of refusal
    references{}                 what the `${Stack.Resource.Attribute}` are that stand in the texts above

Sources of the limits:
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html,
https://docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

GATEWAY: Final = "Headrace"
STATE: Final = "HeadraceData"
_MB: Final = 1024 * 1024
LIMITS: Final[Mapping[str, int]] = {
    "header_bytes": 10_240,
    "body_bytes": 10 * _MB,
    "buffered_body_bytes": 10 * _MB,
    "buffered_timeout_ms": 29_000,
    "stream_timeout_ms": 900_000,
    "stream_free_bytes": 10 * _MB,
    "stream_bytes_per_s": 2 * _MB,
}
# How long a stream may be silent, by the kind of endpoint.
STREAM_IDLE_MS: Final[Mapping[str, int]] = {"REGIONAL": 300_000, "PRIVATE": 300_000, "EDGE": 30_000}

Template = Mapping[str, Any]


def extract(templates: Mapping[str, Template]) -> dict[str, Any]:
    """Return the API part of a deployment's templates, which are by stack id."""
    reader = _Reader(templates)
    (rest,) = reader.of_type("AWS::ApiGateway::RestApi").values()
    (stage,) = reader.of_type("AWS::ApiGateway::Stage").values()
    (endpoint,) = rest["EndpointConfiguration"]["Types"]
    (settings,) = stage["MethodSettings"]
    methods = [_method(reader, each) for each in reader.of_type("AWS::ApiGateway::Method").values()]
    authorizers = reader.of_type("AWS::ApiGateway::Authorizer")
    models = reader.of_type("AWS::ApiGateway::Model")
    refusals = reader.of_type("AWS::ApiGateway::GatewayResponse").values()
    return {
        "stage": stage["StageName"],
        "endpoint": endpoint,
        "binary_media_types": rest.get("BinaryMediaTypes", []),
        "throttle": {
            "requests_per_s": settings["ThrottlingRateLimit"],
            "burst": settings["ThrottlingBurstLimit"],
        },
        "limits": {**LIMITS, "stream_idle_ms": STREAM_IDLE_MS[endpoint]},
        "methods": sorted(methods, key=lambda method: (method["path"], method["method"])),
        "authorizers": {name: _authorizer(reader, each) for name, each in authorizers.items()},
        "models": {name: each["Schema"] for name, each in models.items()},
        "refusals": dict(sorted(_refusal(reader, each) for each in refusals)),
        "references": dict(sorted(reader.references.items())),
    }


def _method(reader: "_Reader", method: Template) -> dict[str, Any]:
    validator = reader.resource(method.get("RequestValidatorId"))
    integration = method["Integration"]
    return {
        "method": method["HttpMethod"],
        "path": reader.path(method["ResourceId"]),
        "authorizer": _id(method.get("AuthorizerId")) if method["AuthorizationType"] != "NONE" else None,
        "requires": sorted(name for name, needed in method.get("RequestParameters", {}).items() if needed),
        "validates": {
            "parameters": bool(validator.get("ValidateRequestParameters")),
            "body": bool(validator.get("ValidateRequestBody")),
        },
        "models": {media: _id(model) for media, model in method.get("RequestModels", {}).items()},
        "integration": {
            "type": integration["Type"],
            "connection": reader.text(integration.get("ConnectionId")),
            "target": reader.text(integration.get("IntegrationTarget")),
            "method": integration["IntegrationHttpMethod"],
            "uri": reader.text(integration["Uri"]),
            "mode": integration.get("ResponseTransferMode", "BUFFERED"),
            "timeout_ms": integration.get("TimeoutInMillis", LIMITS["buffered_timeout_ms"]),
            "sets": dict(sorted(integration.get("RequestParameters", {}).items())),
        },
    }


def _authorizer(reader: "_Reader", authorizer: Template) -> dict[str, Any]:
    return {
        "type": authorizer["Type"],
        "header": authorizer["IdentitySource"].removeprefix("method.request.header."),
        "audience": reader.text(authorizer.get("IdentityValidationExpression")),
        "user_pools": [reader.text(pool) for pool in authorizer["ProviderARNs"]],
        "ttl_s": authorizer["AuthorizerResultTtlInSeconds"],
    }


def _refusal(reader: "_Reader", refusal: Template) -> tuple[str, dict[str, Any]]:
    prefix = "gatewayresponse.header."
    headers = refusal.get("ResponseParameters", {})
    return refusal["ResponseType"], {
        "status": int(refusal["StatusCode"]) if "StatusCode" in refusal else None,
        "headers": {name.removeprefix(prefix): reader.text(value) for name, value in sorted(headers.items())},
        "bodies": dict(sorted(refusal.get("ResponseTemplates", {}).items())),
    }


class _Reader:
    """Looks into the templates, and writes intrinsic functions as text; notes in `references` what it met."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._resources = templates[GATEWAY]["Resources"]
        self._state = templates[STATE]["Resources"]
        self._exports = {
            output["Export"]["Name"]: output["Value"]
            for output in templates[STATE].get("Outputs", {}).values()
            if "Export" in output
        }
        self.references: dict[str, dict[str, Any]] = {}

    def of_type(self, kind: str) -> dict[str, Template]:
        """Return the properties of the gateway stack's resources of one type."""
        return {
            name: resource["Properties"]
            for name, resource in sorted(self._resources.items())
            if resource["Type"] == kind
        }

    def resource(self, reference: Any) -> Template:
        """Return the properties of what a `Ref` names; nothing for no reference."""
        found: Template = self._resources[reference["Ref"]]["Properties"] if reference else {}
        return found

    def path(self, resource_id: Mapping[str, Any]) -> str:
        """Return the path of an API's resource, from its parents."""
        if "Ref" not in resource_id:
            return ""  # the root: Fn::GetAtt of the API
        resource = self.resource(resource_id)
        return f"{self.path(resource['ParentId'])}/{resource['PathPart']}"

    def text(self, value: Any) -> str | None:
        """Return a value as text, with `${Stack.Resource.Attribute}` for what only a deployment knows."""
        match value:
            case None:
                return None
            case str():
                return value
            case {"Fn::Join": [separator, [*parts]]}:
                return str(separator).join(self.text(part) or "" for part in parts)
            case {"Fn::ImportValue": name}:
                return self._placeholder(STATE, self._state, self._exports[name])
            case {"Ref": _} | {"Fn::GetAtt": _}:
                return self._placeholder(GATEWAY, self._resources, value)
        raise ValueError(f"no text for {json.dumps(value)}")

    def _placeholder(self, stack: str, resources: Mapping[str, Any], value: Mapping[str, Any]) -> str:
        name, *attribute = [value["Ref"]] if "Ref" in value else value["Fn::GetAtt"]
        reference = f"{stack}.{name}"
        self.references[reference] = {"type": resources[name]["Type"], **self._about(name, resources[name])}
        return f"${{{'.'.join((reference, *attribute))}}}"

    def _about(self, name: str, resource: Template) -> dict[str, Any]:
        """Return what a local stand-in for this resource must know of it."""
        if resource["Type"] == "AWS::ElasticLoadBalancingV2::LoadBalancer":
            listeners = self.of_type("AWS::ElasticLoadBalancingV2::Listener").values()
            return {
                "listeners": [
                    {"port": listener["Port"], "protocol": listener["Protocol"]}
                    for listener in listeners
                    if listener["LoadBalancerArn"] == {"Ref": name}
                ]
            }
        return {}


def _id(reference: Any) -> str | None:
    return str(reference["Ref"]) if reference else None


def templates_in(assembly: Path) -> dict[str, Template]:
    """Read both templates of a synthesis."""
    return {
        name: json.loads((assembly / f"{name}.template.json").read_text(encoding="utf-8"))
        for name in (GATEWAY, STATE)
    }


def written(extracted: Mapping[str, Any]) -> str:
    """Return an extract as its file has it."""
    return json.dumps(extracted, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the extract of one directory to a file; returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m infra.extract ASSEMBLY FILE", file=sys.stderr)
        return 2
    assembly, file = map(Path, arguments)
    file.write_text(written(extract(templates_in(assembly))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
