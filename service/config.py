"""Configuration: `Settings` from the environment, `Catalog` from `headrace.toml`; frozen, read once, all
faults at once.

`__main__` reads both before anything is opened, and `operate` the first. A fault never stops at the first:
`ConfigError` lists them all, each with the name that must be changed. `os.environ` is read where programs
begin, in `__main__` and `cli`, and nowhere else.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from service.config_options import NO_OPTIONS as NO_OPTIONS
from service.config_options import (
    OPTIONS,
    model_faults,
)
from service.config_options import SYSTEM as SYSTEM
from service.config_options import TOOLS as TOOLS
from service.config_options import Guardrail as Guardrail
from service.config_options import ModelName as ModelName
from service.config_options import ModelOptions as ModelOptions
from service.config_options import Reasoning as Reasoning
from service.config_options import cache_points as cache_points
from service.config_reader import MAX_DEADLINE_S as MAX_DEADLINE_S
from service.config_reader import Reader
from service.config_upstreams import UpstreamConfig as UpstreamConfig
from service.config_upstreams import keys_in, upstream_faults

KIB: Final = 1024


class ConfigError(Exception):
    """The configuration is wrong; `faults` are all the reasons, one sentence each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are: the environment (DESIGN section 7). Times and limits are in the catalog.

    `store` is `sqlite:PATH`, or `dynamodb:USAGE TABLE:INVOCATIONS TABLE`.
    """

    issuer: str
    audiences: tuple[str, ...]
    jwks_url: str
    store: str
    host: str = "127.0.0.1"
    port: int = 8080
    catalog: Path = Path("headrace.toml")
    cors_origins: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the `HEADRACE_*` variables.

        Raises:
            ConfigError: Every unknown `HEADRACE_*` name, missing variable and bad value.
        """
        faults: list[str] = []
        given = {
            name.removeprefix("HEADRACE_"): value
            for name, value in environ.items()
            if name.startswith("HEADRACE_")
        }
        faults += [
            f"HEADRACE_{name} is not a setting; settings are {', '.join('HEADRACE_' + n for n in _VARIABLES)}"
            for name in sorted(given.keys() - _VARIABLES)
        ]

        def required(name: str, check: Callable[[str], str | None]) -> str:
            value = given.get(name, "").strip()
            fault = check(value) if value else "is not set"
            if fault:
                faults.append(f"HEADRACE_{name} {fault}")
            return value

        issuer = required("ISSUER", _url_fault).rstrip("/")
        audiences = _comma_separated(required("AUDIENCES", lambda _: None))
        store = required("STORE", _store_fault)
        if store == DYNAMODB:
            tables = (required("USAGE_TABLE", _table_fault), required("INVOCATIONS_TABLE", _table_fault))
            store = ":".join((DYNAMODB, *tables))
        jwks_url = given.get("JWKS_URL") or f"{issuer}/.well-known/jwks.json"
        if issuer and (fault := _url_fault(jwks_url)):
            faults.append(f"HEADRACE_JWKS_URL {fault}")
        port = given.get("PORT", "8080")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            faults.append(f"HEADRACE_PORT must be a number from 0 to 65535, not {port!r}")
        origins = _comma_separated(given.get("CORS_ORIGINS", ""))
        for origin in origins:
            parts = _split(origin)
            if origin != f"{parts.scheme}://{parts.netloc}" or parts.scheme not in ("http", "https"):
                faults.append(
                    f"HEADRACE_CORS_ORIGINS: {origin!r} is not an origin such as https://app.example.com"
                )
        if faults:
            raise ConfigError(faults)
        return cls(
            issuer=issuer,
            audiences=audiences,
            jwks_url=jwks_url,
            store=store,
            host=given.get("HOST") or "127.0.0.1",
            port=int(port),
            catalog=Path(given.get("CATALOG") or "headrace.toml"),
            cors_origins=origins,
        )


DYNAMODB: Final = "dynamodb"
_VARIABLES: Final = (
    "HOST",
    "PORT",
    "CATALOG",
    "ISSUER",
    "AUDIENCES",
    "JWKS_URL",
    "STORE",
    "USAGE_TABLE",
    "INVOCATIONS_TABLE",
    "CORS_ORIGINS",
)
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html
_TABLE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}", re.ASCII)


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as "https://[": no URL at all
        return urlsplit("")


