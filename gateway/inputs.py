"""The files a call names: each address is checked and turned into something a run can fetch.

An address is hostile until it is checked. A file of ours must be the caller's own result; a foreign
one is fetched by the GPU service, which looks its host up and refuses private ones; what comes
inside the call is looked at and stored, so that nothing travels on as base64.
"""

import asyncio
import base64
import io
import logging
import mimetypes
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Protocol, cast
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import BaseModel

from gateway.clock import Clock
from gateway.errors import FieldError, InvalidParameters, StorageFull
from gateway.job import INPUTS_PREFIX, Artifact, Source
from gateway.media import MediaKind, media_fields
from gateway.pictures import Picture
from gateway.sniffing import media_type_of
from gateway.storage.base import NoRoom, Storage, StorageError
from gpu_server.fetch import FetchError, check_address, origin_of
from gpu_server.workflow import Size, Sizes, UnfitPicture, look_at

_log = logging.getLogger(__name__)

BASE64_PER_BYTE = 4 / 3 * 66 / 64
"""With line breaks, two characters each, after every 64."""
_LONGEST_HEAD = 200
_LOCAL = "local://files/"
_STORES = frozenset({"r2", "s3", "gs"})
_FAMILY: Mapping[MediaKind, str] = {
    "image": "image/",
    "mask": "image/",
    "video": "video/",
    "model": "model/",
}
_USUAL: Mapping[MediaKind, str] = {
    "image": "image/png",
    "mask": "image/png",
    "video": "video/mp4",
    "model": "model/gltf-binary",
}
_NEEDED: Mapping[MediaKind, str] = {
    "image": "a picture (PNG, JPEG, WebP or GIF)",
    "mask": "a picture (PNG, JPEG, WebP or GIF)",
    "video": "a video (MP4, MOV or WebM)",
    "model": "a mesh (GLB)",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A file that came inside a call, decoded; not stored yet."""

    media_type: str
    data: bytes
    size: Size | None = None
    """Of a picture."""


Checked = Mapping[str, tuple[Source | Inline, ...]]
"""Files of a call by parameter, every one of them acceptable."""


class _Refused(Exception):
    """An address that is not taken."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Checks the addresses of calls, and stores what came inside them."""

    files: CallerFiles
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

    async def check(self, params: BaseModel, caller: str) -> Checked:
        """Check every address in a call's parameters. Raises InvalidParameters."""
        found: dict[str, tuple[Source | Inline, ...]] = {}
        errors: list[FieldError] = []
        for name, field in media_fields(type(params)).items():
            files: list[Source | Inline] = []
            for place, address in _addresses(name, getattr(params, name)):
                try:
                    files.append(await self._file(address, field.kind, caller))
                except (_Refused, UnfitPicture) as refused:
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
        scheme = address.partition(":")[0].lower()
        if scheme == "data":
            return await _inline(address, kind, self.max_inline_mb)
        if scheme in _STORES:
            raise _Refused("no_such_store", f"no {scheme}:// store is configured here")
        if scheme == "local":
            return await self._by_key(address, kind, caller)
        path = self._own_path(address)
        if path is not None and (picture := await self.pictures.at(path)) is not None:
            return _of_kind(picture.source(), kind)
        if path is not None:
            folder, _, filename = path.rpartition("/")
            found = await self._artifact(filename if folder in self.paths else "", caller)
            return _source(found, kind)
        try:
            check_address(address)
        except FetchError as error:
            raise _Refused(error.code, error.message) from None
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

    async def _by_key(self, address: str, kind: MediaKind, caller: str) -> Source:
        key = address[len(_LOCAL) :] if address.lower().startswith(_LOCAL) else ""
        artifact = await self._artifact(self.names.filename(key), caller)
        if artifact.key != key:
            raise _unknown()
        return _source(artifact, kind)

    async def _artifact(self, filename: str, caller: str) -> Artifact:
        artifact = await self.files.file_of(caller, filename) if filename else None
        if artifact is None:
            raise _unknown()
        if artifact.removed_at is not None:
            raise _Refused("file_removed", "this file was removed, with its job or by its age")
        return artifact

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
    return int(most * (max_inline_mb * 1024 * 1024 * BASE64_PER_BYTE + _LONGEST_HEAD))


def _addresses(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Each address a parameter holds, with the place to name it by."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, tuple | list):
        for n, address in enumerate(cast("tuple[str, ...]", value)):
            yield f"{name}.{n}", address


def _unknown() -> _Refused:
    return _Refused("unknown_file", "there is no such file of yours here")


def _source(artifact: Artifact, kind: MediaKind) -> Source:
    made = Source(
        key=artifact.key,
        media_type=artifact.media_type,
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        size=_size(artifact.width, artifact.height),
    )
    return _of_kind(made, kind)


def _of_kind(source: Source, kind: MediaKind) -> Source:
    if not source.media_type.startswith(_FAMILY[kind]):
        raise _Refused("wrong_kind", f"must be {_NEEDED[kind]}; this is {source.media_type}")
    return source


def _size(width: int | None, height: int | None) -> tuple[int, int] | None:
    return None if width is None or height is None else (width, height)


def _guessed(address: str, kind: MediaKind) -> str:
    """What a foreign file's name says of it, if that fits; else what it usually is."""
    named = mimetypes.guess_type(httpx.URL(address).path)[0] or ""
    return named if named.startswith(_FAMILY[kind]) else _USUAL[kind]


async def _inline(address: str, kind: MediaKind, max_mb: int) -> Inline:
    """Decode and look at a `data:` URI; in threads, as it may be long."""
    data = await asyncio.to_thread(_decoded, address, max_mb)
    if _FAMILY[kind] == "image/":
        picture = await look_at(io.BytesIO(data))
        return Inline(media_type=picture.media_type, data=data, size=picture.size)
    media_type = media_type_of(data)
    if media_type is None or not media_type.startswith(_FAMILY[kind]):
        raise _Refused("wrong_kind", f"must be {_NEEDED[kind]}; its content is something else")
    return Inline(media_type=media_type, data=data)


def _decoded(address: str, max_mb: int) -> bytes:
    head, comma, text = address[:_LONGEST_HEAD].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _Refused("not_base64", "must be data:<media type>;base64,<content>")
    text += address[_LONGEST_HEAD:]
    try:
        encoded = (unquote(text) if "%" in text else text).encode("ascii")
        # tools that write base64 break its lines
        data = base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError:
        raise _Refused("not_base64", "what follows the comma is not valid base64") from None
    if len(data) > max_mb * 1024 * 1024:
        raise _Refused("too_large", f"at most {max_mb} MB, decoded: send a larger file's address")
    return data


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(data), 1024 * 1024):
        yield bytes(view[at : at + 1024 * 1024])
