"""Log groups: encrypted with the deployment's key, kept as long as the stage says.

Called by whatever logs. None of what is logged holds a prompt, an answer or a token. Names are
CloudFormation's where they may be: a deployment that fails leaves a group behind, and a fixed name would be
in the way of the next.
"""

from collections.abc import Mapping
from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.config import Stage

_RETENTION: Final[Mapping[int, logs.RetentionDays]] = {
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    90: logs.RetentionDays.THREE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
    400: logs.RetentionDays.THIRTEEN_MONTHS,
}


def log_group(
    scope: Construct, construct_id: str, *, stage: Stage, key: kms.IKey, name: str | None = None
) -> logs.LogGroup:
    """Make a log group; one with a name of its own goes when its stack goes."""
    keep = stage.keep_state and name is None
    return logs.LogGroup(
        scope,
        construct_id,
        log_group_name=name,
        encryption_key=key,
        retention=_RETENTION[stage.log_days],
        removal_policy=cdk.RemovalPolicy.RETAIN if keep else cdk.RemovalPolicy.DESTROY,
    )
