"""What `headrace.toml` needs of AWS: models, guardrails, secrets to read, groups to make, ports to reach.

`app` reads it and hands it to the stacks. The service validates the file as a whole when it starts; here it
is enough that what the stack takes from it is there and can be granted.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from infra.config import Stage, StageError
from infra.models import model_fault

# https://docs.aws.amazon.com/cognito-user-identity-pools/latest/APIReference/API_CreateGroup.html
_GROUP: Final = re.compile(r"\S{1,128}")
_SECRET: Final = re.compile(r"arn:aws:secretsmanager:[a-z0-9-]+:\d{12}:secret:\S+", re.ASCII)
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_GuardrailStreamConfiguration.html
_GUARDRAIL: Final = re.compile(r"[a-z0-9]+|arn:aws:bedrock:[a-z0-9-]+:\d{12}:guardrail/[a-z0-9]+", re.ASCII)
_MAX_TOKEN_S: Final = 3600  # the service's own default


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the deployment serves, as far as AWS must know it; all sorted, each once."""

    models: tuple[str, ...]
    secrets: tuple[str, ...]
    groups: tuple[str, ...]
    ports: tuple[int, ...]
    guardrails: tuple[str, ...] = ()


def load_catalog(path: Path, stage: Stage) -> Catalog:
    """Read the file for a stage.

    Raises:
        StageError: It can't be read, or names what can't be granted or made; all of it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StageError([f"the catalog {path} can't be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StageError([f"the catalog {path} is not TOML: {error}"]) from error
    if malformed := list(_malformed(document)):
        raise StageError([f"the catalog {path}: {fault}" for fault in malformed])
    upstreams, runtimes = _tables(document, "upstreams"), _tables(document, "runtimes")
    bedrock = {name for name, upstream in upstreams.items() if upstream.get("kind") == "bedrock"}
    named = [name.partition("/") for runtime in runtimes.values() for name in _models(runtime)]
    models = sorted({model for upstream, _, model in named if upstream in bedrock and model})
    guardrails = sorted({guardrail for runtime in runtimes.values() for guardrail in _guardrails(runtime)})
    secrets = sorted({secret for upstream in upstreams.values() for secret in _secrets(upstream)})
    callers = {str(group) for runtime in runtimes.values() for group in runtime.get("groups", ())}
    groups = sorted((callers | _tables(document, "limits").keys()) - {"*", "default"})
    faults = [] if runtimes else [f"the catalog {path} has no [runtimes.NAME]"]
    faults += [fault for model in models if (fault := model_fault(model, stage.region))]
    faults += [
        f"{guardrail!r} is not the id or ARN of a guardrail"
        for guardrail in guardrails
        if not _GUARDRAIL.fullmatch(guardrail)
    ]
    faults += [
        f"{secret!r} is not the ARN of a secret" for secret in secrets if not _SECRET.fullmatch(secret)
    ]
    faults += [
        f"Cognito has no group {group!r}: it has white space"
        for group in groups
        if not _GROUP.fullmatch(group)
    ]
    longest_s = document.get("service", {}).get("max_token_s", _MAX_TOKEN_S)
    if stage.id_token_minutes * 60 > longest_s:
        faults.append(
            f"id_token_minutes is {stage.id_token_minutes}, and max_token_s of the catalog {longest_s}"
        )
    if faults:
        raise StageError(faults)
    return Catalog(tuple(models), tuple(secrets), tuple(groups), _ports(upstreams), tuple(guardrails))


def _malformed(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has not the form in which it is read here; the rest is the service's to check."""
    for section in ("service", "upstreams", "runtimes", "limits"):
        tables = document.get(section, {})
        entries = {section: tables}
        if section != "service" and _is_table(tables):
            entries |= {f"{section}.{name}": table for name, table in tables.items()}
        yield from (f"{name} must be a table" for name, table in entries.items() if not _is_table(table))
    for name, runtime in _tables(document, "runtimes").items():
        groups = runtime.get("groups", [])
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            yield f"runtimes.{name}.groups must be a list of texts"
    for name, upstream in _tables(document, "upstreams").items():
        try:
            _ports({name: upstream})
        except ValueError:
            yield f"upstreams.{name}.base_url is not a URL"
    longest_s = document["service"].get("max_token_s", 0) if _is_table(document.get("service")) else 0
    if not isinstance(longest_s, int | float):
        yield "service.max_token_s must be a number"


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _tables(document: Mapping[str, Any], name: str) -> Mapping[str, Mapping[str, Any]]:
    tables = document.get(name, {})
    return {key: table for key, table in tables.items() if _is_table(table)} if _is_table(tables) else {}


def _models(runtime: Mapping[str, Any]) -> list[str]:
    """Return what a runtime calls: its `model`, one or several, or what its agent may call."""
    model = runtime.get("model", ())
    names = [model] if isinstance(model, str) else model
    return [str(name) for name in (*names, *runtime.get("models", ()))]


def _guardrails(runtime: Mapping[str, Any]) -> list[str]:
    guardrail = runtime.get("guardrail", {})
    return [str(guardrail["id"])] if isinstance(guardrail, dict) and "id" in guardrail else []


def _secrets(upstream: Mapping[str, Any]) -> list[str]:
    return [str(value) for key, value in upstream.items() if key.endswith("_secret")]


def _ports(upstreams: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Return where upstreams other than AWS listen, beside 443."""
    addresses = [urlsplit(str(upstream.get("base_url", ""))) for upstream in upstreams.values()]
    ports = {
        address.port or (80 if address.scheme == "http" else 443) for address in addresses if address.netloc
    }
    return tuple(sorted(ports - {443}))
