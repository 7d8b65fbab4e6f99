"""`python -m infra.app`: context and catalog in, the two stacks of one stage out; no account, no network.

    python -m infra.app [-c NAME=VALUE ...] [--output cdk.out]      by hand: as `make synth` does it
    npx aws-cdk deploy -c NAME=VALUE ...                            the CDK's command line runs it (cdk.json)

The environment of the stacks has a Region and no account: with one, zones would be looked up with
credentials; without a Region, keys of tables could not be set. A fault is one line on stderr, and status 2.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aws_cdk as cdk

from infra.catalog import Catalog, load_catalog
from infra.config import Stage, StageError, stage_from
from infra.gateway import GatewayStack
from infra.stateful import StatefulStack

ROOT: Final = Path(__file__).parents[1]
STATE_ID: Final = "HeadraceData"
GATEWAY_ID: Final = "Headrace"


def build(app: cdk.App, stage: Stage, catalog: Catalog) -> tuple[StatefulStack, GatewayStack]:
    """Make the stacks of a stage."""
    options: dict[str, Any] = {
        "env": cdk.Environment(region=stage.region),
        "termination_protection": stage.keep_state,
        "analytics_reporting": False,
    }
    state = StatefulStack(
        app,
        STATE_ID,
        stage=stage,
        catalog=catalog,
        stack_name=f"{STATE_ID}-{stage.name}",
        description=f"Headrace {stage.name}: tables and users",
        **options,
    )
    gateway = GatewayStack(
        app,
        GATEWAY_ID,
        stage=stage,
        catalog=catalog,
        state=state,
        stack_name=f"{GATEWAY_ID}-{stage.name}",
        description=f"Headrace {stage.name}: API, service and network",
        **options,
    )
    cdk.Tags.of(app).add("headrace:stage", stage.name)
    return state, gateway


def open_app(arguments: Sequence[str]) -> tuple[cdk.App, Stage, Catalog]:
    """Read arguments, context and catalog.

    Raises:
        StageError: What is wrong with them.
    """
    parser = argparse.ArgumentParser(prog="python -m infra.app", allow_abbrev=False)
    parser.add_argument("-c", "--context", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--catalog", type=Path, default=ROOT / "headrace.toml")
    parser.add_argument("--output", help="where the assembly is written (cdk.out)")
    given = parser.parse_args(arguments)
    flags = json.loads((ROOT / "cdk.json").read_text(encoding="utf-8"))["context"]
    own = dict(entry.partition("=")[::2] for entry in given.context)
    app = cdk.App(
        context=flags | own,
        outdir=given.output,
        analytics_reporting=False,
        # Most of the time of a synthesis; the tests lint the templates instead.
        builtin_cloud_formation_validation=False,
    )
    stage = stage_from(app.node.get_all_context())
    image_directory = (ROOT / stage.image_directory).resolve()
    if not (image_directory / "Dockerfile").is_file():
        raise StageError([f"image_directory: there is no Dockerfile in {image_directory}"])
    stage = replace(stage, image_directory=str(image_directory))
    return app, stage, load_catalog(given.catalog, stage)


def main(arguments: Sequence[str] | None = None) -> int:
    """Synthesize; returns the exit status."""
    try:
        app, stage, catalog = open_app(sys.argv[1:] if arguments is None else arguments)
    except StageError as error:
        for fault in error.faults:
            print(f"headrace: {fault}", file=sys.stderr)
        return 2
    build(app, stage, catalog)
    app.synth()
    return 0


if __name__ == "__main__":
    sys.exit(main())
