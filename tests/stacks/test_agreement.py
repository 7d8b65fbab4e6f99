"""What the stack and the service must agree on: times, settings, tables, permissions."""

import json
import re
from typing import Any

import pytest

from infra.config import STAGES, Stage
from service.__main__ import HARD_STOP_S, KEEP_ALIVE_S, LAST_WORD_S, STOP_S
from service.config import Catalog, ConfigError, ServiceConfig
from service.readers import PIECE_BYTES
from service.stores import dynamodb_items
from service.stores.dynamodb_tables import INVOCATIONS, TTL_ATTRIBUTE, USAGE, Table
from tests.synthesis import ROOT, Stacks
from tests.test_docs import settings

pytestmark = pytest.mark.timeout(180)

BEDROCK = "arn:aws:bedrock:eu-west-1:123456789012"
SERVICE = [ServiceConfig(), Catalog.load(ROOT / "headrace.toml").service]


def attributes(stacks: Stacks, kind: str, member: str) -> dict[str, str]:
    """Return the attributes of a load balancer or target group."""
    return {each["Key"]: each["Value"] for each in stacks.only(f"ElasticLoadBalancingV2::{kind}")[member]}


def container(stacks: Stacks) -> dict[str, Any]:
    (found,) = stacks.only("ECS::TaskDefinition")["ContainerDefinitions"]
    return dict(found)


@pytest.mark.parametrize("service", SERVICE, ids=["defaults", "headrace.toml"])
def test_times_fit_along_the_way_of_a_stream(stacks: Stacks, service: ServiceConfig) -> None:
    alb = attributes(stacks, "LoadBalancer", "LoadBalancerAttributes")
    idle_s = int(alb["idle_timeout.timeout_seconds"])
    target = attributes(stacks, "TargetGroup", "TargetGroupAttributes")
    deregistration_s = int(target["deregistration_delay.timeout_seconds"])
    stream_s = max(method["integration"]["timeout_ms"] for method in stacks.edge["methods"]) / 1000
    stop_s = container(stacks)["StopTimeout"]
    edge_idle_s = stacks.edge["limits"]["stream_idle_ms"] / 1000

    assert service.heartbeat_s < idle_s < KEEP_ALIVE_S
    assert service.heartbeat_s < edge_idle_s
    assert idle_s < int(alb["client_keep_alive.seconds"])
    assert service.segment_s < stream_s == 900 <= deregistration_s
    assert service.drain_s + 2 * STOP_S < HARD_STOP_S + 2 * LAST_WORD_S < stop_s


def test_a_catalog_whose_times_would_not_fit_is_refused(stacks: Stacks) -> None:
    idle_s = int(attributes(stacks, "LoadBalancer", "LoadBalancerAttributes")["idle_timeout.timeout_seconds"])
    too_long = {"heartbeat_s": idle_s, "segment_s": 900, "drain_s": HARD_STOP_S - 2 * STOP_S}

    with pytest.raises(ConfigError) as refused:
        Catalog.from_document({"service": too_long})

    assert [name for name in too_long if f"service.{name} must be" not in str(refused.value)] == []


@pytest.mark.promise("slow-reader-bounded")
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_task_has_memory_for_all_readers_that_it_opens_however_slow_they_are(stage: Stage) -> None:
    readers = Catalog.load(ROOT / "headrace.toml").service.open_readers
    piece_bytes = PIECE_BYTES + dynamodb_items.PIECE_BYTES  # and the same in uvicorn's write buffer

    assert stage.streams_per_task < readers
    assert readers * 2 * piece_bytes <= 3 / 4 * stage.memory_mib * 1024 * 1024


def test_silent_connections_are_probed_before_aws_forgets_them(stacks: Stacks) -> None:
    controls = {each["Namespace"]: int(each["Value"]) for each in container(stacks)["SystemControls"]}
    prefix = "net.ipv4.tcp_keepalive_"

    assert controls == {f"{prefix}time": 60, f"{prefix}intvl": 20, f"{prefix}probes": 5}
    assert controls[f"{prefix}time"] < 350


def test_the_container_has_every_setting_and_no_other(stacks: Stacks) -> None:
    environment = {each["Name"]: each["Value"] for each in container(stacks)["Environment"]}

    assert environment.keys() == settings() | {"AWS_REGION"}
    assert environment["HEADRACE_STORE"] == "dynamodb"
    assert int(environment["HEADRACE_PORT"]) == container(stacks)["PortMappings"][0]["ContainerPort"]


