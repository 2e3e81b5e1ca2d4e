"""Buckets from the settings: where files are kept, and whose files calls may name."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.addresses import FileAddress, NotAnAddress, parse
from gateway.storage.base import DEFAULT_MAX_BYTES, Storage
from gateway.storage.bucket import Bucket, Scheme
from gateway.storage.local import LocalStorage

if TYPE_CHECKING:
    from gateway.storage.s3 import S3Storage

_MEGABYTE = 1024 * 1024


class StoreUnusable(Exception):
    """A store cannot be used as it is configured; the message names the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Where this installation keeps its files, and where else it reads some."""

    storage: Storage
    bucket: "S3Storage | None"
    """The storage, where it is a bucket."""
    inputs: "InputBuckets"

    @classmethod
    def of(cls, settings: Settings, signer: Signer, base_url: str) -> "Stores":
        """Those of the settings; local slots begin with `base_url`. Raises StoreUnusable."""
        storage = storage_of(settings, signer, base_url)
        bucket = None if isinstance(storage, LocalStorage) else storage
        return cls(storage=storage, bucket=bucket, inputs=InputBuckets.of(settings))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold connections to the store open, where it has any."""
        async with self.bucket.running() if self.bucket is not None else nullcontext():
            yield

    async def trouble(self) -> str | None:
        """Say why files cannot be kept; None when they can. A folder is looked at elsewhere."""
        return None if self.bucket is None else await self.bucket.trouble()


def storage_of(settings: Settings, signer: Signer, base_url: str) -> "LocalStorage | S3Storage":
    """The storage of STORAGE_URL; local slots begin with `base_url`. Raises StoreUnusable."""
    most = max(DEFAULT_MAX_BYTES, settings.upload_max_mb * _MEGABYTE)
    if settings.files is not None:
        return LocalStorage(settings.files, signer, base_url, max_bytes=most)
    # half a second of every start, and 17 MB, which a folder of files need not cost
    from gateway.storage.s3 import S3Storage  # noqa: PLC0415

    scheme, name, _ = _parts(settings.storage_url or "")
    return S3Storage(
        bucket_of(settings, scheme, name, "STORAGE_URL"),
        project=settings.project_name,
        content_md5=settings.storage_content_md5,
        max_bytes=most,
    )


