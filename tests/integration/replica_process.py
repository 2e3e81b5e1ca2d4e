"""A gateway's engine in a process of its own: `replica_process.py FOLDER URL SETTINGS`.

GPU service and storage are folders. It says `ready`, then answers each line of its input:
`submit WORKFLOW` with the job's id, `wait JOB` with its status, `driving` with how many runs it
drives. A job of the workflow `held` is done once there is a file `release` in the folder.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.backends.base import Progressed
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.job import Produced
from gateway.jobs.engine import Jobs
from gateway.jobs.settings import JobSettings
from tests.integration.killable_gateway import (
    FolderBackend,
    FolderNames,
    FolderStorage,
    new_job,
    say,
)


class HeldBackend(FolderBackend):
    """Ends no run before it is let."""

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        async for event in super().follow(run_id, reference):
            # looked at, as the file has no event
            while not (self.folder / "release").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            yield event


async def answer(jobs: Jobs, line: str) -> str:
    command, _, subject = line.strip().partition(" ")
    match command:
        case "submit":
            return (await jobs.submit(new_job(subject)))[0].id
        case "wait":
            job = await jobs.wait(subject, 120)
            return "none" if job is None else job.status
        case "driving":
            return str(jobs.counts().in_flight)
        case _:
            raise ValueError(line)


async def serve(folder: Path, url: str, settings: JobSettings) -> None:
    db = Database(url)
    jobs = Jobs(
        db=db,
        backends=[HeldBackend(folder / "gpu")],
        storage=FolderStorage(folder / "files"),
        names=FolderNames(),
        settings=settings,
        clock=SystemClock(),
    )
    await jobs.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say("ready")
    reading = asyncio.create_task(commands(jobs))
    await stop.wait()
    reading.cancel()
    await jobs.stop()
    await db.close()


async def commands(jobs: Jobs) -> None:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await lines.readline():
        say(await answer(jobs, line.decode()))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], JobSettings(**json.loads(sys.argv[3]))))
