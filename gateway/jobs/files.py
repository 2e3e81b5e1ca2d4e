"""A run's files: where it reads each, where each goes, and whether it really lies there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Protocol

from gateway.backends.base import Order, RunFailed
from gateway.job import Artifact, Call, Job, Produced, Run, Source
from gateway.storage.base import Storage
from gpu_server.protocol import Failure, InputFile, OutputFile, Slot

_DEFAULT_EXTENSION = "png"


class FileNames(Protocol):
    """Keys and names nobody can guess, the same for the same run and slot."""

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        """Storage key of the file that goes into a slot."""
        ...

    def filename(self, key: str) -> str:
        """The name it is served under."""
        ...


class Thumbnails(Protocol):
    """What is made of files and goes with them."""

    async def drop(self, source_keys: Sequence[str], /) -> None:
        """Remove all that were made of these files. Raises StorageError."""
        ...


class BucketLinks(Protocol):
    """Who opens the buckets whose files every caller may name."""

    def link(self, address: str, lifetime: timedelta, /) -> str | None:
        """An address that gives the file's bytes by GET; None for what is in none of them."""
        ...


class NotDelivered(Exception):
    """A file the backend says it sent does not lie in storage as it was sent."""


class RunFiles:
    """Addresses before the run, files after it."""

    def __init__(
        self,
        storage: Storage,
        names: FileNames,
        lifetime: timedelta,
        thumbnails: Thumbnails | None = None,
        buckets: BucketLinks | None = None,
    ) -> None:
        self._storage = storage
        self._buckets = buckets
        self._names = names
        self._lifetime = lifetime
        self._thumbnails = thumbnails

    def order(self, run: Run, left: timedelta) -> Order:
        """Fresh addresses for every input and output; `left` = time until the run's deadline."""
        lifetime = max(self._lifetime, left)
        options = run.call.files.model_dump(exclude_defaults=True)
        # set only where they are wanted: a former GPU service knows neither
        options |= {"sized": True} if self._storage.wants_length else {}
        options |= {"content_md5": True} if self._storage.wants_md5 else {}
        slots = tuple(
            Slot(
                name=slot,
                url=self._storage.slot(self._key(run.call, run, run.id, slot), lifetime),
                **options,
            )
            for slot in run.call.outputs
        )
        inputs = {
            param: tuple(self._input(source, lifetime) for source in sources)
            for param, sources in run.call.inputs.items()
        }
        return Order(run_id=run.id, call=run.call, slots=slots, inputs=inputs)

    def _input(self, source: Source, lifetime: timedelta) -> InputFile:
        url, ours = source.url, source.key is not None or source.in_bucket
        if source.key is not None:
            url = self._storage.link(source.key, lifetime)
        elif source.in_bucket:
            # made afresh at each start: the call's own address stays in its row
            url = self._buckets.link(source.url or "", lifetime) if self._buckets else None
        if url is None:
            message = "The bucket a file of this job lies in is not configured any more."
            failure = Failure(kind="fatal", code="input_gone", message=message)
            raise RunFailed(failure, executed=False)
        return InputFile(url=url, media_type=source.media_type, sha256=source.sha256, ours=ours)

    async def verified(self, run: Run, produced: Produced) -> tuple[Artifact, ...]:
        """Every file, found in storage as it was sent. Raises NotDelivered, StorageError."""
        if run.call.outputs and not produced.outputs and not produced.texts:
            raise NotDelivered("the run ended without any file")
        if len({output.slot for output in produced.outputs}) < len(produced.outputs):
            raise NotDelivered("one slot is reported twice")
        return tuple([await self._verified(run, output) for output in produced.outputs])

    async def remove(self, job: Job, runs: Mapping[str, int]) -> None:
        """Delete every file of the job: what its runs may have written, what came with its call.

        `runs` are all it had, id to stage. Raises StorageError.
        """
        stages = job.call.stages
        written = [
            self._key(stages[stage], job, run, slot)
            for run, stage in runs.items()
            for slot in stages[stage].outputs
        ]
        made = [artifact.key for artifact in job.artifacts]
        read = [sources for call in stages for sources in call.inputs.values()]
        sources = [source for found in read for source in found]
        brought = [source.key for source in sources if source.stored and source.key is not None]
        await self.drop_thumbnails(made)
        for key in dict.fromkeys([*made, *written, *brought]):
            await self._storage.delete(key)

    async def drop_thumbnails(self, keys: Sequence[str]) -> None:
        """Remove what was made of files that are going. Raises StorageError."""
        if self._thumbnails is not None and keys:
            await self._thumbnails.drop(keys)

    async def remove_read(self, run: Run) -> None:
        """Delete what a run that is done has read of the stage before. Raises StorageError."""
        for sources in run.call.made_inputs.values():
            for source in sources:
                if source.slot is not None and source.key is not None:
                    await self._storage.delete(source.key)

    def _key(self, call: Call, made: Job | Run, run_id: str, slot: str) -> str:
        extension = call.extensions.get(slot.partition("/")[0], _DEFAULT_EXTENSION)
        return self._names.key(
            prefix=call.prefix,
            # a run bears the time of its job through all attempts: the day never changes
            day=made.created_at.date(),
            job_id=made.job_id if isinstance(made, Run) else made.id,
            run_id=run_id,
            slot=slot,
            ext=extension,
        )

    async def _verified(self, run: Run, sent: OutputFile) -> Artifact:
        if sent.slot not in run.call.outputs:
            raise NotDelivered(f"{sent.slot} is no slot of this run")
        key = self._key(run.call, run, run.id, sent.slot)
        stored = await self._storage.stat(key)
        if stored is None:
            raise NotDelivered(f"{sent.slot} is not in storage")
        if stored.bytes != sent.bytes:
            raise NotDelivered(f"{sent.slot} has {stored.bytes} bytes, {sent.bytes} were sent")
        other = stored.sha256 is not None and stored.sha256 != sent.sha256
        if other or (None not in {stored.md5, sent.md5} and stored.md5 != sent.md5):
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
            duration_s=sent.duration_s,
            faces=sent.faces,
        )


def made_inputs(call: Call, files: Iterable[Artifact]) -> dict[str, tuple[Source, ...]]:
    """What a stage reads of the files the stage before has made. Raises NotDelivered."""
    made = {f"{file.output}/{file.n}": file for file in files}
    return {
        param: tuple(_found(source, made) for source in sources)
        for param, sources in call.made_inputs.items()
    }


def _found(source: Source, made: Mapping[str, Artifact]) -> Source:
    if source.slot is None:
        return source
    file = made.get(source.slot)
    if file is None:
        raise NotDelivered(f"{source.slot}, which the next stage reads, was not made")
    return replace(
        source, key=file.key, media_type=file.media_type, bytes=file.bytes, sha256=file.sha256
    )
