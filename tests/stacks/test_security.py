"""What the stack may never lose, one property at a time, in either stage."""

import json
import re

import pytest

from tests.synthesis import Stacks

pytestmark = pytest.mark.timeout(180)


# https://docs.aws.amazon.com/waf/latest/developerguide/aws-managed-rule-groups-baseline.html
LABELS = {
    "awswaf:managed:aws:core-rule-set:SizeRestrictions_Body",
    "awswaf:managed:aws:core-rule-set:CrossSiteScripting_Body",
    "awswaf:managed:aws:core-rule-set:EC2MetaDataSSRF_Body",
    "awswaf:managed:aws:core-rule-set:GenericLFI_Body",
    "awswaf:managed:aws:core-rule-set:GenericRFI_Body",
    "awswaf:managed:aws:known-bad-inputs:JavaDeserializationRCE_Body",
    "awswaf:managed:aws:known-bad-inputs:Log4JRCE_Body",
    "awswaf:managed:aws:known-bad-inputs:ReactJSRCE_Body",
}


def actions(statement: dict[str, object]) -> list[str]:
    found = statement["Action"]
    return [str(action) for action in found] if isinstance(found, list) else [str(found)]


def test_the_load_balancer_is_not_public(stacks: Stacks) -> None:
    assert stacks.only("ElasticLoadBalancingV2::LoadBalancer")["Scheme"] == "internal"


def test_no_task_has_a_public_address(stacks: Stacks) -> None:
    network = stacks.only("ECS::Service")["NetworkConfiguration"]["AwsvpcConfiguration"]

    assert network["AssignPublicIp"] == "DISABLED"
    assert all("Private" in subnet["Ref"] for subnet in network["Subnets"])
    assert [subnet["MapPublicIpOnLaunch"] for subnet in stacks.of_type("EC2::Subnet").values()] == [False] * 4


def test_nothing_may_come_in_from_an_address(stacks: Stacks) -> None:
    rules = stacks.of_type("EC2::SecurityGroupIngress").values()
    inline = [group.get("SecurityGroupIngress") for group in stacks.of_type("EC2::SecurityGroup").values()]

    assert inline == [None] * 4
    assert ["CidrIp" in rule or "CidrIpv6" in rule for rule in rules] == [False] * 3


@pytest.mark.parametrize(("stage", "port"), [("dev", 80), ("prod", 443)])
def test_each_hop_admits_the_one_before_it_and_nobody_else(
    stage: str, port: int, request: pytest.FixtureRequest
) -> None:
    stacks: Stacks = request.getfixturevalue(stage)

    def name(group: dict[str, list[str]]) -> str:
        return re.sub(r"^Network([A-Za-z]+?)[0-9A-F]{8}$", r"\1", group["Fn::GetAtt"][0])

    hops = [
        (name(rule["SourceSecurityGroupId"]), name(rule["GroupId"]), rule["FromPort"], rule["ToPort"])
        for rule in stacks.of_type("EC2::SecurityGroupIngress").values()
    ]

    assert sorted(hops) == [
        ("Balancer", "Service", 8080, 8080),
        ("Link", "Balancer", port, port),
        ("Service", "Endpoint", 443, 443),
    ]


def test_no_action_is_a_wildcard_but_those_of_the_key_for_its_account(stacks: Stacks) -> None:
    wild = [
        (name, action, json.dumps(statement["Principal"]))
        for name, statement in stacks.statements()
        for action in actions(statement)
        if "*" in action
    ]

    ((name, action, principal),) = wild  # the default of every key: the account may let its own people use it
    assert (name, action) == ("Key961B73FD", "kms:*")
    assert ":iam::" in principal
    assert ":root" in principal


def test_only_what_has_no_resource_is_granted_on_all_resources(stacks: Stacks) -> None:
    wild = [
        (name, *actions(statement))
        for name, statement in stacks.statements()
        if "Resource" in statement and '"*"' in json.dumps(statement["Resource"]) and "Key" not in name
    ]

    assert wild == [("WorkloadTaskExecutionRoleDefaultPolicy6AC26BFE", "ecr:GetAuthorizationToken")]


