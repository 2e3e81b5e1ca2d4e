"""An endpoint of RunPod as it keeps its jobs: states, policies, retention, stops, webhooks."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
Json = dict[str, Any]
MB = 1_000_000
_TICK_S = 0.05


@dataclass(kw_only=True, eq=False)
class Job:
    """One job, by the endpoint's own clock."""

    id: str
    input: Json
    webhook: str | None
    execution_s: float
    ttl_s: float
    sync: bool
    created: float
    status: Status = "IN_QUEUE"
    output: Any = None
    error: str | None = None
    worker: str | None = None
    started: float | None = None
    finished: float | None = None
    takes: int = 0
    """How often a worker was given it: what is paid for."""
    updates: list[Any] = field(default_factory=list[Any])
    """Every progress update, in the order of arrival."""
    late: int = 0
    """Updates and results that came after its end."""
    chunks: list[Any] = field(default_factory=list[Any])
    """What its worker put into its stream, in the order of arrival."""
    chunks_given: int = 0
    """How many of them a caller was given."""
    late_chunks: int = 0
    """Those that came after its end."""
    attempts: list[int] = field(default_factory=list[int])
    """What its webhook answered, 0 for nothing."""

    @property
    def over(self) -> bool:
        return self.status in FINAL

    def told(self) -> Json:
        """What `/status` answers."""
        told: Json = {"id": self.id, "status": self.status}
        if self.started is not None:
            told["delayTime"] = round((self.started - self.created) * 1000)
            told["workerId"] = self.worker
        if self.started is not None and self.finished is not None:
            told["executionTime"] = round((self.finished - self.started) * 1000)
        if self.output is not None:
            told["output"] = self.output
        if self.error is not None:
            told["error"] = self.error
        return told


@dataclass(kw_only=True)
class Seen:
    """A worker as the endpoint knows it."""

    last: float
    ready: bool = False
    """It has asked for a job."""
    stopped: bool = False
    """It asked to be replaced, and is given no more jobs."""


