"""What must survive: the logical ids of state are pinned, since a new id is a new and empty resource."""

import pytest

from tests.synthesis import Stacks

pytestmark = pytest.mark.timeout(180)

PINNED = {
    "Key961B73FD": "AWS::KMS::Key",
    "Usage04F2BA28": "AWS::DynamoDB::GlobalTable",
    "InvocationsFB95FA42": "AWS::DynamoDB::GlobalTable",
    "UsersPoolBFC35D3B": "AWS::Cognito::UserPool",
    "UsersPoolDomainEEA57DAC": "AWS::Cognito::UserPoolDomain",
    "UsersPoolWeb193F213A": "AWS::Cognito::UserPoolClient",
    "UsersPoolCli0F7180BD": "AWS::Cognito::UserPoolClient",
}


@pytest.mark.parametrize("configuration", ["dev", "prod", "elsewhere"])
def test_state_keeps_its_logical_ids(configuration: str, request: pytest.FixtureRequest) -> None:
    stacks: Stacks = request.getfixturevalue(configuration)

    assert {
        name: resource["Type"]
        for name, resource in stacks.state["Resources"].items()
        if resource["Type"] in PINNED.values()
    } == PINNED


def test_no_state_is_where_things_are_replaced(stacks: Stacks) -> None:
    kinds = {resource["Type"] for resource in stacks.gateway["Resources"].values()}

    assert kinds.isdisjoint(PINNED.values())
    assert kinds.isdisjoint({"AWS::S3::Bucket", "AWS::RDS::DBInstance", "AWS::EFS::FileSystem"})


def test_the_groups_of_the_catalog_are_there(dev: Stacks, elsewhere: Stacks) -> None:
    def groups(stacks: Stacks) -> set[str]:
        return {group["GroupName"] for group in stacks.of_type("Cognito::UserPoolGroup").values()}

    assert groups(dev) == {"editors", "trial"}
    assert groups(elsewhere) == {"writers"}


def test_people_may_sign_in_with_what_the_stage_names(elsewhere: Stacks) -> None:
    providers = elsewhere.of_type("Cognito::UserPoolIdentityProvider").values()
    clients = elsewhere.of_type("Cognito::UserPoolClient").values()
    secrets = [
        secret for each in providers if (secret := each["ProviderDetails"].get("client_secret")) is not None
    ]

    assert {each["ProviderType"] for each in providers} == {"Google", "Facebook", "SAML", "OIDC"}
    assert len(secrets) == 3
    assert all(secret.startswith("{{resolve:secretsmanager:arn:aws:secretsmanager:") for secret in secrets)
    assert [len(client["SupportedIdentityProviders"]) for client in clients] == [5, 5]


def test_a_deployment_does_not_undo_what_scaling_has_done(stacks: Stacks) -> None:
    assert "DesiredCount" not in stacks.only("ECS::Service")


def test_a_deployment_that_fails_goes_back_and_one_that_works_does_not_wait_for_streams(
    stacks: Stacks,
) -> None:
    deployment = stacks.only("ECS::Service")["DeploymentConfiguration"]

    assert (deployment["MinimumHealthyPercent"], deployment["MaximumPercent"]) == (100, 200)
    assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    assert deployment["EarlySuccessCriteria"] == {
        "Enable": True,
        "HealthyPercent": 100,
        "SourceServiceRevisionCleanup": "DEFERRED",
    }


def test_tasks_are_arm_and_streams_go_where_the_fewest_are(stacks: Stacks) -> None:
    task = stacks.only("ECS::TaskDefinition")
    target = stacks.only("ElasticLoadBalancingV2::TargetGroup")["TargetGroupAttributes"]
    (container,) = task["ContainerDefinitions"]

    assert task["RuntimePlatform"] == {"CpuArchitecture": "ARM64", "OperatingSystemFamily": "LINUX"}
    assert {"Key": "load_balancing.algorithm.type", "Value": "least_outstanding_requests"} in target
    assert container["LogConfiguration"]["Options"]["mode"] == "non-blocking"
    assert "CapacityProviderStrategy" not in stacks.only("ECS::Service")


def test_tasks_are_counted_by_their_streams(stacks: Stacks) -> None:
    policies = stacks.of_type("ApplicationAutoScaling::ScalingPolicy").values()
    (streams,) = [
        configuration["CustomizedMetricSpecification"]["Metrics"]
        for policy in policies
        if "CustomizedMetricSpecification"
        in (configuration := policy["TargetTrackingScalingPolicyConfiguration"])
    ]

    assert [(metric["Id"], metric["ReturnData"]) for metric in streams] == [
        ("connections", False),
        ("tasks", False),
        ("streams", True),
    ]
    # A balancer without connections reports nothing at all, and nothing is not less.
    assert streams[-1]["Expression"] == "FILL(connections, 0) / 2 / tasks"
    assert {policy["TargetTrackingScalingPolicyConfiguration"]["ScaleInCooldown"] for policy in policies} == {
        900
    }
