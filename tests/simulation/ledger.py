"""Every committed change of the database, as triggers saw it, and the rules it must obey."""

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.job import JOB_MOVES, JOB_TERMINAL, RUN_MOVES, RUN_TERMINAL
from tests.simulation.dbapi import Observer, Watched

if TYPE_CHECKING:
    from tests.simulation.world import World

_LOGGED = {
    "jobs": ("id", "status", "progress", "events", "outcome", "error_code", "finished_at",
             "webhook_url", "batch_id"),
    "runs": ("id", "job_id", "stage", "attempt", "state", "backend", "reference", "produced",
             "owner", "epoch", "deaths", "failures"),
    "artifacts": ("job_id", "output", "n", "key", "bytes", "sha256"),
    "job_events": ("job_id", "n", "type"),
    "replicas": ("id", "seen"),
    "webhook_events": ("id", "type", "job_id", "batch_id", "status"),
    "batches": ("id", "total", "ended", "finished_at", "webhook_url"),
}  # fmt: skip


def triggers() -> list[str]:
    """Statements that make the database report every change of a row."""
    made: list[str] = []
    for table, columns in _LOGGED.items():
        old = ", ".join(f"OLD.{column}" for column in columns)
        new = ", ".join(f"NEW.{column}" for column in columns)
        for event, values in (("INSERT", new), ("UPDATE", f"{old}, {new}"), ("DELETE", old)):
            made.append(
                f"CREATE TRIGGER sim_{table}_{event} AFTER {event} ON {table} "
                f"BEGIN SELECT sim_changed('{event}', '{table}', {values}); END"
            )
    return made


Row = dict[str, Any]


@dataclass(slots=True)
class JobBook:
    """What is committed about one job."""

    row: Row
    ended_at: float | None = None
    artifacts: list[Row] = field(default_factory=list[Row])
    events: list[str] = field(default_factory=list[str])
    told: list[str] = field(default_factory=list[str])
    """Types of the webhook events written for it."""
    deleted: bool = False


