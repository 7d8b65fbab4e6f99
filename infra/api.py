"""The REST API: methods, authorizer, validation, refusals, access log, custom domain; and its deployment.

`gateway` makes it in front of `workload`. A regional REST API is the only kind of API Gateway that streams
an answer for up to 15 minutes, and stays silent for up to 5:
https://docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html

    IntegrationTarget, IdentityValidationExpression     the constructs don't know them: overrides, and the
    what the VPC link is made of                        deployment's id is salted with them, or a stage would
                                                        go on serving what it was made of
"""

import json
from collections.abc import Mapping
from typing import Final, cast

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_apigatewayv2 as apigatewayv2
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_route53 as route53
from constructs import Construct

from infra import timeouts
from infra.acknowledged import acknowledge
from infra.config import Stage
from infra.loggroups import log_group
from infra.network import Network
from infra.refusals import PROBLEM_TYPE, REFUSALS
from infra.routes import ROUTES, PublicRoute
from infra.users import Users
from infra.workload import Workload

# How long an expired token may still get past API Gateway; the service looks at each one itself.
AUTHORIZER_TTL_S: Final = 60
# Variables of streams: https://docs.aws.amazon.com/apigateway/latest/developerguide/response-streaming-troubleshoot.html
# No claim but the subject, and never the token.
ACCESS_LOG: Final[Mapping[str, str]] = {
    "requestId": "$context.requestId",
    "requestTime": "$context.requestTime",
    "method": "$context.httpMethod",
    "resourcePath": "$context.resourcePath",
    "status": "$context.status",
    "responseLength": "$context.responseLength",
    "responseLatencyMs": "$context.responseLatency",
    "sourceIp": "$context.identity.sourceIp",
    "sub": "$context.authorizer.claims.sub",
    "errorType": "$context.error.responseType",
    "wafStatus": "$context.wafResponseCode",
    "integrationStatus": "$context.integration.status",
    "integrationError": "$context.integrationErrorMessage",
    "transferMode": "$context.integration.responseTransferMode",
    "timeToAllHeadersMs": "$context.integration.timeToAllHeaders",
    "timeToFirstContentMs": "$context.integration.timeToFirstContent",
    "integrationLatencyMs": "$context.integration.latency",
}


