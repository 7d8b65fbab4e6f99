"""What is refused before API Gateway looks: known bad addresses, floods, known attacks.

`gateway` puts it in front of the API's stage. A prompt is text that anybody may write: code, HTML, `../..`,
URLs, exploits to be explained. So rules that look into bodies only count on the route that takes prompts,
and leave a label; a rule of ours blocks what has such a label anywhere else. Bodies are inspected up to 64
KB; the rule group's own limit of 8 KB (`SizeRestrictions_BODY`) is among those that only count.

Sources: https://docs.aws.amazon.com/waf/latest/developerguide/aws-managed-rule-groups-baseline.html,
https://docs.aws.amazon.com/waf/latest/developerguide/web-acl-setting-body-inspection-limit.html
"""

from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_kms as kms
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from infra.config import Stage
from infra.loggroups import log_group
from infra.refusals import RATE_LIMITED, allowed_origin

# Rule -> the label that it leaves behind `awswaf:managed:aws:<group>:`.
BASELINE_BODY_RULES: Final = {
    "SizeRestrictions_BODY": "SizeRestrictions_Body",
    "CrossSiteScripting_BODY": "CrossSiteScripting_Body",
    "EC2MetaDataSSRF_BODY": "EC2MetaDataSSRF_Body",
    "GenericLFI_BODY": "GenericLFI_Body",
    "GenericRFI_BODY": "GenericRFI_Body",
}
BAD_INPUT_BODY_RULES: Final = {
    "JavaDeserializationRCE_BODY": "JavaDeserializationRCE_Body",
    "Log4JRCE_BODY": "Log4JRCE_Body",
    "ReactJSRCE_BODY": "ReactJSRCE_Body",
}
_LABELS: Final = (
    *(f"awswaf:managed:aws:core-rule-set:{label}" for label in BASELINE_BODY_RULES.values()),
    *(f"awswaf:managed:aws:known-bad-inputs:{label}" for label in BAD_INPUT_BODY_RULES.values()),
)
_WINDOW_S: Final = 300
_TOO_MANY: Final = "too-many"
# With or without the stage in front.
_SUBMISSION_PATH: Final = r"^(/[^/]+)?/runtimes/[^/]+/invocations$"

_Acl = waf.CfnWebACL
_Statement = waf.CfnWebACL.StatementProperty


class Waf(Construct):
    """The web ACL, its association with the API's stage, and its log."""

    def __init__(
        self, scope: Construct, construct_id: str, *, stage: Stage, stage_arn: str, key: kms.IKey
    ) -> None:
        super().__init__(scope, construct_id)
        self.acl = _Acl(
            self,
            "Acl",
            scope="REGIONAL",
            default_action=_Acl.DefaultActionProperty(allow={}),
            visibility_config=_visible("Headrace"),
            association_config=_Acl.AssociationConfigProperty(
                request_body={
                    "API_GATEWAY": _Acl.RequestBodyAssociatedResourceTypeConfigProperty(
                        default_size_inspection_limit="KB_64"
                    )
                }
            ),
            # What a rule has found is in the log, also where it only counts: parts of prompts would be.
            # https://docs.aws.amazon.com/waf/latest/developerguide/waf-data-protection-and-logging.html
            data_protection_config=_Acl.DataProtectionConfigProperty(
                data_protections=[
                    _Acl.DataProtectProperty(
                        field=_Acl.FieldToProtectProperty(field_type="BODY"), action="SUBSTITUTION"
                    )
                ]
            ),
            custom_response_bodies={
                _TOO_MANY: _Acl.CustomResponseBodyProperty(
                    content_type="APPLICATION_JSON", content=RATE_LIMITED.document()
                )
            },
            rules=[
                _managed("IpReputation", 0, "AWSManagedRulesAmazonIpReputationList"),
                _rate("EveryAddress", 1, stage.ip_requests_per_5_min, stage),
                _rate("Submissions", 2, stage.ip_submissions_per_5_min, stage, _submission()),
                _managed("Core", 3, "AWSManagedRulesCommonRuleSet", tuple(BASELINE_BODY_RULES)),
                _managed(
                    "KnownBadInputs", 4, "AWSManagedRulesKnownBadInputsRuleSet", tuple(BAD_INPUT_BODY_RULES)
                ),
                _bodies_elsewhere("BodiesElsewhere", 5),
            ],
        )
        waf.CfnWebACLAssociation(self, "Stage", resource_arn=stage_arn, web_acl_arn=self.acl.attr_arn)
        self._log(stage, key)

    def _log(self, stage: Stage, key: kms.IKey) -> None:
        logs = log_group(self, "Logs", stage=stage, key=key, name=f"aws-waf-logs-headrace-{stage.name}")
        waf.CfnLoggingConfiguration(
            self,
            "Logging",
            resource_arn=self.acl.attr_arn,
            # The attribute of a log group ends with `:*`; what WAF documents does not:
            # https://docs.aws.amazon.com/waf/latest/developerguide/logging-cw-logs.html
            log_destination_configs=[
                cdk.Stack.of(self).format_arn(
                    service="logs",
                    resource="log-group",
                    resource_name=logs.log_group_name,
                    arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
                )
            ],
            redacted_fields=[
                waf.CfnLoggingConfiguration.FieldToMatchProperty(single_header={"Name": name})
                for name in ("authorization", "cookie")
            ],
            # What was let through without a remark is in the access log already.
            logging_filter={
                "DefaultBehavior": "DROP",
                "Filters": [
                    {
                        "Behavior": "KEEP",
                        "Requirement": "MEETS_ANY",
                        "Conditions": [
                            {"ActionCondition": {"Action": action}}
                            for action in ("BLOCK", "COUNT", "EXCLUDED_AS_COUNT")
                        ],
                    }
                ],
            },
        )


