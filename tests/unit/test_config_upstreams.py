"""`[upstreams.NAME]`: where servers may be, where keys come from, and every fault by name."""

from typing import Any

import pytest

from service.config import Catalog, ConfigError, ModelName, UpstreamConfig

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:vllm-AbCdEf"
URL = "http://10.0.3.7:8000/v1"


def catalog(environ: dict[str, str] | None = None, **upstream: Any) -> Catalog:
    table = {"kind": "openai", "base_url": URL, **upstream}
    runtime = {"kind": "converse", "model": "vllm/Qwen/Qwen3-8B"}
    return Catalog.from_document({"upstreams": {"vllm": table}, "runtimes": {"writer": runtime}}, environ)


def faults_of(environ: dict[str, str] | None = None, **upstream: Any) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        catalog(environ, **upstream)
    return wrong.value.faults


def test_three_lines_are_a_self_hosted_model() -> None:
    read = catalog(api_key_secret=ARN)

    assert read.upstreams == {"vllm": UpstreamConfig("vllm", "openai", URL, ARN)}
    assert read.runtimes["writer"].route == (ModelName("vllm", "Qwen/Qwen3-8B"),)
    assert read.keys == {}


def test_a_server_may_need_no_key_and_have_ways_of_its_own() -> None:
    read = catalog(include_usage=False, max_tokens_name="max_completion_tokens")

    assert read.upstreams["vllm"] == UpstreamConfig(
        "vllm", "openai", URL, include_usage=False, max_tokens_name="max_completion_tokens"
    )


@pytest.mark.promise("keys-stay-private")
def test_a_key_of_the_environment_is_read_and_not_shown() -> None:
    read = catalog({"VLLM_KEY": " sk-1 ", "OTHER": "x"}, api_key_env="VLLM_KEY")

    assert (read.keys, "sk-1" in repr(read)) == ({"vllm": "sk-1"}, False)


@pytest.mark.parametrize("environ", [{}, {"VLLM_KEY": " "}])
def test_a_key_that_the_environment_lacks_stops_the_start(environ: dict[str, str]) -> None:
    assert faults_of(environ, api_key_env="VLLM_KEY") == [
        "upstreams.vllm.api_key_env: the variable that it names is not set"
    ]


@pytest.mark.promise("keys-stay-private")
@pytest.mark.parametrize("key", ["two words", "line\r\nx: y", "kéy", "x" * 8193])
def test_a_key_that_can_not_be_sent_stops_the_start_and_is_not_shown(key: str) -> None:
    assert faults_of({"VLLM_KEY": key}, api_key_env="VLLM_KEY") == [
        "upstreams.vllm.api_key_env: the variable that it names holds no key: printable ASCII, no spaces"
    ]


@pytest.mark.parametrize(
    ("upstream", "fault"),
    [
        ({"api_key": "sk-1"}, ".api_key is not known"),
        ({"include_usage": 1}, ".include_usage must be true or false"),
        ({"max_tokens_name": "limit"}, ".max_tokens_name must be one of max_tokens, max_completion_tokens"),
        ({"api_key_secret": ARN, "api_key_env": "A"}, " has both api_key_secret and api_key_env"),
        ({"api_key_secret": "sk-1"}, ".api_key_secret must be the ARN of a secret"),
        ({"api_key_secret": ARN + ":key::"}, ".api_key_secret must be the ARN of a secret"),
        ({"api_key_env": "sk-1"}, ".api_key_env must be the name of an environment variable"),
        ({"base_url": "10.0.3.7:8000"}, ".base_url is not an http or https URL"),
        ({"base_url": "http://"}, ".base_url is not an http or https URL"),
        ({"base_url": "ftp://10.0.3.7/v1"}, ".base_url is not an http or https URL"),
        ({"base_url": "https://[/v1"}, ".base_url is not a URL"),
        ({"base_url": "https://a:99999/v1"}, ".base_url is not a URL"),
        ({"base_url": "https://exämple.com/v1"}, ".base_url is not an http or https URL"),
        ({"base_url": "https://a.com/v1\nHost: b"}, ".base_url is not an http or https URL"),
        ({"base_url": "https://me:secret@a.com/v1"}, ".base_url must have no user"),
        ({"base_url": "https://a.com/v1?key=1"}, ".base_url must have no user, query or fragment"),
        ({"base_url": "https://a.com/v1#x"}, ".base_url must have no user, query or fragment"),
        ({"base_url": "https://a.com/v 1"}, ".base_url must have no user, query or fragment"),
        ({"kind": "vllm"}, '.kind must be "bedrock" or "openai", not \'vllm\''),
        ({"kind": "bedrock"}, '.base_url is for kind "openai"'),
    ],
)
@pytest.mark.promise("unknown-names-stop-start")
def test_each_fault_names_its_key(upstream: dict[str, Any], fault: str) -> None:
    found = faults_of({}, **upstream)

    assert found[0].startswith("upstreams.vllm" + fault)
    assert not [each for each in found if "secret@" in each or "sk-1" in each]


def test_a_server_must_be_somewhere() -> None:
    with pytest.raises(ConfigError) as wrong:
        Catalog.from_document({"upstreams": {"vllm": {"kind": "openai"}}})

    assert wrong.value.faults[0].startswith("upstreams.vllm.base_url is missing")


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.3.7:8000", "172.16.0.1", "172.31.255.255", "192.168.1.2", "100.64.0.1", "127.0.0.1:1"),
        *("[::1]:8000", "[fd00::1]", "localhost", "vllm:8000", "ip-10-0-3-7.ec2.internal"),
        *("vllm.models.svc.cluster.local", "gpu.home.arpa"),
    ],
)
def test_plain_http_is_for_private_places(host: str) -> None:
    assert catalog(base_url=f"http://{host}/v1").upstreams["vllm"].base_url == f"http://{host}/v1"


@pytest.mark.parametrize(
    "host",
    [
        *("8.8.8.8", "172.32.0.1", "169.254.169.254", "[2001:db8::1]", "0.0.0.0", "[::ffff:8.8.8.8]"),
        *("api.openai.com", "internal-lb.eu-west-1.elb.amazonaws.com", "vllm.localx"),
        *("134744072", "0x08080808", "01002004010"),
    ],
)
@pytest.mark.promise("keys-stay-private")
def test_plain_http_is_for_no_other_place(host: str) -> None:
    assert faults_of(base_url=f"http://{host}/v1") == [
        (
            "upstreams.vllm.base_url must be https: http is for loopback, private addresses"
            " and names that no public DNS has"
        )
    ]