class Api(Construct):
    """The public side. `url` is where clients begin."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        stage: Stage,
        users: Users,
        network: Network,
        workload: Workload,
        key: kms.IKey,
        certificate: acm.ICertificate | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._workload = workload
        scheme, host = (
            ("https", stage.origin_domain)
            if certificate
            else ("http", workload.balancer.load_balancer_dns_name)
        )
        self._origin = f"{scheme}://{host}"
        self.rest = self._rest(stage, key)
        self._link = apigatewayv2.VpcLink(
            self, "Link", vpc=network.vpc, subnets=network.private, security_groups=[network.link]
        )
        self._authorizer = self._make_authorizer(users)
        self._validators = self._make_validators()
        for route in ROUTES:
            self._add_method(route)
        for path in sorted({route.path for route in ROUTES}):
            self._add_preflight(path)
        self._add_refusals(stage)
        self._salt_deployment(users, network)
        self.url = self._add_domain(stage, certificate) if certificate else self.rest.url

    def _rest(self, stage: Stage, key: kms.IKey) -> apigateway.RestApi:
        rest = apigateway.RestApi(
            self,
            "Rest",
            rest_api_name=f"headrace-{stage.name}",
            description="Headrace: streams of AI agents' answers",
            endpoint_types=[apigateway.EndpointType.REGIONAL],
            disable_execute_api_endpoint=bool(stage.domain),
            cloud_watch_role=True,
            cloud_watch_role_removal_policy=cdk.RemovalPolicy.RETAIN,  # the account's, other APIs may use it
            deploy_options=apigateway.StageOptions(
                stage_name=stage.name,
                access_log_destination=apigateway.LogGroupLogDestination(
                    log_group(self, "AccessLogs", stage=stage, key=key)
                ),
                access_log_format=apigateway.AccessLogFormat.custom(json.dumps(dict(ACCESS_LOG))),
                logging_level=apigateway.MethodLoggingLevel.ERROR,
                data_trace_enabled=False,  # would log prompts and answers
                metrics_enabled=True,
                tracing_enabled=True,
                throttling_rate_limit=stage.requests_per_s,
                throttling_burst_limit=stage.burst_requests,
            ),
        )
        acknowledge(
            rest,
            "IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonAPIGatewayPushToCloudWatchLogs]",
            "The policy that API Gateway's documentation prescribes for the account's logging role.",
        )
        # Else API Gateway makes this group itself, when the stage is there: without our key, for ever.
        # https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-logging.html
        executions = f"API-Gateway-Execution-Logs_{rest.rest_api_id}/{stage.name}"
        rest.deployment_stage.node.add_dependency(
            log_group(self, "ExecutionLogs", stage=stage, key=key, name=executions)
        )
        return rest

    def _make_authorizer(self, users: Users) -> apigateway.CognitoUserPoolsAuthorizer:
        authorizer = apigateway.CognitoUserPoolsAuthorizer(
            self,
            "Authorizer",
            cognito_user_pools=[users.pool],
            identity_source=apigateway.IdentitySource.header("Authorization"),
            results_cache_ttl=cdk.Duration.seconds(AUTHORIZER_TTL_S),
        )
        # Without it any client of the pool would do: `aud` is not looked at.
        # https://docs.aws.amazon.com/apigateway/latest/api/API_CreateAuthorizer.html
        cast("cdk.CfnResource", authorizer.node.find_child("Resource")).add_property_override(
            "IdentityValidationExpression", audience_expression(users)
        )
        return authorizer

    def _make_validators(self) -> Mapping[bool, apigateway.IRequestValidator]:
        return {
            body: self.rest.add_request_validator(
                "Everything" if body else "Parameters",
                validate_request_parameters=True,
                validate_request_body=body,
            )
            for body in (True, False)
        }

    def _integration(self, route: PublicRoute, path: str) -> apigateway.Integration:
        parameters = {
            f"integration.request.path.{name}": f"method.request.path.{name}" for name in _names_in(path)
        }
        # One id for the access log, the service's log line and the caller's X-Request-Id.
        parameters["integration.request.header.X-Request-Id"] = "context.requestId"
        mode = apigateway.ResponseTransferMode
        return apigateway.Integration(
            type=apigateway.IntegrationType.HTTP_PROXY,
            integration_http_method=route.method,
            uri=f"{self._origin}{path}",  # the whole path: whether API Gateway would add it is in dispute
            options=apigateway.IntegrationOptions(
                connection_type=apigateway.ConnectionType.VPC_LINK,
                vpc_link=apigateway.VpcLink.from_vpc_link_id(
                    self, f"Link{route.method}{path}", self._link.vpc_link_id
                ),
                request_parameters=parameters,
                response_transfer_mode=mode.STREAM if route.streams else mode.BUFFERED,
                timeout=cdk.Duration.millis(timeouts.STREAM_MS if route.streams else timeouts.BUFFERED_MS),
            ),
        )

    def _add_method(self, route: PublicRoute) -> None:
        model = apigateway.Model.EMPTY_MODEL
        if route.has_body:
            model = self.rest.add_model(
                "JsonObject",
                content_type="application/json",
                # That it is an object at all; what may be in it the service says better, with the place.
                schema=apigateway.JsonSchema(
                    schema=apigateway.JsonSchemaVersion.DRAFT4, type=apigateway.JsonSchemaType.OBJECT
                ),
            )
        method = self.rest.root.resource_for_path(route.path).add_method(
            route.method,
            self._integration(route, route.path),
            authorization_type=apigateway.AuthorizationType.COGNITO,
            authorizer=self._authorizer,
            request_parameters={f"method.request.path.{name}": True for name in _names_in(route.path)},
            request_validator=self._validators[route.has_body],
            request_models={"application/json": model} if route.has_body else None,
        )
        self._target(method)

    def _add_preflight(self, path: str) -> None:
        """Let the service answer a browser's preflight, as it answers everything else about origins."""
        method = self.rest.root.resource_for_path(path).add_method(
            "OPTIONS",
            self._integration(PublicRoute("OPTIONS", path), path),
            authorization_type=apigateway.AuthorizationType.NONE,
            request_parameters={f"method.request.path.{name}": True for name in _names_in(path)},
            request_validator=self._validators[False],
        )
        self._target(method)
        acknowledge(method, "APIG4", "A browser sends a preflight without a token; the answer says nothing.")

    def _target(self, method: apigateway.Method) -> None:
        """Name the balancer: a VPC link of the second kind routes by its ARN, and not by the URI."""
        cast("cdk.CfnResource", method.node.find_child("Resource")).add_property_override(
            "Integration.IntegrationTarget", self._workload.balancer.load_balancer_arn
        )
        method.node.add_dependency(self._workload.listener)

    def _add_refusals(self, stage: Stage) -> None:
        for refusal in REFUSALS:
            self.rest.add_gateway_response(
                refusal.kind.title().replace("_", ""),
                type=apigateway.ResponseType.of(refusal.kind),
                status_code=str(refusal.status) if refusal.status else None,
                response_headers=refusal.headers(stage.cors_origins),
                templates={"application/json": refusal.document(), PROBLEM_TYPE: refusal.document()},
            )

    def _salt_deployment(self, users: Users, network: Network) -> None:
        deployment = self.rest.latest_deployment
        if deployment is None:
            raise TypeError("the API has a deployment")
        link: ec2.SelectedSubnets = network.vpc.select_subnets(subnet_type=network.private.subnet_type)
        deployment.add_to_logical_id(
            {
                "target": self._workload.balancer.load_balancer_arn,
                "origin": self._origin,
                "audiences": audience_expression(users),
                "link": [*link.subnet_ids, network.link.security_group_id],
                "refusals": [refusal.document() for refusal in REFUSALS],
            }
        )

    def _add_domain(self, stage: Stage, certificate: acm.ICertificate) -> str:
        domain = apigateway.DomainName(
            self,
            "Domain",
            domain_name=stage.domain,
            certificate=certificate,
            endpoint_type=apigateway.EndpointType.REGIONAL,
            security_policy=apigateway.SecurityPolicy.TLS_1_2,
        )
        domain.add_base_path_mapping(self.rest, stage=self.rest.deployment_stage)
        for kind in ("A", "AAAA") if stage.hosted_zone_id else ():
            route53.CfnRecordSet(
                self,
                f"Record{kind}",
                name=stage.domain,
                type=kind,
                hosted_zone_id=stage.hosted_zone_id,
                alias_target=route53.CfnRecordSet.AliasTargetProperty(
                    dns_name=domain.domain_name_alias_domain_name,
                    hosted_zone_id=domain.domain_name_alias_hosted_zone_id,
                ),
            )
        cdk.CfnOutput(self, "DomainTarget", value=domain.domain_name_alias_domain_name)
        return f"https://{stage.domain}/"


def audience_expression(users: Users) -> str:
    """Return the expression that `aud` must match: one of the deployment's clients and nothing else."""
    return f"^({'|'.join(users.audiences)})$"


def _names_in(path: str) -> list[str]:
    return [part.strip("{}") for part in path.split("/") if part.startswith("{")]