def _url_fault(value: str) -> str | None:
    parts = _split(value)
    if parts.scheme == "https" and parts.netloc:
        return None
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return f"must be an https URL (http only on loopback), not {value!r}"


def _store_fault(value: str) -> str | None:
    if value == DYNAMODB or (value.startswith("sqlite:") and len(value) > len("sqlite:")):
        return None
    return f"must be dynamodb, sqlite:PATH or sqlite::memory:, not {value!r}"


def _table_fault(value: str) -> str | None:
    if _TABLE_NAME.fullmatch(value):
        return None
    return f"must be a table's name (3 to 255 letters, digits, _ . or -), not {value!r}"


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """`[service]`: times and limits of one process, all with defaults. `RANGES` holds what is allowed."""

    heartbeat_s: float = 10.0
    segment_s: float = 840.0
    drain_s: float = 100.0
    first_event_grace_s: float = 1.0
    write_timeout_s: float = 30.0
    lease_s: float = 30.0
    usage_grace_s: float = 1.0
    abandon_s: float = 30.0
    pause_limit_s: float = 48 * 3600.0  # the daily window frees its oldest bucket after 24 h 10 min
    retention_s: float = 24 * 3600.0
    upstream_silence_s: float = 900.0
    max_token_s: float = 3600.0
    body_limit_bytes: int = 256 * KIB
    bodies_being_read_bytes: int = 64 * KIB * KIB
    running_invocations: int = 1000
    open_readers: int = 10_000
    readers_per_principal: int = 100
    unstored_bytes: int = 64 * KIB * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What a principal may use: tokens per rolling 24 h and calendar month, invocations at once.

    `invocation_tokens` is the budget of each invocation.
    """

    daily_tokens: int = 200_000
    monthly_tokens: int = 2_000_000
    concurrent_invocations: int = 8
    invocation_tokens: int = 500_000

    def largest(self, other: "Limits") -> "Limits":
        """Combine the limits of two groups: the larger of each."""
        return Limits(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(Limits)))


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """`[runtimes.NAME]`: a named agent. `model` is one name or several, tried in their order (`route`).

    `first_event_s` is how long a model may take to its first event while there is another one to try.
    """

    name: str
    kind: str
    model: str | tuple[str, ...] = ()
    first_event_s: float = 60.0
    instructions: str = ""
    tools: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("*",)
    max_output_tokens: int = 4096
    max_turns: int = 10
    deadline_s: float = 3600.0
    on_disconnect: str = "continue"
    body_limit_bytes: int | None = None
    entry: str = ""
    models: tuple[str, ...] = ()
    restartable: bool = False
    cleanup_s: float = 3.0
    options: ModelOptions = NO_OPTIONS

    @property
    def route(self) -> tuple[ModelName, ...]:
        """The models that it may call: of `converse` in the order in which they are tried."""
        return _route(self.models if self.kind == "python" else self.model)

    def admits(self, groups: tuple[str, ...]) -> bool:
        """Tell whether a principal in these groups may call this runtime."""
        return "*" in self.groups or not set(self.groups).isdisjoint(groups)


@lru_cache(maxsize=1024)  # asked for with every invocation
def _route(names: str | tuple[str, ...]) -> tuple[ModelName, ...]:
    return tuple(map(ModelName.of, (names,) if isinstance(names, str) else names))


@dataclass(frozen=True, slots=True)
class Catalog:
    """What this deployment serves: `headrace.toml`, validated as a whole.

    `keys` are the API keys of upstreams that the file leaves to the environment, by upstream.
    """

    service: ServiceConfig = ServiceConfig()
    upstreams: Mapping[str, UpstreamConfig] = field(default_factory=dict)
    runtimes: Mapping[str, RuntimeConfig] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str] | None = None) -> "Catalog":
        """Read and validate the file; `environ` holds the keys that it names.

        Raises:
            ConfigError: The file can't be read, is not TOML, or has faults; all of them.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError([f"the catalog {path} can't be read: {error.strerror}"]) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"the catalog {path} is not TOML: {error}"]) from error
        return cls.from_document(document, environ)

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> "Catalog":
        """Validate a parsed catalog.

        Raises:
            ConfigError: All faults of the document.
        """
        reader = Reader()
        reader.unknown_keys("", document, {"service", "upstreams", "runtimes", "limits"})
        service = reader.table("service", document.get("service", {}), ServiceConfig, {})
        upstreams = {
            name: reader.table(f"upstreams.{name}", table, UpstreamConfig, {"name": name})
            for name, table in reader.named_tables("upstreams", document)
        }
        runtimes = {
            name: _read_runtime(reader, name, table)
            for name, table in reader.named_tables("runtimes", document)
        }
        tables = dict(reader.named_tables("limits", document, any_name=True))
        default = reader.table("limits.default", tables.pop("default", {}), Limits, {})
        limits = {
            name: reader.table(f"limits.{name}", table, Limits, asdict(default or Limits()))
            for name, table in tables.items()
        }
        limits["default"] = default
        kinds = {name: upstream.kind if upstream else "" for name, upstream in upstreams.items()}
        for upstream in _present(upstreams).values():
            reader.faults += upstream_faults(upstream)
        for name, runtime in runtimes.items():
            if runtime is not None:
                given = document["runtimes"][name].keys()
                _check_runtime(reader, f"runtimes.{name}", runtime, given, kinds)
        if not runtimes:
            reader.faults.append("runtimes: at least one [runtimes.NAME] is needed")
        keys = keys_in(_present(upstreams), environ or {}, reader.faults)
        if reader.faults:
            raise ConfigError(reader.faults)
        return cls(
            service or ServiceConfig(), _present(upstreams), _present(runtimes), _present(limits), keys
        )

    def limits_of(self, groups: tuple[str, ...]) -> Limits:
        """Return the limits of a principal: of its groups' limits the largest, without any the default."""
        mine = [self.limits[group] for group in groups if group in self.limits and group != "default"]
        if not mine:
            return self.limits["default"]
        combined = mine[0]
        for limits in mine[1:]:
            combined = combined.largest(limits)
        return combined


