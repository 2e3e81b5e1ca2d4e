"""What must hold once a soak is over, whatever was killed meanwhile."""

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gateway.job import run_id
from tests.soak.clients import TERMINAL, Clients, Told
from tests.soak.fleet import Fleet, Life
from tests.soak.pictures import judge
from tests.soak.receiver import Received
from tests.soak.records import Records

MOST_ATTEMPTS = 30
DEATHS = 3
"""So many deaths of the place it ran on end a job."""
MAY_FAIL_WITH = {"run_lost", "poison", "lost", "backend_unreachable", "comfyui_unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A prompt that began to execute on a simulator."""

    at: float
    simulator: int
    life: Life
    prompt_id: str


class Verdict:
    """Reads everything once, then each rule says what breaks it."""

    def __init__(self, fleet: Fleet, clients: Clients, received: Received) -> None:
        self._fleet = fleet
        self._clients = clients
        self._received = received
        records = Records(fleet.database)
        self.jobs = {row["id"]: row for row in records.rows("SELECT * FROM jobs")}
        self.runs = records.rows("SELECT * FROM runs")
        self.events = records.rows("SELECT job_id, n, type FROM job_events ORDER BY job_id, n")
        self.artifacts = records.rows("SELECT * FROM artifacts ORDER BY job_id, output, n")
        self.hooks = records.rows("SELECT * FROM webhook_events")
        self.batches = records.rows("SELECT * FROM batches")
        self.executions = sorted(self._executions(), key=lambda each: each.at)
        self._attempts = {
            run_id(job, 0, attempt): (job, attempt)
            for job in self.jobs
            for attempt in range(MOST_ATTEMPTS)
        }

    def wrong(self) -> list[str]:
        """Every rule that does not hold."""
        return [
            *self._clients.wrong,
            *self._received.wrong,
            *self._fleet.unexpected,
            *self._wrong_jobs(),
            *self._wrong_records(),
            *self._wrong_files(),
            *self._wrong_pictures(),
            *self._wrong_executions(),
            *self._wrong_webhooks(),
        ]

    def _wrong_jobs(self) -> Iterator[str]:
        told = {each.job_id: each for each in self._clients.told}
        if len(told) != len(self._fleet.plan.works):
            yield f"{len(self._fleet.plan.works)} jobs were asked for, {len(told)} are known"
        for extra in self.jobs.keys() - told.keys():
            yield f"{extra}: nobody asked for this job"
        for job_id, each in told.items():
            if job_id not in self.jobs:
                yield f"{job_id}: acknowledged and gone"
                continue
            yield from self._wrong_job(each, self.jobs[job_id])

    def _wrong_job(self, told: Told, job: dict[str, Any]) -> Iterator[str]:
        status = job["status"]
        if set(told.ends) != {status}:
            yield f"{job['id']}: ended {status}, its caller was told {told.ends}"
        if told.cancel_answer and told.cancel_answer != status:
            yield f"{job['id']}: its cancel was answered {told.cancel_answer}, it is {status}"
        if status == "cancelled" and told.work.way != "cancel":
            yield f"{job['id']}: cancelled, though nobody asked for it"
        if status == "failed" and not self._may_fail(job):
            yield f"{job['id']}: failed with {job['error_code']}: {job['error_message']}"
        if told.numbers != list(range(1, len(told.numbers) + 1)):
            yield f"{job['id']}: its events came as {told.numbers}"

    def _may_fail(self, job: dict[str, Any]) -> bool:
        begin, end = job["created_at"] / 1e6, job["finished_at"] / 1e6
        deaths = [
            life
            for (kind, _), lives in self._fleet.lives.items()
            if kind == "simulator"
            for life in lives
            if begin < life.ended < end
        ]
        return job["error_code"] in MAY_FAIL_WITH and len(deaths) >= DEATHS

    def _wrong_records(self) -> Iterator[str]:
        yield from self._wrong_logs()
        for run in self.runs:
            if run["state"] not in {"delivered", "failed", "cancelled"} or run["cancel_pending"]:
                pending = bool(run["cancel_pending"])
                yield f"run {run['id']} is {run['state']}, cancel to be told: {pending}"
        for batch in self.batches:
            if batch["ended"] != batch["total"] or batch["finished_at"] is None:
                yield f"batch {batch['id']}: {batch['ended']} of {batch['total']}"

    def _wrong_logs(self) -> Iterator[str]:
        numbers, types = defaultdict[str, list[int]](list), defaultdict[str, list[str]](list)
        for row in self.events:
            numbers[row["job_id"]].append(row["n"])
            types[row["job_id"]].append(row["type"])
        for job_id, job in self.jobs.items():
            if job["status"] not in TERMINAL:
                yield f"{job_id}: still {job['status']}"
            if numbers[job_id] != list(range(1, job["events"] + 1)):
                yield f"{job_id}: its log is numbered {numbers[job_id]}"
            ends = [kind for kind in types[job_id] if kind in TERMINAL]
            if ends != types[job_id][-1:] or ends != [job["status"]]:
                yield f"{job_id} is {job['status']}, its log says {types[job_id]}"
            runs = [run for run in self.runs if run["job_id"] == job_id]
            delivered = sum(run["state"] == "delivered" for run in runs)
            if delivered != (job["status"] == "completed"):
                yield f"{job_id} is {job['status']} with {delivered} runs delivered"

    @property
    def _files(self) -> Path:
        return self._fleet.folder / "data" / "files"

    def _wrong_files(self) -> Iterator[str]:
        for row in self.artifacts:
            path = self._files / row["key"]
            if not path.exists():
                yield f"{row['job_id']}: {row['key']} is not there"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                yield f"{row['job_id']}: {row['key']} has other content"
            if self.jobs[row["job_id"]]["status"] != "completed":
                yield f"{row['job_id']} is not completed and has {row['key']}"
        for path in self.orphans:
            attempts = sum(run["job_id"] == path.parent.name for run in self.runs)
            job = self.jobs.get(path.parent.name)
            # what a cancelled job or an attempt given up for lost had stored; the sweep's business
            if job is None or (job["status"] == "completed" and attempts == 1):
                yield f"nobody knows {path}"

    @property
    def orphans(self) -> list[Path]:
        """Stored files that are no job's result."""
        known = {self._files / row["key"] for row in self.artifacts}
        files = [each for each in self._files.rglob("*") if each.is_file()]
        return [each for each in files if each not in known and not _is_record(each)]

    def _wrong_pictures(self) -> Iterator[str]:
        with judge(self._fleet.folder / "judge") as sees:
            for told in self._clients.told:
                job = self.jobs.get(told.job_id)
                if job is not None and job["status"] == "completed":
                    mine = [row for row in self.artifacts if row["job_id"] == told.job_id]
                    files = [self._files / row["key"] for row in mine]
                    yield from sees.wrong(told.job_id, told.work.body, files)

    def _executions(self) -> Iterator[Execution]:
        for n in range(self._fleet.plan.gpus):
            lives = {life.pid: life for life in self._fleet.lives["simulator", n]}
            ledger = self._fleet.ledger(n)
            for line in ledger.read_text().splitlines() if ledger.exists() else []:
                at, pid, prompt_id = line.split()
                life = lives[int(pid)]
                yield Execution(at=float(at), simulator=n, life=life, prompt_id=prompt_id)

    @property
    def executed(self) -> dict[str, list[Execution]]:
        """Executions of each job that was executed at all, in order."""
        found = defaultdict[str, list[Execution]](list)
        for each in self.executions:
            found[self._attempts.get(each.prompt_id, (each.prompt_id, 0))[0]].append(each)
        return found

    def _wrong_executions(self) -> Iterator[str]:
        for job_id, executions in self.executed.items():
            if job_id not in self.jobs:
                yield f"{job_id}: executed and not known"
            for before, again in pairwise(executions):
                if before.life.ended < again.at or self._was_away(before, again):
                    continue
                first, second = (self._attempts[each.prompt_id][1] for each in (before, again))
                yield (
                    f"{job_id}: executed as attempt {first} on simulator {before.simulator} and as "
                    f"attempt {second} on {again.simulator}, though the first one lived"
                )

    def _was_away(self, before: Execution, again: Execution) -> bool:
        """Whether its GPU service was away for as long as it takes to be given up."""
        name = ("gpu_server", before.simulator)
        lives = self._fleet.lives[name]
        gaps = [(one.ended, two.answered) for one, two in pairwise(lives)]
        away = [
            min(end, again.at) - max(begin, before.at)
            for begin, end in [*gaps, *self._fleet.paused[name]]
        ]
        return sum(each for each in away if each > 0) >= 0.8 * self._fleet.plan.lost_after_s

    def _wrong_webhooks(self) -> Iterator[str]:
        wanted = {
            str(uuid.uuid5(uuid.UUID(told.job_id), f"job.{self.jobs[told.job_id]['status']}"))
            for told in self._clients.told
            if told.work.webhook and told.work.way != "batch" and told.job_id in self.jobs
        }
        batch_id = self._clients.batch_id
        wanted |= {str(uuid.uuid5(uuid.UUID(batch_id), "batch.completed"))} if batch_id else set()
        for missing in wanted - self._received.times.keys():
            yield f"webhook {missing} never came"
        for extra in self._received.times.keys() - wanted:
            yield f"webhook {extra} came and nobody asked for it"
        for row in self.hooks:
            if row["status"] != "delivered":
                yield f"webhook {row['id']} is {row['status']} after {row['attempts']} tries"


def _is_record(path: Path) -> bool:
    """What storage remembers of the file beside it."""
    return (
        path.name.startswith(".") and path.with_name(path.name[1:].removesuffix(".json")).exists()
    )
