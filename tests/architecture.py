"""The layers of the service as a table, and the checks that hold it: from imports to a list of faults.

`tests/test_architecture.py` runs every check over the repository and shows that each can fail. A module that
is new, or an import that the layers forbid, is entered here, with thought: the table is the architecture.

    0 words  <  1 ports  <  2 story  <  4 edge  <  5 composition         an import goes to the left only
                    <  3 adapters  <───────────────┘                     edge and story never know an adapter

A module whose name continues another's (`stores.sqlite_schema`, `client_stream`) is a part of it: it has the
other's place in the table, and the parts of one module may import each other.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

LAYERS: Final[dict[int, set[str]]] = {
    0: {"errors", "invocations", "events", "config", "beat", "timeouts"},
    1: {"models", "stores", "stores.values", "runtimes"},
    2: {
        *("identity", "jose", "keys"),
        *("submission", "admission", "ledger"),
        *("runner", "attempt", "takeover", "leases", "tools"),
        *("runtimes.converse", "runtimes.heard", "runtimes.metered", "runtimes.python"),
        *("agents", "agent_loops", "watchdog"),
        *("log", "follow", "readers", "presence", "wire", "policies"),
    },
    3: {
        *("models.bedrock", "models.aws_http", "models.sigv4", "models.eventstream"),
        *("models.openai_compat", "models.sse"),
        *("models.connection", "models.pool", "models.retries"),
        *("models.route", "models.breaker"),
        *("stores.sqlite", "stores.dynamodb", "stores.packing", "stores.windows"),
        "telemetry",
    },
    4: {"edge", "api", "problems", "views"},
    5: {"app", "operate", "protocol", "__main__"},
}
MAY_IMPORT: Final = {0: {0}, 1: {0}, 2: {0, 1}, 3: {0, 1}, 4: {0, 1, 2}, 5: {0, 1, 2, 3, 4, 5}}

# What a module may import beyond its layer: the seams of the story, and the parts of one adapter or edge.
EDGES: Final[dict[str, set[str]]] = {
    "runtimes": {"models"},
    "stores": {"stores.values"},
    "identity": {"jose", "keys"},
    "keys": {"jose"},
    "admission": {"identity", "ledger", "policies", "submission"},
    "ledger": {"log"},
    "runner": {"attempt", "leases", "ledger", "log", "policies"},
    "attempt": {"ledger", "log"},
    "takeover": {"attempt", "leases", "policies", "runner"},
    "runtimes.converse": {"ledger", "runtimes.heard", "runtimes.metered", "tools"},
    "runtimes.metered": {"runtimes.heard"},
    "runtimes.python": {"ledger", "runtimes.heard", "runtimes.metered", "watchdog"},
    "agents": {"runtimes.python"},
    "agent_loops": {"watchdog"},
    "runtimes.heard": {"ledger"},
    "log": {"wire"},
    "follow": {"log", "presence", "readers", "wire"},
    "readers": {"log", "wire"},
    "models.bedrock": {
        *("models.aws_http", "models.eventstream"),
        *("models.connection", "models.pool", "models.retries"),
    },
    "models.openai_compat": {
        "models.sse",
        *("models.connection", "models.pool", "models.retries"),
    },
    "models.aws_http": {"models.connection", "models.pool", "models.sigv4"},
    "models.pool": {"models.connection"},
    "models.retries": {"models.connection"},
    "models.route": {"models.breaker"},
    "stores.sqlite": {"stores.packing", "stores.windows"},
    "stores.dynamodb": {"models.aws_http", "models.connection", "stores.packing", "stores.windows"},
    "api": {"edge", "views"},
    "problems": {"edge"},
}

# The command line is a client like any other: of the service it imports only its own HTTP client, and what
# carries out the commands of operators.
COMMAND_LINE: Final[dict[str, set[str]]] = {"cli": {"client", "operate"}, "client": set()}

JSON: Final = {"orjson"}
THIRD_PARTY_OF_LAYER: Final[dict[int, set[str]]] = {
    0: set(),
    1: set(),
    2: JSON,
    3: set(),
    4: {"starlette"} | JSON,
    5: {"starlette", "uvicorn", "uvloop", "aioboto3", "aiohttp"},
}
THIRD_PARTY: Final[dict[str, set[str]]] = {
    "events": JSON,
    "runtimes": JSON,
    "jose": {"cryptography"},
    "keys": {"cryptography"},
    "tools": {"jsonschema", "referencing"},  # jsonschema's own way to resolve references
    "models.aws_http": {"aioboto3", "aiobotocore", "botocore"},
    "models.sigv4": {"botocore"},
    "models.bedrock": {"botocore"} | JSON,
    "models.connection": {"httptools"} | JSON,
    "models.eventstream": JSON,
    "models.openai_compat": {"aioboto3", "aiobotocore", "botocore"} | JSON,
    "stores.sqlite": {"sqlite3"} | JSON,
    "stores.dynamodb": {"aioboto3", "botocore"} | JSON,
    "protocol": {"httptools"},
    "telemetry": {"aws_lambda_powertools"} | JSON,
}
# Of the standard library but somebody's property all the same.
OWNED_STDLIB: Final = {"sqlite3"}

# What each package may import of the repository's other packages.
PACKAGES: Final[dict[str, set[str]]] = {
    "service": set(),
    "infra": set(),
    "local": set(),
    "bench": {"service", "local"},
}


@dataclass(frozen=True)
class Module:
    """A module of the repository: its dotted name (a package's `__init__` has the package's) and its text."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=self.name)

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def station_of(name: str) -> str:
    """Return a service module's name as the tables have it: without `service.`, and of a part the whole's."""
    station = name.removeprefix("service.")
    named = COMMAND_LINE.keys() | {station for stations in LAYERS.values() for station in stations}
    whole = station
    while whole not in named and "_" in whole.rpartition(".")[2]:
        whole = whole.rpartition("_")[0]
    return whole if whole in named else station


