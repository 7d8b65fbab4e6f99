"""Sign-in with other identity providers: what a stage says about them, as frozen dataclasses without the CDK.

`config` reads them from the context, `users` makes them. Given as a JSON list of objects:

    [{"kind": "google", "client_id": "...", "client_secret_arn": "arn:aws:secretsmanager:..."},
     {"kind": "saml", "name": "Company", "metadata_url": "https://idp.example.com/metadata"}]

Secrets come as ARNs, and are read by CloudFormation when it deploys; none is in a template.
"""

import json
import re
from dataclasses import dataclass, fields
from typing import Any, Final

_SECRET: Final = re.compile(r"arn:aws:secretsmanager:[a-z0-9-]+:\d{12}:secret:\S+", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{2,31}", re.ASCII)
_NEEDED: Final = {
    "google": ("client_id", "client_secret_arn"),
    "facebook": ("client_id", "client_secret_arn"),
    "oidc": ("name", "client_id", "client_secret_arn", "issuer_url"),
    "saml": ("name", "metadata_url"),
}
_OWN_NAME: Final = {"google": "Google", "facebook": "Facebook"}


@dataclass(frozen=True, slots=True)
class Federation:
    """One identity provider; which members it has depends on its kind (google, facebook, oidc, saml)."""

    kind: str
    name: str = ""
    client_id: str = ""
    client_secret_arn: str = ""
    issuer_url: str = ""
    metadata_url: str = ""


def federations_from(given: Any) -> tuple[Federation, ...]:
    """Read a list of providers, as JSON text or parsed.

    Raises:
        ValueError: What is wrong with the first bad one.
    """
    try:
        parsed = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(entry, dict) for entry in parsed):
        raise ValueError("must be a JSON list of objects with a kind each")
    found = tuple(_provider(entry) for entry in parsed)
    names = [provider.name for provider in found]
    if len({*names}) < len(names):
        raise ValueError(f"names a provider twice: {', '.join(names)}")
    return found


def _provider(entry: dict[str, Any]) -> Federation:
    kind = entry.get("kind")
    if kind not in _NEEDED:
        raise ValueError(f"has the kind {kind!r}; kinds are {', '.join(_NEEDED)}")
    known = {field.name for field in fields(Federation)}
    wrong = sorted(entry.keys() - known) + [key for key in entry if not isinstance(entry[key], str)]
    if wrong:
        raise ValueError(f"of kind {kind} has no text member {wrong[0]!r}")
    missing = [key for key in _NEEDED[kind] if not entry.get(key)]
    if missing:
        raise ValueError(f"of kind {kind} needs {', '.join(missing)}")
    provider = Federation(**{"name": _OWN_NAME.get(kind, ""), **entry})
    if not _NAME.fullmatch(provider.name):
        raise ValueError(f"of kind {kind} needs a name of 3 to 32 letters, digits and dashes")
    if provider.client_secret_arn and not _SECRET.fullmatch(provider.client_secret_arn):
        raise ValueError(f"of kind {kind}: client_secret_arn must be the ARN of a Secrets Manager secret")
    for url in (provider.issuer_url, provider.metadata_url):
        if url and not url.startswith("https://"):
            raise ValueError(f"of kind {kind}: {url!r} is not an https URL")
    return provider
