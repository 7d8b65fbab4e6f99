"""What authors of agents import: the types of what an agent is given, and the errors that it may catch.

    from service.agents import AgentInvocation, message_of

    async def run(invocation: AgentInvocation) -> AsyncIterator[str | Event]: ...

docs/agents.md teaches it. Nothing of the service imports it.
"""

from service.errors import BudgetExceeded, QuotaExceeded, TurnsExhausted, UpstreamError
from service.runtimes.python_agent import AgentInvocation, AgentModel, Event, message_of

__all__ = [
    "AgentInvocation",
    "AgentModel",
    "BudgetExceeded",
    "Event",
    "QuotaExceeded",
    "TurnsExhausted",
    "UpstreamError",
    "message_of",
]
