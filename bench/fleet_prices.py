"""What AWS charges and what it allows: list prices of us-east-1 and default quotas of 2026, for `fleet`.

Each with its source. Nobody has asked an account: an account's own quotas may be lower while it is new.
Prices are before discounts, savings plans and free tiers; the models' tokens, which cost far more, are not
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

MONTH_H = 730

Tiers = Sequence[tuple[float, float]]
"""How much at which price; the last goes on for ever."""


@dataclass(frozen=True)
class Prices:
    """Dollars; hours and months as the names say."""

    # Fargate on ARM64: https://aws.amazon.com/fargate/pricing/
    vcpu_h: float = 0.03238
    memory_gb_h: float = 0.00356
    # DynamoDB on demand: https://aws.amazon.com/dynamodb/pricing/on-demand/
    write_unit: float = 0.625e-6
    read_unit: float = 0.125e-6
    stored_gb_month: float = 0.25
    # REST APIs; 10 MB of a streamed answer are one request: https://aws.amazon.com/api-gateway/pricing/
    requests: Tiers = ((333e6, 3.5e-6), (667e6, 2.8e-6), (19e9, 2.38e-6), (float("inf"), 1.51e-6))
    # Data out to the internet: https://aws.amazon.com/ec2/pricing/on-demand/#Data_Transfer
    gb_out: Tiers = ((10_000, 0.09), (40_000, 0.085), (100_000, 0.07), (float("inf"), 0.05))
    # Application Load Balancer: https://aws.amazon.com/elasticloadbalancing/pricing/
    balancer_h: float = 0.0225
    lcu_h: float = 0.008
    lcu_new_per_s: float = 25
    lcu_active: float = 3_000
    lcu_gb: float = 1
    # Interface endpoints, an hour in each zone: https://aws.amazon.com/privatelink/pricing/
    endpoint_h: float = 0.01
    endpoint_gb: float = 0.01
    # https://aws.amazon.com/waf/pricing/
    waf_request: float = 0.6e-6
    # CloudWatch Logs: https://aws.amazon.com/cloudwatch/pricing/
    log_gb: float = 0.5


PRICES = Prices()


class Load(Enum):
    """What a fleet asks of AWS that is limited."""

    WRITES_OF_A_TABLE = auto()
    READS_OF_THE_LEASES = auto()
    REQUESTS = auto()
    VCPUS = auto()
    TASKS_OF_A_SERVICE = auto()
    TARGETS = auto()
    ADDRESSES = auto()
    ENDPOINT_GBIT = auto()
    SIGN_INS = auto()


@dataclass(frozen=True)
class Quota:
    """A default limit, and what to do when it comes near."""

    load: Load
    name: str
    default: float
    do: str
    source: str


QUOTAS = (
    Quota(
        Load.WRITES_OF_A_TABLE,
        "DynamoDB, write units a second of the invocations table",
        40_000,
        "raise *table-level write throughput* of both tables; warm them up first (a new one serves 4,000)",
        "https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ServiceQuotas.html",
    ),
    Quota(
        Load.READS_OF_THE_LEASES,
        "DynamoDB, read units a second of the partition of leases",
        3_000,
        "can't be raised: make cells (below)",
        "https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/warm-throughput-scenarios.html",
    ),
    Quota(
        Load.REQUESTS,
        "API Gateway, requests a second of the account",
        10_000,
        "raise *throttle rate*; then one account a cell",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html",
    ),
    Quota(
        Load.VCPUS,
        "Fargate, on-demand vCPUs (a new account's)",
        6,
        "raise *Fargate On-Demand vCPU resource count*, to twice the tasks: a deployment runs both",
        "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html",
    ),
    Quota(
        Load.TASKS_OF_A_SERVICE,
        "ECS, tasks of a service",
        5_000,
        "raise *tasks per service*, or make cells",
        "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html",
    ),
    Quota(
        Load.TARGETS,
        "load balancer, targets",
        1_000,
        "raise *targets per Application Load Balancer* and *per target group*, or make cells",
        "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-limits.html",
    ),
    Quota(
        Load.ADDRESSES,
        "addresses in the stack's private subnets (two of /20)",
        8_182,
        "wider subnets, more zones: infra/network.py",
        "https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html",
    ),
    Quota(
        Load.ENDPOINT_GBIT,
        "endpoint for Bedrock, Gbit/s in a zone",
        100,
        "more endpoints: one a cell",
        "https://docs.aws.amazon.com/vpc/latest/privatelink/vpc-limits-endpoints.html",
    ),
    Quota(
        Load.SIGN_INS,
        "Cognito, sign-ins a second",
        120,
        "raise *UserAuthentication*, or longer tokens (an hour is a quarter of it)",
        "https://docs.aws.amazon.com/cognito/latest/developerguide/quotas.html",
    ),
)


def tiered(amount: float, tiers: Tiers) -> float:
    """The price of an amount, each part of it at the price of its tier."""
    cost, left = 0.0, amount
    for size, price in tiers:
        part = min(left, size)
        cost, left = cost + part * price, left - part
    return cost