def test_no_resource_of_the_task_has_a_wildcard(stacks: Stacks) -> None:
    granted = [
        json.dumps(statement["Resource"])
        for name, statement in stacks.statements()
        if name.startswith(("WorkloadTaskTaskRole", "NetworkVpcBedrock", "NetworkVpcDynamoDb"))
        and "Resource" in statement
    ]

    assert len(granted) == 9
    assert [text for text in granted if "*" in text] == []


def test_indexes_are_read_and_nothing_else(stacks: Stacks) -> None:
    of_indexes = [
        (statement["Action"], [resource["Fn::Join"][1][-1] for resource in statement["Resource"]])
        for name, statement in stacks.statements()
        if name.startswith(("WorkloadTaskTaskRole", "NetworkVpcDynamoDb"))
        and "/index/" in json.dumps(statement.get("Resource"))
    ]

    assert of_indexes == [("dynamodb:Query", ["/index/held", "/index/listed"])] * 2


def test_private_ways_lead_to_bedrock_dynamodb_and_images_and_not_to_the_issuer(stacks: Stacks) -> None:
    ways = {
        (json.dumps(endpoint["ServiceName"]).rpartition(".")[2].rstrip('"]}'), endpoint["VpcEndpointType"])
        for endpoint in stacks.of_type("EC2::VPCEndpoint").values()
    }

    assert ways == {("bedrock-runtime", "Interface"), ("dynamodb", "Gateway"), ("s3", "Gateway")}


def test_the_load_balancer_takes_what_api_gateway_sends(stacks: Stacks) -> None:
    balancer = stacks.only("ElasticLoadBalancingV2::LoadBalancer")["LoadBalancerAttributes"]
    attributes = {each["Key"]: each["Value"] for each in balancer}

    assert attributes["routing.http.desync_mitigation_mode"] == "defensive"
    assert attributes["routing.http.drop_invalid_header_fields.enabled"] == "true"


def test_the_endpoints_let_nobody_but_the_task_pass(stacks: Stacks) -> None:
    conditions = {
        json.dumps(statement["Condition"]["ArnEquals"])
        for name, statement in stacks.statements()
        if name.startswith(("NetworkVpcBedrock", "NetworkVpcDynamoDb"))
    }

    assert conditions == {'{"aws:PrincipalArn": {"Fn::GetAtt": ["WorkloadTaskTaskRoleF5864FE6", "Arn"]}}'}


def test_tables_are_encrypted_with_the_deployments_key_and_can_be_restored(stacks: Stacks) -> None:
    tables = stacks.of_type("DynamoDB::GlobalTable")

    assert [table["SSESpecification"] for table in tables.values()] == [
        {"SSEEnabled": True, "SSEType": "KMS"}
    ] * 2
    for table in tables.values():
        (replica,) = table["Replicas"]
        assert replica["SSESpecification"] == {"KMSMasterKeyId": {"Fn::GetAtt": ["Key961B73FD", "Arn"]}}
        assert replica["PointInTimeRecoverySpecification"] == {
            "PointInTimeRecoveryEnabled": True,
            "RecoveryPeriodInDays": 7,
        }


def test_the_key_rotates(stacks: Stacks) -> None:
    assert stacks.only("KMS::Key")["EnableKeyRotation"] is True


def test_every_log_group_is_encrypted_and_forgets(stacks: Stacks) -> None:
    groups = stacks.of_type("Logs::LogGroup")

    assert len(groups) == 5
    assert all("KmsKeyId" in group and group["RetentionInDays"] >= 7 for group in groups.values())


def test_the_group_that_api_gateway_would_make_for_its_stage_is_there_before(stacks: Stacks) -> None:
    (stage,) = (
        resource for resource in stacks.resources.values() if resource["Type"] == "AWS::ApiGateway::Stage"
    )
    (name,) = (name for name in stacks.of_type("Logs::LogGroup") if "ExecutionLogs" in name)
    called = stacks.resources[name]["Properties"]["LogGroupName"]

    assert name in stage["DependsOn"]
    assert called["Fn::Join"][1] == [
        "API-Gateway-Execution-Logs_",
        stage["Properties"]["RestApiId"],
        f"/{stage['Properties']['StageName']}",
    ]


