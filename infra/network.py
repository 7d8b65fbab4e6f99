"""The network: a VPC of two zones, its way out, and who may speak to whom.

    API Gateway ── link ──> balancer ──> service ──> Bedrock (endpoint), DynamoDB (gateway endpoint)
                                            └──────> NAT: the issuer's keys, the image, logs, other upstreams

Nothing here has a public address but the NAT gateways. The issuer's keys must leave through NAT: a user
pool with a domain answers nobody through PrivateLink (`users`). Each arrow is a pair of rules of security
groups and nothing else is open. `gateway` makes it; `workload` and `api` put things into it.
"""

from collections.abc import Sequence
from typing import Final

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from infra.config import Stage
from infra.loggroups import log_group

SERVICE_PORT: Final = 8080


class Network(Construct):
    """VPC, endpoints and the security groups of link, balancer and service."""

    def __init__(
        self, scope: Construct, construct_id: str, *, stage: Stage, key: kms.IKey, ports: Sequence[int]
    ) -> None:
        super().__init__(scope, construct_id)
        self.balancer_port = 443 if stage.domain else 80
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr("10.0.0.0/16"),
            availability_zones=list(stage.zones) or None,
            # A Region without an account has no more to offer at synthesis.
            max_azs=None if stage.zones else 2,
            nat_gateways=stage.nat_gateways,
            restrict_default_security_group=False,  # would take a function of its own; nothing is in it
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Public",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    cidr_mask=24,
                    map_public_ip_on_launch=False,
                ),
                ec2.SubnetConfiguration(
                    name="Private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20
                ),
            ],
        )
        self.vpc.add_flow_log(
            "Rejected",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(
                log_group(self, "RejectedLogs", stage=stage, key=key)
            ),
            traffic_type=ec2.FlowLogTrafficType.REJECT,
        )
        self.private = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        self.link = self._group("Link", "the VPC link of API Gateway")
        self.balancer = self._group("Balancer", "the internal load balancer")
        self.service = self._group("Service", "the tasks")
        self._endpoint_group = self._group("Endpoint", "interface endpoints")
        _allow(self.link, self.balancer, self.balancer_port)
        _allow(self.balancer, self.service, SERVICE_PORT)
        _allow(self.service, self._endpoint_group, 443)
        for port in (443, *ports):
            self.service.add_egress_rule(
                ec2.Peer.any_ipv4(), ec2.Port.tcp(port), "issuer, image, logs, upstreams"
            )

    def add_endpoints(
        self, *, bedrock: Sequence[iam.PolicyStatement], dynamodb: Sequence[iam.PolicyStatement]
    ) -> None:
        """Add the private ways to Bedrock and DynamoDB, which let through what the statements allow."""
        endpoint = self.vpc.add_interface_endpoint(
            "Bedrock",
            service=ec2.InterfaceVpcEndpointAwsService.BEDROCK_RUNTIME,
            subnets=self.private,
            security_groups=[self._endpoint_group],
            open=False,
            private_dns_enabled=True,
        )
        tables = self.vpc.add_gateway_endpoint(
            "DynamoDb", service=ec2.GatewayVpcEndpointAwsService.DYNAMODB, subnets=[self.private]
        )
        # Layers of the image are in S3: free this way, and by the gigabyte through NAT. No policy: tools
        # may fetch what others have in S3, and the task's role allows nothing of ours.
        self.vpc.add_gateway_endpoint(
            "S3", service=ec2.GatewayVpcEndpointAwsService.S3, subnets=[self.private]
        )
        for statement in bedrock:
            endpoint.add_to_policy(statement)
        for statement in dynamodb:
            tables.add_to_policy(statement)

    def _group(self, name: str, description: str) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(
            self, name, vpc=self.vpc, description=f"Headrace: {description}", allow_all_outbound=False
        )


def _allow(source: ec2.SecurityGroup, target: ec2.SecurityGroup, port: int) -> None:
    target.add_ingress_rule(source, ec2.Port.tcp(port))
    source.add_egress_rule(target, ec2.Port.tcp(port))
