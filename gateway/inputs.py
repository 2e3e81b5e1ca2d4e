"""The files a call names: each address is checked and turned into something a run can fetch.

An address is hostile until it is checked. A file of ours must be the caller's own result or upload;
a foreign one is fetched by the GPU service, which looks its host up and refuses private ones; what
comes inside the call is looked at and stored, so that nothing travels on as base64.
"""

import logging
import mimetypes
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol, cast
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from gateway.clock import Clock
from gateway.errors import FieldError, InvalidParameters, StorageFull
from gateway.inline import (
    BASE64_PER_BYTE,
    FAMILY,
    LONGEST_HEAD,
    NEEDED,
    AddressRefused,
    Inline,
    inline,
)
from gateway.job import INPUTS_PREFIX, Artifact, Source
from gateway.media import MediaKind, media_fields
from gateway.pictures import Picture
from gateway.storage.base import NoRoom, Storage, StorageError
from gpu_server.addresses import FetchError, FetchRules, check_address, origin_of
from gpu_server.workflow import Size, Sizes, UnfitPicture

_log = logging.getLogger(__name__)

UPLOADS_PATH = "/api/uploads"
"""The route that serves what callers have uploaded."""
_STORES = frozenset({"r2", "s3", "gs", "local"})
_USUAL: Mapping[MediaKind, str] = {
    "image": "image/png",
    "mask": "image/png",
    "video": "video/mp4",
    "model": "model/gltf-binary",
}
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "model/gltf-binary": "glb",
}


class CallerFiles(Protocol):
    """Who knows the result files of a caller."""

    async def file_of(self, caller: str, filename: str, /) -> Artifact | None:
        """The caller's artifact of that file name."""
        ...


class Uploaded(Protocol):
    """A file a caller has uploaded."""

    @property
    def key(self) -> str: ...  # noqa: D102 - as in its table, like those that follow
    @property
    def media_type(self) -> str: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def width(self) -> int | None: ...  # noqa: D102
    @property
    def height(self) -> int | None: ...  # noqa: D102
    @property
    def expires_at(self) -> datetime | None: ...  # noqa: D102


class CallerUploads(Protocol):
    """Who knows what a caller has uploaded."""

    async def file_of(self, caller: str, filename: str, /) -> Uploaded | None:
        """The caller's upload of that file name."""
        ...


class InputBuckets(Protocol):
    """Buckets whose files every caller may name."""

    def canonical(self, address: str, /) -> str | None:
        """Write the address of a file in one of them in the one way; None for any other."""
        ...


class InputNames(Protocol):
    """Keys nobody can guess."""

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        """Storage key of a file."""
        ...

    def filename(self, key: str) -> str:
        """The name it is served under."""
        ...


class ItemPictures(Protocol):
    """Who knows the pictures of templates and styles."""

    async def at(self, path: str, /) -> Picture | None:
        """The picture a path of ours names; None where it names none."""
        ...


