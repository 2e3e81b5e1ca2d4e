"""The bucket that plain calls leave their files in; boto3, which blocks, stays in its threads.

It signs and looks. The bytes themselves go through `delivery.py`, as the gateway's do.
"""

import asyncio
import importlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.settings import WorkerSettings

FOLDER = "serverless"
_WEEK_S = 7 * 86_400
_NAME = re.compile(r"[0-9]{4}/[0-9]{2}/[0-9]{2}/[0-9a-f-]{36}/[a-z0-9_]+-[0-9]+\.[a-z0-9]+")
_NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound"})


class _Client(Protocol):
    """As much of boto3's S3 client as is used here; boto3 has no types."""

    def generate_presigned_url(
        self,
        method: str,
        /,
        *,
        Params: Mapping[str, str],  # noqa: N803 - boto3's
        ExpiresIn: int,  # noqa: N803 - boto3's
    ) -> str: ...

    def head_object(self, *, Bucket: str, Key: str) -> Mapping[str, Any]: ...  # noqa: N803 - boto3's


class _Boto3(Protocol):
    def client(self, service_name: str, **options: object) -> _Client: ...


class Bucket:
    """One bucket, by the settings of its kind."""

    def __init__(self, settings: WorkerSettings, scheme: str, name: str) -> None:
        self._settings = settings
        self._scheme = scheme
        self._name = name
        self._root = "/".join(part for part in (settings.project_name, FOLDER) if part)

    @classmethod
    def of(cls, settings: WorkerSettings) -> "Bucket | None":
        """Return the bucket that is configured, if one is."""
        return None if settings.bucket is None else cls(settings, *settings.bucket)

    def key(self, name: str) -> str:
        """Where a file of a plain call lies."""
        return f"{self._root}/{name}"

    def address(self, key: str) -> str:
        """What a result calls it."""
        return f"{self._scheme}://{self._name}/{key}"

    def own_key(self, address: str) -> str | None:
        """The key of an earlier plain call's file, None where the address is of no such file."""
        start = self.address(self.key(""))
        name = address.removeprefix(start)
        return self.key(name) if address.startswith(start) and _NAME.fullmatch(name) else None

    async def slot(self, key: str, lifetime_s: float) -> str:
        """Sign an address that takes the file by PUT."""
        return await asyncio.to_thread(self._signed, "put_object", key, lifetime_s)

    async def link(self, key: str, lifetime_s: float) -> str:
        """Sign an address that gives the file by GET."""
        return await asyncio.to_thread(self._signed, "get_object", key, lifetime_s)

    async def size(self, key: str) -> int | None:
        """Ask how large the file is that lies there; None: none does. Raises CallFailed."""
        return await asyncio.to_thread(self._size, key)

    def _signed(self, method: str, key: str, lifetime_s: float) -> str:
        lifetime = int(min(lifetime_s, _WEEK_S))
        return self._client.generate_presigned_url(
            method, Params={"Bucket": self._name, "Key": key}, ExpiresIn=lifetime
        )

    def _size(self, key: str) -> int | None:
        try:
            return int(self._client.head_object(Bucket=self._name, Key=key)["ContentLength"])
        except ClientError as error:
            answer = cast("dict[str, Any]", error.response)
            if str(answer.get("Error", {}).get("Code")) in _NOT_THERE:
                return None
            raise _away() from None
        except BotoCoreError:
            raise _away() from None

    @cached_property
    def _client(self) -> _Client:
        # no boto3 before it is needed: it takes a third of a second, and most endpoints never do
        boto3 = cast("_Boto3", importlib.import_module("boto3"))
        settings, kind = self._settings, {"gs": "gcs"}.get(self._scheme, self._scheme)
        secret = getattr(settings, f"{kind}_secret_access_key")
        return boto3.client(
            "s3",
            endpoint_url=getattr(settings, f"{kind}_endpoint_url"),
            region_name=settings.s3_region if kind == "s3" else "auto",
            aws_access_key_id=getattr(settings, f"{kind}_access_key_id"),
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # R2 and GCS refuse the checksum trailers botocore would add
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=10,
                read_timeout=30,
                retries={"max_attempts": 4, "mode": "standard"},
            ),
        )


def _away() -> CallFailed:
    return CallFailed("transient", "delivery_failed", "the bucket of STORAGE_URL does not answer")
