"""What a runtime may ask of its models: each key, its range, and what excludes what."""

import tomllib

import pytest

from service.config import Catalog, ConfigError, Guardrail, ModelName, ModelOptions, Reasoning
from service.config import cache_points as cache_points_of

CLAUDE = "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
CATALOG = """
[upstreams.bedrock]
kind = "bedrock"
[runtimes.writer]
kind = "converse"
instructions = "Be brief."
"""


def catalog_of(keys: str, *, model: str = f'"{CLAUDE}"', head: str = CATALOG) -> Catalog:
    return Catalog.from_document(tomllib.loads(f"{head}model = {model}\n{keys}"))


def faults_of(keys: str, *, model: str = f'"{CLAUDE}"', head: str = CATALOG) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        catalog_of(keys, model=model, head=head)
    return [fault.removeprefix("runtimes.writer.") for fault in wrong.value.faults]


def test_every_option_is_read() -> None:
    catalog = catalog_of(
        """
        cache = true
        guardrail = { id = "gr1", version = "3", trace = "enabled", stream_mode = "async" }
        performance = "optimized"
        reasoning = { budget_tokens = 2048 }
        stop_sequences = ["END"]
        additional_model_request_fields = { anthropic_beta = ["x"], deep = { k = 1.5, on = true } }
        """
    )

    assert catalog.runtimes["writer"].options == ModelOptions(
        cache=True,
        guardrail=Guardrail("gr1", "3", "enabled", "async"),
        performance="optimized",
        reasoning=Reasoning(2048),
        stop_sequences=("END",),
        additional_model_request_fields={"anthropic_beta": ["x"], "deep": {"k": 1.5, "on": True}},
    )


def test_sampling_is_read_and_a_guardrail_is_synchronous_unless_said() -> None:
    options = catalog_of(
        """
        temperature = 0
        top_p = 0.9
        guardrail = { id = "arn:aws:bedrock:eu-west-1:123456789012:guardrail/gr1", version = "DRAFT" }
        """
    )

    assert options.runtimes["writer"].options == ModelOptions(
        temperature=0.0,
        top_p=0.9,
        guardrail=Guardrail(
            "arn:aws:bedrock:eu-west-1:123456789012:guardrail/gr1", "DRAFT", "disabled", "sync"
        ),
    )


def test_without_a_key_nothing_is_asked_for() -> None:
    assert catalog_of("").runtimes["writer"].options == ModelOptions()


@pytest.mark.promise("unknown-names-stop-start")
def test_all_faults_of_all_options_are_listed() -> None:
    faults = faults_of(
        """
        cache = "yes"
        guardrail = { id = "GR 1", version = "v1", mode = "sync" }
        performance = "fast"
        reasoning = { budget_tokens = 100 }
        temperature = 1.5
        top_p = true
        stop_sequences = "END"
        additional_model_request_fields = { since = 2026-11-21, k = nan }
        first_event_s = 0
        speed = 3
        """
    )

    (unknown,) = (fault for fault in faults if fault.startswith("speed is not known; known here: additional"))
    assert faults == [
        "cache must be true or false, not 'yes'",
        "guardrail.mode is not known; known here: id, stream_mode, trace, version",
        'performance must be "standard" or "optimized", not \'fast\'',
        "reasoning.budget_tokens must be a whole number from 1024 to 1e+06, not 100",
        "temperature must be a number from 0 to 1, not 1.5",
        "top_p must be a number from 0 to 1, not True",
        "stop_sequences must be a list of strings",
        "additional_model_request_fields must be a table of what JSON has",
        unknown,
        "first_event_s must be a number from 0.1 to 900, not 0",
    ]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ('guardrail = { id = "gr1" }', "guardrail.version is missing"),
        ("guardrail = 3", "guardrail must be a table"),
        ('guardrail = { id = "gr1", version = 3 }', "guardrail.version must be a non-empty string"),
        (
            'guardrail = { id = "g r", version = "1" }',
            "guardrail.id must be a guardrail's id or ARN, not 'g r'",
        ),
        (
            'guardrail = { id = "gr1", version = "0" }',
            "guardrail.version must be a number, as a string, or \"DRAFT\", not '0'",
        ),
        (
            'guardrail = { id = "gr1", version = "1", trace = "all" }',
            'guardrail.trace must be "disabled", "enabled" or "enabled_full", not \'all\'',
        ),
        ("reasoning = { }", "reasoning.budget_tokens is missing"),
        (
            "reasoning = { budget_tokens = 4096 }",
            "reasoning.budget_tokens must be less than max_output_tokens (4096), of which it is a part",
        ),
        (
            "reasoning = { budget_tokens = 1024 }\ntemperature = 1.0",
            "temperature can't be set beside reasoning",
        ),
        ("reasoning = { budget_tokens = 1024 }\ntop_p = 1", "top_p can't be set beside reasoning"),
        (
            "reasoning = { budget_tokens = 1024 }\nadditional_model_request_fields = { thinking = {} }",
            "additional_model_request_fields.thinking can't be set beside reasoning, which sets it",
        ),
        (
            "additional_model_request_fields = { inferenceConfig = { maxNewTokens = 9 } }",
            (
                "additional_model_request_fields.inferenceConfig.maxNewTokens can't be set: max_output_tokens"
                " bounds an answer, and holds rest on it"
            ),
        ),
    ],
)
def test_each_fault_of_an_option_is_one_sentence(keys: str, fault: str) -> None:
    assert faults_of(keys) == [fault]


# -- what the models can do