def _managed(
    name: str, priority: int, group: str, counted: tuple[str, ...] = ()
) -> waf.CfnWebACL.RuleProperty:
    return _Acl.RuleProperty(
        name=name,
        priority=priority,
        override_action=_Acl.OverrideActionProperty(none={}),
        visibility_config=_visible(name),
        statement=_Statement(
            managed_rule_group_statement=_Acl.ManagedRuleGroupStatementProperty(
                vendor_name="AWS",
                name=group,
                rule_action_overrides=[
                    _Acl.RuleActionOverrideProperty(
                        name=rule, action_to_use=_Acl.RuleActionProperty(count={})
                    )
                    for rule in counted
                ]
                or None,
            )
        ),
    )


def _rate(
    name: str,
    priority: int,
    limit: int,
    stage: Stage,
    scope_down: waf.CfnWebACL.StatementProperty | None = None,
) -> waf.CfnWebACL.RuleProperty:
    headers = {"Retry-After": str(RATE_LIMITED.retry_after_s)}
    if stage.cors_origins:
        headers["Access-Control-Allow-Origin"] = allowed_origin(stage.cors_origins)
    response = _Acl.CustomResponseProperty(
        response_code=RATE_LIMITED.status or 429,
        custom_response_body_key=_TOO_MANY,
        response_headers=[
            _Acl.CustomHTTPHeaderProperty(name=key, value=value) for key, value in headers.items()
        ],
    )
    return _Acl.RuleProperty(
        name=name,
        priority=priority,
        action=_Acl.RuleActionProperty(block=_Acl.BlockActionProperty(custom_response=response)),
        visibility_config=_visible(name),
        statement=_Statement(
            rate_based_statement=_Acl.RateBasedStatementProperty(
                aggregate_key_type="IP",
                limit=limit,
                evaluation_window_sec=_WINDOW_S,
                scope_down_statement=scope_down,
            )
        ),
    )


def _bodies_elsewhere(name: str, priority: int) -> waf.CfnWebACL.RuleProperty:
    labelled = _Statement(
        or_statement=_Acl.OrStatementProperty(
            statements=[
                _Statement(label_match_statement=_Acl.LabelMatchStatementProperty(scope="LABEL", key=label))
                for label in _LABELS
            ]
        )
    )
    elsewhere = _Statement(not_statement=_Acl.NotStatementProperty(statement=_submission()))
    return _Acl.RuleProperty(
        name=name,
        priority=priority,
        action=_Acl.RuleActionProperty(block={}),
        visibility_config=_visible(name),
        statement=_Statement(and_statement=_Acl.AndStatementProperty(statements=[labelled, elsewhere])),
    )


def _submission() -> waf.CfnWebACL.StatementProperty:
    """Match `POST /runtimes/{runtimeId}/invocations`."""
    as_it_is = [_Acl.TextTransformationProperty(priority=0, type="NONE")]
    post = _Statement(
        byte_match_statement=_Acl.ByteMatchStatementProperty(
            field_to_match=_Acl.FieldToMatchProperty(method={}),
            positional_constraint="EXACTLY",
            search_string="POST",
            text_transformations=as_it_is,
        )
    )
    path = _Statement(
        regex_match_statement=_Acl.RegexMatchStatementProperty(
            field_to_match=_Acl.FieldToMatchProperty(uri_path={}),
            regex_string=_SUBMISSION_PATH,
            text_transformations=as_it_is,
        )
    )
    return _Statement(and_statement=_Acl.AndStatementProperty(statements=[post, path]))


def _visible(name: str) -> waf.CfnWebACL.VisibilityConfigProperty:
    return _Acl.VisibilityConfigProperty(
        cloud_watch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=False
    )