def bucket_of(settings: Settings, scheme: Scheme, name: str, wanted_by: str) -> Bucket:
    """A bucket with what its store's settings say. Raises StoreUnusable."""
    prefix, endpoint, region, key_id, secret = _settings_of(settings, scheme)
    missing = [
        setting
        for setting, value in (
            # of the others one is known
            (f"{prefix}_ENDPOINT_URL", endpoint or scheme == "s3"),
            (f"{prefix}_ACCESS_KEY_ID", key_id),
            (f"{prefix}_SECRET_ACCESS_KEY", secret),
        )
        if not value
    ]
    if missing:
        raise StoreUnusable(f"{wanted_by} names {scheme}://{name}: set {', '.join(missing)}")
    if endpoint is None:
        endpoint = _aws(region, wanted_by)
    return Bucket(
        scheme=scheme,
        name=name,
        endpoint=_checked(endpoint, f"{prefix}_ENDPOINT_URL"),
        region=region,
        access_key_id=key_id or "",
        secret_access_key=secret or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBucket:
    """A bucket, or a folder in it, whose files calls may name."""

    bucket: Bucket
    folder: str
    """Empty, or ending with a slash."""

    def has(self, file: FileAddress) -> bool:
        """Whether the file would lie in it."""
        here = (file.scheme, file.bucket) == (self.bucket.scheme, self.bucket.name)
        return here and file.key.startswith(self.folder)


class InputBuckets:
    """INPUT_BUCKETS and GCS_BUCKET_NAME: files every caller may name, to be read only."""

    def __init__(self, buckets: Iterable[InputBucket]) -> None:
        self._buckets = tuple(buckets)

    @classmethod
    def of(cls, settings: Settings) -> "InputBuckets":
        """Those of the settings. Raises StoreUnusable."""
        found = [
            _input_bucket(settings, address, "INPUT_BUCKETS") for address in settings.input_buckets
        ]
        if (place := next((p for p in found if _holds_ours(settings, p)), None)) is not None:
            raise StoreUnusable(
                f"INPUT_BUCKETS names {place.bucket.address(place.folder)}, where the files of "
                "callers lie: every caller could read everyone's"
            )
        if settings.gcs_bucket_name is not None:
            google = _input_bucket(settings, f"gs://{settings.gcs_bucket_name}", "GCS_BUCKET_NAME")
            # the same bucket under another name: its files have owners
            found += [] if _holds_ours(settings, google) else [google]
        return cls(found)

    def canonical(self, address: str) -> str | None:
        """Write the address of a file in one of them in the one way; None for any other."""
        file = self._file(address)
        return None if file is None else str(file[1])

    def link(self, address: str, lifetime: timedelta) -> str | None:
        """An address signed for the store that gives the file's bytes; None for any other."""
        file = self._file(address)
        return None if file is None else file[0].bucket.signed("GET", file[1].key, lifetime)

    def _file(self, address: str) -> tuple[InputBucket, FileAddress] | None:
        try:
            file = parse(address)
        except NotAnAddress:
            return None
        return next(((place, file) for place in self._buckets if place.has(file)), None)


def _input_bucket(settings: Settings, address: str, wanted_by: str) -> InputBucket:
    scheme, name, folder = _parts(address)
    bucket = bucket_of(settings, scheme, name, wanted_by)
    return InputBucket(bucket=bucket, folder=f"{folder}/" if folder else "")


def _holds_ours(settings: Settings, place: InputBucket) -> bool:
    """Whether files of this installation lie there, whatever the store is called."""
    if settings.storage_url is None or settings.files is not None:
        return False
    scheme, name, _ = _parts(settings.storage_url)
    own = bucket_of(settings, scheme, name, "STORAGE_URL")
    if (own.endpoint, own.name) != (place.bucket.endpoint, place.bucket.name):
        return False
    prefix = f"{settings.project_name}/" if settings.project_name else ""
    return prefix.startswith(place.folder) or place.folder.startswith(prefix)


def _settings_of(
    settings: Settings, scheme: Scheme
) -> tuple[str, str | None, str, str | None, str | None]:
    """Prefix of the settings' names, endpoint, region, key, secret."""
    match scheme:
        case "r2":
            endpoint, region, prefix = settings.r2_endpoint_url, "auto", "R2"
            key_id, secret = settings.r2_access_key_id, settings.r2_secret_access_key
        case "s3":
            endpoint, region, prefix = settings.s3_endpoint_url, settings.s3_region, "S3"
            key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
        case "gs":
            endpoint, region, prefix = settings.gcs_endpoint_url, "auto", "GCS"
            key_id, secret = settings.gcs_access_key_id, settings.gcs_secret_access_key
    return prefix, endpoint, region, key_id, secret.get_secret_value() if secret else None


def _parts(address: str) -> tuple[Scheme, str, str]:
    """Scheme, bucket and folder of a setting that was checked."""
    scheme, _, rest = address.partition("://")
    known = next(known for known in get_args(Scheme) if known == scheme)
    bucket, _, folder = rest.partition("/")
    return known, bucket, folder.strip("/")


def _aws(region: str, wanted_by: str) -> str:
    if region == "auto":
        raise StoreUnusable(
            f"{wanted_by} names a bucket at AWS, as S3_ENDPOINT_URL is not set: set S3_REGION to "
            "the region it lies in"
        )
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://s3.{region}.{suffix}"


def _checked(endpoint: str, setting: str) -> str:
    """The endpoint without a slash at its end. Raises StoreUnusable."""
    try:
        parts = urlsplit(endpoint)
        plain = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        plain = False
        parts = urlsplit("")
    if not plain:
        raise StoreUnusable(f"{setting} is not an http(s) address")
    if "@" in parts.netloc or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise StoreUnusable(
            f"{setting} must be the store's address alone, like https://host: the bucket is named "
            "elsewhere, and keys have settings of their own"
        )
    return f"{parts.scheme}://{parts.netloc}"