@pytest.mark.parametrize(
    ("model_id", "parts"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", {"system", "tools"}),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", {"system", "tools"}),
        ("global.amazon.nova-2-lite-v1:0", {"system"}),
        ("arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0", {"system"}),
        ("arn:aws:bedrock:us-east-1::foundation-model/meta.llama3-1-8b-instruct-v1:0", set()),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1", {"system", "tools"}),
        ("us.meta.llama3-3-70b-instruct-v1:0", set()),
    ],
)
def test_a_model_takes_cache_points_where_its_family_does(model_id: str, parts: set[str]) -> None:
    assert cache_points_of(model_id) == parts


NOTHING_TO_CACHE = (
    "cache is true, and there is nothing to cache: no instructions or tools, or no model that can"
)


def test_a_cache_that_would_hold_nothing_is_a_fault() -> None:
    bare = CATALOG.replace('instructions = "Be brief."', "")
    nova_with_tools = bare + 'tools = ["a:b"]\n'

    assert faults_of("cache = true", head=bare) == [NOTHING_TO_CACHE]
    assert faults_of("cache = true", model='"bedrock/meta.llama3-1-8b-instruct-v1:0"') == [NOTHING_TO_CACHE]
    assert faults_of("cache = true", model='"bedrock/amazon.nova-lite-v1:0"', head=nova_with_tools) == [
        NOTHING_TO_CACHE
    ]


def test_a_cache_is_enough_for_one_of_several_models() -> None:
    several = f'["bedrock/meta.llama3-1-8b-instruct-v1:0", "{CLAUDE}"]'

    assert catalog_of("cache = true", model=several).runtimes["writer"].options.cache


def test_reasoning_is_claudes() -> None:
    several = f'["{CLAUDE}", "bedrock/us.amazon.nova-lite-v1:0", "bedrock/a-custom-one"]'

    assert faults_of("reasoning = { budget_tokens = 1024 }", model=several) == [
        (
            "reasoning is how Claude is asked to think, and 'us.amazon.nova-lite-v1:0' is no Claude: use"
            " additional_model_request_fields, as that model has it"
        )
    ]


# -- several models


def test_one_model_or_several_are_read_in_their_order() -> None:
    arn = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1"
    several = f'["bedrock/{arn}", "bedrock/eu.amazon.nova-lite-v1:0"]'

    assert catalog_of("").runtimes["writer"].route == (ModelName.of(CLAUDE),)
    assert catalog_of("", model=several).runtimes["writer"].route == (
        ModelName("bedrock", arn),
        ModelName("bedrock", "eu.amazon.nova-lite-v1:0"),
    )


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("[]", 'model must be "UPSTREAM/MODEL ID", such as "bedrock/us.amazon.nova-lite-v1:0"'),
        (
            '["bedrock/a", "nova"]',
            'model must be "UPSTREAM/MODEL ID", such as "bedrock/us.amazon.nova-lite-v1:0"',
        ),
        ('["bedrock/a", "vllm/b", "ollama/c"]', "model names the upstream 'ollama', which [upstreams] lacks"),
        ('["bedrock/a", "bedrock/b", "bedrock/a"]', "model names the same model twice"),
    ],
)
def test_each_fault_of_several_models_is_told(model: str, fault: str) -> None:
    assert fault in faults_of("", model=model)


@pytest.mark.parametrize(
    "model", ['["bedrock/a", 3]', "{ first = 1 }", "3"], ids=["not a string", "table", "number"]
)
def test_what_is_neither_a_name_nor_a_list_of_names_is_a_fault(model: str) -> None:
    assert faults_of("", model=model)[0] == "model must be a list of strings"


def test_what_callers_see_of_an_arn_tells_neither_account_nor_region() -> None:
    arn = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1"

    assert ModelName("bedrock", arn).shown == "bedrock/a1"
    assert ModelName("vllm", "Qwen/Qwen3-8B").shown == "vllm/Qwen/Qwen3-8B"


# -- another kind of upstream

WITH_VLLM = CATALOG.replace(
    "[runtimes.writer]",
    '[upstreams.vllm]\nkind = "openai"\nbase_url = "http://10.0.3.7:8000/v1"\n[runtimes.writer]',
)


def test_what_only_bedrock_has_is_refused_for_another_upstream_at_start() -> None:
    faults = faults_of(
        """
        guardrail = { id = "gr1", version = "1" }
        performance = "optimized"
        reasoning = { budget_tokens = 1024 }
        additional_model_request_fields = { top_k = 5 }
        """,
        model=f'["{CLAUDE}", "vllm/qwen"]',
        head=WITH_VLLM,
    )

    assert faults == [
        "guardrail is for models of Bedrock, and 'vllm/qwen' is none",
        "performance is for models of Bedrock, and 'vllm/qwen' is none",
        "reasoning is for models of Bedrock, and 'vllm/qwen' is none",
        "additional_model_request_fields is for models of Bedrock, and 'vllm/qwen' is none",
    ]


def test_what_every_upstream_has_and_a_cache_that_one_model_takes_are_no_fault() -> None:
    keys = 'cache = true\ntemperature = 0.5\ntop_p = 0.5\nstop_sequences = ["END"]'

    catalog = catalog_of(keys, model=f'["vllm/qwen", "{CLAUDE}"]', head=WITH_VLLM)

    assert catalog.runtimes["writer"].options.temperature == 0.5
    assert faults_of("cache = true", model='"vllm/qwen"', head=WITH_VLLM) == [NOTHING_TO_CACHE]