def test_tokens_live_no_longer_than_the_service_lets_them(stacks: Stacks) -> None:
    longest_s = min(service.max_token_s for service in SERVICE)

    assert [
        client["IdTokenValidity"] * 60 <= longest_s
        for client in stacks.of_type("Cognito::UserPoolClient").values()
    ] == [True, True]


def test_the_load_balancer_asks_for_readiness_and_ecs_for_life(stacks: Stacks) -> None:
    assert stacks.only("ElasticLoadBalancingV2::TargetGroup")["HealthCheckPath"] == "/ready"
    assert "/ping" in container(stacks)["HealthCheck"]["Command"][-1]


@pytest.mark.parametrize(
    ("logical_id", "table"), [("Usage04F2BA28", USAGE), ("InvocationsFB95FA42", INVOCATIONS)]
)
def test_the_tables_are_those_that_the_store_wants(stacks: Stacks, logical_id: str, table: Table) -> None:
    made = stacks.of_type("DynamoDB::GlobalTable")[logical_id]
    wanted = table.definition("any")

    def by_name(attributes: list[dict[str, str]]) -> list[dict[str, str]]:
        return sorted(attributes, key=lambda each: each["AttributeName"])

    assert made["BillingMode"] == wanted["BillingMode"]
    assert made["KeySchema"] == wanted["KeySchema"]
    assert by_name(made["AttributeDefinitions"]) == by_name(wanted["AttributeDefinitions"])
    assert made.get("GlobalSecondaryIndexes") == wanted.get("GlobalSecondaryIndexes")
    assert made["TimeToLiveSpecification"] == {"AttributeName": TTL_ATTRIBUTE, "Enabled": True}


def test_the_task_may_do_what_the_documents_say_and_no_more(stacks: Stacks) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"The task role needs (.*?) on both tables", text, re.DOTALL)
    granted = {
        tuple(statement["Action"]) if isinstance(statement["Action"], list) else (statement["Action"],)
        for name, statement in stacks.statements()
        if name.startswith("WorkloadTaskTaskRole") and "Resource" in statement
    }

    names = {name.removeprefix("dynamodb:") for name in re.findall(r"`([\w:]+)`", documented)}
    assert "and `Query` on the indexes" in text
    assert granted == {
        ("bedrock:InvokeModelWithResponseStream",),
        tuple(sorted(f"dynamodb:{name}" for name in names)),
        ("dynamodb:Query",),
        ("kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"),
    }


def test_guardrails_of_a_catalog_may_be_applied_and_no_others(elsewhere: Stacks) -> None:
    own = {"Fn::Join": ["", ["arn:aws:bedrock:eu-west-1:", {"Ref": "AWS::AccountId"}, ":guardrail/gr1abc"]]}
    granted = [
        (name, statement["Resource"])
        for name, statement in elsewhere.statements()
        if statement["Action"] == "bedrock:ApplyGuardrail"
    ]

    assert [resource for _, resource in granted] == [
        ["arn:aws:bedrock:eu-west-1:210987654321:guardrail/gr2", own]
    ] * 2
    assert [name.startswith(("WorkloadTaskTaskRole", "NetworkVpcBedrock")) for name, _ in granted] == [
        True
    ] * 2


def test_models_secrets_and_ports_of_a_catalog_are_granted_exactly(elsewhere: Stacks) -> None:
    policy = [
        (statement["Action"], statement["Resource"], statement.get("Condition"))
        for name, statement in elsewhere.statements()
        if name.startswith("WorkloadTaskTaskRole") and "Resource" in statement
    ]
    text = json.dumps(policy)
    egress = {
        rule["FromPort"]
        for name, group in elsewhere.of_type("EC2::SecurityGroup").items()
        if name.startswith("NetworkService")
        for rule in group["SecurityGroupEgress"]
    }

    assert '"arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-lite-v1:0"' in text
    assert '"arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-micro-v1:0"' in text
    assert '":inference-profile/global.anthropic.claude-sonnet-4-5-20250929-v1:0"' in text
    assert '"arn:aws:bedrock:::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0"' in text
    assert '"aws:RequestedRegion": "unspecified"' in text
    assert [resource for action, resource, _ in policy if action == "secretsmanager:GetSecretValue"] == [
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:vllm-AbCdEf"
    ]
    assert [condition for _, resource, condition in policy if "foundation-model/*" in str(resource)] == [
        {"StringEquals": {"bedrock:InferenceProfileArn": f"{BEDROCK}:application-inference-profile/abc123"}}
    ]
    assert egress == {443, 8000}