Checked = Mapping[str, tuple[Source | Inline, ...]]
"""Files of a call by parameter, every one of them acceptable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Checks the addresses of calls, and stores what came inside them."""

    files: CallerFiles
    uploads: CallerUploads
    pictures: ItemPictures
    storage: Storage
    names: InputNames
    clock: Clock
    paths: frozenset[str]
    """Routes that serve result files."""
    own: tuple[str, ...]
    """Addresses this gateway is reached at."""
    max_inline_mb: int
    """Largest file inside a call, in MiB, decoded."""
    rules: FetchRules
    """Where callers' addresses may lead."""
    buckets: InputBuckets | None = None

    async def check(self, params: BaseModel, caller: str) -> Checked:
        """Check every address in a call's parameters. Raises InvalidParameters."""
        found: dict[str, tuple[Source | Inline, ...]] = {}
        errors: list[FieldError] = []
        for name, field in media_fields(type(params)).items():
            files: list[Source | Inline] = []
            for place, address in _addresses(name, getattr(params, name)):
                try:
                    files.append(await self._file(address, field.kind, caller))
                except (AddressRefused, UnfitPicture) as refused:
                    said = FieldError(field=place, code=refused.code, message=refused.message)
                    errors.append(said)
            if files:
                found[name] = tuple(files)
        if errors:
            raise InvalidParameters(errors)
        return found

    async def keep(self, checked: Checked, job_id: str) -> dict[str, tuple[Source, ...]]:
        """Store what came inside the call. Raises StorageFull, StorageError."""
        kept: dict[str, tuple[Source, ...]] = {}
        for name, files in checked.items():
            kept[name] = tuple(
                [
                    file
                    if isinstance(file, Source)
                    else await self._stored(file, job_id, f"{name}/{n}")
                    for n, file in enumerate(files)
                ]
            )
        return kept

    async def discard(self, inputs: Mapping[str, tuple[Source, ...]]) -> None:
        """Remove what was stored for a job that was not taken."""
        stored = [s for sources in inputs.values() for s in sources if s.stored]
        try:
            for source in stored:
                await self.storage.delete(source.key or "")
        except StorageError as error:
            _log.warning("files of a call that was not taken stay for the sweep: %s", error)

    async def _file(self, address: str, kind: MediaKind, caller: str) -> Source | Inline:
        scheme, colon, rest = address.partition(":")
        scheme = scheme.lower()
        if scheme == "data":
            return await inline(address, kind, self.max_inline_mb)
        if colon and not address.startswith("/"):
            address = f"{scheme}:{rest}"
        path = None if scheme in _STORES else self._own_path(address)
        if path is not None:
            return _of_kind(await self._at(path, caller), kind)
        if (key := self.storage.key_of(address)) is not None:
            return _of_kind(await self._by_key(key, caller), kind)
        if self.buckets is not None and (named := self.buckets.canonical(address)) is not None:
            return Source(url=named, media_type=_guessed(named, kind))
        if scheme in _STORES:
            raise self._no_file(address)
        try:
            check_address(address, self.rules)
        except FetchError as error:
            raise AddressRefused(error.code, error.message) from None
        return Source(url=address, media_type=_guessed(address, kind))

    def _own_path(self, address: str) -> str | None:
        """Path of an address within this gateway; None for a foreign one."""
        if address.startswith("/"):
            return urlsplit(address).path
        try:
            origin, path = origin_of(address), httpx.URL(address).path
        except (httpx.InvalidURL, ValueError):
            return None
        bases = [base for base in self.own if origin_of(base) == origin]
        # one with a login is refused as a foreign one is
        if not bases or httpx.URL(address).userinfo:
            return None
        prefix = urlsplit(bases[0]).path.rstrip("/")
        return path.removeprefix(prefix)

    async def _at(self, path: str, caller: str) -> Source:
        """Find the caller's file that a path of ours serves."""
        if (picture := await self.pictures.at(path)) is not None:
            return picture.source()
        folder, _, filename = path.rpartition("/")
        if filename and folder in self.paths:
            return _source(await self.files.file_of(caller, filename))
        if filename and folder == UPLOADS_PATH:
            return self._uploaded(await self.uploads.file_of(caller, filename))
        raise _unknown()

    async def _by_key(self, key: str, caller: str) -> Source:
        """Find the caller's file that lies under a key."""
        filename = self.names.filename(key)
        if (artifact := await self.files.file_of(caller, filename)) is not None:
            source = _source(artifact)
        else:
            source = self._uploaded(await self.uploads.file_of(caller, filename))
        if source.key != key:
            raise _unknown()
        return source

    def _uploaded(self, upload: Uploaded | None) -> Source:
        if upload is None:
            raise _unknown()
        if upload.expires_at is not None and upload.expires_at <= self.clock.now():
            raise _removed("this file was removed by its age")
        return _of_file(upload)

    def _no_file(self, address: str) -> AddressRefused:
        """Say whether it is the file that is not known, or its store."""
        scheme, _, place = address.partition("://")
        store = f"{scheme}://{place.partition('/')[0]}/"
        if self.storage.address("").startswith(store) or scheme == "local":
            return _unknown()
        return AddressRefused("no_such_store", f"no such {scheme}:// store is configured here")

    async def _stored(self, file: Inline, job_id: str, slot: str) -> Source:
        key = self.names.key(
            prefix=INPUTS_PREFIX,
            day=self.clock.now().date(),
            job_id=job_id,
            run_id=job_id,
            # no output is named so: its key is never that of a result
            slot=f"{INPUTS_PREFIX}:{slot}",
            ext=EXTENSIONS[file.media_type],
        )
        try:
            stored = await self.storage.write(key, file.media_type, _pieces(file.data))
        except NoRoom as error:
            raise StorageFull("The disk is full: the files of this call were not kept.") from error
        return Source(
            key=key,
            media_type=file.media_type,
            sha256=stored.sha256,
            bytes=stored.bytes,
            stored=True,
        )


def sizes_of(checked: Checked) -> Sizes:
    """Collect the sizes of a call's pictures, as far as they are known."""
    return {
        name: [None if file.size is None else Size(*file.size) for file in files]
        for name, files in checked.items()
    }


def largest_files(params: type[BaseModel], max_inline_mb: int) -> int:
    """Bytes the files inside a call may have together, as base64."""
    most = sum(field.most for field in media_fields(params).values())
    return int(most * (max_inline_mb * 1024 * 1024 * BASE64_PER_BYTE + LONGEST_HEAD))


def _addresses(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Each address a parameter holds, with the place to name it by."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, tuple | list):
        for n, address in enumerate(cast("tuple[str, ...]", value)):
            yield f"{name}.{n}", address


def _unknown() -> AddressRefused:
    return AddressRefused("unknown_file", "there is no such file of yours here")


def _removed(message: str) -> AddressRefused:
    return AddressRefused("file_removed", message)


def _source(artifact: Artifact | None) -> Source:
    if artifact is None:
        raise _unknown()
    if artifact.removed_at is not None:
        raise _removed("this file was removed, with its job or by its age")
    return _of_file(artifact)


def _of_file(file: Artifact | Uploaded) -> Source:
    return Source(
        key=file.key,
        media_type=file.media_type,
        sha256=file.sha256,
        bytes=file.bytes,
        size=_size(file.width, file.height),
    )


def _of_kind(source: Source, kind: MediaKind) -> Source:
    if not source.media_type.startswith(FAMILY[kind]):
        raise AddressRefused("wrong_kind", f"must be {NEEDED[kind]}; this is {source.media_type}")
    return source


def _size(width: int | None, height: int | None) -> tuple[int, int] | None:
    return None if width is None or height is None else (width, height)


def _guessed(address: str, kind: MediaKind) -> str:
    """What a foreign file's name says of it, if that fits; else what it usually is."""
    named = mimetypes.guess_type(urlsplit(address).path)[0] or ""
    return named if named.startswith(FAMILY[kind]) else _USUAL[kind]


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(data), 1024 * 1024):
        yield bytes(view[at : at + 1024 * 1024])
