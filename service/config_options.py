"""What a runtime asks for in its model calls: the models' names, cache points, a guardrail, reasoning.

A part of `config`, which reads these keys of `[runtimes.NAME]` and finds their faults at start; the adapters
of upstreams send them. What a model of Bedrock can do is told by its name, where that says its family
(`us.anthropic.claude-...`). Of one that doesn't (an application inference profile, a custom model) the
deployer is believed.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html (which fields of which models),
https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html (what excludes
what)
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Guardrail:
    """`guardrail`: what Bedrock checks the conversation and the answer with."""

    id: str
    version: str
    trace: str = "disabled"
    stream_mode: str = "sync"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """`reasoning`: how many of its output tokens a model may spend on thinking."""

    budget_tokens: int


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The options of a runtime's model calls; each default is what is sent if a key is absent: nothing."""

    cache: bool = False
    guardrail: Guardrail | None = None
    performance: str | None = None
    reasoning: Reasoning | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: tuple[str, ...] = ()
    additional_model_request_fields: Mapping[str, Any] = field(default_factory=dict)


class ModelName(NamedTuple):
    """A model as `model` names it, `UPSTREAM/MODEL ID`: a table of `[upstreams]`, and its id there."""

    upstream: str
    model_id: str

    @classmethod
    def of(cls, text: str) -> "ModelName":
        """Part a name at its first slash: ids have slashes too."""
        upstream, _, model_id = text.partition("/")
        return cls(upstream, model_id)

    def __str__(self) -> str:
        return sys.intern(f"{self.upstream}/{self.model_id}")  # each running attempt keeps it, three times

    @property
    def shown(self) -> str:
        """The name that callers see: of an ARN, which tells account and Region, its last part."""
        is_arn = self.model_id.startswith("arn:")
        return f"{self.upstream}/{self.model_id.rpartition('/')[2] if is_arn else self.model_id}"


NO_OPTIONS: Final = ModelOptions()
OPTIONS: Final = frozenset(option.name for option in fields(ModelOptions))
SYSTEM, TOOLS = "system", "tools"

# Where a family takes cache points; Nova takes none behind its tools.
_CACHED: Final[Mapping[str, frozenset[str]]] = {
    "anthropic.claude": frozenset({SYSTEM, TOOLS}),
    "amazon.nova": frozenset({SYSTEM}),
}
_THINKS: Final = "anthropic.claude"
# Of an ARN, the foundation model or inference profile that it names.
_FAMILY: Final = re.compile(
    r"(?:arn:[^/]*:(?:foundation-model|inference-profile)/)?(?:(?:[a-z]{2}|apac|global|us-gov)\.)?"
    r"([a-z0-9]+\.[a-z]+)",
    re.ASCII,
)
_GUARDRAIL_ID: Final = re.compile(
    r"[a-z0-9]+|arn:aws(?:-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:guardrail/[a-z0-9]+", re.ASCII
)
_GUARDRAIL_VERSION: Final = re.compile(r"[1-9][0-9]{0,7}|DRAFT", re.ASCII)
# What would let a model generate more than `maxTokens`, on which every hold rests; without case and `_`.
_UNBOUNDED: Final = frozenset(
    {
        *("maxtokens", "maxnewtokens", "maxgenlen", "maxtokenstosample", "maxcompletiontokens"),
        *("maxtokencount", "n", "bestof", "numgenerations", "numresults", "numreturnsequences"),
    }
)
_OURS: Final = frozenset({"thinking", "reasoning_config"})
# What another upstream has no place for. Without cache points an answer is the same, so `cache` is not here.
_BEDROCK_ONLY: Final = ("guardrail", "performance", "reasoning", "additional_model_request_fields")


def cache_points(model_id: str) -> frozenset[str]:
    """Return behind which parts of a request a model of Bedrock takes a cache point: `system`, `tools`."""
    family = family_of(model_id)
    return _CACHED.get(family, frozenset()) if family else frozenset({SYSTEM, TOOLS})


@lru_cache(maxsize=1024)  # asked for with every message of every call
def family_of(model_id: str) -> str:
    """Return the provider and family that a model of Bedrock has in its name, or "" if it has none."""
    match = _FAMILY.match(model_id)
    return match[1] if match else ""


def model_faults(
    models: Sequence[ModelName],
    kinds: Mapping[str, str],
    options: ModelOptions,
    *,
    max_output_tokens: int,
    cacheable: frozenset[str],
    key: str = "model",
) -> Iterator[str]:
    """Yield what is wrong with a runtime's models and what it asks of them: sentences, each from a key on.

    Args:
        kinds: The kind of each upstream.
        cacheable: Which of `system` and `tools` its requests have.
        key: Where the models are named: `model`, or `models`, which may be none.
    """
    if (not models and key == "model") or not all(map(all, models)):
        yield f'{key} must be "UPSTREAM/MODEL ID", such as "bedrock/us.amazon.nova-lite-v1:0"'
    if len(set(models)) < len(models):
        yield f"{key} names the same model twice"
    for upstream in sorted({name.upstream for name in models if all(name)} - kinds.keys()):
        yield f"{key} names the upstream {upstream!r}, which [upstreams] lacks"
    yield from _conflicts(options, max_output_tokens)
    on_bedrock = [name.model_id for name in models if kinds.get(name.upstream) == "bedrock"]
    if options.cache and not any(cache_points(model_id) & cacheable for model_id in on_bedrock):
        yield "cache is true, and there is nothing to cache: no instructions or tools, or no model that can"
    if options.reasoning is not None:
        for model_id in on_bedrock:
            if family_of(model_id) not in (_THINKS, ""):
                yield (
                    f"reasoning is how Claude is asked to think, and {model_id!r} is no Claude: use"
                    " additional_model_request_fields, as that model has it"
                )
    for name in models:
        if kinds.get(name.upstream, "bedrock") != "bedrock":
            for option in _BEDROCK_ONLY:
                if getattr(options, option):
                    yield f"{option} is for models of Bedrock, and {str(name)!r} is none"


def _conflicts(options: ModelOptions, max_output_tokens: int) -> Iterator[str]:
    """Yield what is wrong with options whatever the model."""
    guardrail, reasoning = options.guardrail, options.reasoning
    if guardrail is not None:
        if not _GUARDRAIL_ID.fullmatch(guardrail.id):
            yield f"guardrail.id must be a guardrail's id or ARN, not {guardrail.id!r}"
        if not _GUARDRAIL_VERSION.fullmatch(guardrail.version):
            yield f'guardrail.version must be a number, as a string, or "DRAFT", not {guardrail.version!r}'
    if reasoning is not None:
        if reasoning.budget_tokens >= max_output_tokens:
            yield (
                f"reasoning.budget_tokens must be less than max_output_tokens ({max_output_tokens}), of which"
                " it is a part"
            )
        for name in ("temperature", "top_p"):
            if getattr(options, name) is not None:
                yield f"{name} can't be set beside reasoning"
    more = options.additional_model_request_fields
    if reasoning is not None:
        for name in sorted(_OURS & more.keys()):
            yield f"additional_model_request_fields.{name} can't be set beside reasoning, which sets it"
    for name in _unbounded(more):
        yield (
            f"additional_model_request_fields.{name} can't be set: max_output_tokens bounds an answer, and"
            " holds rest on it"
        )


def _unbounded(more: Mapping[str, Any]) -> Iterator[str]:
    for name, value in more.items():
        if name.lower().replace("_", "") in _UNBOUNDED:
            yield name
        elif isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _unbounded(value))
