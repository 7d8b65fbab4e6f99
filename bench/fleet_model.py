"""The arithmetic of a fleet: what so many streams at once need, from what one delta, answer and stream cost.

`fleet` prints it. What the bench has measured comes as `Measured`; what AWS charges and allows is in
`fleet_prices`; what an answer costs in DynamoDB is measured by tests/unit/test_dynamodb_cost.py. Pure.

    streams ──> answers/s ──> units, requests, bytes ──> dollars an hour
        └─────> tasks (CPU, memory, the limits of a process) ──┘      └──> each load beside its quota
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.fleet_prices import MONTH_H, PRICES, QUOTAS, Load, Quota, tiered
from bench.loadings import DYNAMODB
from bench.results import Section
from bench.scenarios import HEADRACE

ANSWER_S = 10
DELTAS_PER_S = 20
INPUT_TOKENS, OUTPUT_TOKENS = 900, 800
FRAME_BYTES, SSE_BYTES = 260, 200
"""One delta on the way in, with frame, chunk and TLS record, and on the way out."""
STORED_BYTES = 15 * 1024
"""What an answer leaves in the invocations table until its ttl: eleven blocks of at most 1 KB, its record."""
STORED_S = 80 * 3600
TAIL_KB = 64
"""What a running answer keeps in memory beside its stream: its events, and what isn't stored yet."""
LOG_BYTES = 2_000
"""Its two lines in the service's log and one in the access log."""
BURNDOWN = 5
"""What an output token counts against the quota of newer Claude models,
https://docs.aws.amazon.com/bedrock/latest/userguide/quotas-token-burndown.html."""

TASK_VCPU, TASK_GB = 1, 4
TASK_STREAMS = 500
"""What the stack's autoscaling aims at; infra/config.py, `streams_per_task`."""
UTILISATION = 0.6
"""The CPU that autoscaling aims at; infra/workload.py."""
PROCESS_MB = 200
ZONES = 2

# Units of an answer, by table (docs/operations.md), and what a process reads whatever it does.
RECORD_WRITES, USAGE_WRITES, READS = 22, 12, 6
PROCESS_READS_PER_S, PROCESS_WRITES_PER_S = 4.0, 0.1
LOOK_S = 1.8
"""How often a process looks for lost invocations: `takeover.LONGEST_LOOK_S`, less its jitter."""
LEASE_BYTES = 90
READ_BYTES = 4096
OLD_LEASES = 1
"""Leases of ended processes, a task: they stay an hour, and this is the hour after a deploy."""
TOKEN_S = 900
"""How long an ID token lasts, so how often each caller gets a new one."""


@dataclass(frozen=True)
class Measured:
    """What the bench has measured: of one process on one core, on DynamoDB, TLS towards the model."""

    delta_us: float
    invocation_ms: float
    stream_kb: float
    heartbeats_ms: float
    """CPU a second for 1,000 silent streams."""

    @classmethod
    def of(cls, sections: Mapping[str, Section]) -> "Measured | None":
        """Read them; None if a scenario is missing.

        A delta costs what it does over TLS, with DynamoDB's share in place of SQLite's.
        """

        def figure(scenario: str, name: str, subject: str = HEADRACE) -> float | None:
            row = sections[scenario].by_name.get(subject) if scenario in sections else None
            return row.median(name) if row is not None else None

        tls, sqlite = figure("tls", "us"), figure("store", "store_us")
        dynamodb, invocation = figure("store", "store_us", DYNAMODB), figure("store", "ms", DYNAMODB)
        stream, heartbeats = figure("idle-tls", "kb"), figure("idle", "ms_per_s")
        if tls is None or sqlite is None or dynamodb is None:
            return None
        if invocation is None or stream is None or heartbeats is None:
            return None
        return cls(tls - sqlite + dynamodb, invocation, stream, heartbeats)


def lease_reads_per_s(tasks: float) -> float:
    """Units that the partition of all leases is read with: every process reads all of them, consistently."""
    read_bytes = tasks * (1 + OLD_LEASES) * LEASE_BYTES
    return tasks / LOOK_S * max(1.0, read_bytes / READ_BYTES)


def look_reads_per_s(tasks: float) -> float:
    """Units with which every process asks the index what each old lease still holds; half a unit each."""
    return tasks / LOOK_S * tasks * OLD_LEASES / 2


def cell_tasks() -> int:
    """The most processes that can read each other's leases."""
    limit = next(quota.default for quota in QUOTAS if quota.load is Load.READS_OF_THE_LEASES)
    tasks = ZONES
    while lease_reads_per_s(tasks + 1) <= limit:
        tasks += 1
    return tasks