def test_zones_are_those_that_are_named(elsewhere: Stacks, prod: Stacks) -> None:
    named = {subnet["AvailabilityZone"] for subnet in elsewhere.of_type("EC2::Subnet").values()}
    first_two = [subnet["AvailabilityZone"] for subnet in prod.of_type("EC2::Subnet").values()]

    assert named == {"eu-west-1b", "eu-west-1c"}
    assert first_two == [{"Fn::Select": [place, {"Fn::GetAZs": ""}]} for place in (0, 1)] * 2


def test_no_log_has_the_token_or_content(stacks: Stacks) -> None:
    stage = stacks.only("ApiGateway::Stage")
    log_format = json.loads(stage["AccessLogSetting"]["Format"])
    redacted = [
        field["SingleHeader"]["Name"]
        for field in stacks.only("WAFv2::LoggingConfiguration")["RedactedFields"]
    ]

    assert redacted == ["authorization", "cookie"]
    assert stacks.only("WAFv2::WebACL")["DataProtectionConfig"] == {
        "DataProtections": [{"Action": "SUBSTITUTION", "Field": {"FieldType": "BODY"}}]
    }
    assert [settings["DataTraceEnabled"] for settings in stage["MethodSettings"]] == [False]
    assert [
        value for value in log_format.values() if re.search(r"header|token|body|claims\.(?!sub$)", value)
    ] == []
    assert [
        rule["VisibilityConfig"]["SampledRequestsEnabled"] for rule in stacks.only("WAFv2::WebACL")["Rules"]
    ] == [False] * 6


def test_the_firewall_stands_before_the_api_and_logs_where_waf_can(stacks: Stacks) -> None:
    association = stacks.only("WAFv2::WebACLAssociation")
    (destination,) = stacks.only("WAFv2::LoggingConfiguration")["LogDestinationConfigs"]
    ((stage,), (group,)) = (
        [name for name in stacks.of_type(kind) if name.startswith(prefix)]
        for kind, prefix in (("ApiGateway::Stage", "Api"), ("Logs::LogGroup", "WafLogs"))
    )

    assert {"Ref": stage} in association["ResourceArn"]["Fn::Join"][1]
    assert destination["Fn::Join"][1][-2:] == [":log-group:", {"Ref": group}]
    assert stacks.resources[group]["Properties"]["LogGroupName"].startswith("aws-waf-logs-")


def test_the_container_can_change_nothing_and_is_nobody(stacks: Stacks) -> None:
    (container,) = stacks.only("ECS::TaskDefinition")["ContainerDefinitions"]

    assert container["ReadonlyRootFilesystem"] is True
    assert container["User"] == "10001:10001"
    assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}, "InitProcessEnabled": True}
    assert container.get("Privileged", False) is False
    assert "Secrets" not in container
    assert stacks.only("ECS::Service")["EnableExecuteCommand"] is False


def test_people_are_invited_and_have_good_passwords(stacks: Stacks) -> None:
    pool = stacks.only("Cognito::UserPool")

    assert pool["AdminCreateUserConfig"]["AllowAdminCreateUserOnly"] is True
    assert pool["EnabledMfas"] == ["SOFTWARE_TOKEN_MFA"]
    assert pool["Policies"]["PasswordPolicy"] == {
        "MinimumLength": 14,
        "RequireLowercase": True,
        "RequireNumbers": True,
        "RequireSymbols": True,
        "RequireUppercase": True,
        "TemporaryPasswordValidityDays": 3,
    }


def test_clients_have_no_secret_no_implicit_flow_and_short_tokens(stacks: Stacks) -> None:
    clients = list(stacks.of_type("Cognito::UserPoolClient").values())

    assert [client["GenerateSecret"] for client in clients] == [False, False]
    assert [client["AllowedOAuthFlows"] for client in clients] == [["code"], ["code"]]
    assert [(client["IdTokenValidity"], client["TokenValidityUnits"]["IdToken"]) for client in clients] == [
        (15, "minutes")
    ] * 2
    assert all(client["EnableTokenRevocation"] for client in clients)
    flows = {
        re.sub(r"^UsersPool([A-Za-z]+?)[0-9A-F]{8,}$", r"\1", name): set(client["ExplicitAuthFlows"])
        for name, client in stacks.of_type("Cognito::UserPoolClient").items()
    }
    of_browsers = {"ALLOW_USER_SRP_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"}
    assert flows == {"Web": of_browsers, "Cli": of_browsers | {"ALLOW_ADMIN_USER_PASSWORD_AUTH"}}


