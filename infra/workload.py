"""The service on ECS Fargate, behind an internal load balancer.

`gateway` makes it, gives its task role what it may do, and points `api` at its balancer. What a deploy or a
scale-in does to a stream: the target is deregistered and gets nothing new, its streams have
DEREGISTRATION_S to end (`reconnect` comes at the latest after a segment), then SIGTERM starts the drain,
and STOP_S later it is killed.

No Spot (two minutes' notice, the target may stay registered) and no task protection (a protected task would
go on getting streams and never be free). Sources:
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/load-balancer-connection-draining.html,
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-security-considerations.html
"""

from collections.abc import Mapping
from typing import Final, cast

import aws_cdk as cdk
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_kms as kms
from constructs import Construct

from infra import timeouts
from infra.acknowledged import acknowledge
from infra.config import Stage
from infra.loggroups import log_group
from infra.network import SERVICE_PORT, Network

USER: Final = "10001:10001"
OPEN_FILES: Final = 65_535  # all that Fargate has
_TCP: Final = "net.ipv4.tcp_keepalive_"
_SYSCTLS: Final[Mapping[str, int]] = {
    f"{_TCP}time": timeouts.TCP_KEEP_ALIVE_S,
    f"{_TCP}intvl": timeouts.TCP_KEEP_ALIVE_INTERVAL_S,
    f"{_TCP}probes": timeouts.TCP_KEEP_ALIVE_PROBES,
}
# The image has Python and no curl. ECS looks at this, and not at the image's own HEALTHCHECK.
_PING: Final = (
    f"import urllib.request as r; r.urlopen('http://127.0.0.1:{SERVICE_PORT}/ping', timeout=4).read()"
)
# `.dockerignore` decides what is part of the image; this never is, whatever it says.
_NEVER_IN_IMAGE: Final = (
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".git",
    ".venv",
    ".venv-infra",
    "cdk.out",
    ".local",
    "**/__pycache__",
    "node_modules",
)


