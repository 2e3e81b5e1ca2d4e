"""One file on its way into a bucket, in pieces, with flat memory.

Written out instead of the client's own `upload_fileobj`: that one queues pieces without bound, and
leaves a half-done upload in the bucket, where it costs money unseen, when its task is cancelled.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from gateway.storage.base import StorageError, TooManyBytes
from gateway.storage.s3_errors import code_of, translated

if TYPE_CHECKING:
    from _hashlib import HASH

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import (
        CompletedPartTypeDef,
        PutObjectRequestTypeDef,
        UploadPartRequestTypeDef,
    )

PART = 8 * 1024 * 1024
"""Bytes of a part: equal for all but the last, as R2 wants them."""
AT_ONCE = 4
"""Parts in flight, and so in memory."""
_GIVE_UP_S = 30

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a file goes, and how."""

    client: "S3Client"
    bucket: str
    name: str
    """Its name in the bucket."""
    media_type: str
    content_md5: bool
    max_bytes: int


@dataclass(slots=True)
class Sent:
    """What has been sent."""

    size: int = 0
    parts: list[bytes] = field(default_factory=list[bytes])
    """MD5 of each."""
    _sha256: "HASH" = field(default_factory=hashlib.sha256)
    _md5: "HASH" = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    def take(self, part: bytes) -> str:
        """Count and hash a piece; its MD5 as `Content-MD5` has it."""
        self.size += len(part)
        self._sha256.update(part)
        self._md5.update(part)
        own = hashlib.md5(part, usedforsecurity=False).digest()
        self.parts.append(own)
        return base64.b64encode(own).decode()

    @property
    def sha256(self) -> str:
        """Of the whole."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Of the whole."""
        return self._md5.hexdigest()

    @property
    def etags(self) -> frozenset[str]:
        """What a store may call it: a plain MD5, or that of the parts' and their number."""
        together = hashlib.md5(b"".join(self.parts), usedforsecurity=False).hexdigest()
        return frozenset({self.md5, f"{together}-{len(self.parts)}"})


async def send(target: Target, chunks: AsyncIterator[bytes]) -> Sent:
    """Send a file; whatever goes wrong, nothing of it stays. Raises TooManyBytes, StorageError.

    Whatever `chunks` raises comes through as it is.
    """
    sending = _Sending(target)
    async with aclosing(_parts(chunks, target.max_bytes)) as parts:
        await sending.run(parts)
    return sending.sent


async def _parts(chunks: AsyncIterator[bytes], most: int) -> AsyncGenerator[tuple[bytes, bool]]:
    """Pieces of `PART` bytes and what is left, at least one, which may be empty; if more comes."""
    buffer = bytearray()
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > most:
            raise TooManyBytes(most)
        buffer += chunk
        # not >=: the last piece of several is never empty
        while len(buffer) > PART:
            with memoryview(buffer) as view:
                part = bytes(view[:PART])
            del buffer[:PART]
            yield part, True
    yield bytes(buffer), False


class _Sending:
    """One file: put at once, or as a multipart upload that is completed or aborted."""

    def __init__(self, target: Target) -> None:
        self.sent = Sent()
        self._target = target
        self._id: str | None = None
        self._done: list[CompletedPartTypeDef] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, parts: AsyncIterator[tuple[bytes, bool]]) -> None:
        try:
            async for part, more in parts:
                md5 = await asyncio.to_thread(self.sent.take, part)
                number = len(self.sent.parts)
                if number == 1 and not more:
                    await self._put(part, md5)
                    return
                if number == 1:
                    # carried through: an upload whose id nobody learns is aborted by nobody
                    await carried_through(self._begin())
                self._under_way.add(asyncio.create_task(self._send(number, part, md5)))
                # before the next one is collected: nothing is held but what is under way
                while len(self._under_way) >= AT_ONCE:
                    await self._some(asyncio.FIRST_COMPLETED)
            await self._some(asyncio.ALL_COMPLETED)
            await self._complete()
        except BaseException:
            await carried_through(self._give_up())
            raise

    async def _put(self, content: bytes, md5: str) -> None:
        request: PutObjectRequestTypeDef = {
            "Bucket": self._target.bucket,
            "Key": self._target.name,
            # a file, not bytes: those would be copied whole into the connection's buffer
            "Body": BytesIO(content),
            "ContentLength": len(content),
            "ContentType": self._target.media_type,
        }
        if self._target.content_md5:
            request["ContentMD5"] = md5
        with translated():
            await self._target.client.put_object(**request)

    async def _begin(self) -> None:
        with translated():
            answer = await self._target.client.create_multipart_upload(
                Bucket=self._target.bucket,
                Key=self._target.name,
                ContentType=self._target.media_type,
            )
        self._id = answer["UploadId"]

    async def _send(self, number: int, part: bytes, md5: str) -> None:
        request: UploadPartRequestTypeDef = {
            "Bucket": self._target.bucket,
            "Key": self._target.name,
            "UploadId": self._id or "",
            "PartNumber": number,
            "Body": BytesIO(part),
            "ContentLength": len(part),
        }
        if self._target.content_md5:
            request["ContentMD5"] = md5
        with translated():
            answer = await self._target.client.upload_part(**request)
        self._done.append({"PartNumber": number, "ETag": answer["ETag"]})

    async def _some(self, when: str) -> None:
        """Wait for parts under way. Raises what the first of those that failed did."""
        if not self._under_way:
            return
        done, self._under_way = await asyncio.wait(self._under_way, return_when=when)
        failed = [error for task in done if (error := task.exception()) is not None]
        if failed:
            raise failed[0]

    async def _complete(self) -> None:
        parts = sorted(self._done, key=lambda part: part.get("PartNumber", 0))
        try:
            await self._target.client.complete_multipart_upload(
                Bucket=self._target.bucket,
                Key=self._target.name,
                UploadId=self._id or "",
                MultipartUpload={"Parts": parts},
            )
        except (ClientError, BotoCoreError):
            # The answer may have got lost, and another attempt then finds no such upload.
            if not await self._arrived():
                with translated():
                    raise

    async def _arrived(self) -> bool:
        try:
            found = await self._target.client.head_object(
                Bucket=self._target.bucket, Key=self._target.name
            )
        except (ClientError, BotoCoreError):
            return False
        return found["ETag"].strip('"') in self.sent.etags

    async def _give_up(self) -> None:
        """Let nothing of it stay in the bucket."""
        # first: a part that arrives after the abort would stay
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)
        if self._id is None:
            return
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                with translated():
                    await self._abort(self._id)
        except (StorageError, TimeoutError) as error:
            # what is left is removed later, by age
            _log.warning("%s: the upload could not be aborted: %s", self._target.name, error)

    async def _abort(self, upload_id: str) -> None:
        try:
            await self._target.client.abort_multipart_upload(
                Bucket=self._target.bucket, Key=self._target.name, UploadId=upload_id
            )
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise


async def carried_through(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, also when cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # its own failure is of no interest any more, but must be looked at
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()
