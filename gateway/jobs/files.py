"""A run's files: where it reads each, where each goes, and whether it really lies there."""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Protocol

from gateway.backends.base import Order
from gateway.job import Artifact, Job, Produced, Run, Source
from gateway.storage.base import Storage
from gpu_server.protocol import InputFile, OutputFile, Slot

_DEFAULT_EXTENSION = "png"


class FileNames(Protocol):
    """Keys and names nobody can guess, the same for the same run and slot."""

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        """Storage key of the file that goes into a slot."""
        ...

    def filename(self, key: str) -> str:
        """The name it is served under."""
        ...


class NotDelivered(Exception):
    """A file the backend says it sent does not lie in storage as it was sent."""


class RunFiles:
    """Addresses before the run, files after it."""

    def __init__(self, storage: Storage, names: FileNames, lifetime: timedelta) -> None:
        self._storage = storage
        self._names = names
        self._lifetime = lifetime

    def order(self, run: Run, left: timedelta) -> Order:
        """Fresh addresses for every input and output; `left` = time until the run's deadline."""
        lifetime = max(self._lifetime, left)
        slots = tuple(
            Slot(
                name=slot,
                url=self._storage.slot(self._key(run, run.job_id, run.id, slot), lifetime),
            )
            for slot in run.call.outputs
        )
        inputs = {
            param: tuple(self._input(source, lifetime) for source in sources)
            for param, sources in run.call.inputs.items()
        }
        return Order(run_id=run.id, call=run.call, slots=slots, inputs=inputs)

    def _input(self, source: Source, lifetime: timedelta) -> InputFile:
        url = source.url if source.key is None else self._storage.link(source.key, lifetime)
        if url is None:
            raise ValueError("a source has neither key nor address")
        return InputFile(url=url, media_type=source.media_type, sha256=source.sha256)

    async def verified(self, run: Run, produced: Produced) -> tuple[Artifact, ...]:
        """Every file, found in storage as it was sent. Raises NotDelivered, StorageError."""
        if run.call.outputs and not produced.outputs and not produced.texts:
            raise NotDelivered("the run ended without any file")
        if len({output.slot for output in produced.outputs}) < len(produced.outputs):
            raise NotDelivered("one slot is reported twice")
        return tuple([await self._verified(run, output) for output in produced.outputs])

    async def remove(self, job: Job, run_ids: Iterable[str]) -> None:
        """Delete every file of the job: what its runs may have written, what came with its call.

        Raises StorageError.
        """
        written = [
            self._key(job, job.id, run, slot) for run in run_ids for slot in job.call.outputs
        ]
        made = [artifact.key for artifact in job.artifacts]
        sources = [source for found in job.call.inputs.values() for source in found]
        brought = [source.key for source in sources if source.stored and source.key is not None]
        for key in dict.fromkeys([*made, *written, *brought]):
            await self._storage.delete(key)

    def _key(self, made: Job | Run, job_id: str, run_id: str, slot: str) -> str:
        extension = made.call.extensions.get(slot.partition("/")[0], _DEFAULT_EXTENSION)
        return self._names.key(
            prefix=made.call.prefix,
            # a run bears the time of its job through all attempts: the day never changes
            day=made.created_at.date(),
            job_id=job_id,
            run_id=run_id,
            slot=slot,
            ext=extension,
        )

    async def _verified(self, run: Run, sent: OutputFile) -> Artifact:
        if sent.slot not in run.call.outputs:
            raise NotDelivered(f"{sent.slot} is no slot of this run")
        key = self._key(run, run.job_id, run.id, sent.slot)
        stored = await self._storage.stat(key)
        if stored is None:
            raise NotDelivered(f"{sent.slot} is not in storage")
        if stored.bytes != sent.bytes:
            raise NotDelivered(f"{sent.slot} has {stored.bytes} bytes, {sent.bytes} were sent")
        if stored.sha256 is not None and stored.sha256 != sent.sha256:
            raise NotDelivered(f"{sent.slot} has other content than was sent")
        output, _, n = sent.slot.partition("/")
        return Artifact(
            job_id=run.job_id,
            output=output,
            n=int(n),
            key=key,
            filename=self._names.filename(key),
            media_type=sent.media_type,
            bytes=sent.bytes,
            sha256=sent.sha256,
            width=sent.width,
            height=sent.height,
            frames=sent.frames,
        )
