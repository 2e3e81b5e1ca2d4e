"""`python -m tests.simulation`: run seeds, or replay one with its story."""

# ruff: noqa: T201 - a command line prints

import argparse
import gc
import logging
import os
import re
import sys
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

from tests.simulation.plan import Plan, draw
from tests.simulation.planted import BUGS
from tests.simulation.world import Report, run_plan


def main() -> int:
    """The command line; exit status 1 when a seed broke a rule."""
    arguments = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # sets of strings iterate by their hash: with it fixed a seed means the same everywhere
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [*sys.orig_argv], environment)
    logging.getLogger("gateway").setLevel(logging.INFO if arguments.trace else logging.CRITICAL)
    if arguments.trace:
        logging.basicConfig(format="            log: %(message)s", stream=sys.stdout)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    # programs that die leave coroutines and connections behind: that is what is simulated
    warnings.simplefilter("ignore")
    plant = BUGS[arguments.plant]() if arguments.plant else nullcontext()
    with plant:
        if arguments.seed is not None:
            return _replay(arguments)
        return _campaign(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--seed", type=int, help="run this one seed, twice unless traced")
    parser.add_argument("--trace", action="store_true", help="print its story")
    parser.add_argument("--crash-at", type=int, help="with --seed: die at this turn, nothing else")
    parser.add_argument(
        "--sweep", action="store_true", help="for each seed, die once at every single turn"
    )
    parser.add_argument("--plant", choices=sorted(BUGS), help="run with a bug put in on purpose")
    parser.add_argument(
        "--keep-going", action="store_true", help="do not stop at the first failure"
    )
    parser.add_argument("--until", default="", help="only breaches that match this count")
    parser.add_argument("--ignore", help="breaches that match this are passed over")
    return parser.parse_args()


def _plan(seed: int, crash_at: int | None) -> Plan:
    plan = draw(seed)
    if crash_at is None:
        return plan
    # the sweep looks at one death at a time, with the faults that never kill taken out
    return replace(plan, faults=frozenset({"crash"}), crashes=(crash_at,) if crash_at else ())


def _replay(arguments: argparse.Namespace) -> int:
    plan = _plan(arguments.seed, arguments.crash_at)
    report = run_plan(plan, trace=arguments.trace)
    print(f"\nplan: {plan}\nreport: {report}")
    if not arguments.trace:
        again = run_plan(plan)
        print("replayed alike" if again == report else f"NOT DETERMINISTIC: {again}")
    return 1 if report.breaches else 0


def _campaign(arguments: argparse.Namespace) -> int:
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    failed: list[int] = []
    total = Counter[str]()
    began = time.perf_counter()
    gc.collect()
    gc.freeze()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        reports = (
            _sweep(seed, arguments) if arguments.sweep else [(None, run_plan(_plan(seed, None)))]
        )
        for crash_at, report in reports:
            total.update(worlds=1, **_sizes(report))
            faults.update(report.faults)
            outcomes.update(report.outcomes)
            breaches = _counting(report, arguments)
            if breaches:
                failed.append(seed)
                _tell(report, breaches, crash_at, arguments.plant)
                if not arguments.keep_going:
                    break
        total["seeds"] += 1
        if failed and not arguments.keep_going:
            break
        if arguments.seconds and time.perf_counter() - began > arguments.seconds:
            break
        if total["seeds"] % 100 == 0:
            gc.collect()
    seconds = time.perf_counter() - began
    print(
        f"{total['seeds']} seeds ({total['worlds']} worlds) in {seconds:.1f} s: "
        f"{total['worlds'] / seconds:.1f} a second"
    )
    print(f"  {dict(total)}")
    print(f"  faults injected: {sum(faults.values())} {dict(sorted(faults.items()))}")
    print(f"  jobs ended: {dict(outcomes)}")
    if failed:
        print(f"FAILED: {len(set(failed))} seeds: {sorted(set(failed))[:20]}")
    return 1 if failed else 0


def _sweep(seed: int, arguments: argparse.Namespace) -> "list[tuple[int | None, Report]]":
    undisturbed = run_plan(_plan(seed, 0))
    reports: list[tuple[int | None, Report]] = [(0, undisturbed)]
    for turn in range(1, undisturbed.turns + 1):
        reports.append((turn, run_plan(_plan(seed, turn))))
        if _counting(reports[-1][1], arguments) and not arguments.keep_going:
            break
    return reports


def _sizes(report: Report) -> dict[str, int]:
    return {
        "steps": report.steps,
        "database_operations": report.operations,
        "jobs": report.jobs,
        "executions": report.executions,
        "incarnations": report.incarnations,
        "virtual_s": int(report.virtual_s),
    }


def _counting(report: Report, arguments: argparse.Namespace) -> list[str]:
    return [
        breach
        for breach in report.breaches
        if re.search(arguments.until, breach)
        and not (arguments.ignore and re.search(arguments.ignore, breach))
    ]


def _tell(report: Report, breaches: list[str], crash_at: int | None, plant: str | None) -> None:
    print(f"seed {report.seed}:")
    for breach in breaches[:5]:
        print(f"  {breach}")
    options = f" --crash-at {crash_at}" if crash_at is not None else ""
    options += f" --plant {plant}" if plant else ""
    print(f"  replay: python -m tests.simulation --seed {report.seed} --trace{options}")


if __name__ == "__main__":
    sys.exit(main())
