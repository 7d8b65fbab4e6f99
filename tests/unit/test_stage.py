"""A stage's configuration: what the context may override, and every fault that is found before synthesis."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.catalog import Catalog, load_catalog
from infra.config import STAGES, StageError, stage_from
from infra.federation import Federation
from infra.models import Grant, grants_of, model_fault

LONG = f"{'a' * 53}.example.com"
PROD = {
    "stage": "prod",
    "domain": "api.example.com",
    "hosted_zone_id": "Z0123456789ABCDEFGHIJ",
    "callback_urls": "https://app.example.com/callback",
}
ACCOUNT = "123456789012"
SECRET = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:x-AbCdEf"
NOVA = "arn:aws:bedrock:{}::foundation-model/amazon.nova-lite-v1:0"


def faults_of(**given: Any) -> list[str]:
    with pytest.raises(StageError) as refused:
        stage_from(given)
    return refused.value.faults


def test_without_context_it_is_dev() -> None:
    assert stage_from({"@aws-cdk/some:flag": True, "aws:cdk:enable-path-metadata": True}) == STAGES["dev"]


def test_prod_needs_a_domain_and_where_to_send_people_back_to() -> None:
    assert faults_of(stage="prod") == [
        "domain is not set: prod speaks TLS to its load balancer, which takes a domain",
        "callback_urls is not set: the web client must know where Cognito sends people back to",
    ]


def test_text_of_the_command_line_becomes_what_the_field_is() -> None:
    stage = stage_from(
        PROD
        | {
            "min_tasks": "4",
            "max_tasks": 40,
            "mfa_required": "false",
            "cors_origins": "https://a.example.com, https://b.example.com",
            "logout_urls": '["https://a.example.com/"]',
        }
    )

    assert stage == replace(
        STAGES["prod"],
        domain="api.example.com",
        hosted_zone_id="Z0123456789ABCDEFGHIJ",
        callback_urls=("https://app.example.com/callback",),
        min_tasks=4,
        max_tasks=40,
        mfa_required=False,
        cors_origins=("https://a.example.com", "https://b.example.com"),
        logout_urls=("https://a.example.com/",),
    )
    assert stage.origin_domain == "origin.api.example.com"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"stage": "staging"}, "stage must be one of dev, prod, not 'staging'"),
        ({"min_tasks": "many"}, "min_tasks must be a whole number, not 'many'"),
        ({"min_tasks": True}, "min_tasks must be a whole number, not True"),
        ({"min_tasks": "5"}, "min_tasks must be from 1 to max_tasks (2), not 5"),
        ({"keep_state": "yes"}, "keep_state must be true or false, not 'yes'"),
        ({"region": 1}, "region must be text, not 1"),
        ({"cors_origins": "[1"}, "cors_origins must be a JSON list or texts separated by commas, not '[1'"),
        ({"cors_origins": [1]}, "cors_origins must be texts separated by commas, not [1]"),
        ({"cors_origins": "*"}, "cors_origins: '*' is not an origin such as https://app.example.com"),
        (
            {"domain": "api.example.com"},
            "domain needs hosted_zone_id (the certificate is made there) or certificate_arn",
        ),
        ({"hosted_zone_id": "Z1"}, "hosted_zone_id and certificate_arn mean nothing without domain"),
        (
            PROD | {"domain": "API"},
            "domain must be a name of at most 64 characters such as api.example.com, not 'API'",
        ),
        (
            PROD | {"domain": LONG},
            f"domain must be a name of at most 64 characters such as api.example.com, not '{LONG}'",
        ),
        (PROD | {"hosted_zone_id": "x"}, "hosted_zone_id must look like Z0123456789ABCDEFGHIJ, not 'x'"),
        (
            PROD | {"certificate_arn": f"arn:aws:acm:eu-west-1:{ACCOUNT}:certificate/0a"},
            "certificate_arn must be the ARN of an ACM certificate in us-east-1",
        ),
        (
            {"callback_urls": "http://app.example.com/"},
            "callback_urls: 'http://app.example.com/' is neither an https URL nor one on http://localhost",
        ),
        ({"threat_protection": "on"}, "threat_protection must be off, audit or enforced, not 'on'"),
        ({"id_token_minutes": 90}, "id_token_minutes must be from 5 to 60, not 90"),
        ({"refresh_token_hours": 0}, "refresh_token_hours must be from 1 to 87600, not 0"),
        ({"cpu": 300}, "cpu must be one of 256, 512, 1024, 2048, 4096, not 300"),
        ({"memory_mib": 512}, "memory_mib must be 1024 to 4096 in steps of 1024 with cpu 512, not 512"),
        ({"nat_gateways": 0}, "nat_gateways must be 1 or 2, one a zone at most, not 0"),
        (
            {"zones": "us-east-1a,us-east-1a"},
            "zones must be two of us-east-1 such as us-east-1a,us-east-1b, not us-east-1a,us-east-1a",
        ),
        (
            {"zones": "us-east-1a,eu-west-1b"},
            "zones must be two of us-east-1 such as us-east-1a,us-east-1b, not us-east-1a,eu-west-1b",
        ),
        ({"log_days": 15}, "log_days must be one of 7, 14, 30, 90, 180, 365, 400, not 15"),
        ({"ip_requests_per_5_min": 5}, "ip_requests_per_5_min must be at least 10, not 5"),
        ({"federation": "[{"}, "federation must be a JSON list of objects with a kind each"),
        ({"federation": "{}"}, "federation must be a JSON list of objects with a kind each"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(given: dict[str, Any], fault: str) -> None:
    assert faults_of(**given) == [fault]


def test_a_name_that_is_no_setting_is_a_fault_beside_all_others() -> None:
    unknown, value = faults_of(domian="x", cpu=1)

    assert unknown.startswith("domian is not a setting of a stage; settings are region, keep_state, ")
    assert value == "cpu must be one of 256, 512, 1024, 2048, 4096, not 1"


def test_providers_are_read_with_what_their_kind_needs() -> None:
    given = [
        {"kind": "google", "client_id": "g", "client_secret_arn": SECRET},
        {"kind": "saml", "name": "Company", "metadata_url": "https://idp.example.com/m"},
    ]

    assert stage_from({"federation": json.dumps(given)}).federation == (
        Federation("google", "Google", "g", SECRET),
        Federation("saml", "Company", metadata_url="https://idp.example.com/m"),
    )


@pytest.mark.parametrize(
    ("provider", "fault"),
    [
        ({"kind": "apple"}, "has the kind 'apple'; kinds are google, facebook, oidc, saml"),
        ({"kind": "google"}, "of kind google needs client_id, client_secret_arn"),
        ({"kind": "saml", "name": "Company", "metadata": "x"}, "of kind saml has no text member 'metadata'"),
        (
            {"kind": "google", "client_id": "g", "client_secret_arn": "hunter2"},
            "of kind google: client_secret_arn must be the ARN of a Secrets Manager secret",
        ),
        (
            {"kind": "saml", "name": "Company", "metadata_url": "http://idp.example.com"},
            "of kind saml: 'http://idp.example.com' is not an https URL",
        ),
        (
            {"kind": "saml", "name": "A", "metadata_url": "https://idp.example.com"},
            "of kind saml needs a name of 3 to 32 letters, digits and dashes",
        ),
    ],
)
def test_a_provider_that_can_not_be_is_a_fault(provider: dict[str, str], fault: str) -> None:
    assert faults_of(federation=[provider]) == [f"federation {fault}"]


def test_a_provider_is_named_once() -> None:
    provider = {"kind": "saml", "name": "Company", "metadata_url": "https://idp.example.com"}

    assert faults_of(federation=[provider, provider]) == [
        "federation names a provider twice: Company, Company"
    ]


def catalog_of(tmp_path: Path, text: str, **given: Any) -> Catalog:
    file = tmp_path / "headrace.toml"
    file.write_text(text, encoding="utf-8")
    return load_catalog(file, stage_from(given))


def test_the_catalog_says_what_aws_must_know(tmp_path: Path) -> None:
    text = f"""
        [upstreams.bedrock]
        kind = "bedrock"
        [upstreams.vllm]
        kind = "openai"
        base_url = "http://10.0.3.7:8000/v1"
        api_key_secret = "{SECRET}"
        [runtimes.b]
        model = "bedrock/us.amazon.nova-lite-v1:0"
        groups = ["staff", "*"]
        [runtimes.a]
        model = "bedrock/us.amazon.nova-lite-v1:0"
        [runtimes.own]
        model = "vllm/qwen"
        [limits.default]
        [limits.trial]
        """

    assert catalog_of(tmp_path, text) == Catalog(
        ("us.amazon.nova-lite-v1:0",), (SECRET,), ("staff", "trial"), (8000,)
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the catalog {} has no [runtimes.NAME]"),
        (
            "[runtimes.a]\nguardrail.id = 'gr/*'",
            "'gr/*' is not the id or ARN of a guardrail",
        ),
        ("[runtimes.a]\n[limits.'Team A']", "Cognito has no group 'Team A': it has white space"),
        ("[runtimes.a]\n[upstreams.v]\nkey_secret = 'hunter2'", "'hunter2' is not the ARN of a secret"),
        ("runtimes = 3", "the catalog {}: runtimes must be a table"),
        ("[runtimes]\na = 3", "the catalog {}: runtimes.a must be a table"),
        ("[runtimes.a]\ngroups = '*'", "the catalog {}: runtimes.a.groups must be a list of texts"),
        ("[runtimes.a]\ngroups = [1]", "the catalog {}: runtimes.a.groups must be a list of texts"),
        (
            "[runtimes.a]\n[upstreams.v]\nbase_url = 'http://h:99999'",
            "the catalog {}: upstreams.v.base_url is not a URL",
        ),
        ("service.max_token_s = '9'\n[runtimes.a]", "the catalog {}: service.max_token_s must be a number"),
        (
            "service.max_token_s = 600\n[runtimes.a]",
            "id_token_minutes is 15, and max_token_s of the catalog 600",
        ),
    ],
)
def test_a_catalog_that_can_not_be_deployed_is_a_fault(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(StageError) as refused:
        catalog_of(tmp_path, text)

    assert refused.value.faults == [fault.format(tmp_path / "headrace.toml")]


def test_a_catalog_that_is_not_toml_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"headrace\.toml is not TOML: "):
        catalog_of(tmp_path, "[")


def test_a_catalog_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="can't be read: No such file or directory"):
        load_catalog(tmp_path / "none.toml", STAGES["dev"])


def test_a_profile_of_a_geography_is_the_profile_and_through_it_the_model_in_its_regions() -> None:
    profile = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:inference-profile/us.amazon.nova-lite-v1:0"
    regions = ("us-east-1", "us-east-2", "us-west-1", "us-west-2")
    expected = (
        Grant((profile,)),
        Grant(
            tuple(NOVA.format(region) for region in regions),
            {"StringEquals": {"bedrock:InferenceProfileArn": profile}},
        ),
    )

    assert grants_of("us.amazon.nova-lite-v1:0", region="us-east-1", account=ACCOUNT) == expected
    assert grants_of(profile, region="eu-west-1", account="ignored") == expected


def test_a_global_profile_is_its_model_here_and_where_no_region_is_named() -> None:
    profile = f"arn:aws:bedrock:eu-west-1:{ACCOUNT}:inference-profile/global.amazon.nova-lite-v1:0"
    through = {"bedrock:InferenceProfileArn": profile}

    assert grants_of("global.amazon.nova-lite-v1:0", region="eu-west-1", account=ACCOUNT) == (
        Grant((profile,)),
        Grant((NOVA.format("eu-west-1"),), {"StringEquals": through}),
        Grant((NOVA.format(""),), {"StringEquals": through | {"aws:RequestedRegion": "unspecified"}}),
    )


@pytest.mark.parametrize(
    "model", [NOVA.format("us-east-1"), f"arn:aws:bedrock:us-east-1:{ACCOUNT}:imported-model/abc"]
)
def test_a_model_that_is_an_arn_is_that_arn(model: str) -> None:
    assert grants_of(model, region="us-east-1", account=ACCOUNT) == (Grant((model,)),)


def test_a_plain_model_is_the_one_of_the_region() -> None:
    assert grants_of("amazon.nova-lite-v1:0", region="eu-west-1", account=ACCOUNT) == (
        Grant((NOVA.format("eu-west-1"),)),
    )


@pytest.mark.parametrize(
    ("model", "region", "fault"),
    [
        ("nova", "us-east-1", "the model 'nova' is not an id of Bedrock, such as us.amazon.nova-lite-v1:0"),
        (
            "zz.amazon.x",
            "us-east-1",
            (
                "the model 'zz.amazon.x' is of an unknown geography: infra/models.py knows us, eu, apac, jp,"
                " au, global"
            ),
        ),
        (
            "eu.amazon.nova-lite-v1:0",
            "us-east-1",
            "the model 'eu.amazon.nova-lite-v1:0' can't be called from us-east-1",
        ),
        ("arn:aws:s3:::x", "us-east-1", "the model 'arn:aws:s3:::x' is not the ARN of a Bedrock model"),
        ("us.amazon.nova-lite-v1:0", "us-west-2", None),
        ("global.amazon.nova-lite-v1:0", "sa-east-1", None),
        ("qwen.qwen3.5-coder-v1:0", "us-east-1", None),
    ],
)
def test_a_model_that_can_not_be_granted_is_a_fault(model: str, region: str, fault: str | None) -> None:
    assert model_fault(model, region) == fault


def test_all_models_of_a_runtime_and_its_guardrail_are_granted(tmp_path: Path) -> None:
    arn = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:guardrail/gr2"
    text = f"""
        [upstreams.bedrock]
        kind = "bedrock"
        [upstreams.vllm]
        [runtimes.several]
        model = ["bedrock/us.amazon.nova-lite-v1:0", "vllm/qwen", "bedrock/amazon.titan-text-lite-v1"]
        guardrail = {{ id = "gr1", version = "1" }}
        [runtimes.one]
        model = "bedrock/us.amazon.nova-lite-v1:0"
        guardrail = {{ id = "{arn}", version = "1" }}
        """

    catalog = catalog_of(tmp_path, text)

    assert catalog.models == ("amazon.titan-text-lite-v1", "us.amazon.nova-lite-v1:0")
    assert catalog.guardrails == (arn, "gr1")


def test_the_models_that_agents_may_call_are_granted_too(tmp_path: Path) -> None:
    text = """
        [upstreams.bedrock]
        kind = "bedrock"
        [upstreams.vllm]
        [runtimes.research]
        kind = "python"
        models = ["bedrock/us.amazon.nova-lite-v1:0", "vllm/qwen", "bedrock/amazon.titan-text-lite-v1"]
        """

    assert catalog_of(tmp_path, text).models == ("amazon.titan-text-lite-v1", "us.amazon.nova-lite-v1:0")
