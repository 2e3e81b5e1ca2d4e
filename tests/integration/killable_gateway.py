"""A process of its own around the job engine, to be killed: `killable_gateway.py FOLDER [SUBMIT]`.

GPU service and storage are folders, so that they outlive it. It prints `ready`, the id of each job
it submits once that is committed, and `done` when every job that can end has ended.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

from gateway.backends.base import Order, Progressed, RunLost, WorkflowReadiness
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.job import Call, JobQuery, NewJob, Produced, new_job_id
from gateway.jobs.engine import Jobs
from gateway.jobs.settings import JobSettings
from gateway.storage.base import StoredFile
from gpu_server.protocol import Missing, OutputFile

EXECUTION_S = 0.15
NEVER_READY = "not-installed"


def content(run_id: str) -> bytes:
    return f"made by {run_id}".encode()


def read(path: str) -> bytes | None:
    return Path(path).read_bytes() if Path(path).exists() else None


def write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


class FolderStorage:
    is_remote = False
    wants_length = False
    wants_md5 = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def address(self, key: str) -> str:
        return f"local://{key}"

    def slot(self, key: str, lifetime: timedelta) -> str:
        del lifetime
        return str(self.folder / key.replace("/", "_"))

    async def stat(self, key: str) -> StoredFile | None:
        data = read(self.slot(key, timedelta(0)))
        if data is None:
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        return StoredFile(
            key=key, bytes=len(data), sha256=sha256, etag=sha256, media_type="image/png"
        )

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        yield (read(self.slot(key, timedelta(0))) or b"")[start:end]

    async def delete(self, key: str) -> None:
        remove(self.slot(key, timedelta(0)))


class FolderNames:
    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        del job_id
        return f"{prefix}/{day}/{run_id}-{slot.replace('/', '-')}.{ext}"

    def filename(self, key: str) -> str:
        return key.rpartition("/")[2]


class FolderBackend:
    """Each run is a file that says when it will be done: it goes on whoever looks."""

    name = "gpu"
    kind = "gpu"
    billed = False
    capacity = 3
    engine = "simulator"
    installed: dict[str, frozenset[str]] | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        del digest
        if workflow == NEVER_READY:
            lacking = Missing(kind="model", name="flux.safetensors")
            return WorkflowReadiness(readiness="missing", missing=(lacking,))
        return WorkflowReadiness(readiness="ready")

    async def start(self, order: Order) -> str:
        begun = self.folder / order.run_id
        note = self.folder / f"{order.run_id}.{os.getpid()}"
        slots = {slot.name: slot.url for slot in order.slots}
        note.write_text(json.dumps({"done_at": time.time() + EXECUTION_S, "slots": slots}))
        # exclusive and whole: an id is executed once, whoever asks again adopts it
        with suppress(FileExistsError):
            begun.hardlink_to(note)
        note.unlink()
        return order.run_id

    async def renew(self, order: Order) -> None:
        if not (self.folder / order.run_id).exists():
            raise RunLost

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        path = self.folder / reference
        if not path.exists():
            raise RunLost
        run = json.loads(path.read_text())
        yield Progressed(fraction=0.5)
        await asyncio.sleep(max(0, run["done_at"] - time.time()))
        data = content(run_id)
        outputs: list[OutputFile] = []
        for slot, url in run["slots"].items():
            write(url, data)
            sha256 = hashlib.sha256(data).hexdigest()
            outputs.append(
                OutputFile(slot=slot, media_type="image/png", bytes=len(data), sha256=sha256)
            )
        yield Produced(
            outputs=tuple(outputs), params={}, engine="simulator", duration_seconds=EXECUTION_S
        )

    async def cancel(self, run_id: str, reference: str | None) -> None:
        del reference
        (self.folder / f"{run_id}.cancelled").touch()

    async def forget(self, run_id: str, reference: str) -> None:
        del reference
        (self.folder / f"{run_id}.forgotten").touch()


def new_job(workflow: str) -> NewJob:
    call = Call(
        workflow=workflow, digest=workflow, params={}, outputs=("images/0",), prefix="generated"
    )
    return NewJob(
        id=new_job_id(),
        tool="generate",
        variant="v",
        caller="c",
        params={},
        call=call,
        deadline_s=3600,
    )


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def serve(folder: Path, submit: int) -> None:
    jobs = Jobs(
        db=Database(f"sqlite+aiosqlite:///{folder / 'gateway.db'}"),
        backends=[FolderBackend(folder / "gpu")],
        storage=FolderStorage(folder / "files"),
        names=FolderNames(),
        settings=JobSettings(),
        clock=SystemClock(),
    )
    await jobs.start()
    say("ready")
    for n in range(submit):
        job, _ = await jobs.submit(new_job(NEVER_READY if n == 0 else "flux"))
        say(job.id)
    for status in ("pending", "processing"):
        page = await jobs.list(JobQuery(status=status, limit=1000))
        for job in page.items:
            if job.call.workflow != NEVER_READY:
                await jobs.wait(job.id, 3600)
    say("done")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