@dataclass(frozen=True)
class Fleet:
    """What so many streams at once need, as long as they last, in as many cells as that takes."""

    streams: int
    measured: Measured

    @property
    def answers_per_s(self) -> float:
        return self.streams / ANSWER_S

    @property
    def stream_cpu(self) -> float:
        """Cores for one stream: its deltas, its share of an invocation, its heartbeats."""
        m = self.measured
        return DELTAS_PER_S * m.delta_us / 1e6 + m.invocation_ms / 1e3 / ANSWER_S + m.heartbeats_ms / 1e6

    @property
    def by_cpu(self) -> int:
        """Streams that one task has the CPU for, at the utilisation that autoscaling keeps."""
        return int(TASK_VCPU * UTILISATION / self.stream_cpu)

    @property
    def by_memory(self) -> int:
        """Streams that one task has the memory for, at the same utilisation."""
        free_kb = (TASK_GB * 1024 * UTILISATION - PROCESS_MB) * 1024
        return int(free_kb / (self.measured.stream_kb + TAIL_KB))

    @property
    def streams_per_task(self) -> int:
        return min(TASK_STREAMS, self.by_cpu, self.by_memory)

    @property
    def tasks(self) -> int:
        return max(ZONES, -(-self.streams // self.streams_per_task))

    @property
    def cells(self) -> int:
        """Deployments of which each can still read its leases."""
        return -(-self.tasks // cell_tasks())

    @property
    def writes_per_s(self) -> float:
        answers = self.answers_per_s * (RECORD_WRITES + USAGE_WRITES)
        return answers + self.tasks * PROCESS_WRITES_PER_S

    @property
    def reads_per_s(self) -> float:
        cell = self.tasks / self.cells
        looks = self.cells * (lease_reads_per_s(cell) + look_reads_per_s(cell))
        return self.answers_per_s * READS + self.tasks * PROCESS_READS_PER_S + looks

    @property
    def tokens_per_min(self) -> float:
        return self.answers_per_s * 60 * (INPUT_TOKENS + BURNDOWN * OUTPUT_TOKENS)

    @property
    def bytes_in_per_s(self) -> float:
        return self.streams * DELTAS_PER_S * FRAME_BYTES

    @property
    def bytes_out_per_s(self) -> float:
        return self.streams * DELTAS_PER_S * SSE_BYTES

    def dollars_an_hour(self) -> dict[str, float]:
        """What it costs while it lasts; tiers are those of a month of it."""
        hour = {
            "requests": self.answers_per_s * 3600,
            "gb_out": self.bytes_out_per_s * 3600 / 1e9,
            "gb_in": self.bytes_in_per_s * 3600 / 1e9,
        }
        lcus = max(
            self.answers_per_s / PRICES.lcu_new_per_s,
            self.streams / PRICES.lcu_active,
            hour["gb_out"] / PRICES.lcu_gb,
        )
        balancers = max(self.cells, -(-self.tasks // 1_000))
        stored_gb = self.answers_per_s * STORED_S * STORED_BYTES / 1e9
        return {
            "tasks": self.tasks * (TASK_VCPU * PRICES.vcpu_h + TASK_GB * PRICES.memory_gb_h),
            "DynamoDB, writes": self.writes_per_s * 3600 * PRICES.write_unit,
            "DynamoDB, reads": self.reads_per_s * 3600 * PRICES.read_unit,
            "DynamoDB, storage": stored_gb * PRICES.stored_gb_month / MONTH_H,
            "API Gateway": tiered(hour["requests"] * MONTH_H, PRICES.requests) / MONTH_H,
            "data out": tiered(hour["gb_out"] * MONTH_H, PRICES.gb_out) / MONTH_H,
            "load balancers": balancers * PRICES.balancer_h + lcus * PRICES.lcu_h,
            "endpoint for Bedrock": ZONES * PRICES.endpoint_h + hour["gb_in"] * PRICES.endpoint_gb,
            "WAF": hour["requests"] * PRICES.waf_request,
            "logs": self.answers_per_s * 3600 * LOG_BYTES / 1e9 * PRICES.log_gb,
        }

    def loads(self) -> list[tuple[Quota, float]]:
        """Each load of one deployment beside its quota, the one that is exceeded most first."""
        found = {
            Load.WRITES_OF_A_TABLE: self.answers_per_s * RECORD_WRITES,
            Load.READS_OF_THE_LEASES: lease_reads_per_s(self.tasks),
            Load.REQUESTS: self.answers_per_s,
            Load.VCPUS: self.tasks * TASK_VCPU,
            Load.TASKS_OF_A_SERVICE: self.tasks,
            Load.TARGETS: self.tasks,
            Load.ADDRESSES: self.tasks,
            Load.ENDPOINT_GBIT: self.bytes_in_per_s * 8 / 1e9 / ZONES,
            Load.SIGN_INS: self.streams / TOKEN_S,
        }
        beside = [(quota, found[quota.load]) for quota in QUOTAS]
        return sorted(beside, key=lambda each: each[1] / each[0].default, reverse=True)
