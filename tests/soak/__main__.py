"""`python -m tests.soak`: real processes, killed at random while they work."""

# ruff: noqa: T201 - a command line prints

import argparse
import random
import sys
import time
from pathlib import Path

from tests.soak.plan import draw
from tests.soak.soak import soak


def main() -> int:
    """The command line; exit status 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="absent: one at random, which is printed")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--sqlite", action="store_true", help="SQLite and one gateway")
    parser.add_argument("--keep", type=Path, help="folder for logs, database and files")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    plan = draw(seed, jobs=options.jobs, faults=options.faults, postgres=not options.sqlite)
    begin = time.monotonic()
    print(
        f"seed {seed}: {len(plan.works)} jobs, {len(plan.faults)} faults, {plan.gateways} gateways "
        f"on {'PostgreSQL' if plan.postgres else 'SQLite'}, {plan.gpus} GPU services and "
        f"simulators; lease {plan.lease_s} s, a GPU service is given up after {plan.lost_after_s} s"
    )

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)

    report = soak(plan, say, options.keep)
    print(*report.lines, sep="\n")
    for wrong in report.wrong:
        print("WRONG", wrong)
    print("passed" if not report.wrong else f"{len(report.wrong)} rules broken", f"(seed {seed})")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