class Ledger(Observer):
    """The committed state, kept change by change; each breach of a rule is reported at once."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.jobs: dict[str, JobBook] = {}
        self.runs: dict[str, Row] = {}
        self.replicas: dict[str, str] = {}
        """Replica id by the name of the process that announced it."""
        self.beats: dict[str, float] = {}
        """When each replica was last seen, by its id; gone when it has left."""
        self.batches: dict[str, Row] = {}
        self.batch_told: list[str] = []
        self.commits = 0

    def opened(self, connection: Watched) -> None:
        real = connection.real
        if real is None:
            return
        changes = connection.changes

        def changed(*values: Any) -> None:
            changes.append(values)

        real.create_function("sim_changed", -1, changed)

    def settled(self, connection: Watched, *, committed: bool) -> None:
        changes = list(connection.changes)
        connection.changes.clear()
        if not committed:
            return
        self.commits += 1
        process = connection.process.name if connection.process is not None else "?"
        touched: set[str] = set()
        for event, table, *values in changes:
            # what hangs on a job goes before it, by cascade
            if (event, table) == ("DELETE", "jobs"):
                self.jobs[values[0]].deleted = True
        for event, table, *values in changes:
            columns = _LOGGED[table]
            old = dict(zip(columns, values, strict=False)) if event != "INSERT" else {}
            new = dict(zip(columns, values[-len(columns) :], strict=True))
            new = new if event != "DELETE" else {}
            self._apply(process, table, old, new)
            if table == "runs":
                touched.add((new or old)["job_id"])
            elif table == "jobs":
                touched.add((new or old)["id"])
        for job_id in sorted(touched):
            self._check_job(job_id)
        if touched:
            self._check_capacity()
            self._check_batches()

    def _breach(self, text: str) -> None:
        self._world.breach(text)

    def _apply(self, process: str, table: str, old: Row, new: Row) -> None:
        if table == "jobs":
            self._job(old, new)
        elif table == "runs":
            self._run(process, old, new)
        elif table == "artifacts":
            self._artifact(old, new)
        elif table == "job_events":
            self._event(old, new)
        elif table == "replicas":
            self._replica(process, old, new)
        elif table == "webhook_events":
            self._webhook(old, new)
        elif new:
            self.batches[new["id"]] = new

    def _replica(self, process: str, old: Row, new: Row) -> None:
        if new and not old:
            self.replicas[process] = new["id"]
        if new:
            self.beats[new["id"]] = new["seen"] / 1e6 - self._world.began
        else:
            self.beats.pop(old["id"], None)

    def _webhook(self, old: Row, new: Row) -> None:
        if old or not new:
            # delivering is not simulated; a deleted job takes its events with it
            return
        if new["job_id"] is None:
            self.batch_told.append(new["batch_id"])
        else:
            self.jobs[new["job_id"]].told.append(new["type"])

    def _job(self, old: Row, new: Row) -> None:
        trace = self._world.trace
        if not old:
            self.jobs[new["id"]] = JobBook(row=new)
            trace(f"job {new['id'][:8]} {new['status']}")
            return
        book = self.jobs[old["id"]]
        name = f"job {old['id'][:8]}"
        if not new:
            if old["status"] not in JOB_TERMINAL:
                self._breach(f"{name} was deleted while {old['status']}")
            trace(f"{name} deleted")
            return
        book.row = new
        if new["status"] != old["status"]:
            trace(f"{name} {old['status']} -> {new['status']} {new['error_code'] or ''}")
            if new["status"] not in JOB_MOVES[old["status"]]:
                self._breach(f"{name} moved from {old['status']} to {new['status']}")
            if new["status"] in JOB_TERMINAL:
                book.ended_at = self._world.loop.time()
        elif old["status"] in JOB_TERMINAL and {**old, "events": 0} != {**new, "events": 0}:
            self._breach(f"{name} changed after it had ended: {old} -> {new}")
        if new["events"] < old["events"]:
            self._breach(f"{name} counts fewer events than before")

    def _run(self, process: str, old: Row, new: Row) -> None:
        if not new:
            self.runs.pop(old["id"], None)
            return
        name = f"run {new['id'][:8]} of job {new['job_id'][:8]}"
        self.runs[new["id"]] = new
        changed = {key: value for key, value in new.items() if old.get(key) != value}
        changed.pop("produced", None)
        if changed:
            self._world.trace(f"{process}: {name} {changed}")
        if not old:
            return
        if new["state"] != old["state"] and new["state"] not in RUN_MOVES[old["state"]]:
            self._breach(f"{name} moved from {old['state']} to {new['state']}")
        if new["epoch"] < old["epoch"]:
            self._breach(f"{name}: its epoch went back")
        self._check_writer(process, name, old, new)

    def _check_writer(self, process: str, name: str, old: Row, new: Row) -> None:
        replica = self.replicas.get(process)
        if new["owner"] != old["owner"]:
            if new["owner"] is not None and new["epoch"] <= old["epoch"]:
                self._breach(f"{name} changed hands without a new epoch")
            self._check_lease(name, old["owner"], new["owner"])
            return
        driven = ("state", "reference", "produced", "failures")
        if all(new[key] == old[key] for key in driven):
            return
        anyone = new["state"] == "cancelled" or (old["state"], new["state"]) == (
            "waiting",
            "granted",
        )
        if not anyone and old["owner"] != replica:
            self._breach(f"{process} wrote {name} to {new['state']}, which is not its own")

    def _check_lease(self, name: str, before: str | None, after: str | None) -> None:
        if before is None or after is None or before not in self.beats:
            return
        # to the microsecond, in which the database keeps its times
        silent = round(self._world.loop.time() - self.beats[before], 6)
        if silent < self._world.plan.settings["lease_s"] and self._world.clocks_agree:
            self._breach(f"{name} was taken from a gateway seen {silent:.2f} s ago")

    def _artifact(self, old: Row, new: Row) -> None:
        job_id = (new or old)["job_id"]
        book = self.jobs[job_id]
        if old and new and all(old[k] == new[k] for k in old if k != "removed_at"):
            # a caller deletes the job: it is said before its files go
            return
        if old and not book.deleted:
            self._breach(f"a stored result of job {job_id[:8]} was replaced or removed")
        elif new:
            book.artifacts.append(new)

    def _event(self, old: Row, new: Row) -> None:
        job_id = (new or old)["job_id"]
        book = self.jobs[job_id]
        if old:
            if not book.deleted:
                self._breach(f"an event of job {job_id[:8]} was changed or removed")
            return
        if new["n"] != len(book.events) + 1:
            self._breach(f"job {job_id[:8]}: event {new['n']} follows {len(book.events)}")
        book.events.append(new["type"])
        if sum(event in JOB_TERMINAL for event in book.events) > 1:
            self._breach(f"job {job_id[:8]} ended twice: {book.events}")

    def _check_job(self, job_id: str) -> None:
        book = self.jobs[job_id]
        if book.deleted:
            return
        runs = [run for run in self.runs.values() if run["job_id"] == job_id]
        open_runs = [run["id"][:8] for run in runs if run["state"] not in RUN_TERMINAL]
        ended = book.row["status"] in JOB_TERMINAL
        if ended and open_runs:
            self._breach(f"job {job_id[:8]} has ended and run {open_runs} has not")
        if not ended and len(open_runs) != 1:
            self._breach(f"job {job_id[:8]} is open with {len(open_runs)} open runs")
        if book.row["status"] == "completed":
            self._world.judge.completed(job_id, book, runs)
        due = [f"job.{book.row['status']}"] if ended and book.row["webhook_url"] else []
        if book.told != due:
            self._breach(f"job {job_id[:8]} has webhook events {book.told}, due are {due}")

    def _check_batches(self) -> None:
        for batch_id, batch in self.batches.items():
            ended = sum(
                book.row["batch_id"] == batch_id and book.row["status"] in JOB_TERMINAL
                for book in self.jobs.values()
            )
            if batch["ended"] != ended:
                self._breach(f"the batch counts {batch['ended']} ended jobs, {ended} have")
            done = ended == batch["total"]
            if done != (batch["finished_at"] is not None):
                self._breach(f"the batch has {ended} ended jobs and is {batch}")
            if self.batch_told.count(batch_id) != (done and batch["webhook_url"] is not None):
                self._breach(f"the batch has {ended} ended jobs and events {self.batch_told}")

    def _check_capacity(self) -> None:
        used: dict[str, int] = {}
        for run in self.runs.values():
            if run["state"] in ("granted", "started"):
                used[run["backend"]] = used.get(run["backend"], 0) + 1
        for service in self._world.services:
            if used.get(service.name, 0) > service.capacity:
                self._breach(f"{service.name} is over its capacity of {service.capacity}: {used}")


def template(create_tables: Any) -> bytes:
    """A database with tables and triggers, as the bytes of its file."""
    connection = sqlite3.connect(":memory:")
    create_tables(connection)
    for statement in triggers():
        connection.execute(statement)
    connection.commit()
    data = bytearray(connection.serialize())
    connection.close()
    # file format 2 = WAL from the first open on (https://www.sqlite.org/fileformat2.html §1.3.3)
    data[18] = data[19] = 2
    return bytes(data)
