"""`python -m tests.simulation`: run seeds, or replay one with its story."""

# ruff: noqa: T201 - a command line prints

import argparse
import logging
import sys
import time

from tests.simulation import campaign
from tests.simulation.campaign import Options, Tally
from tests.simulation.plan import FAULTS, PAID_FAULTS
from tests.simulation.planted import BUGS
from tests.simulation.world import run_plan


def main() -> int:
    """The command line; exit status 1 when a seed broke a rule."""
    arguments = _arguments()
    if arguments.seed is not None:
        return _replay(arguments)
    options = Options(
        start=arguments.start,
        seeds=arguments.seeds,
        seconds=arguments.seconds,
        workers=arguments.workers,
        faults=_faults(arguments),
        sweep=arguments.sweep,
        plant=arguments.plant,
        keep_going=arguments.keep_going,
        until=arguments.until,
        ignore=arguments.ignore,
    )
    began = time.perf_counter()
    tally = campaign.run(options)
    _tell(tally, options, time.perf_counter() - began)
    return 1 if tally.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, help="begin no seed after this time")
    parser.add_argument("--workers", type=int, default=1, help="processes to run them in")
    parser.add_argument("--seed", type=int, help="run this one seed, twice unless traced")
    parser.add_argument("--trace", action="store_true", help="print its story")
    parser.add_argument("--crash-at", type=int, help="with --seed: die at this turn, nothing else")
    parser.add_argument(
        "--sweep", action="store_true", help="for each seed, die once at every single turn"
    )
    parser.add_argument("--faults", help="only these may strike: names by commas")
    parser.add_argument("--plant", choices=sorted(BUGS), help="run with a bug put in on purpose")
    parser.add_argument(
        "--keep-going", action="store_true", help="do not stop at the first failure"
    )
    parser.add_argument("--until", default="", help="only breaches that match this count")
    parser.add_argument("--ignore", help="breaches that match this are passed over")
    return parser.parse_args()


def _faults(arguments: argparse.Namespace) -> frozenset[str] | None:
    named: str | None = arguments.faults
    if named is None:
        return None
    faults = frozenset(fault for fault in named.split(",") if fault)
    known = (*FAULTS, *sorted(PAID_FAULTS))
    if unknown := faults - frozenset(known):
        raise SystemExit(f"unknown faults: {sorted(unknown)}; there are: {', '.join(known)}")
    return faults


def _replay(arguments: argparse.Namespace) -> int:
    campaign.prepare()
    if arguments.trace:
        logging.basicConfig(format="            log: %(message)s", stream=sys.stdout)
        logging.getLogger("gateway").setLevel(logging.INFO)
    plan = campaign.plan_of(arguments.seed, arguments.crash_at, _faults(arguments))
    with campaign.planted(arguments.plant):
        report = run_plan(plan, trace=arguments.trace)
        again = None if arguments.trace else run_plan(plan)
    # a set prints in another order in each process
    print(f"\nplan: {plan}\nfaults: {sorted(plan.faults)}" if arguments.trace else "")
    print(f"report: {report}")
    if again is not None:
        print("replayed alike" if again == report else f"NOT DETERMINISTIC: {again}")
    return 1 if report.breaches else 0


def _tell(tally: Tally, options: Options, seconds: float) -> None:
    total = tally.total
    for failure in tally.failures:
        print(failure.told(options.plant, options.faults))
    print(
        f"{total['seeds']} seeds ({total['worlds']} worlds) in {seconds:.1f} s: "
        f"{total['worlds'] / seconds:.1f} a second"
    )
    print(f"  {dict(total)}")
    print(f"  faults injected: {tally.faults.total()} {dict(sorted(tally.faults.items()))}")
    print(f"  jobs ended: {dict(tally.outcomes)}")
    if tally.failures:
        failed = sorted({failure.seed for failure in tally.failures})
        print(f"FAILED: {len(failed)} seeds: {failed[:20]}")


if __name__ == "__main__":
    sys.exit(main())
