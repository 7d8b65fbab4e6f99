"""`Headrace`: network, workload, API and WAF put together, and what each may do to the others.

`app` makes it beside the stack that keeps the state. Every grant and every setting of the container is made
here, so that one page shows what the deployment is; the constructs know only what they are given.
"""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_certificatemanager as acm
from constructs import Construct

from infra import permissions
from infra.acknowledged import acknowledge
from infra.api import Api
from infra.catalog import Catalog
from infra.config import Stage
from infra.models import ANY_FOUNDATION_MODEL
from infra.network import SERVICE_PORT, Network
from infra.stateful import StatefulStack
from infra.waf import Waf
from infra.workload import Workload


class GatewayStack(cdk.Stack):
    """Everything that can be replaced."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        stage: Stage,
        catalog: Catalog,
        state: StatefulStack,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        certificate = self._certificate(stage)
        network = Network(self, "Network", stage=stage, key=state.key, ports=catalog.ports)
        workload = Workload(
            self,
            "Workload",
            stage=stage,
            network=network,
            key=state.key,
            environment=_environment(stage, state),
            certificate=certificate,
        )
        self._grant(catalog, state, network, workload)
        api = Api(
            self,
            "Api",
            stage=stage,
            users=state.users,
            network=network,
            workload=workload,
            key=state.key,
            certificate=certificate,
        )
        Waf(self, "Waf", stage=stage, stage_arn=api.rest.deployment_stage.stage_arn, key=state.key)
        cdk.CfnOutput(self, "Url", value=api.url)

    def _certificate(self, stage: Stage) -> acm.ICertificate | None:
        """Make, or take, the certificate of the API's name and of the load balancer's."""
        if stage.certificate_arn:
            return acm.Certificate.from_certificate_arn(self, "Certificate", stage.certificate_arn)
        if not stage.domain:
            return None
        names = [stage.domain, stage.origin_domain]
        certificate = acm.CfnCertificate(
            self,
            "Certificate",
            domain_name=stage.domain,
            subject_alternative_names=[stage.origin_domain],
            validation_method="DNS",
            domain_validation_options=[
                acm.CfnCertificate.DomainValidationOptionProperty(
                    domain_name=name, hosted_zone_id=stage.hosted_zone_id
                )
                for name in names
            ],
        )
        return acm.Certificate.from_certificate_arn(self, "CertificateMade", certificate.ref)

    def _grant(self, catalog: Catalog, state: StatefulStack, network: Network, workload: Workload) -> None:
        here = {"region": self.region, "account": self.account}
        models = [
            *permissions.invoke_models(catalog.models, **here),
            *permissions.apply_guardrails(catalog.guardrails, **here),
        ]
        tables = permissions.use_tables(state.usage, state.invocations)
        role = workload.task.task_role
        for statement in (
            *models,
            *tables,
            *permissions.use_key(state.key, region=self.region),
            *permissions.read_secrets(catalog.secrets),
        ):
            role.add_to_principal_policy(statement)
        if any(ANY_FOUNDATION_MODEL in statement.resources for statement in models):
            acknowledge(
                role,
                f"IAM5[Resource::{ANY_FOUNDATION_MODEL}]",
                "Bedrock alone knows what an application profile routes to; only through that profile.",
            )
        network.add_endpoints(
            bedrock=permissions.for_endpoint(models, role), dynamodb=permissions.for_endpoint(tables, role)
        )


def _environment(stage: Stage, state: StatefulStack) -> dict[str, str]:
    """Return the container's settings: all that docs/configuration.md lists."""
    return {
        "AWS_REGION": stage.region,
        "HEADRACE_HOST": "0.0.0.0",
        "HEADRACE_PORT": str(SERVICE_PORT),
        "HEADRACE_CATALOG": "headrace.toml",
        "HEADRACE_ISSUER": state.users.issuer,
        "HEADRACE_AUDIENCES": ",".join(state.users.audiences),
        "HEADRACE_JWKS_URL": f"{state.users.issuer}/.well-known/jwks.json",
        "HEADRACE_STORE": "dynamodb",
        "HEADRACE_USAGE_TABLE": state.usage.table_name,
        "HEADRACE_INVOCATIONS_TABLE": state.invocations.table_name,
        "HEADRACE_CORS_ORIGINS": ",".join(stage.cors_origins),
    }
