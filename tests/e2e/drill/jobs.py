"""What the clients of a drill ask for, and of what: jobs, the runtime, the limits. Pure.

A job stands in its own prompt, so that the upstream answers by the request alone (`script`) and the audit
finds a job's invocations in the store. Prompts, answers and arguments begin with `CANARY`: it must be in no
log line.
"""

import json
import random
from dataclasses import asdict, dataclass
from typing import Final, Self

CANARY: Final = "canary"
RUNTIME: Final = "surveyor"
USERS: Final = tuple(f"user-{number}" for number in range(10))
JOBS_PER_CLIENT: Final = 1000

LEASE_S: Final = 1.5
DRAIN_S: Final = 2.0
HEARTBEAT_S: Final = 0.5

# Everything that is minutes in production is seconds here, so that a drill sees all of it many times.
CATALOG: Final = f"""
[service]
heartbeat_s = {HEARTBEAT_S}
lease_s = {LEASE_S}
drain_s = {DRAIN_S}
segment_s = 4
first_event_grace_s = 0.2
write_timeout_s = 5
upstream_silence_s = 30

[upstreams.bedrock]
kind = "bedrock"

[runtimes.{RUNTIME}]
kind = "converse"
model = "bedrock/drill-model"
instructions = "Survey, then report."
tools = ["tests.e2e.drill.tools:survey"]
max_output_tokens = 1000
max_turns = 8
deadline_s = 300

[limits.default]
daily_tokens = 1_000_000_000
monthly_tokens = 1_000_000_000
invocation_tokens = 1_000_000_000
concurrent_invocations = 100
"""


def seeded(*parts: object) -> random.Random:
    """Return the choices of one actor of a drill: of the seed, and of nothing that the others do."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 - it must come out the same again


@dataclass(frozen=True, slots=True)
class Job:
    """One job: how many turns its answer takes, and how much text a delta has (`wide`: kilobytes)."""

    seed: int
    number: int
    turns: int
    wide: bool

    @classmethod
    def drawn(cls, rng: random.Random, seed: int, number: int) -> Self:
        return cls(seed, number, turns=rng.randint(3, 5), wide=rng.random() < 0.05)

    @property
    def prompt(self) -> str:
        return f"{CANARY} {json.dumps(asdict(self))}"

    @classmethod
    def asked_for(cls, prompt: str) -> Self:
        """Read the job that a prompt asks for."""
        return cls(**json.loads(prompt.removeprefix(CANARY)))
