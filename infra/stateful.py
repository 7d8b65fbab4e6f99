"""`HeadraceData`: what must survive any other change: the tables, the people, the key.

`app` makes it, `gateway` uses what it offers. It is a stack of its own so that replacing the service, its
network or its API never touches state. Logical ids here are pinned by a test: a new id is a new, empty
table.

    usage         user_id, period_id                      quotas, holds, denials, limits
    invocations   pk, sk; held, listed (keys only)        records, inputs, turns, events: prompts and answers

Keys, indexes and the attribute of the time to live are the service's (`service/stores/dynamodb_tables.py`).
"""

from collections.abc import Sequence
from typing import Any, Final

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from infra.catalog import Catalog
from infra.config import Stage
from infra.users import Users

TTL_ATTRIBUTE: Final = "ttl"
# Backups hold prompts and answers that the table has dropped already: long enough to notice, and no longer.
RECOVERY_DAYS: Final = 7
LOG_ACTIONS: Final = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)


class StatefulStack(cdk.Stack):
    """Tables, key and user pool of one stage."""

    def __init__(
        self, scope: Construct, construct_id: str, *, stage: Stage, catalog: Catalog, **stack: Any
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self._keep = stage.keep_state
        removal = cdk.RemovalPolicy.RETAIN if stage.keep_state else cdk.RemovalPolicy.DESTROY
        self.key = kms.Key(
            self,
            "Key",
            description=f"Headrace {stage.name}: tables and logs",
            enable_key_rotation=True,
            removal_policy=removal,
        )
        self._let_logs_use_key()
        text, number = dynamodb.AttributeType.STRING, dynamodb.AttributeType.NUMBER
        self.usage = self._table("Usage", ("user_id", "period_id"))
        self.invocations = self._table(
            "Invocations",
            ("pk", "sk"),
            [
                _index("held", ("holder", text), ("held_at_ms", number)),
                _index("listed", ("listing", text), ("listed_at", text)),
            ],
        )
        self.users = Users(self, "Users", stage=stage, groups=catalog.groups)
        cdk.CfnOutput(self, "UserPoolId", value=self.users.pool.user_pool_id)
        cdk.CfnOutput(self, "WebClientId", value=self.users.web.user_pool_client_id)
        cdk.CfnOutput(self, "CliClientId", value=self.users.cli.user_pool_client_id)
        cdk.CfnOutput(self, "SignInPages", value=self.users.domain.base_url())

    def _table(
        self,
        name: str,
        key: tuple[str, str],
        indexes: Sequence[dynamodb.GlobalSecondaryIndexPropsV2] = (),
    ) -> dynamodb.TableV2:
        text = dynamodb.AttributeType.STRING
        return dynamodb.TableV2(
            self,
            name,
            partition_key=dynamodb.Attribute(name=key[0], type=text),
            sort_key=dynamodb.Attribute(name=key[1], type=text),
            global_secondary_indexes=[*indexes],
            billing=dynamodb.Billing.on_demand(),
            time_to_live_attribute=TTL_ATTRIBUTE,
            encryption=dynamodb.TableEncryptionV2.customer_managed_key(self.key),
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True, recovery_period_in_days=RECOVERY_DAYS
            ),
            deletion_protection=self._keep,
            removal_policy=cdk.RemovalPolicy.RETAIN if self._keep else cdk.RemovalPolicy.DESTROY,
        )

    def _let_logs_use_key(self) -> None:
        """Let CloudWatch Logs encrypt this account's log groups, and those of nobody else.

        https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
        """
        group = f"arn:aws:logs:{self.region}:{self.account}:log-group:*"
        self.key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal(f"logs.{self.region}.amazonaws.com")],
                actions=[*LOG_ACTIONS],
                resources=["*"],  # of a key policy: the key itself
                conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": group}},
            )
        )


def _index(
    name: str, partition: tuple[str, dynamodb.AttributeType], sort: tuple[str, dynamodb.AttributeType]
) -> dynamodb.GlobalSecondaryIndexPropsV2:
    return dynamodb.GlobalSecondaryIndexPropsV2(
        index_name=name,
        partition_key=dynamodb.Attribute(name=partition[0], type=partition[1]),
        sort_key=dynamodb.Attribute(name=sort[0], type=sort[1]),
        projection_type=dynamodb.ProjectionType.KEYS_ONLY,
    )
