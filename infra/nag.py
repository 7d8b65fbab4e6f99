"""`python -m infra.nag`: cdk-nag's AwsSolutions rules over both stacks of a stage.

Takes the same arguments as `infra.app`. Prints a line for each finding that `acknowledged` does not cover;
exit status 1 if there is one. Tests run it for every stage; `infra.app` does not, so that a deployment
takes no longer.
"""

import sys
from collections.abc import Iterable, Iterator

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from infra.app import build, open_app


def findings(app: cdk.App, stacks: Iterable[cdk.Stack]) -> Iterator[str]:
    """Yield `rule: path: description` of each finding."""
    checks = AwsSolutionsChecks(app)
    for stack in stacks:
        for violation in checks.validate_scope(stack).violations:
            for resource in violation.violating_resources:
                where = resource.construct_path or resource.resource_logical_id
                yield f"{violation.rule_name}: {where}: {violation.description}"


def main() -> int:
    """Print the findings; returns the exit status."""
    app, stage, catalog = open_app(sys.argv[1:])
    found = list(findings(app, build(app, stage, catalog)))
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
