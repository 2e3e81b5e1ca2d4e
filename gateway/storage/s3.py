"""Files in a bucket, by the S3 interface: Cloudflare R2, AWS S3, Google Cloud Storage, MinIO.

A key lies in the bucket under `<PROJECT_NAME>/<key>`; nothing outside of this class sees that but
in addresses. Slots and links are addresses signed for the store itself.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from botocore.exceptions import ClientError

from gateway.storage.base import (
    DEFAULT_MAX_BYTES,
    ListedFile,
    StorageError,
    StoredFile,
    is_key,
)
from gateway.storage.bucket import Bucket
from gateway.storage.s3_client import opened
from gateway.storage.s3_errors import code_of, says_not_there, translated
from gateway.storage.s3_upload import Target, send

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

_LOOK_S = 8
_LOOKED_AT_MOST_EVERY_S = 15
_CHUNK = 256 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
# With keys of their own these stores encrypt first and hash then.
_OWN_KEYS = ("x-amz-server-side-encryption-customer-algorithm", "x-goog-encryption-kms-key-name")


class S3Storage:
    """A bucket. Works inside `running()` alone; signing works always."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        project: str = "",
        content_md5: bool = True,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self.max_bytes = max_bytes
        self._bucket = bucket
        self._prefix = f"{project}/" if project else ""
        self._content_md5 = content_md5
        self._opened: S3Client | None = None
        self._looked_at = 0.0
        self._looking: asyncio.Task[str | None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold the one client of this process open."""
        async with opened(self._bucket) as client:
            self._opened = client
            try:
                yield
            finally:
                if self._looking is not None:
                    self._looking.cancel()
                self._opened = self._looking = None

    @property
    def is_remote(self) -> bool:
        """True: slots and links lead to the store."""
        return True

    @property
    def wants_length(self) -> bool:
        """True: a store takes no body of unknown length."""
        return True

    @property
    def wants_md5(self) -> bool:
        """Whether bodies are to carry `Content-MD5`."""
        return self._content_md5

    def path(self, key: str) -> Path | None:
        """None: it is on no disk of this machine."""
        del key

    def address(self, key: str) -> str:
        """`r2://bucket/<project>/<key>` and the like."""
        return self._bucket.address(self._prefix + key)

    def key_of(self, address: str) -> str | None:
        """The key that a storage address or a signed link of this bucket names."""
        name = _after(address, self._bucket.address(""))
        if name is None:
            # as in a link, whatever signature it carries
            plain = unquote(address.partition("#")[0].partition("?")[0])
            name = _after(plain, f"{self._bucket.endpoint}/{self._bucket.name}/")
        key = None if name is None else _after(name, self._prefix)
        return key if key is not None and is_key(key) else None

    def slot(self, key: str, lifetime: timedelta, *, length: int | None = None) -> str:
        """An address that takes the file's bytes by PUT, for at most seven days."""
        return self._bucket.signed("PUT", self._name_of(key), lifetime, length=length)

    def link(self, key: str, lifetime: timedelta, *, disposition: str | None = None) -> str:
        """An address that gives the file's bytes by GET, for at most seven days."""
        answer = {} if disposition is None else {"response-content-disposition": disposition}
        return self._bucket.signed("GET", self._name_of(key), lifetime, query=answer)

    async def write(self, key: str, media_type: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Take a file in; it appears under its key once it is whole, and is looked at then.

        Raises TooManyBytes, StorageError; whatever `chunks` raises leaves nothing behind.
        """
        target = Target(
            client=self._client,
            bucket=self._bucket.name,
            name=self._name_of(key),
            media_type=media_type,
            content_md5=self._content_md5,
            max_bytes=self.max_bytes,
        )
        sent = await send(target, chunks)
        stored = await self.stat(key)
        if stored is None:
            raise StorageError("the store does not have the file it has taken")
        if stored.bytes != sent.size or stored.md5 not in {None, sent.md5}:
            raise StorageError("the store has another file than was sent")
        return StoredFile(
            key=key,
            bytes=stored.bytes,
            sha256=sent.sha256,
            etag=stored.etag,
            media_type=stored.media_type,
            md5=stored.md5,
        )

    async def stat(self, key: str) -> StoredFile | None:
        """What lies under the key; None when nothing does."""
        if not is_key(key):
            return None
        with translated():
            try:
                found = await self._client.head_object(
                    Bucket=self._bucket.name, Key=self._prefix + key
                )
            except ClientError as error:
                if not says_not_there(error):
                    raise
                await self._require_bucket(key)
                return None
        etag = found["ETag"].strip('"')
        return StoredFile(
            key=key,
            bytes=found["ContentLength"],
            sha256=None,
            etag=etag,
            media_type=found.get("ContentType") or "application/octet-stream",
            md5=_md5_of(found, etag),
        )

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes `start..end` (end exclusive), in pieces of at most 256 KiB."""
        if not is_key(key):
            raise KeyError(key)
        if end is not None and end <= start:
            # no range says "nothing"
            if await self.stat(key) is None:
                raise KeyError(key)
            return
        with translated():
            answer = await self._get(key, _range(start, end))
            if answer is None:
                return
            skip, left = start - _first(answer), _left(start, end)
            body = answer["Body"]
            async with body:
                received = 0
                async for chunk in body.iter_chunks(_CHUNK):
                    received += len(chunk)
                    piece = chunk[skip : skip + left] if skip or len(chunk) > left else chunk
                    skip = max(skip - len(chunk), 0)
                    left -= len(piece)
                    if piece:
                        yield piece
                if left and received < answer["ContentLength"]:
                    raise StorageError("the transfer broke off")

    async def delete(self, key: str) -> None:
        """Remove the file."""
        if not is_key(key):
            return
        with translated():
            try:
                await self._client.delete_object(Bucket=self._bucket.name, Key=self._prefix + key)
            except ClientError as error:
                # some stores say so, others do not
                if not says_not_there(error):
                    raise

    async def pages(self) -> AsyncIterator[Sequence[ListedFile]]:
        """Every key there is under this project, a page at a time."""
        lists = self._client.get_paginator("list_objects_v2")
        with translated():
            async for page in lists.paginate(Bucket=self._bucket.name, Prefix=self._prefix):
                found = [
                    ListedFile(key=key, written_at=item["LastModified"])
                    for item in page.get("Contents", ())
                    if "Key" in item
                    and "LastModified" in item
                    and (key := _after(item["Key"], self._prefix)) is not None
                    and is_key(key)
                ]
                if found:
                    yield found

    async def tidy(self, before: datetime) -> None:
        """Abort uploads in parts that broke off before that time."""
        with translated():
            for name, upload_id in await self._unfinished(before):
                try:
                    await self._client.abort_multipart_upload(
                        Bucket=self._bucket.name, Key=name, UploadId=upload_id
                    )
                except ClientError as error:
                    if code_of(error) != "NoSuchUpload":
                        raise

    async def unfinished(self, before: datetime) -> int:
        """How many uploads in parts broke off before that time. Raises StorageError."""
        with translated():
            return len(await self._unfinished(before))

    async def trouble(self) -> str | None:
        """Say why the bucket cannot be used; None when it can. Looked at every 15 s at most."""
        now = asyncio.get_running_loop().time()
        if self._looking is None or now - self._looked_at >= _LOOKED_AT_MOST_EVERY_S:
            self._looked_at = now
            self._looking = asyncio.create_task(self._look())
        # one look for all who ask meanwhile; who goes away does not end it for the others
        return await asyncio.shield(self._looking)

    async def _look(self) -> str | None:
        try:
            async with asyncio.timeout(_LOOK_S):
                with translated():
                    await self._client.list_objects_v2(
                        Bucket=self._bucket.name, Prefix=self._prefix, MaxKeys=1
                    )
        except TimeoutError:
            return f"{self._bucket.address('')}: the store does not answer."
        except StorageError as error:
            return f"{self._bucket.address('')}: {error}."
        return None

    async def _unfinished(self, before: datetime) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        lists = self._client.get_paginator("list_multipart_uploads")
        try:
            async for page in lists.paginate(Bucket=self._bucket.name, Prefix=self._prefix):
                for upload in page.get("Uploads", ()):
                    name = upload.get("Key", "")
                    begun = upload.get("Initiated", before)
                    if begun < before and is_key(name.removeprefix(self._prefix)):
                        found.append((name, upload.get("UploadId", "")))
        except ClientError as error:
            # rclone's word for none
            if code_of(error) != "NoSuchUpload":
                raise
        return found

    async def _get(self, key: str, asked: str) -> "GetObjectOutputTypeDef | None":
        """The answer; None where the part asked for lies behind the end."""
        try:
            return await self._client.get_object(
                Bucket=self._bucket.name, Key=self._prefix + key, Range=asked
            )
        except ClientError as error:
            if says_not_there(error):
                raise KeyError(key) from None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None
            raise

    async def _require_bucket(self, key: str) -> None:
        """Raise StorageError unless it is the file alone that is not there.

        An answer to HEAD has no body: a bucket that is gone looks like a missing file.
        """
        try:
            answer = await self._get(key, _range(0, 1))
        except KeyError:
            return
        if answer is not None:
            async with answer["Body"]:
                pass
        raise StorageError("the file has only just come")

    @property
    def _client(self) -> "S3Client":
        if self._opened is None:
            raise RuntimeError("this storage is not running")
        return self._opened

    def _name_of(self, key: str) -> str:
        if not is_key(key):
            raise StorageError(f"not a storage key: {key!r}")
        return self._prefix + key


def _range(start: int, end: int | None) -> str:
    return f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"


def _left(start: int, end: int | None) -> int:
    return 2**63 if end is None else end - start


def _first(answer: "GetObjectOutputTypeDef") -> int:
    """Where in the file the answer begins: some stores answer a range with the whole file."""
    told = _RANGE.fullmatch(answer.get("ContentRange", ""))
    return int(told.group(1)) if told else 0


def _md5_of(found: "HeadObjectOutputTypeDef", etag: str) -> str | None:
    """The MD5 where the ETag is one: in one piece, and encrypted with no key of the owner's."""
    headers: dict[str, Any] = found["ResponseMetadata"]["HTTPHeaders"]
    own_key = found.get("ServerSideEncryption", "AES256") != "AES256"
    if own_key or any(name in headers for name in _OWN_KEYS):
        return None
    return etag if _MD5.fullmatch(etag) else None


def _after(text: str, beginning: str) -> str | None:
    return text[len(beginning) :] if text.startswith(beginning) else None
