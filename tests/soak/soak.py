"""One soak: a fleet, its callers, its faults, and the verdict."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.soak.clients import Clients
from tests.soak.faults import Faults
from tests.soak.fleet import Fleet
from tests.soak.plan import Plan
from tests.soak.receiver import Receiver
from tests.soak.records import Records
from tests.soak.verdict import Verdict
from tests.support.postgres import PostgresServer, own_server

SETTLE_S = 120
CAPACITY = 2
_OPEN = """SELECT
    (SELECT count(*) FROM runs WHERE cancel_pending) +
    (SELECT count(*) FROM webhook_events WHERE status = 'pending') AS n"""
_UNDER_WAY = """SELECT backend, state, id, epoch, cancel_pending, granted_at, started_at, ended_at
    FROM runs WHERE state IN ('granted', 'started') OR cancel_pending"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it."""

    wrong: list[str]
    lines: list[str]


def soak(plan: Plan, say: Callable[[str], None], keep: Path | None = None) -> Report:
    """Carry out a plan; `keep` = folder that stays for whoever wants to look. Raises NoPostgres."""
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        postgres = stack.enter_context(own_server(durable=True)) if plan.postgres else None
        receiver = stack.enter_context(Receiver())
        fleet = Fleet(folder, plan, postgres)
        clients = Clients(fleet.gateways, receiver.url, plan.works)
        begin = time.monotonic()
        try:
            fleet.start()
            stack_up = time.monotonic()
            say(f"up after {stack_up - begin:.0f} s")
            crowded = asyncio.run(_storm(fleet, clients, say))
            say(f"every job has ended after {time.monotonic() - stack_up:.0f} s")
            _settle(fleet)
        finally:
            left = fleet.stop()
        verdict = Verdict(fleet, clients, receiver.received)
        wrong = [*crowded, *verdict.wrong(), *[f"process {pid} is left over" for pid in left]]
        lines = _lines(fleet, clients, verdict, receiver)
        pid = _first_pid(postgres)
        stack.close()
        if pid is not None and psutil.pid_exists(pid) and not _dead(pid):
            wrong.append("PostgreSQL is left over")
        return Report(wrong=wrong, lines=lines)


async def _storm(fleet: Fleet, clients: Clients, say: Callable[[str], None]) -> list[str]:
    crowded: list[str] = []
    async with asyncio.TaskGroup() as group:
        counting = group.create_task(_count(fleet, crowded))
        faults = group.create_task(Faults(fleet, clients.ended, say).run())
        await clients.run()
        await faults
        counting.cancel()
    return crowded


async def _count(fleet: Fleet, crowded: list[str]) -> None:
    """Look again and again whether a GPU service has more runs than it takes."""
    records = Records(fleet.database)
    while True:
        # it may be dead at the moment
        with suppress(Exception):
            rows = await asyncio.to_thread(records.rows, _UNDER_WAY)
            for backend in {row["backend"] for row in rows}:
                here = [row for row in rows if row["backend"] == backend]
                if len(here) > CAPACITY:
                    crowded.append(f"more than {CAPACITY} at once: {here}")
        await asyncio.sleep(0.5)


def _settle(fleet: Fleet) -> None:
    """Wait until backends were told of cancels, and receivers of ends."""
    records, deadline = Records(fleet.database), time.monotonic() + SETTLE_S
    while records.rows(_OPEN)[0]["n"] and time.monotonic() < deadline:
        time.sleep(0.2)


def _lines(fleet: Fleet, clients: Clients, verdict: Verdict, receiver: Receiver) -> list[str]:
    states = Counter(job["status"] for job in verdict.jobs.values())
    codes = Counter(job["error_code"] for job in verdict.jobs.values() if job["error_code"])
    executed = verdict.executed
    many = sum(len(each) for each in executed.values())
    again = {len(each): 0 for each in executed.values()}
    for each in executed.values():
        again[len(each)] += 1
    lives = {f"{kind} {n}": len(lives) for (kind, n), lives in fleet.lives.items()}
    took = {
        "takeovers": sum(run["epoch"] for run in verdict.runs),
        "attempts": len(verdict.runs),
    }
    times = receiver.received.times
    return [
        f"jobs: {dict(states)}, failed with {dict(codes)}",
        f"executions / jobs: {many} / {len(executed)} = {many / max(1, len(executed)):.3f}",
        f"jobs by how often they executed: {again}",
        f"runs: {took}; lives: {lives}",
        f"requests sent again: {clients.tried_again}",
        f"gateways started while there was no database: {fleet.turned_away}",
        f"webhooks: {len(times)} events, {sum(times.values())} deliveries",
        f"files of attempts given up or cancelled: {len(verdict.orphans)}",
    ]


def _first_pid(postgres: PostgresServer | None) -> int | None:
    return None if postgres is None else postgres.pid


def _dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
