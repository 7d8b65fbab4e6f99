"""A process is killed at each await point from admission to ending: nothing is lost, nothing stays held."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest

from local.emulators import why_no_dynamodb
from tests.e2e.crash import SEEN, START_S, Crashes, crashing, killed, points_of
from tests.e2e.drill.audit import audit
from tests.e2e.drill.evidence import Evidence
from tests.e2e.drill.figures import line, report
from tests.e2e.drill.jobs import LEASE_S
from tests.e2e.drill.stores import StoreName
from tests.e2e.failing_service import TAKES_OVER

LANES: Final = 3
# Until a lease is known to have expired, and the next look; the rest is a busy machine's.
TAKEN_OVER_WITHIN_MS: Final = (LEASE_S + LEASE_S / 3 + 5) * 1000
DECISIONS: Final = {"create_invocation", "append_events", "settle", "complete_turn", "reserve", "finish"}


@pytest.fixture(params=get_args(StoreName))
def store(request: pytest.FixtureRequest) -> StoreName:
    """Run a test on both stores."""
    if request.param == "dynamodb" and (missing := why_no_dynamodb()):
        pytest.skip(missing)
    name: StoreName = request.param
    return name


@pytest.mark.timeout(240)
@pytest.mark.promise("killed-process-consistent-store", "killed-process-goes-on", "one-terminal-event")
async def test_a_process_that_is_killed_at_any_point_loses_nothing_and_leaves_nothing_held(
    store: StoreName, tmp_path: Path
) -> None:
    async with crashing(tmp_path, store, lanes=LANES) as crashes:
        steps = await crashes.record(told_to_stop=False)
        last_steps = await crashes.record(told_to_stop=True)
        handing_over = [step for step in last_steps if step.startswith("hand_over")]
        points = [*points_of(steps), *points_of(handing_over, told_to_stop=True), *SEEN]
        await crashes.run(points)
        evidence = await crashes.gather()

    print(f"{len(points)} points: {[point.name for point in points]}")
    print(line(evidence))
    assert audit(evidence) == [], report(evidence, audit(evidence))
    print(f"taken over after {sorted(delays_ms(evidence, crashes))} ms")
    assert {step.partition(":")[0] for step in steps} == DECISIONS
    assert handing_over
    assert len(crashes.died_at_ms) == len(points)
    assert max(delays_ms(evidence, crashes)) <= TAKEN_OVER_WITHIN_MS
    assert list(settled_late(evidence)) == []


@pytest.mark.timeout(120)
@pytest.mark.promise("killed-process-goes-on")
async def test_a_process_that_is_killed_as_soon_as_its_claim_has_landed_leaves_it_to_the_next(
    store: StoreName, tmp_path: Path
) -> None:
    async with crashing(tmp_path, store, lanes=1, environ={TAKES_OVER: "1"}) as crashes:
        survivor, victim = crashes.stack.services
        await survivor.kill()
        wish = await crashes.die(victim, SEEN[1])
        await victim.launch()  # it may be dead before it is ready
        await killed(victim, "the claim")
        await survivor.start(timeout_s=START_S)
        await crashes.go_on(wish)
        evidence = await crashes.gather()

    ends = [row["ended"] for row in evidence.books.of("attempts", wish.invocation_id)]
    assert audit(evidence) == [], report(evidence, audit(evidence))
    assert ends == ["lost", "lost", "finished"]
    assert list(settled_late(evidence)) == []


def delays_ms(evidence: Evidence, crashes: Crashes) -> list[int]:
    """Return how long after its first process's death each invocation's second attempt began."""
    numbers = {wish.invocation_id: wish.job.number for wish in evidence.wishes}
    return [
        row["started_at_ms"] - crashes.died_at_ms[numbers[row["invocation_id"]]]
        for row in evidence.books.tables["attempts"]
        if row["number"] == 2 and numbers[row["invocation_id"]] in crashes.died_at_ms
    ]


def settled_late(evidence: Evidence) -> Iterator[str]:
    """Say what a lost attempt still held when the next one had begun."""
    began_ms = {
        (row["invocation_id"], row["number"]): row["started_at_ms"]
        for row in evidence.books.tables["attempts"]
    }
    for row in evidence.books.tables["usage_records"]:
        next_ms = began_ms.get((row["invocation_id"], row["attempt"] + 1))
        if next_ms is not None and row["settled_at_ms"] > next_ms:
            yield f"{row['invocation_id']}: turn {row['turn']} of attempt {row['attempt']}"