def test_what_is_in_front_of_prompts_counts_and_blocks_elsewhere(stacks: Stacks) -> None:
    acl = stacks.only("WAFv2::WebACL")
    groups = [
        rule["Statement"]["ManagedRuleGroupStatement"]
        for rule in acl["Rules"]
        if "ManagedRuleGroupStatement" in rule["Statement"]
    ]
    counted = {
        override["Name"]: override["ActionToUse"]
        for group in groups
        for override in group.get("RuleActionOverrides", ())
    }
    labelled, elsewhere = acl["Rules"][-1]["Statement"]["AndStatement"]["Statements"]
    labels = [
        each["LabelMatchStatement"]["Key"].rpartition(":")[2]
        for each in labelled["OrStatement"]["Statements"]
    ]

    assert [group["Name"] for group in groups] == [
        "AWSManagedRulesAmazonIpReputationList",
        "AWSManagedRulesCommonRuleSet",
        "AWSManagedRulesKnownBadInputsRuleSet",
    ]
    assert all(action == {"Count": {}} for action in counted.values())
    assert {name.upper() for name in labels} == {name.upper() for name in counted}
    assert {each["LabelMatchStatement"]["Key"] for each in labelled["OrStatement"]["Statements"]} == LABELS
    assert acl["Rules"][-1]["Action"] == {"Block": {}}
    assert list(elsewhere) == ["NotStatement"]
    assert acl["AssociationConfig"]["RequestBody"]["API_GATEWAY"] == {"DefaultSizeInspectionLimit": "KB_64"}


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        ("/runtimes/writer/invocations", True),
        ("/prod/runtimes/writer/invocations", True),
        ("/runtimes/writer/invocations/inv_1/cancel", False),
        ("/runtimes/a/b/invocations", False),
        ("/usage", False),
    ],
)
def test_only_submissions_may_have_bodies_that_look_like_attacks(
    dev: Stacks, path: str, matches: bool
) -> None:
    _, elsewhere = dev.only("WAFv2::WebACL")["Rules"][-1]["Statement"]["AndStatement"]["Statements"]
    post, where = elsewhere["NotStatement"]["Statement"]["AndStatement"]["Statements"]

    assert post["ByteMatchStatement"]["SearchString"] == "POST"
    assert bool(re.search(where["RegexMatchStatement"]["RegexString"], path)) is matches


def test_prod_speaks_tls_all_the_way(prod: Stacks) -> None:
    listener = prod.only("ElasticLoadBalancingV2::Listener")
    uris = {method["integration"]["uri"] for method in prod.edge["methods"]}

    assert (listener["Port"], listener["Protocol"], listener["SslPolicy"]) == (
        443,
        "HTTPS",
        "ELBSecurityPolicy-TLS13-1-2-Res-2021-06",
    )
    assert all(uri.startswith("https://origin.api.example.com/") for uri in uris)
    assert prod.only("CertificateManager::Certificate")["SubjectAlternativeNames"] == [
        "origin.api.example.com"
    ]
    assert prod.only("ApiGateway::DomainName")["SecurityPolicy"] == "TLS_1_2"
    assert prod.only("ApiGateway::RestApi")["DisableExecuteApiEndpoint"] is True


def test_prod_refuses_to_lose_state_and_asks_for_a_second_factor(prod: Stacks) -> None:
    pool = prod.only("Cognito::UserPool")
    kept = {
        name
        for name, resource in prod.state["Resources"].items()
        if resource.get("DeletionPolicy") == "Retain" and resource.get("UpdateReplacePolicy") == "Retain"
    }

    assert (pool["MfaConfiguration"], pool["DeletionProtection"]) == ("ON", "ACTIVE")
    assert kept == {"Key961B73FD", "Usage04F2BA28", "InvocationsFB95FA42", "UsersPoolBFC35D3B"}
    assert [
        replica["DeletionProtectionEnabled"]
        for table in prod.of_type("DynamoDB::GlobalTable").values()
        for replica in table["Replicas"]
    ] == [True, True]
    manifest = json.loads((prod.assembly / "manifest.json").read_text(encoding="utf-8"))
    stacks = [each for each in manifest["artifacts"].values() if each["type"] == "aws:cloudformation:stack"]
    assert [stack["properties"]["terminationProtection"] for stack in stacks] == [True, True]
