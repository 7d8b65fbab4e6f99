"""`python -m tests.e2e.drill`: drills with one seed after the other, a line of figures for each.

The first seed that breaks a promise ends it with status 1, all that is known of it on the screen and in
`report.txt`, and its directory kept: the store, the logs, the journal. `--seed` begins with that seed again;
a seed decides jobs, habits and faults, not the operating system's timing: what is rare may need a few runs.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from local.emulators import why_no_dynamodb
from tests.e2e.drill.audit import audit
from tests.e2e.drill.drill import CLIENTS, Plan, drill
from tests.e2e.drill.figures import line, report

_CLIENTS = ", ".join(f"{count} on {store}" for store, count in CLIENTS.items())


def main() -> int:
    """Drill; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.drill", description="Break it, then audit it.")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--seed", type=int, help="the first one (default: any)")
    parser.add_argument("--store", choices=list(CLIENTS), default="sqlite", help="what the services share")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long there are faults")
    parser.add_argument("--clients", type=int, help=f"how many clients (default: {_CLIENTS})")
    parser.add_argument(
        "--keep", action="store_true", help="keep the directory and the report of a good seed too"
    )
    arguments = parser.parse_args()
    if arguments.store == "dynamodb" and (missing := why_no_dynamodb()):
        parser.error(missing)
    first = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    for seed in range(first, first + arguments.seeds):
        directory = Path(tempfile.mkdtemp(prefix=f"drill-{seed}-"))
        print(f"seed {seed}: {directory}", flush=True)
        clients = arguments.clients or CLIENTS[arguments.store]
        plan = Plan(seed, clients=clients, seconds_s=arguments.seconds, store=arguments.store)
        evidence = asyncio.run(drill(plan, directory))
        findings = audit(evidence)
        text = report(evidence, findings)
        (directory / "report.txt").write_text(text + "\n")
        if findings:
            print(f"{text}\n\nFAILED: seed {seed}, kept in {directory}", flush=True)
            return 1
        print(line(evidence), flush=True)
        if not arguments.keep:
            shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
