"""Pictures of templates and styles: taken in, served, given up."""

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.datastructures import UploadFile

from gateway.api.context import Context
from gateway.api.files import Expires, Signature
from gateway.api.serving import FILE_RESPONSES, Download, Serving, Width
from gateway.clock import Clock, SystemClock
from gateway.db import DatabaseUnavailable
from gateway.errors import FieldError, GatewayError, InvalidParameters, NotFound, StorageFull
from gateway.inputs import EXTENSIONS
from gateway.job import new_job_id
from gateway.pictures import PICTURE_PREFIXES, Picture
from gateway.security.signing import SignedFileNames
from gateway.storage.base import NoRoom, StorageError
from gpu_server.workflow import UnfitPicture, look_at

_log = logging.getLogger(__name__)

_PIECE = 256 * 1024
# its next picture has the same path
_CACHED = "private, no-cache"

ItemId = Annotated[
    str, Path(json_schema_extra={"maxLength": 100}, description="The `id` of the list.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Takes pictures into storage, and gives them up."""

    context: Context
    path: str
    """Route whose items they belong to."""
    clock: Clock

    @asynccontextmanager
    async def dropped_on_failure(self, image: Picture | None) -> AsyncGenerator[None]:
        """Give a picture up again when what it was kept for is not written."""
        try:
            yield
        except GatewayError:
            await self.drop(image)
            raise

    async def keep(self, file: UploadFile) -> Picture:
        """Check an uploaded picture and store it under a key of its own.

        Raises InvalidParameters, StorageFull and StorageError.
        """
        await self.context.disk.require()
        most = self.context.settings.max_image_size_mb
        if (file.size or 0) > most * 1024 * 1024:
            raise _refused("too_large", f"at most {most} MB")
        try:
            media_type = (await look_at(file.file)).media_type
        except UnfitPicture as unfit:
            raise _refused(unfit.code, unfit.message) from None
        await file.seek(0)
        picture_id, digest = new_job_id(), hashlib.sha256()
        key = SignedFileNames(self.context.signer).key(
            prefix=PICTURE_PREFIXES[self.path],
            day=self.clock.now().date(),
            # no item's id: the next picture of the item has another key
            job_id=picture_id,
            run_id=picture_id,
            slot="image",
            ext=EXTENSIONS[media_type],
        )

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await file.read(_PIECE):
                digest.update(piece)
                yield piece

        try:
            stored = await self.context.storage.write(key, media_type, pieces())
        except NoRoom as error:
            raise StorageFull("The disk is full: the picture was not kept.") from error
        return Picture(
            key=key, media_type=media_type, bytes=stored.bytes, sha256=digest.hexdigest()
        )

    async def drop(self, picture: Picture | None) -> None:
        """Delete a picture that nothing has any more."""
        if picture is None:
            return
        try:
            await self.context.thumbnails.drop([picture.key])
            await self.context.storage.delete(picture.key)
        except (StorageError, DatabaseUnavailable) as error:
            _log.warning("a picture that nothing has stays for the sweep: %s", error)


def pictures_of(context: Context, path: str) -> Pictures:
    """Make what keeps the pictures of one route's items."""
    return Pictures(context=context, path=path, clock=SystemClock())


def add_picture(
    router: APIRouter,
    context: Context,
    find: Callable[[str], Awaitable[Picture | None]],
    *,
    item: str,
) -> None:
    """Add `GET` and `HEAD` of `/{id}/image`; `find` raises NotFound for an unknown item."""
    serving = Serving(
        storage=context.storage,
        thumbnails=context.thumbnails,
        redirect=context.settings.serve_files == "redirect",
    )

    async def get_picture(
        request: Request,
        item_id: ItemId,
        *,
        expires: Expires = None,
        signature: Signature = None,
        width: Width = None,
        download: Download = None,
    ) -> Response:
        """Return the picture; the key or a signed link opens it.

        `Range`, `If-Range` and `If-None-Match` are understood; the ETag is the file's SHA-256.
        """
        # judged before the routes, as for everything that needs a key
        del expires, signature
        picture = await find(item_id)
        if picture is None:
            raise NotFound(f"This {item} has no picture.")
        return await serving.answer(
            request, picture, width=width, download=download, cached=_CACHED
        )

    for method in ("GET", "HEAD"):
        router.add_api_route(
            "/{item_id}/image",
            get_picture,
            methods=[method],
            name=f"get_{item}_image",
            summary=f"The picture of a {item}",
            responses=FILE_RESPONSES,
            response_model=None,
            include_in_schema=method == "GET",
        )


def _refused(code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field="image", code=code, message=message)])
