"""Which ARNs a model of the catalog is: what the task must be granted to call it, and nothing beside.

`catalog` asks whether a model can be granted, `permissions` for the grants. Pure: partition, Region and
account are arguments. A model is named as Bedrock knows it:

    anthropic.claude-...          a foundation model, in the deployment's Region
    us.anthropic.claude-...       an inference profile of a geography: the profile, and through it the
                                  foundation model in each of the geography's Regions
    global.anthropic.claude-...   the same for all Regions
    arn:aws:bedrock:...           a profile of the account's own, an imported or provisioned model

Sources: https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-prereq.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/geographic-cross-region-inference.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/global-cross-region-inference.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# Geography -> the Regions that its profiles may route to. A model may use fewer; a Region more than a profile
# uses grants nothing, since the profile is a condition. A new one is entered here.
DESTINATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "us": ("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
    "eu": (
        *("eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2"),
        *("eu-west-1", "eu-west-2", "eu-west-3"),
    ),
    "apac": (
        *("ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2"),
        *("ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4"),
    ),
    "jp": ("ap-northeast-1", "ap-northeast-3"),
    "au": ("ap-southeast-2", "ap-southeast-4"),
}
ANY_FOUNDATION_MODEL: Final = "arn:aws:bedrock:*::foundation-model/*"
GLOBAL: Final = "global"
# From which Regions a geography's profiles can be called, by how their names begin.
_SOURCES: Final[Mapping[str, tuple[str, ...]]] = {
    "us": ("us-", "ca-"),
    "eu": ("eu-", "il-"),
    "apac": ("ap-", "me-"),
    "jp": ("ap-northeast-",),
    "au": ("ap-southeast-",),
}
_MODEL: Final = re.compile(
    r"(?:([a-z]{2}|apac|global)\.)?([a-z0-9]+\.[A-Za-z0-9._-]+(?::[A-Za-z0-9]+)*)", re.ASCII
)
_ARN: Final = re.compile(
    r"arn:aws:bedrock:([a-z0-9-]+):(\d{12})?:"
    r"(foundation-model|inference-profile|application-inference-profile|provisioned-model|imported-model"
    r"|custom-model-deployment|prompt-router)/(\S+)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Grant:
    """ARNs that may be invoked, and the condition under which (IAM's `Condition`)."""

    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def model_fault(model: str, region: str) -> str | None:
    """Say why a model can't be granted to a deployment in this Region; None if it can."""
    if model.startswith("arn:"):
        return None if _ARN.fullmatch(model) else f"the model {model!r} is not the ARN of a Bedrock model"
    geography, name = _parts(model)
    if not name:
        return f"the model {model!r} is not an id of Bedrock, such as us.amazon.nova-lite-v1:0"
    if geography in ("", GLOBAL):
        return None
    if geography not in DESTINATIONS:
        known = ", ".join((*DESTINATIONS, GLOBAL))
        return f"the model {model!r} is of an unknown geography: infra/models.py knows {known}"
    if not region.startswith(_SOURCES[geography]):
        return f"the model {model!r} can't be called from {region}"
    return None


def grants_of(model: str, *, region: str, account: str) -> tuple[Grant, ...]:
    """Return what must be granted to invoke a model that has no fault."""
    arn = _ARN.fullmatch(model)
    if arn is not None and arn[3] in ("inference-profile", "application-inference-profile", "prompt-router"):
        if arn[3] == "inference-profile":
            return grants_of(arn[4], region=arn[1], account=arn[2] or account)
        # What an application profile or a router routes to is known to Bedrock alone.
        return (
            Grant((model,)),
            Grant((ANY_FOUNDATION_MODEL,), _through(model)),
        )
    if arn is not None:
        return (Grant((model,)),)
    geography, name = _parts(model)
    if not geography:
        return (Grant((_foundation(region, name),)),)
    profile = f"arn:aws:bedrock:{region}:{account}:inference-profile/{model}"
    if geography == GLOBAL:
        everywhere = {**_through(profile)["StringEquals"], "aws:RequestedRegion": "unspecified"}
        return (
            Grant((profile,)),
            Grant((_foundation(region, name),), _through(profile)),
            Grant((_foundation("", name),), {"StringEquals": everywhere}),
        )
    destinations = tuple(_foundation(destination, name) for destination in DESTINATIONS[geography])
    return (Grant((profile,)), Grant(destinations, _through(profile)))


def _parts(model: str) -> tuple[str, str]:
    """Split `us.amazon.nova-lite-v1:0` into geography and foundation model; ("", "") if it is no model id."""
    match = _MODEL.fullmatch(model)
    return (match[1] or "", match[2]) if match else ("", "")


def _foundation(region: str, name: str) -> str:
    return f"arn:aws:bedrock:{region}::foundation-model/{name}"


def _through(profile: str) -> dict[str, dict[str, str]]:
    return {"StringEquals": {"bedrock:InferenceProfileArn": profile}}
