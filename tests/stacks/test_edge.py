"""The API is the service's contract: every method, how it travels, who may call it, what the edge answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.extract import extract
from infra.refusals import RATE_LIMITED, REFUSALS
from infra.routes import ROUTES as PUBLISHED
from service.api import ROUTES
from service.edge_request import REQUEST_ID
from tests.mutations import MUTATIONS, Mutation
from tests.synthesis import CONFIGURATIONS, ROOT, Stacks, run, settings
from tests.test_docs import error_codes

pytestmark = pytest.mark.timeout(180)

# Gives one resource another logical id, as a change does that CloudFormation answers with a replacement.
REPLACE = """
import sys
from infra.app import build, open_app
app, stage, catalog = open_app(sys.argv[2:])
build(app, stage, catalog)
construct = app
for name in sys.argv[1].split("/"):
    construct = construct.node.find_child(name)
construct.override_logical_id("Replaced")
app.synth()
"""
SYNTHESIZE = "from infra.app import main\nsys.exit(main(sys.argv[1:]))"
INSIDE = {("GET", "/ping"), ("GET", "/ready")}


def contract() -> set[tuple[str, str]]:
    """Return methods and paths of the service, with the documented names of parameters."""
    names = {"{runtime_id}": "{runtimeId}", "{invocation_id}": "{invocationId}"}
    found = set()
    for path, endpoints in ROUTES.items():
        for ours, public in names.items():
            path = path.replace(ours, public)
        found |= {(method, path) for method in endpoints.keys() - {"HEAD"}}
    return found


def methods(stacks: Stacks) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method["method"], method["path"]): method for method in stacks.edge["methods"]}


def test_every_route_of_the_service_is_published_and_health_checks_are_not(stacks: Stacks) -> None:
    published = methods(stacks).keys()
    paths = {path for _, path in contract() - INSIDE}

    assert published == (contract() - INSIDE) | {("OPTIONS", path) for path in paths}
    assert {(route.method, route.path) for route in PUBLISHED} == contract() - INSIDE


def test_what_streams_is_passed_on_as_it_comes_for_fifteen_minutes(stacks: Stacks) -> None:
    travels = {
        key: (method["integration"]["mode"], method["integration"]["timeout_ms"])
        for key, method in methods(stacks).items()
    }
    streaming = {
        ("POST", "/runtimes/{runtimeId}/invocations"),
        ("GET", "/runtimes/{runtimeId}/invocations/{invocationId}/events"),
    }

    assert {key for key, travel in travels.items() if travel == ("STREAM", 900_000)} == streaming
    assert {travels[key] for key in travels.keys() - streaming} == {("BUFFERED", 29_000)}


def test_every_method_goes_to_the_same_path_of_the_balancer_through_the_link(stacks: Stacks) -> None:
    for (method, path), found in methods(stacks).items():
        integration = found["integration"]
        names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]

        assert (integration["type"], integration["method"]) == ("HTTP_PROXY", method)
        assert integration["target"].startswith("${Headrace.WorkloadBalancer")
        assert integration["connection"].startswith("${Headrace.ApiLink")
        assert integration["uri"].partition("://")[2].partition("/")[2] == path.removeprefix("/")
        assert integration["sets"] == {
            "integration.request.header.X-Request-Id": "context.requestId",
            **{f"integration.request.path.{name}": f"method.request.path.{name}" for name in names},
        }
        assert found["requires"] == sorted(f"method.request.path.{name}" for name in names)
        assert found["validates"]["parameters"] is True


def test_every_method_but_a_preflight_asks_for_a_token_of_our_clients(stacks: Stacks) -> None:
    ((name, authorizer),) = stacks.edge["authorizers"].items()
    open_ = {key for key, method in methods(stacks).items() if method["authorizer"] is None}

    assert {method["authorizer"] for method in methods(stacks).values()} == {name, None}
    assert {method for method, _ in open_} == {"OPTIONS"}
    assert (authorizer["type"], authorizer["header"], authorizer["ttl_s"]) == (
        "COGNITO_USER_POOLS",
        "Authorization",
        60,
    )
    assert authorizer["audience"] == (
        "^(${HeadraceData.UsersPoolWeb193F213A}|${HeadraceData.UsersPoolCli0F7180BD})$"
    )
    assert authorizer["user_pools"] == ["${HeadraceData.UsersPoolBFC35D3B.Arn}"]


def test_no_scope_turns_the_id_token_into_an_access_token(stacks: Stacks) -> None:
    scopes = [method.get("AuthorizationScopes") for method in stacks.of_type("ApiGateway::Method").values()]

    assert scopes == [None] * len(stacks.edge["methods"])


def test_a_submission_must_be_a_json_object(stacks: Stacks) -> None:
    (submission,) = [method for method in methods(stacks).values() if method["validates"]["body"]]

    assert (submission["method"], submission["path"]) == ("POST", "/runtimes/{runtimeId}/invocations")
    assert {media: stacks.edge["models"][model] for media, model in submission["models"].items()} == {
        "application/json": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "object"}
    }


def test_refusals_of_the_edge_are_problem_documents_with_an_id(stacks: Stacks) -> None:
    refusals = stacks.edge["refusals"]

    assert {"DEFAULT_4XX", "DEFAULT_5XX", "UNAUTHORIZED", "THROTTLED", "WAF_FILTERED"} <= refusals.keys()
    for refusal in refusals.values():
        (document,) = {*refusal["bodies"].values()}
        problem = json.loads(document)
        assert problem["type"] == f"urn:headrace:problem:{problem['code']}"
        assert problem.get("status") == refusal["status"]
        assert refusal["headers"]["Content-Type"] == "'application/problem+json'"
        assert refusal["headers"]["X-Request-Id"] == "context.requestId"
        assert ("Retry-After" in refusal["headers"]) == problem.get("retryable", False)
    assert refusals["UNAUTHORIZED"]["headers"]["WWW-Authenticate"] == "'Bearer'"


def test_a_code_that_the_service_has_too_means_the_same() -> None:
    statuses = dict(error_codes())
    shared = {(each.code, each.status) for each in REFUSALS if each.code in statuses}

    assert shared <= error_codes()
    assert {code for code, _ in shared} == {
        *("body-too-large", "invalid-request", "not-found", "unauthenticated", "unsupported-media-type"),
    }


def test_codes_of_the_edge_are_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    own = {each.code for each in (*REFUSALS, RATE_LIMITED)} - dict(error_codes()).keys()

    assert sorted(code for code in own if f"`{code}`" not in text) == []


@pytest.mark.parametrize(("stage", "origin"), [("dev", "'http://localhost:3000'"), ("prod", "'*'")])
def test_web_pages_can_read_refusals(stage: str, origin: str, request: pytest.FixtureRequest) -> None:
    stacks: Stacks = request.getfixturevalue(stage)

    allowed = {
        refusal["headers"]["Access-Control-Allow-Origin"] for refusal in stacks.edge["refusals"].values()
    }

    assert allowed == {origin}


def test_who_floods_is_told_when_to_come_back(stacks: Stacks) -> None:
    acl = stacks.only("WAFv2::WebACL")
    rates = [rule for rule in acl["Rules"] if "RateBasedStatement" in rule["Statement"]]
    (body,) = acl["CustomResponseBodies"].values()

    assert len(rates) == 2
    for rule in rates:
        response = rule["Action"]["Block"]["CustomResponse"]
        assert response["ResponseCode"] == 429
        assert {"Name": "Retry-After", "Value": "60"} in response["ResponseHeaders"]
    assert json.loads(body["Content"])["code"] == "throttled"


def test_the_request_id_of_the_edge_is_one_that_the_service_takes() -> None:
    assert REQUEST_ID.fullmatch("0f5a3b52-1f0c-4d7a-9c3e-2b8d8f8f6c11")


def test_the_access_log_tells_how_streams_went(stacks: Stacks) -> None:
    fields = json.loads(stacks.only("ApiGateway::Stage")["AccessLogSetting"]["Format"])

    assert {
        "$context.integration.responseTransferMode",
        "$context.integration.timeToAllHeaders",
        "$context.integration.timeToFirstContent",
        "$context.authorizer.claims.sub",
        "$context.requestId",
    } <= set(fields.values())


@pytest.mark.parametrize(
    ("replaced", "is_new"),
    [
        (("Headrace", "Network", "Link", "Resource"), True),
        (("HeadraceData", "Users", "Pool", "Web", "Resource"), True),
        (("Headrace", "Workload", "Cluster", "Resource"), False),
    ],
    ids=["the link", "a client", "what has no part in the API"],
)
def test_the_stage_serves_a_new_deployment_when_what_constructs_do_not_see_is_new(
    dev: Stacks, image_directory: Path, tmp_path: Path, replaced: tuple[str, ...], is_new: bool
) -> None:
    given = settings(image_directory, CONFIGURATIONS["dev"])

    done = run("-c", REPLACE, "/".join(replaced), *given, "--output", str(tmp_path))

    assert (done.returncode, done.stderr) == (0, "")
    ids = [set(stacks.of_type("ApiGateway::Deployment")) for stacks in (dev, Stacks(tmp_path))]
    assert (ids[0] != ids[1]) is is_new


def test_the_stage_serves_a_new_deployment_when_the_authorizer_has_changed(
    dev: Stacks, image_directory: Path, tmp_path: Path
) -> None:
    program = f"import sys, infra.api\ninfra.api.AUTHORIZER_TTL_S = 61\n{SYNTHESIZE}"

    done = run("-c", program, *settings(image_directory, CONFIGURATIONS["dev"]), "--output", str(tmp_path))

    assert (done.returncode, done.stderr) == (0, "")
    changed = Stacks(tmp_path)
    (authorizer,) = changed.edge["authorizers"].values()
    assert authorizer["ttl_s"] == 61
    assert set(changed.of_type("ApiGateway::Deployment")) != set(dev.of_type("ApiGateway::Deployment"))


def test_the_api_is_regional_and_compresses_nothing(stacks: Stacks) -> None:
    rest = stacks.only("ApiGateway::RestApi")

    assert rest["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    assert "MinimumCompressionSize" not in rest
    assert stacks.edge["binary_media_types"] == []


def test_the_local_gateway_has_what_a_fresh_synthesis_has(dev: Stacks) -> None:
    checked_in = json.loads((ROOT / "local" / "gateway.json").read_text(encoding="utf-8"))

    assert checked_in == dev.edge, "make synth writes local/gateway.json"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_wrong_template_is_the_wrong_extract_that_fails_a_check(dev: Stacks, mutation: Mutation) -> None:
    gateway = {**dev.gateway, "Resources": mutation.of_template(dev.gateway["Resources"])}

    changed = extract({"Headrace": gateway, "HeadraceData": dev.state})

    references = mutation.of_extract(dev.edge)["references"]  # what only the fault's place named may be gone
    assert {**changed, "references": references} == mutation.of_extract(dev.edge) != dev.edge
