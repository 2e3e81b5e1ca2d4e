"""One file on its way out: streamed where its kind allows it, else by way of the disk."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from gpu_server.comfy import ComfyClient, ComfyFile, RunFailed
from gpu_server.finish import containers, pictures
from gpu_server.finish.body import Body, Source, from_disk, save
from gpu_server.finish.facts import Facts, NotConvertible, Unreadable
from gpu_server.finish.glb import GlbFilter
from gpu_server.finish.png import PngFilter
from gpu_server.media_types import picture_size
from gpu_server.protocol import FileOptions

# of their own, and few: each may hold a whole picture in memory
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="finish")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What has to be done to a file on the disk before it can be sent."""

    do: Callable[[Path, Path], Facts]
    """Makes the second file of the first one, or only looks at the first."""
    media_type: str
    """What it is then."""
    looks: bool = False
    """The file stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A file that lies on our disk as it is to be sent."""

    path: Path
    media_type: str
    length: int
    facts: Facts
    md5: str | None = None


class NotPrepared(RunFailed):
    """The disk does not take the file, or not give it back, now; opened anew it may."""

    def __init__(self, number: int | None) -> None:
        # the error's text would carry a path
        message = f"the GPU service could not prepare the file (error {number})"
        super().__init__("transient", "delivery_failed", message)


class Finishing:
    """One file of ComfyUI, opened as often as sending it takes; leaving it clears the disk."""

    def __init__(
        self, comfy: ComfyClient, file: ComfyFile, wanted: FileOptions, root: Path
    ) -> None:
        """`root`: a folder for files under work, the service's own."""
        self._comfy = comfy
        self._file = file
        self._wanted = wanted
        self._root = root
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._doing: Future[Facts] | None = None
        self._ready: _Ready | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._clear()

    async def _clear(self) -> None:
        folder, self._folder, self._ready = self._folder, None, None
        if folder is None:
            return
        if self._doing is None or self._doing.done():
            await asyncio.to_thread(folder.cleanup)
        else:
            # a cancelled run does not wait for it, and it may still be writing there
            self._doing.add_done_callback(lambda _: folder.cleanup())

    @asynccontextmanager
    async def opened(self, *, known: bool = False) -> AsyncGenerator[Body]:
        """Hand over the file as it is to be sent; what has to be made first is made once.

        `known`: its length and MD5 have to be, so it is brought to the disk whatever it is.
        Raises ComfyUnavailable, NotPrepared, and RunFailed when it can't be made.
        """
        try:
            async with self._opened(known=known) as body:
                yield body
        except OSError as error:
            # others may need the room until it is made anew
            await self._clear()
            raise NotPrepared(error.errno) from None

    @asynccontextmanager
    async def _opened(self, *, known: bool) -> AsyncGenerator[Body]:
        if self._ready is None:
            async with self._comfy.view(self._file) as response:
                source = Source(response, self._file.filename)
                await source.begin()
                body = await self._prepared(source)
                if body is not None and not known:
                    yield body
                    return
                if body is not None:
                    self._ready = await self._kept(body)
        ready = self._ready
        if ready is not None:
            if known and ready.md5 is None:
                md5 = await asyncio.to_thread(_md5, ready.path)
                ready = self._ready = replace(ready, md5=md5)
            yield Body(
                from_disk(ready.path),
                media_type=ready.media_type,
                length=ready.length,
                facts=ready.facts,
                md5=ready.md5,
            )

    async def _kept(self, body: Body) -> _Ready:
        """Bring to the disk what could have been streamed."""
        path = await self._place("made")
        await save(body.chunks(), path)
        length = (await asyncio.to_thread(path.stat)).st_size
        return _Ready(path=path, media_type=body.media_type, length=length, facts=body.facts)

    async def _place(self, name: str) -> Path:
        if self._folder is None:
            self._folder = await asyncio.to_thread(_folder_in, self._root)
        return Path(self._folder.name) / name

    async def _prepared(self, source: Source) -> Body | None:
        """Return what can be sent while it comes; None: it is ready on the disk now."""
        try:
            size = picture_size(source.head)
            facts = Facts(width=size[0], height=size[1]) if size else Facts()
            work = self._work(source.media_type, facts)
            if work is None:
                return await source.through(self._filter(source, facts), facts)
            self._ready = await self._made(source, work)
        except Unreadable as error:
            raise RunFailed("fatal", "unreadable_output", f"ComfyUI made {error}") from None
        except NotConvertible as error:
            raise RunFailed("usage", "not_convertible", str(error)) from None
        return None

    def _filter(self, source: Source, facts: Facts) -> PngFilter | GlbFilter | None:
        keep = self._wanted.keep_metadata
        if source.media_type == "image/png" and not keep:
            return PngFilter(facts, source.length)
        if source.media_type == "model/gltf-binary":
            return GlbFilter(keep=keep)
        return None

    def _work(self, media_type: str, facts: Facts) -> _Work | None:
        """Say what is to be done on the disk; None where the file can be streamed."""
        wanted = self._wanted
        kind = wanted.format
        if kind and media_type in pictures.TYPES - {f"image/{kind}"}:
            if facts.width and facts.height:
                # refused before it is fetched
                pictures.check_size(facts.width, facts.height, kind)
            do = partial(pictures.converted, kind=kind, wanted=wanted)
            return _Work(do=do, media_type=f"image/{kind}")
        if media_type in containers.FORMATS:
            if wanted.keep_metadata:
                return _looking(containers.probed, media_type)
            return _Work(
                do=partial(containers.remuxed, media_type=media_type), media_type=media_type
            )
        if media_type in pictures.TYPES - {"image/png"}:
            if wanted.keep_metadata or media_type == "image/gif":
                return _looking(pictures.looked_at, media_type)
            return _Work(
                do=partial(pictures.stripped, media_type=media_type), media_type=media_type
            )
        return None

    async def _made(self, source: Source, work: _Work) -> _Ready:
        came, made = await self._place("came"), await self._place("made")
        await save(source.pieces(), came)
        self._doing = _WORKERS.submit(work.do, came, made)
        facts = await asyncio.wrap_future(self._doing)
        path = came if work.looks else made
        if not work.looks:
            await asyncio.to_thread(came.unlink)
        length = (await asyncio.to_thread(path.stat)).st_size
        return _Ready(path=path, media_type=work.media_type, length=length, facts=facts)


def tidied(root: Path) -> None:
    """Remove what a killed process left of its files under work; blocks.

    Only for who holds the journal beside them: all that lies there is nobody's then.
    """
    for left in root.glob("finish-*"):
        shutil.rmtree(left, ignore_errors=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _folder_in(root: Path) -> tempfile.TemporaryDirectory[str]:
    root.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="finish-", dir=root, ignore_cleanup_errors=True)


def _looking(look: Callable[[Path], Facts], media_type: str) -> _Work:
    """Only read what a file shows; one that can't be read is sent as it is."""

    def do(came: Path, _made: Path) -> Facts:
        try:
            return look(came)
        except Unreadable:
            return Facts()

    return _Work(do=do, media_type=media_type, looks=True)
