"""CI's drills: one seed on each store. `make drill SEEDS=10` runs ten others."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from local.emulators import why_no_dynamodb
from tests.e2e.drill.audit import audit
from tests.e2e.drill.drill import CLIENTS, Plan, drill
from tests.e2e.drill.figures import line, report

# The same for every commit, so that what turns red is the commit's doing and can be run again; these have
# every kind of fault. New faults are looked for with new seeds, by `make drill`.
PLANS: Final = (
    Plan(85, clients=CLIENTS["sqlite"], seconds_s=40.0),
    Plan(588, clients=CLIENTS["dynamodb"], seconds_s=22.0, store="dynamodb"),
)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("plan", PLANS, ids=[plan.store for plan in PLANS])
async def test_nothing_is_lost_in_a_drill(plan: Plan, tmp_path: Path) -> None:
    if plan.store == "dynamodb" and (missing := why_no_dynamodb()):
        pytest.skip(missing)
    plan = replace(plan, seed=int(os.environ.get("DRILL_SEED", plan.seed)))

    evidence = await drill(plan, tmp_path)

    findings = audit(evidence)
    print(line(evidence))
    assert findings == [], report(evidence, findings)
