"""What may be done: the task's and the execution's policies, action by action, resource by resource.

`gateway` asks for the statements and gives them to the task role and to the endpoints, so that the road
allows what the role allows and nothing else. No action has a wildcard; a resource has one only where AWS
has no other way.

Sources: https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-prereq.html (a profile and
what it routes to),
https://docs.aws.amazon.com/bedrock/latest/userguide/guardrails-permissions.html (guardrails),
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/encryption.usagenotes.html (the key).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms

from infra.models import grants_of

# What the service calls, and docs/operations.md lists; of the indexes it only reads. Nobody needs Scan.
TABLE_ACTIONS: Final = (
    "dynamodb:BatchGetItem",
    "dynamodb:BatchWriteItem",
    "dynamodb:ConditionCheckItem",
    "dynamodb:DeleteItem",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Query",
    "dynamodb:UpdateItem",
)
INDEXES: Final = ("held", "listed")
INDEX_ACTION: Final = "dynamodb:Query"
MODEL_ACTION: Final = "bedrock:InvokeModelWithResponseStream"  # what ConverseStream asks for
GUARDRAIL_ACTION: Final = "bedrock:ApplyGuardrail"  # what ConverseStream asks for besides, with a guardrail
SECRET_ACTION: Final = "secretsmanager:GetSecretValue"  # noqa: S105 (an action's name)
KEY_ACTIONS: Final = ("kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey")


def invoke_models(models: Iterable[str], *, region: str, account: str) -> list[iam.PolicyStatement]:
    """Allow the models of the catalog, each as `models.grants_of` has it."""
    return [
        iam.PolicyStatement(
            actions=[MODEL_ACTION], resources=[*grant.resources], conditions=dict(grant.conditions) or None
        )
        for model in models
        for grant in grants_of(model, region=region, account=account)
    ]


def apply_guardrails(guardrails: Iterable[str], *, region: str, account: str) -> list[iam.PolicyStatement]:
    """Allow the guardrails that runtimes name, by id or ARN; nothing if they name none."""
    arns = [
        guardrail
        if guardrail.startswith("arn:")
        else f"arn:aws:bedrock:{region}:{account}:guardrail/{guardrail}"
        for guardrail in guardrails
    ]
    return [iam.PolicyStatement(actions=[GUARDRAIL_ACTION], resources=arns)] if arns else []


def use_tables(usage: dynamodb.ITableV2, invocations: dynamodb.ITableV2) -> list[iam.PolicyStatement]:
    """Allow what the store does with its two tables and their indexes."""
    indexes = [f"{invocations.table_arn}/index/{index}" for index in INDEXES]
    return [
        iam.PolicyStatement(actions=[*TABLE_ACTIONS], resources=[usage.table_arn, invocations.table_arn]),
        iam.PolicyStatement(actions=[INDEX_ACTION], resources=indexes),
    ]


def use_key(key: kms.IKey, *, region: str) -> list[iam.PolicyStatement]:
    """Allow the tables' key, through DynamoDB and by no other way."""
    return [
        iam.PolicyStatement(
            actions=[*KEY_ACTIONS],
            resources=[key.key_arn],
            conditions={"StringEquals": {"kms:ViaService": f"dynamodb.{region}.amazonaws.com"}},
        )
    ]


def read_secrets(secrets: Sequence[str]) -> list[iam.PolicyStatement]:
    """Allow the secrets that upstreams name; nothing if they name none."""
    return [iam.PolicyStatement(actions=[SECRET_ACTION], resources=[*secrets])] if secrets else []


def for_endpoint(statements: Iterable[iam.PolicyStatement], role: iam.IRole) -> list[iam.PolicyStatement]:
    """Turn a role's statements into those of an endpoint, which names who may pass."""
    passing = []
    for statement in statements:
        copy = statement.copy(principals=[iam.AnyPrincipal()])
        copy.add_condition("ArnEquals", {"aws:PrincipalArn": role.role_arn})
        passing.append(copy)
    return passing
