"""How fast and how quiet the job engine is, on PostgreSQL and on SQLite.

Every database is new and durable (fsync on). The bare commit of one row is the floor: nothing can
be faster. Milliseconds are this machine's; what matters is how they compare with the floor.

    python -m benchmarks.jobs [--quick] [--sqlite | --postgres] [--write benchmarks/jobs.md]
"""

import argparse
import asyncio
import itertools
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from benchmarks import engine, installation
from gateway.db import migrate
from tests.support.postgres import Databases, own_server

T = TypeVar("T")
Column = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One database server, or none, and what was measured there."""

    new: Callable[[], str]
    folder: Path
    share: float
    """Of the usual number of samples."""
    column: Column = field(default_factory=Column)

    def count(self, usual: int) -> int:
        """As many samples as are wanted of so many."""
        return max(10, int(usual * self.share))

    def note(self, row: str, value: str) -> None:
        """Keep and show a result."""
        self.column[row] = value
        print(f"  {row}: {value}", flush=True)

    def note_times(self, row: str, found: list[float], floor: float) -> None:
        """Keep median and 99th percentile, and how many commits the median is."""
        self.note(row, f"{middle(found):.1f} / {high(found):.1f} ({middle(found) / floor:.0f}x)")


def middle(found: list[float]) -> float:
    return sorted(found)[len(found) // 2]


def high(found: list[float]) -> float:
    return sorted(found)[int(len(found) * 0.99)]


def run(work: Coroutine[Any, Any, T]) -> T:
    """On the event loop that serves in production."""
    factory = uvicorn.Config("none").get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def measure(bench: Bench, *, postgres: bool) -> Column:
    new, folder, count = bench.new, bench.folder, bench.count
    commits = run(engine.commits(new(), count(300)))
    floor = middle(commits)
    bench.note("bare commit, p50 / p99 ms", f"{floor:.2f} / {high(commits):.2f}")
    rate = run(engine.submit_rate(new(), folder, count(2000)))
    bench.note("submits a second, engine alone, 16 at once", f"{rate:.0f}")
    rate = installation.submit_rate(new(), folder, count(2000))
    bench.note("submits a second over HTTP, 1 gateway, 16 clients", f"{rate:.0f}")
    found = run(engine.starts(new(), folder, count(300)))
    bench.note_times("submit → start, engine alone, p50 / p99 ms", found, floor)
    found = installation.starts(new(), folder, count(150))
    bench.note_times("POST → first node in the simulator, p50 / p99 ms", found, floor)
    found = run(engine.results(new(), folder, count(300), elsewhere=False))
    bench.note_times("end → waiter, same gateway, p50 / p99 ms", found, floor)
    if postgres:
        found = run(engine.results(new(), folder, count(300), elsewhere=True))
        bench.note_times("end → waiter, another gateway, p50 / p99 ms", found, floor)
        taken = [installation.takeover(new(), folder) for _ in range(count(30) // 10)]
        bench.note("takeover after kill -9, lease 15 s, s", ", ".join(f"{s:.1f}" for s in taken))
        for gateways in (1, 3):
            idle = installation.idle(new(), folder, gateways, seconds=count(300) // 10)
            row = f"idle load of {gateways} gateway{'s' if gateways > 1 else ''}"
            bench.note(f"{row}: transactions/s, ms/s in the database", idle)
    lag, memory = installation.crowd(new(), folder, running=count(300), waiting=count(5000))
    bench.note("300 in flight, 5,000 waiting: loop lag p50 / p99 / max ms", lag)
    bench.note("300 in flight, 5,000 waiting: memory, MB", memory)
    bench.note("2,000 SSE watchers: memory, MB", installation.watchers(new(), folder, count(2000)))
    return bench.column


def sqlite_files(folder: Path) -> Callable[[], str]:
    numbers = itertools.count()

    def new() -> str:
        url = f"sqlite+aiosqlite:///{folder}/{next(numbers)}/gateway.sqlite"
        migrate(url)
        return url

    return new


def table(columns: dict[str, Column]) -> str:
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    lines = [
        f"| | {' | '.join(columns)} |",
        f"|---|{'--:|' * len(columns)}",
        *(f"| {r} | {' | '.join(c.get(r, '-') for c in columns.values())} |" for r in rows),
    ]
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a tenth of the samples")
    options.add_argument("--sqlite", action="store_true", help="SQLite alone")
    options.add_argument("--postgres", action="store_true", help="PostgreSQL alone")
    options.add_argument("--write", type=Path, help="also write the table into this file")
    args = options.parse_args()
    logging.disable(logging.WARNING)
    share = 0.1 if args.quick else 1.0
    load = os.getloadavg()[0]
    columns: dict[str, Column] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if not args.sqlite:
            server = stack.enter_context(own_server(durable=True))
            print("PostgreSQL")
            bench = Bench(new=Databases(server.url).new, folder=folder / "pg", share=share)
            columns["PostgreSQL"] = measure(bench, postgres=True)
        if not args.postgres:
            print("SQLite")
            bench = Bench(new=sqlite_files(folder), folder=folder / "lite", share=share)
            columns["SQLite"] = measure(bench, postgres=False)
    print(table(columns))
    machine = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}; load at "
        f"the start {load:.1f}"
    )
    if args.write:
        about = (__doc__ or "").partition("    python")[0].strip()
        args.write.write_text(
            f"# Jobs\n\nMade by `python -m benchmarks.jobs --write {args.write}` on {machine}.\n\n"
            f"{about} In brackets: how many bare commits the median is.\n\n{table(columns)}\n"
        )


if __name__ == "__main__":
    main()
