"""One synthesis a configuration and test session; without Node, a skip with its reason."""

import json
from pathlib import Path

import pytest

from tests.synthesis import CONFIGURATIONS, PROD, ROOT, Stacks, synthesize, why_not

FEDERATION = [
    {
        "kind": "google",
        "client_id": "g",
        "client_secret_arn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:g",
    },
    {
        "kind": "facebook",
        "client_id": "f",
        "client_secret_arn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:f",
    },
    {"kind": "saml", "name": "Company", "metadata_url": "https://idp.example.com/metadata"},
    {
        "kind": "oidc",
        "name": "Partner",
        "client_id": "p",
        "client_secret_arn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:p",
        "issuer_url": "https://partner.example.com",
    },
]
CATALOG = """
[upstreams.bedrock]
kind = "bedrock"
[upstreams.vllm]
kind = "openai"
base_url = "http://10.0.3.7:8000/v1"
api_key_secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:vllm-AbCdEf"
[runtimes.everywhere]
kind = "converse"
model = "bedrock/global.anthropic.claude-sonnet-4-5-20250929-v1:0"
groups = ["writers"]
[runtimes.here]
kind = "converse"
model = ["bedrock/amazon.nova-lite-v1:0", "bedrock/amazon.nova-micro-v1:0", "vllm/qwen"]
[runtimes.ours]
kind = "converse"
model = "bedrock/arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc123"
guardrail = { id = "gr1abc", version = "3" }
[runtimes.others]
kind = "converse"
model = "bedrock/amazon.nova-lite-v1:0"
guardrail = { id = "arn:aws:bedrock:eu-west-1:210987654321:guardrail/gr2", version = "DRAFT" }
[runtimes.own]
kind = "converse"
model = "vllm/qwen"
"""


@pytest.fixture(scope="session")
def image_directory() -> Path:
    """Give the checkout, where the Dockerfile is; synthesis takes its fingerprint and builds nothing."""
    if reason := why_not():
        pytest.skip(reason)
    return ROOT


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory, image_directory: Path) -> Stacks:
    return synthesize(tmp_path_factory.mktemp("dev"), image_directory, CONFIGURATIONS["dev"])


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory, image_directory: Path) -> Stacks:
    return synthesize(tmp_path_factory.mktemp("prod"), image_directory, PROD)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, image_directory: Path) -> Stacks:
    """Another Region and zones, a certificate that is there, all kinds of federation, all kinds of models."""
    directory = tmp_path_factory.mktemp("elsewhere")
    catalog = directory / "headrace.toml"
    catalog.write_text(CATALOG, encoding="utf-8")
    values = (
        *(value for value in PROD if not value.startswith("hosted_zone_id")),
        "region=eu-west-1",
        "zones=eu-west-1b,eu-west-1c",
        "certificate_arn=arn:aws:acm:eu-west-1:123456789012:certificate/0a1b2c3d-0000-1111-2222-333344445555",
        f"federation={json.dumps(FEDERATION)}",
    )
    return synthesize(directory / "cdk.out", image_directory, values, "--catalog", str(catalog))


@pytest.fixture(scope="session", params=["dev", "prod"])
def stacks(request: pytest.FixtureRequest) -> Stacks:
    """Give the stacks of either stage."""
    found: Stacks = request.getfixturevalue(request.param)
    return found
