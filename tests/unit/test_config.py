import tomllib
from pathlib import Path

import pytest

from service.config import Catalog, ConfigError, Limits, ModelName, ServiceConfig, Settings

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "HEADRACE_ISSUER": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_abc",
    "HEADRACE_AUDIENCES": "web, cli",
    "HEADRACE_STORE": "sqlite:/var/lib/headrace.db",
    "PATH": "/usr/bin",
}
CATALOG = """
[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/us.amazon.nova-lite-v1:0"
"""


def faults_of(toml: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        Catalog.from_document(tomllib.loads(toml))
    return wrong.value.faults


def test_the_environment_says_where_things_are() -> None:
    settings = Settings.from_env(ENVIRON)

    assert settings == Settings(
        issuer="https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_abc",
        audiences=("web", "cli"),
        jwks_url="https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_abc/.well-known/jwks.json",
        store="sqlite:/var/lib/headrace.db",
        host="127.0.0.1",
        port=8080,
        catalog=Path("headrace.toml"),
        cors_origins=(),
    )


@pytest.mark.promise("unknown-names-stop-start")
def test_all_faults_of_the_environment_are_listed() -> None:
    environ = {
        "HEADRACE_ISUER": "https://typo",
        "HEADRACE_ISSUER": "http://issuer.example.com",
        "HEADRACE_STORE": "postgres:x",
        "HEADRACE_PORT": "80800",
        "HEADRACE_CORS_ORIGINS": "https://app.example.com/path",
        "HEADRACE_JWKS_URL": "ftp://keys",
    }

    with pytest.raises(ConfigError) as wrong:
        Settings.from_env(environ)

    assert [fault.split()[0].rstrip(":") for fault in wrong.value.faults] == [
        "HEADRACE_ISUER",
        "HEADRACE_ISSUER",
        "HEADRACE_AUDIENCES",
        "HEADRACE_STORE",
        "HEADRACE_JWKS_URL",
        "HEADRACE_PORT",
        "HEADRACE_CORS_ORIGINS",
    ]


def test_dynamodb_needs_the_names_of_both_tables() -> None:
    dynamodb = {**ENVIRON, "HEADRACE_STORE": "dynamodb"}
    names = {"HEADRACE_USAGE_TABLE": "usage", "HEADRACE_INVOCATIONS_TABLE": "invocations.v1"}

    with pytest.raises(ConfigError) as wrong:
        Settings.from_env(dynamodb | {"HEADRACE_INVOCATIONS_TABLE": "no spaces"})

    assert wrong.value.faults == [
        "HEADRACE_USAGE_TABLE is not set",
        (
            "HEADRACE_INVOCATIONS_TABLE must be a table's name (3 to 255 letters, digits, _ . or -),"
            " not 'no spaces'"
        ),
    ]
    assert Settings.from_env(dynamodb | names).store == "dynamodb:usage:invocations.v1"


def test_the_catalog_of_this_repository_is_valid() -> None:
    catalog = Catalog.load(ROOT / "headrace.toml")

    assert sorted(catalog.runtimes) == ["editor", "writer"]
    assert catalog.runtimes["writer"].route == (
        ModelName("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    )


@pytest.mark.promise("unknown-names-stop-start")
def test_all_faults_of_the_catalog_are_listed() -> None:
    faults = faults_of(
        """
        colour = "red"
        service = 3
        [upstreams.bedrock]
        kind = "bedrok"
        [upstreams.none]
        [runtimes.writer]
        kind = "pyton"
        model = "nowhere/model"
        max_turns = 0
        deadline_s = true
        groups = "all"
        [runtimes.Editor]
        kind = "converse"
        [runtimes.poet]
        kind = "converse"
        model = "nova"
        on_disconnect = "stop"
        tools = ["no-colon"]
        [limits.default]
        daily_tokens = -1
        """
    )

    assert faults == [
        "colour is not known; known here: limits, runtimes, service, upstreams",
        "service must be a table",
        "upstreams.none.kind is missing",
        "runtimes.Editor: a name has lower-case letters, digits and dashes, at most 63",
        "runtimes.writer.groups must be a list of strings",
        "runtimes.writer.max_turns must be a whole number from 1 to 1000, not 0",
        "runtimes.writer.deadline_s must be a number from 1 to 28800, not True",
        "limits.default.daily_tokens must be a whole number from 0 to 1e+15, not -1",
        'upstreams.bedrock.kind must be "bedrock" or "openai", not \'bedrok\'',
        'runtimes.writer.kind must be "converse" or "python", not \'pyton\'',
        "runtimes.writer.model names the upstream 'nowhere', which [upstreams] lacks",
        'runtimes.poet.model must be "UPSTREAM/MODEL ID", such as "bedrock/us.amazon.nova-lite-v1:0"',
        'runtimes.poet.on_disconnect must be "continue" or "cancel", not \'stop\'',
        "runtimes.poet.tools: 'no-colon' is not \"package.module:function\"",
    ]


def test_a_python_runtime_names_its_agent_and_the_models_that_it_may_call() -> None:
    catalog = Catalog.from_document(
        tomllib.loads(
            """
            [upstreams.bedrock]
            kind = "bedrock"
            [runtimes.research]
            kind = "python"
            entry = "my_agents.research:run"
            models = ["bedrock/a", "bedrock/b"]
            restartable = true
            cleanup_s = 1
            """
        )
    )

    research = catalog.runtimes["research"]
    assert (research.entry, research.models) == ("my_agents.research:run", ("bedrock/a", "bedrock/b"))
    assert (research.restartable, research.cleanup_s) == (True, 1.0)


@pytest.mark.promise("unknown-names-stop-start")
def test_what_a_kind_of_runtime_has_no_use_for_is_a_fault() -> None:
    faults = faults_of(
        CATALOG
        + """
        restartable = false
        [runtimes.agent]
        kind = "python"
        model = "bedrock/a"
        tools = ["m:f"]
        models = ["nowhere/a", "b"]
        restartable = 1
        cleanup_s = 5
        """
    )

    assert faults == [
        "runtimes.agent.restartable must be true or false, not 1",
        "runtimes.agent.cleanup_s must be a number from 0 to 4, not 5",
        'runtimes.writer.restartable is for runtimes of kind "python"',
        'runtimes.agent.model is for runtimes of kind "converse"',
        'runtimes.agent.tools is for runtimes of kind "converse"',
        'runtimes.agent.models must be "UPSTREAM/MODEL ID", such as "bedrock/us.amazon.nova-lite-v1:0"',
        "runtimes.agent.models names the upstream 'nowhere', which [upstreams] lacks",
        "runtimes.agent.entry must be \"package.module:function\", not ''",
    ]


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("", "runtimes: at least one [runtimes.NAME] is needed"),
        ("runtimes = 1", "runtimes must be tables such as [runtimes.NAME]"),
        (CATALOG + "tools = [1]", "runtimes.writer.tools must be a list of strings"),
        (CATALOG + "instructions = ''", "runtimes.writer.instructions must be a non-empty string"),
        (CATALOG + "kind2 = 1", None),
        (
            CATALOG + "[service]\nheartbeat_s = 'x'",
            "service.heartbeat_s must be a number from 0.05 to 60, not 'x'",
        ),
        (
            CATALOG + "[service]\nusage_grace_s = 31",
            "service.usage_grace_s must be a number from 0 to 30, not 31",
        ),
        (
            CATALOG + "[service]\nabandon_s = 0",
            "service.abandon_s must be a number from 0.1 to 3600, not 0",
        ),
        (
            CATALOG + "[service]\nretention_s = 86_399",
            "service.retention_s must be a number from 86400 to 1e+15, not 86399",
        ),
        (
            CATALOG + "[service]\npause_limit_s = 0",
            "service.pause_limit_s must be a number, more than 0, not 0",
        ),
        (
            CATALOG + "[service]\nunstored_bytes = 1.5",
            "service.unstored_bytes must be a whole number, more than 0, not 1.5",
        ),
        (CATALOG + "[service]\nsegment_s = 900", "service.segment_s must be a number from 1 to 890, not 900"),
        (CATALOG + "[limits]\ndefault = 3", "limits.default must be a table"),
        (
            CATALOG.replace('"bedrock/', '"nova/'),
            "runtimes.writer.model names the upstream 'nova', which [upstreams] lacks",
        ),
    ],
)
def test_each_fault_is_one_sentence(toml: str, fault: str | None) -> None:
    faults = faults_of(toml)

    assert faults[0] == fault if fault is not None else "runtimes.writer.kind2 is not known" in faults[0]


def test_a_runtime_says_what_becomes_of_its_jobs_when_nobody_reads_them() -> None:
    catalog = Catalog.from_document(
        tomllib.loads(CATALOG + 'on_disconnect = "cancel"\n[service]\nabandon_s = 0.5\nusage_grace_s = 0')
    )

    assert catalog.runtimes["writer"].on_disconnect == "cancel"
    assert catalog.service == ServiceConfig(abandon_s=0.5, usage_grace_s=0)


def test_a_catalog_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("= 3")

    for name, sentence in (("missing.toml", "can't be read: No such file"), ("bad.toml", "is not TOML")):
        with pytest.raises(ConfigError) as wrong:
            Catalog.load(tmp_path / name)
        assert sentence in wrong.value.faults[0]


def test_of_several_groups_the_largest_limit_counts_and_what_is_left_out_is_the_defaults() -> None:
    catalog = Catalog.from_document(
        tomllib.loads(
            CATALOG
            + """
            [limits.default]
            daily_tokens = 1000000
            monthly_tokens = 7
            [limits.a]
            daily_tokens = 10
            concurrent_invocations = 1
            [limits.b]
            daily_tokens = 5
            concurrent_invocations = 2
            """
        )
    )

    assert catalog.limits_of(("a", "b", "c")) == Limits(
        daily_tokens=10, monthly_tokens=7, concurrent_invocations=2
    )
    assert catalog.limits_of(()) == Limits(daily_tokens=1_000_000, monthly_tokens=7)