_Table = TypeVar("_Table")


def _present(tables: Mapping[str, _Table | None]) -> dict[str, _Table]:
    return {name: table for name, table in tables.items() if table is not None}


def _read_runtime(reader: Reader, name: str, table: Mapping[str, Any]) -> RuntimeConfig | None:
    """Read a runtime's table: its own keys, and those that are options of its model calls."""
    where = f"runtimes.{name}"
    of_model = {key: value for key, value in table.items() if key in OPTIONS}
    rest = {key: value for key, value in table.items() if key not in OPTIONS}
    options = reader.table(where, of_model, ModelOptions, {}) or ModelOptions()
    return reader.table(where, rest, RuntimeConfig, {"name": name, "options": options}, beside=OPTIONS)


# The keys that mean something to one kind of runtime only.
_KEYS_OF_KIND: Final = {
    "converse": {"model", "instructions", "tools", "first_event_s"},
    "python": {"entry", "models", "restartable", "cleanup_s"},
}
_ENTRY: Final = re.compile(r"[\w.]+:\w+")


def _check_runtime(
    reader: Reader, where: str, runtime: RuntimeConfig, given: Set[str], kinds: Mapping[str, str]
) -> None:
    if runtime.kind not in _KEYS_OF_KIND:
        reader.faults.append(f'{where}.kind must be "converse" or "python", not {runtime.kind!r}')
    for kind, keys in _KEYS_OF_KIND.items():
        if kind != runtime.kind in _KEYS_OF_KIND:
            reader.faults += [
                f'{where}.{key} is for runtimes of kind "{kind}"' for key in sorted(keys & given)
            ]
    is_agent = runtime.kind == "python"  # what it sends is its own, and may have all of it
    has = {SYSTEM: is_agent or runtime.instructions, TOOLS: is_agent or runtime.tools}
    reader.faults += [
        f"{where}.{fault}"
        for fault in model_faults(
            runtime.route,
            kinds,
            runtime.options,
            max_output_tokens=runtime.max_output_tokens,
            cacheable=frozenset(part for part, content in has.items() if content),
            key="models" if is_agent else "model",
        )
    ]
    if runtime.on_disconnect not in ("continue", "cancel"):
        reader.faults.append(
            f'{where}.on_disconnect must be "continue" or "cancel", not {runtime.on_disconnect!r}'
        )
    reader.faults += [
        f'{where}.tools: {entry!r} is not "package.module:function"'
        for entry in runtime.tools
        if not _ENTRY.fullmatch(entry)
    ]
    if runtime.kind == "python" and not _ENTRY.fullmatch(runtime.entry):
        reader.faults.append(f'{where}.entry must be "package.module:function", not {runtime.entry!r}')
