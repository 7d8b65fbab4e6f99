"""The runtimes of one process, made of what deployers wrote: a part of `app`, which calls it."""

import asyncio
from collections.abc import Mapping

from service.config import Catalog, ConfigError
from service.models.route import Routes
from service.runtimes import Runtime
from service.runtimes.converse import ConverseRuntime
from service.runtimes.python import Agent, PythonRuntime, load_agent
from service.tools import Tools

Parts = Mapping[str, Tools | Agent]
"""What deployers wrote for each runtime: its tools, or its agent."""
Loops = Mapping[str, asyncio.AbstractEventLoop]


def load_parts(catalog: Catalog) -> Parts:
    """Import what deployers wrote.

    Raises:
        ConfigError: All faults of all of it.
    """
    parts: dict[str, Tools | Agent] = {}
    faults: list[str] = []
    for name, runtime in catalog.runtimes.items():
        is_agent = runtime.kind == "python"
        try:
            parts[name] = load_agent(runtime.entry) if is_agent else Tools.load(runtime.tools)
        except ConfigError as error:
            key = "entry" if is_agent else "tools"
            faults += [f"runtimes.{name}.{key}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults)
    return parts


def agents_of(parts: Parts) -> list[str]:
    """Return the runtimes whose agent needs a loop of its own."""
    return [name for name, part in parts.items() if not isinstance(part, Tools)]


def make_runtimes(catalog: Catalog, parts: Parts, routes: Routes, loops: Loops) -> dict[str, Runtime]:
    """Make each runtime of its part, its models and, for an agent, its loop."""
    grace_s = catalog.service.usage_grace_s
    runtimes: dict[str, Runtime] = {}
    for name, config in catalog.runtimes.items():
        part = parts[name]
        if isinstance(part, Tools):
            route = routes.to(config.route, first_event_s=config.first_event_s)
            runtimes[name] = ConverseRuntime(config, route, part)
        else:
            runtimes[name] = PythonRuntime(config, part, routes.upstreams, loops[name], usage_grace_s=grace_s)
    return runtimes
