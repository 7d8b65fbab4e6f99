"""Findings of cdk-nag that stay, each with its reason, acknowledged where the resource is made.

`nag` reports what is left. An acknowledgement names one finding exactly (`AwsSolutions-IAM5[Resource::*]`),
so that the same rule still finds everything else.
"""

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct, rule: str, reason: str) -> None:
    """Accept a finding of `AwsSolutions-RULE` on this construct and what is in it."""
    cdk.Validations.of(construct).acknowledge(cdk.Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason))
