"""The RunPod backend with real storage and receipts, over the double; the test is the worker."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from gateway.backends.base import Order, Progressed
from gateway.backends.runpod import Endpoint, Runpod
from gateway.backends.runpod_submit import Addresses
from gateway.clock import SystemClock
from gateway.job import Call, Produced, Run
from gateway.receipts import Receipts
from gateway.security.signing import Signer
from gateway.storage.local import LocalStorage
from gpu_server.protocol import OutputFile, ReceiptNote, RunStatus, Slot
from tests.support.gpu_double import CHECKPOINT, WORKFLOW, WORKFLOWS
from tests.support.runpod_double import API_KEY
from tests.support.runpod_double import Runpod as Double
from tests.support.runpod_jobs import Job

OURS = "http://127.0.0.1:1"
PUBLIC = "https://gateway.example.com"
WORKER = "w1"
SETTLING_S = 0.3
GONE_S = 3.0


@dataclass(kw_only=True)
class Rows:
    """Runs as a database would have them."""

    runs: dict[str, Run] = field(default_factory=dict[str, Run])

    async def run(self, run_id: str) -> Run | None:
        return self.runs.get(run_id)

    async def references(self, backend: str) -> Sequence[str]:
        found = [run for run in self.runs.values() if run.backend == backend]
        return [run.reference for run in found if run.reference and run.state == "started"]


@dataclass(kw_only=True)
class Site:
    """One backend, as one gateway process has it, and the endpoint behind it."""

    double: Double
    backend: Runpod
    rows: Rows
    receipts: Receipts
    storage: LocalStorage
    http: httpx.AsyncClient

    def order(self, *, again: bool = False, timeout_s: float = 60, **params: Any) -> Order:
        """A run that has its place there, ready to be started."""
        run_id, now = str(uuid.uuid4()), datetime.now(UTC)
        call = Call(
            workflow=WORKFLOW.name,
            digest=WORKFLOW.digest,
            params={"prompt": "a mug", "checkpoint": CHECKPOINT, "seed": 7} | params,
            outputs=("images/0",),
            prefix="generated",
            timeout_s=timeout_s,
        )
        self.rows.runs[run_id] = Run(
            id=run_id,
            job_id=run_id,
            stage=0,
            attempt=0,
            state="granted",
            caller="one",
            priority=0,
            call=call,
            backend=self.backend.name,
            reference=None,
            produced=None,
            owner="one",
            epoch=1,
            failures=0,
            deaths=0,
            executed=False,
            created_at=now,
            not_before=now,
            deadline_at=now + timedelta(hours=1),
        )
        slot = Slot(name="images/0", url=f"{OURS}/api/slots/generated/x.png")
        return Order(run_id=run_id, call=call, slots=(slot,), again=again)

    async def started(self, order: Order) -> Job:
        """Start a run, whose row knows it then."""
        reference = await self.backend.start(order)
        run = self.rows.runs[order.run_id]
        self.rows.runs[order.run_id] = replace(run, state="started", reference=reference)
        return self.double.endpoint.jobs[reference]

    def taken(self) -> Job:
        """What a worker is given that asks for a job."""
        job = self.double.endpoint.take(WORKER)
        assert job is not None
        return job

    def tells(self, job: Job, **said: Any) -> int:
        """A worker's word about its job; what it is answered."""
        size = len(repr(said))
        return self.double.endpoint.done(job.worker or WORKER, job.id, said, size)

    def progress(self, job: Job, seq: int, fraction: float) -> None:
        told = {"seq": seq, "run_id": job.input["run_id"], "progress": {"fraction": fraction}}
        self.tells(job, status="IN_PROGRESS", output=told)

    async def note(self, run_id: str, **note: Any) -> None:
        """What a worker writes into the receipt."""
        content = ReceiptNote(**note).model_dump_json(exclude_none=True).encode()
        url = self.receipts.addresses(run_id, timedelta(hours=1)).put
        key = url.partition("/api/slots/")[2].partition("?")[0]

        async def whole() -> AsyncIterator[bytes]:
            yield content

        await self.storage.write(key, "application/json", whole())

    def follower(self, run_id: str, job: str) -> "Followed":
        return Followed(self.backend, run_id, job)


class Followed:
    """A run that is followed beside the test."""

    def __init__(self, backend: Runpod, run_id: str, job: str) -> None:
        self.seen: list[Progressed] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(backend, run_id, job))

    async def _follow(self, backend: Runpod, run_id: str, job: str) -> Produced:
        async for event in backend.follow(run_id, job):
            if isinstance(event, Produced):
                return event
            self.seen.append(event)
            self._news.set()
        raise AssertionError("it ended without an end")

    async def until_seen(self, count: int) -> None:
        while len(self.seen) < count:
            await self._news.wait()
            self._news.clear()

    async def produced(self) -> Produced:
        async with asyncio.timeout(200):
            return await self.task


def completed(run_id: str, **more: Any) -> RunStatus:
    """The end of a run that made one picture."""
    picture = OutputFile(
        slot="images/0",
        media_type="image/png",
        bytes=3,
        sha256=hashlib.sha256(b"png").hexdigest(),
    )
    return RunStatus(
        run_id=run_id,
        state="completed",
        engine="simulator",
        outputs=[picture],
        params={"seed": 7},
        executed=True,
        duration_seconds=1.5,
        **more,
    )


def as_json(status: RunStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", exclude_none=True)


@asynccontextmanager
async def runpod_site(
    double: Double, folder: Path, *, rows: Rows | None = None, **settings: Any
) -> AsyncGenerator[Site]:
    """A backend of a fresh process; what it stored and its rows may be those of an earlier one."""
    signer = Signer(bytes(32))
    storage = LocalStorage(folder / "files", signer, OURS)
    receipts, known = Receipts(storage, signer), rows or Rows()
    asked: dict[str, Any] = {
        "id": double.endpoint_id,
        "url": double.url,
        "key": API_KEY,
        "workflows": WORKFLOWS,
        "max_jobs": 3,
        "queue_s": 900.0,
    }
    endpoint = Endpoint(**asked | settings)
    async with httpx.AsyncClient(trust_env=False) as http:
        backend = Runpod(
            endpoint,
            http,
            receipts=receipts,
            rows=known,
            addresses=Addresses(
                receipt=receipts.addresses,
                reach=lambda url: url.replace(OURS, PUBLIC),
                webhook=lambda run_id: f"{PUBLIC}/hook/{run_id}",
            ),
            clock=SystemClock(),
            settling_s=SETTLING_S,
            gone_s=GONE_S,
        )
        await backend.look()
        yield Site(
            double=double,
            backend=backend,
            rows=known,
            receipts=receipts,
            storage=storage,
            http=http,
        )
