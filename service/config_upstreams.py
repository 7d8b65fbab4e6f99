"""`[upstreams.NAME]`: what a model backend is, and the faults of what the file says about one.

`config` reads the tables into `UpstreamConfig`, asks for the faults, and takes the keys from the environment.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address, ip_network
from socket import inet_aton
from typing import Final
from urllib.parse import urlsplit

# Addresses that no packet reaches over the public internet: RFC 1918, RFC 6598, RFC 4193, loopback.
_PRIVATE: Final = tuple(
    ip_network(network)
    for network in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"),
        *("fc00::/7", "::1/128"),
    )
)
# Names that no public DNS server has: one label, or a suffix that is kept free for private use (RFC 6761,
# RFC 6762, RFC 8375, and `.internal` by ICANN, which AWS uses for its hosts too).
_PRIVATE_NAME: Final = re.compile(r"[a-z0-9_-]+|.+\.(?:internal|local|localhost|home\.arpa)", re.ASCII)
_SECRET_ARN: Final = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[^\s:]+", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_TOKENS_NAMES: Final = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """A model backend. All but `kind` is for `"openai"`; no key stands here, only where it is."""

    name: str
    kind: str
    base_url: str = ""
    api_key_secret: str = ""
    api_key_env: str = ""
    include_usage: bool = True
    max_tokens_name: str = "max_tokens"


def upstream_faults(upstream: UpstreamConfig) -> list[str]:
    """Return what is wrong with a table, one sentence each."""
    where = f"upstreams.{upstream.name}"
    if upstream.kind == "bedrock":
        return [
            f'{where}.{each.name} is for kind "openai"'
            for each in fields(upstream)
            if each.name not in ("name", "kind") and getattr(upstream, each.name) != each.default
        ]
    if upstream.kind != "openai":
        return [f'{where}.kind must be "bedrock" or "openai", not {upstream.kind!r}']
    faults = [f"{where}.base_url {fault}" for fault in _url_faults(upstream.base_url)]
    if upstream.api_key_secret and upstream.api_key_env:
        faults.append(f"{where} has both api_key_secret and api_key_env: one of them has the key")
    if upstream.api_key_secret and not _SECRET_ARN.fullmatch(upstream.api_key_secret):
        faults.append(f"{where}.api_key_secret must be the ARN of a secret of AWS Secrets Manager")
    if upstream.api_key_env and not _VARIABLE.fullmatch(upstream.api_key_env):
        faults.append(f"{where}.api_key_env must be the name of an environment variable")
    if upstream.max_tokens_name not in _MAX_TOKENS_NAMES:
        faults.append(f"{where}.max_tokens_name must be one of {', '.join(_MAX_TOKENS_NAMES)}")
    return faults


def key_fault(key: str) -> str | None:
    """Return why this can't be sent as a key, without showing it."""
    return None if re.fullmatch(r"[\x21-\x7e]{1,8192}", key) else "holds no key: printable ASCII, no spaces"


def keys_in(
    upstreams: Mapping[str, UpstreamConfig], environ: Mapping[str, str], faults: list[str]
) -> dict[str, str]:
    """Return the keys that the environment holds, by upstream; what is not there is appended to `faults`."""
    keys: dict[str, str] = {}
    for name, upstream in upstreams.items():
        if upstream.api_key_env:
            keys[name] = environ.get(upstream.api_key_env, "").strip()
            if fault := "is not set" if not keys[name] else key_fault(keys[name]):
                # Its name is not shown: somebody may have put the key there.
                faults.append(f"upstreams.{name}.api_key_env: the variable that it names {fault}")
    return keys


def _url_faults(url: str) -> list[str]:
    if not url:
        return ["is missing: where the API is, such as http://10.0.3.7:8000/v1"]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return ["is not a URL"]
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
        return ["is not an http or https URL"]
    if parts.username is not None or parts.query or parts.fragment or " " in url:
        return ["must have no user, query or fragment"]
    if parts.scheme == "http" and not _is_private(host):
        return ["must be https: http is for loopback, private addresses and names that no public DNS has"]
    return []


def _is_private(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return _PRIVATE_NAME.fullmatch(host) is not None and not _is_ipv4_to_libc(host)
    return any(address in network for network in _PRIVATE)


def _is_ipv4_to_libc(host: str) -> bool:
    """Tell an address in a form that only libc takes, such as 134744072: it looks like a label."""
    try:
        inet_aton(host)
    except OSError:
        return False
    return True
