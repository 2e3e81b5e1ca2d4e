"""Meshes of plain calls, worked on as the gateway does it: in a process that ends with the job."""

import asyncio
import base64
import hashlib
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx

from gpu_server.comfy import ComfyFile, ComfyUnavailable
from gpu_server.fetch import tls_context
from gpu_server.finish import Finishing, NotPrepared
from gpu_server.finish.body import save
from gpu_server.mesh.calls import NORMALISED, failure_of
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.files import NotFetched, deliver
from gpu_server.mesh.order import MEDIA_TYPES, MeshOrder, MeshReport
from gpu_server.mesh.pool import MeshPool
from gpu_server.protocol import FileOptions, OutputFile
from gpu_server.run import Run
from gpu_server.sending import FIRST_DELAY_S, LONGEST_DELAY_S, Refused
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.calls import Call, slot_at
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.results import SMALL, Result, answer, linked, made, told, too_large
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.service import Service

_log = logging.getLogger(__name__)

_AWAY_S = 60
"""How long a finished mesh waits for a ComfyUI, or a disk, that does not hand it over."""
_DELIVER_S = 3600
"""How long the bucket may be away, as for any other file."""


async def normalised(
    call: Call, name: str, run: Run, service: Service, *, handover: "Handover"
) -> Result:
    """The answer to a plain call whose output `name` is a mesh; raises CallFailed, RunFailed."""
    files = made(run, call.workflow.outputs[name])
    if not files:
        raise CallFailed("fatal", "no_output", f"the workflow made no {name}")
    began = time.monotonic()
    async with working(service.settings.finishing_path, ours=True) as folder:
        work = MeshOrder(source=folder / "source.glb", target=folder / "target", steps=NORMALISED)
        await _brought(service, files[0], call.files, work.source)
        report = await carried_out(work)
        seconds = (run.status.duration_seconds or 0) + time.monotonic() - began
        status = run.status.model_copy(update={"duration_seconds": round(seconds, 3)})
        slot = f"{name}/0"
        file = await handover.of(work, report, slot=slot, key=call.keys.get(slot))
    return answer(call, status, [(slot, file)])


async def carried_out(work: MeshOrder) -> MeshReport:
    """Have a mesh worked on; being cancelled ends the process that does it. Raises MeshError."""
    async with MeshPool(workers=1) as pool:
        return await pool.run(work)


@asynccontextmanager
async def working(root: Path, *, ours: bool) -> AsyncGenerator[Path]:
    """A folder for one call's files, gone when this is left; what fails in it is a CallFailed.

    `ours`: the mesh was made here.
    """
    with _told_as_failures(ours=ours):
        await asyncio.to_thread(root.mkdir, parents=True, exist_ok=True)
        # named like files on their way out: the next process removes what a killed one left
        held = tempfile.TemporaryDirectory(prefix="finish-", dir=root, ignore_cleanup_errors=True)
        # its removal is as good as at once, and must not be interrupted
        with held as folder:
            yield Path(folder)


@contextmanager
def _told_as_failures(*, ours: bool) -> Generator[None]:
    try:
        yield
    except MeshError as error:
        raise CallFailed.of(failure_of(error, ours=ours)) from None
    except (NotFetched, Refused) as error:
        raise CallFailed.of(error.failure) from None
    except OSError as error:
        _log.warning("a mesh: %s", error)
        message = "the worker could not write its files"
        raise CallFailed("transient", "disk_full", message) from None


async def _brought(service: Service, file: ComfyFile, wanted: FileOptions, path: Path) -> None:
    """Bring a mesh from ComfyUI, finished like any file; its GPU time is worth some attempts."""
    until, delay = time.monotonic() + _AWAY_S, FIRST_DELAY_S
    root = service.settings.finishing_path
    async with Finishing(service.comfy, file, wanted, root) as finishing:
        while True:
            try:
                async with finishing.opened() as body:
                    await save(body.chunks(), path)
                    return
            except (ComfyUnavailable, NotPrepared):
                if time.monotonic() + delay > until:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)


class Handover:
    """How finished meshes reach a plain call's caller: by the bucket, or inside the answer."""

    def __init__(self, settings: WorkerSettings, bucket: Bucket | None) -> None:
        self._settings = settings
        self._bucket = bucket

    async def of(
        self, work: MeshOrder, report: MeshReport, *, slot: str, key: str | None
    ) -> Result:
        """Hand a finished mesh over and return what is told of it.

        Raises CallFailed, Refused, OSError.
        """
        if self._bucket is None or key is None:
            return await asyncio.to_thread(self._inside, work, report, slot)
        return await self._sent(work, report, slot, key, self._bucket)

    def _inside(self, work: MeshOrder, report: MeshReport, slot: str) -> Result:
        most = self._settings.result_bytes
        # in base64 three bytes become four
        if 4 * report.bytes > 3 * most:
            raise too_large(most, SMALL)
        content = work.target.read_bytes()
        file = OutputFile(
            slot=slot,
            media_type=MEDIA_TYPES[work.format],
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            faces=report.faces,
        )
        return {**told(file), "data": base64.b64encode(content).decode("ascii")}

    async def _sent(
        self, work: MeshOrder, report: MeshReport, name: str, key: str, bucket: Bucket
    ) -> Result:
        slot = await slot_at(key, name, FileOptions(), bucket)
        try:
            async with (
                asyncio.timeout(_DELIVER_S),
                httpx.AsyncClient(trust_env=False, verify=tls_context()) as http,
            ):
                sent = await deliver(http, work, slot, faces=report.faces)
        except TimeoutError:
            message = f"output {name} could not be delivered"
            raise CallFailed("transient", "delivery_failed", message) from None
        return await linked(sent, key, bucket, self._settings.storage_link_hours * 3600)