@dataclass(kw_only=True)
class Endpoint:
    """Its jobs and workers; the numbers are RunPod's, to be changed by tests."""

    retention_s: float = 1800
    sync_retention_s: float = 60
    lost_after_s: float = 60
    """A job whose worker is silent for so long is TIMED_OUT."""
    result_bytes: int = 10 * MB
    sync_result_bytes: int = 20 * MB
    oversize: Literal["empty", "hang"] = "empty"
    """What becomes of a job whose result is refused: both were seen."""
    webhooks: Literal["sent", "lost", "twice"] = "sent"
    webhook_again_s: float = 10
    webhook_tries: int = 3
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    """Also those it answers 404 for."""
    gone: set[str] = field(default_factory=set[str])
    workers: dict[str, Seen] = field(default_factory=dict[str, Seen])
    unhealthy: list[Json] = field(default_factory=list[Json])
    """What workers said that gave themselves up."""
    retried: int = 0
    _ahead: float = 0
    _stops: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _posting: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass at once; workers that live are not thought lost for it."""
        self._ahead += seconds
        for seen in self.workers.values():
            seen.last += seconds
        self.sweep()

    def accept(self, asked: Json, *, sync: bool) -> Job:
        policy: Json = asked.get("policy") or {}
        job = Job(
            id=f"{'sync-' if sync else ''}{uuid.uuid4()}-u1",
            input=asked["input"],
            webhook=asked.get("webhook"),
            execution_s=policy.get("executionTimeout", 600_000) / 1000,
            ttl_s=policy.get("ttl", 86_400_000) / 1000,
            sync=sync,
            created=self.now(),
        )
        self.jobs[job.id] = job
        return job

    def find(self, job_id: str) -> Job | None:
        """A job that can still be asked for."""
        self.sweep()
        return None if job_id in self.gone else self.jobs.get(job_id)

    def known(self) -> Iterator[Job]:
        return (job for job in self.jobs.values() if job.id not in self.gone)

    def take(self, worker: str) -> Job | None:
        """Give the oldest waiting job to a worker."""
        seen = self.seen(worker)
        seen.ready = True
        job = next((job for job in self.known() if job.status == "IN_QUEUE"), None)
        if job is None or seen.stopped:
            return None
        job.status, job.worker, job.started = "IN_PROGRESS", worker, self.now()
        job.takes += 1
        return job

    def seen(self, worker: str) -> Seen:
        seen = self.workers.setdefault(worker, Seen(last=self.now()))
        seen.last = self.now()
        return seen

    def done(self, worker: str, job_id: str, said: Json, size: int) -> int:
        """Take what a worker posts; the HTTP status it is answered."""
        self.seen(worker)
        job = self.find(job_id)
        if job is None or job.worker != worker or job.over:
            if job is not None:
                job.late += 1
            return 200
        if said.get("status") == "IN_PROGRESS":
            job.updates.append(said["output"])
            job.output = said["output"]
            return 200
        if size > (self.sync_result_bytes if job.sync else self.result_bytes):
            if self.oversize == "empty":
                job.output = None
                self.end(job, "COMPLETED")
            return 400
        if said.get("stopPod"):
            self.workers[worker].stopped = True
        job.output, job.error = said.get("output"), said.get("error")
        self.end(job, "FAILED" if job.error is not None else "COMPLETED")
        return 200

    def cancel(self, job: Job) -> None:
        if not job.over:
            self._stop(job)
            job.output = None
            self.end(job, "CANCELLED")

    def retry(self, job: Job) -> None:
        job.status, job.worker, job.started, job.finished = "IN_QUEUE", None, None, None
        job.output = job.error = None
        self.retried += 1

    def purge(self) -> int:
        waiting = [job.id for job in self.known() if job.status == "IN_QUEUE"]
        self.gone.update(waiting)
        return len(waiting)

    def stops(self, worker: str) -> list[str]:
        """Jobs the worker must stop, each told once."""
        return self._stops.pop(worker, [])

    def sweep(self) -> None:
        """Do what time does."""
        now = self.now()
        for job in list(self.known()):
            if job.over:
                kept = self.sync_retention_s if job.sync else self.retention_s
                if now - (job.finished or now) > kept:
                    self.gone.add(job.id)
            elif now - job.created > job.ttl_s:
                # also of a running one: it is deleted, not ended
                self._stop(job)
                self.gone.add(job.id)
            elif job.started is not None and now - job.started > job.execution_s:
                self._stop(job)
                self._time_out(job, "job timed out after executing for too long")
            elif job.worker is not None and now - self.workers[job.worker].last > self.lost_after_s:
                self._time_out(job, "worker stopped reporting")

    def health(self) -> Json:
        count = Counter(job.status for job in self.known())
        busy = {job.worker for job in self.known() if job.status == "IN_PROGRESS"}
        alive = {
            name
            for name, seen in self.workers.items()
            if not seen.stopped and self.now() - seen.last <= self.lost_after_s
        }
        idle = {name for name in alive - busy if self.workers[name].ready}
        return {
            "jobs": {
                "completed": count["COMPLETED"],
                "failed": count["FAILED"],
                "inProgress": count["IN_PROGRESS"],
                "inQueue": count["IN_QUEUE"],
                "retried": self.retried,
            },
            "workers": {
                "idle": len(idle),
                "initializing": len(alive - busy - idle),
                "ready": len(idle),
                "running": len(alive & busy),
                "throttled": 0,
                "unhealthy": len(self.unhealthy),
            },
        }

    def end(self, job: Job, status: Status) -> None:
        job.status, job.finished = status, self.now()
        if job.webhook and self.webhooks != "lost":
            for _ in range(2 if self.webhooks == "twice" else 1):
                task = asyncio.create_task(self._post(job, job.webhook))
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)

    async def passing(self) -> None:
        """Sweep for ever."""
        while True:
            self.sweep()
            await asyncio.sleep(_TICK_S)

    async def posted(self) -> None:
        """Return once no webhook is under way."""
        await asyncio.gather(*self._posting)

    async def close(self) -> None:
        for task in self._posting:
            task.cancel()
        await asyncio.gather(*self._posting, return_exceptions=True)

    def _time_out(self, job: Job, why: str) -> None:
        job.output, job.error = None, why
        self.end(job, "TIMED_OUT")

    def _stop(self, job: Job) -> None:
        if job.worker is not None and job.status == "IN_PROGRESS":
            self._stops.setdefault(job.worker, []).append(job.id)

    async def _post(self, job: Job, url: str) -> None:
        """Only 200 will do; unsigned, as RunPod documents no signature."""
        body = json.dumps(job.told())
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            for attempt in range(self.webhook_tries):
                if attempt:
                    await asyncio.sleep(self.webhook_again_s)
                try:
                    answer = (await http.post(url, content=body, headers=headers)).status_code
                except httpx.TransportError:
                    answer = 0
                job.attempts.append(answer)
                if answer == 200:
                    return