def imports(module: Module, known: Iterable[str]) -> set[str]:
    """Return what a module imports, anywhere in it: a `known` module's full name, or the name as written."""
    names: set[str] = set()
    modules = set(known)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module.name} line {node.lineno}: imports are absolute")
            source = node.module or ""
            members = {f"{source}.{alias.name}" for alias in node.names}
            names |= members & modules
            if members - modules:
                names.add(source)
    return names


def layer_faults(modules: Mapping[str, Module]) -> list[str]:
    """Return the imports between modules of the service that the layers and edges do not allow."""
    layer_of = {station: layer for layer, stations in LAYERS.items() for station in stations}
    faults = []
    for module in modules.values():
        targets = [name for name in sorted(imports(module, modules)) if name.partition(".")[0] == "service"]
        station = station_of(module.name)
        if module.name == "service":
            faults += [f"service/__init__.py imports {name}" for name in targets]
        elif module.package == "service" and station not in layer_of.keys() | COMMAND_LINE.keys():
            faults.append(f"{module.name} has no layer")
        elif module.package == "service":
            faults += [
                f"{module.name} may not import {name}"
                for name in targets
                if not _allowed(station, station_of(name), layer_of)
            ]
    return faults


def _allowed(station: str, target: str, layer_of: Mapping[str, int]) -> bool:
    if target == station:
        return True
    if station in COMMAND_LINE:
        return target in COMMAND_LINE[station]
    if target in EDGES.get(station, ()):
        return True
    return target in layer_of and layer_of[target] in MAY_IMPORT[layer_of[station]]


def table_faults(modules: Mapping[str, Module]) -> list[str]:
    """Return what the tables name but the sources no longer have: modules, and edges that nobody uses."""
    used: dict[str, set[str]] = {}
    for module in modules.values():
        if module.package == "service":
            targets = {station_of(name) for name in imports(module, modules)}
            used.setdefault(station_of(module.name), set()).update(targets)
    named = {station for layer in LAYERS.values() for station in layer} | COMMAND_LINE.keys()
    gone = [
        f"the table names service.{station}, which is not there" for station in sorted(named - used.keys())
    ]
    return gone + [
        f"service.{station} no longer imports service.{target}"
        for station, targets in (EDGES | COMMAND_LINE).items()
        if station in used
        for target in sorted(targets - used[station])
    ]


def cycle_faults(modules: Mapping[str, Module]) -> list[str]:
    """Return the modules that import themselves through others."""
    graph = {name: imports(module, modules) & modules.keys() for name, module in modules.items()}
    while True:
        imported = {target for targets in graph.values() for target in targets}
        ends = {name for name, targets in graph.items() if not targets or name not in imported}
        if not ends:
            return [f"{name} is in a cycle, or between two" for name in sorted(graph)]
        graph = {name: targets - ends for name, targets in graph.items() if name not in ends}


def third_party_faults(modules: Mapping[str, Module]) -> list[str]:
    """Return the imports of the service of libraries that their module may not know."""
    faults = []
    for module in modules.values():
        if module.package != "service":
            continue
        station = station_of(module.name)
        allowed = set(THIRD_PARTY.get(station, set()))
        for layer, stations in LAYERS.items():
            if station in stations:
                allowed |= THIRD_PARTY_OF_LAYER[layer]
        found = {name.partition(".")[0] for name in imports(module, modules)}
        foreign = (found - sys.stdlib_module_names - {"service"}) | (found & OWNED_STDLIB)
        foreign -= PACKAGES.keys()  # those are `package_faults`
        faults += [f"{module.name} may not import {name}" for name in sorted(foreign - allowed)]
    return faults


def package_faults(modules: Mapping[str, Module]) -> list[str]:
    """Return the imports between the packages of the repository that keep them from standing alone."""
    faults = []
    for module in modules.values():
        others = (PACKAGES.keys() | {"tests"}) - PACKAGES[module.package] - {module.package}
        found = {name.partition(".")[0] for name in imports(module, modules)}
        faults += [f"{module.name} may not import {name}" for name in sorted(found & others)]
    return faults