class Workload(Construct):
    """Cluster, task, service, balancer and scaling."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        stage: Stage,
        network: Network,
        key: kms.IKey,
        environment: Mapping[str, str],
        certificate: acm.ICertificate | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.task = self._task(stage, key, environment)
        self.balancer, self.listener = self._balancer(network, certificate)
        self.service = self._service(stage, network)
        self.target = self._target(network)
        self._scale(stage)

    def _task(self, stage: Stage, key: kms.IKey, environment: Mapping[str, str]) -> ecs.FargateTaskDefinition:
        task = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=stage.cpu,
            memory_limit_mib=stage.memory_mib,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.ARM64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        linux = ecs.LinuxParameters(self, "Linux", init_process_enabled=True)
        linux.drop_capabilities(ecs.Capability.ALL)
        task.add_container(
            "service",
            image=ecs.ContainerImage.from_asset(
                stage.image_directory,
                file="Dockerfile",
                platform=ecr_assets.Platform.LINUX_ARM64,
                exclude=[*_NEVER_IN_IMAGE],
                ignore_mode=cdk.IgnoreMode.DOCKER,
            ),
            environment=dict(environment),
            port_mappings=[ecs.PortMapping(container_port=SERVICE_PORT)],
            user=USER,
            readonly_root_filesystem=True,
            linux_parameters=linux,
            stop_timeout=cdk.Duration.seconds(timeouts.STOP_S),
            ulimits=[ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=OPEN_FILES, hard_limit=OPEN_FILES)],
            system_controls=[
                ecs.SystemControl(namespace=name, value=str(value)) for name, value in _SYSCTLS.items()
            ],
            health_check=ecs.HealthCheck(
                command=["CMD", "python", "-c", _PING],
                interval=cdk.Duration.seconds(30),
                timeout=cdk.Duration.seconds(10),
                retries=3,
                start_period=cdk.Duration.seconds(30),
            ),
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix="service",
                log_group=log_group(self, "Logs", stage=stage, key=key),
                mode=ecs.AwsLogDriverMode.NON_BLOCKING,  # a slow log service must not stop the event loop
                max_buffer_size=cdk.Size.mebibytes(25),
            ),
        )
        acknowledge(task, "ECS2", "Settings only: names of tables, URLs. Secrets are read by their ARNs.")
        acknowledge(
            task.obtain_execution_role(),
            "IAM5[Resource::*]",
            "A registry's token has no resource (ecr:GetAuthorizationToken); image and log group are named.",
        )
        return task

    def _balancer(
        self, network: Network, certificate: acm.ICertificate | None
    ) -> tuple[elb.ApplicationLoadBalancer, elb.ApplicationListener]:
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=network.vpc,
            vpc_subnets=network.private,
            internet_facing=False,
            security_group=network.balancer,
            idle_timeout=cdk.Duration.seconds(timeouts.ALB_IDLE_S),
            client_keep_alive=cdk.Duration.seconds(timeouts.ALB_CLIENT_KEEP_ALIVE_S),
            drop_invalid_header_fields=True,
            # The strictest refuses what is odd and harmless, too, such as a GET with `Content-Length: 0`: how
            # API Gateway writes its requests is not documented, and nobody else is let in.
            desync_mitigation_mode=elb.DesyncMitigationMode.DEFENSIVE,
        )
        listener = balancer.add_listener(
            "Listener",
            port=network.balancer_port,
            protocol=elb.ApplicationProtocol.HTTPS if certificate else elb.ApplicationProtocol.HTTP,
            certificates=[certificate] if certificate else None,
            ssl_policy=elb.SslPolicy.TLS13_RES if certificate else None,
            open=False,
        )
        acknowledge(
            balancer, "ELB2", "Internal, for API Gateway alone, whose access log has every request already."
        )
        return balancer, listener

    def _service(self, stage: Stage, network: Network) -> ecs.FargateService:
        cluster = ecs.Cluster(
            self, "Cluster", vpc=network.vpc, container_insights_v2=ecs.ContainerInsights.ENABLED
        )
        service = ecs.FargateService(
            self,
            "Service",
            cluster=cluster,
            task_definition=self.task,
            platform_version=ecs.FargatePlatformVersion.LATEST,
            assign_public_ip=False,
            vpc_subnets=network.private,
            security_groups=[network.service],
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            availability_zone_rebalancing=ecs.AvailabilityZoneRebalancing.ENABLED,
            health_check_grace_period=cdk.Duration.seconds(60),
            enable_execute_command=False,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
        # Else the first tasks start before there is a way to their image.
        private = network.vpc.select_subnets(subnet_type=network.private.subnet_type)
        service.node.add_dependency(private.internet_connectivity_established)
        # Without it a deployment would take as long as the old tasks have streams. The construct lacks it:
        # https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DeploymentConfiguration.html
        cast("cdk.CfnResource", service.node.find_child("Service")).add_property_override(
            "DeploymentConfiguration.EarlySuccessCriteria",
            {"Enable": True, "HealthyPercent": 100, "SourceServiceRevisionCleanup": "DEFERRED"},
        )
        return service

    def _target(self, network: Network) -> elb.ApplicationTargetGroup:
        target = elb.ApplicationTargetGroup(
            self,
            "Target",
            vpc=network.vpc,
            port=SERVICE_PORT,
            protocol=elb.ApplicationProtocol.HTTP,
            target_type=elb.TargetType.IP,
            targets=[self.service],
            deregistration_delay=cdk.Duration.seconds(timeouts.DEREGISTRATION_S),
            load_balancing_algorithm_type=elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
            health_check=elb.HealthCheck(
                path="/ready",
                healthy_http_codes="200",
                interval=cdk.Duration.seconds(10),
                timeout=cdk.Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
            ),
        )
        self.listener.add_target_groups("Service", target_groups=[target])
        return target

    def _scale(self, stage: Stage) -> None:
        """Scale by streams a task, and by CPU.

        A stream is a connection on either side of the balancer, so half of its connections are the streams:
        no metric of our own, and a little more than there are, since idle ones are kept. Without a connection
        there is no datapoint, and without a zero in its place no policy would ever scale in:
        https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-cloudwatch-metrics.html
        """
        tasks = self.service.auto_scale_task_count(min_capacity=stage.min_tasks, max_capacity=stage.max_tasks)
        slowly = cdk.Duration.minutes(15)  # a task that leaves makes its readers reconnect
        tasks.scale_on_cpu_utilization(
            "Cpu",
            target_utilization_percent=60,
            scale_in_cooldown=slowly,
            scale_out_cooldown=cdk.Duration.minutes(1),
        )
        metric = scaling.CfnScalingPolicy.TargetTrackingMetricDataQueryProperty
        scaling.CfnScalingPolicy(
            self,
            "Streams",
            policy_name="streams",
            policy_type="TargetTrackingScaling",
            scaling_target_id=cast(
                "scaling.ScalableTarget", tasks.node.find_child("Target")
            ).scalable_target_id,
            target_tracking_scaling_policy_configuration=scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty(
                target_value=stage.streams_per_task,
                scale_in_cooldown=slowly.to_seconds(),
                scale_out_cooldown=60,
                customized_metric_specification=scaling.CfnScalingPolicy.CustomizedMetricSpecificationProperty(
                    metrics=[
                        metric(
                            id="connections",
                            metric_stat=_stat(
                                ("AWS/ApplicationELB", "ActiveConnectionCount", "Sum"),
                                {"LoadBalancer": self.balancer.load_balancer_full_name},
                            ),
                            return_data=False,
                        ),
                        metric(
                            id="tasks",
                            metric_stat=_stat(
                                ("ECS/ContainerInsights", "RunningTaskCount", "Average"),
                                {
                                    "ClusterName": self.service.cluster.cluster_name,
                                    "ServiceName": self.service.service_name,
                                },
                            ),
                            return_data=False,
                        ),
                        metric(id="streams", expression="FILL(connections, 0) / 2 / tasks", return_data=True),
                    ]
                ),
            ),
        )


def _stat(
    metric: tuple[str, str, str], dimensions: Mapping[str, str]
) -> scaling.CfnScalingPolicy.TargetTrackingMetricStatProperty:
    namespace, name, stat = metric
    policy = scaling.CfnScalingPolicy
    return policy.TargetTrackingMetricStatProperty(
        stat=stat,
        metric=policy.TargetTrackingMetricProperty(
            namespace=namespace,
            metric_name=name,
            dimensions=[
                policy.TargetTrackingMetricDimensionProperty(name=key, value=value)
                for key, value in dimensions.items()
            ],
        ),
    )
