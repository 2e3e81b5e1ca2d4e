"""Settings about files: where they are kept, how they are served, what is fetched and taken in."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

BUCKET_SCHEMES = ("r2", "s3", "gs")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def _comma_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for part in (raw.strip() for raw in value.split(",")) if part)
    return value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)]
PortList = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_535)], ...], NoDecode, BeforeValidator(_comma_list)
]


class FilesSettings(BaseSettings):
    """The part of the configuration that is about files."""

    storage_url: str | None = Field(
        default=None,
        description="Where files are kept: `file:///folder`, `r2://bucket`, `s3://bucket` or "
        "`gs://bucket`. Not set: `$WORKSPACE/data/files`.",
    )
    project_name: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$",
        description="What every key in a bucket begins with. Installations that share a bucket "
        "need one each.",
    )
    r2_endpoint_url: str | None = Field(
        default=None,
        description="Address of the account for `r2://`: "
        "`https://<account>.r2.cloudflarestorage.com`.",
    )
    r2_access_key_id: str | None = Field(default=None, description="Access key for `r2://`.")
    r2_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret access key for `r2://`."
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="Address of the store for `s3://`. Not set: AWS."
    )
    s3_region: str = Field(
        default="auto", max_length=64, description="Region for `s3://`; AWS needs its own."
    )
    s3_access_key_id: str | None = Field(default=None, description="Access key for `s3://`.")
    s3_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret access key for `s3://`."
    )
    gcs_endpoint_url: str = Field(
        default="https://storage.googleapis.com", description="Address of the store for `gs://`."
    )
    gcs_access_key_id: str | None = Field(default=None, description="HMAC access key for `gs://`.")
    gcs_secret_access_key: SecretStr | None = Field(
        default=None, description="HMAC secret for `gs://`."
    )
    gcs_bucket_name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$",
        description="Google bucket whose files calls may name as `gs://bucket/key`.",
    )
    input_buckets: CommaList = Field(
        default=(),
        description="Further buckets whose files calls may name, comma-separated: `s3://bucket` "
        "or `s3://bucket/folder/`, of stores whose keys are set.",
    )
    storage_content_md5: bool = Field(
        default=True,
        description="Whether files go into a bucket with `Content-MD5`, which the store checks.",
    )
    serve_files: Literal["stream", "redirect"] = Field(
        default="stream",
        description="How files in a bucket reach callers: `stream` through this gateway, "
        "`redirect` to an address signed by the store.",
    )
    upload_max_mb: int = Field(
        default=2048, ge=1, le=5_000, description="Largest file that may be uploaded, in MB."
    )
    upload_retention_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days after which an uploaded file is removed. 0: never.",
    )
    max_stored_mb_per_caller: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Megabytes of uploads and results one caller may keep; nothing new is taken "
        "above it. 0: no limit.",
    )
    fetch_ports: PortList = Field(
        default=(80, 443),
        min_length=1,
        description="Ports files are fetched from by callers' addresses, comma-separated.",
    )
    fetch_allow_networks: CommaList = Field(
        default=(),
        description="Private networks callers' addresses may lead to, comma-separated: "
        "`10.1.0.0/16`. Not set: none.",
    )

    @field_validator("storage_url")
    @classmethod
    def _known_storage(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme == "file" and not parts.netloc and parts.path:
            return value
        if parts.scheme in BUCKET_SCHEMES and _is_bucket(value.rstrip("/")):
            return value.rstrip("/")
        raise ValueError("must be file:///folder, r2://bucket, s3://bucket or gs://bucket")

    @field_validator("input_buckets")
    @classmethod
    def _known_buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            bucket, _, folder = item.partition("://")[2].partition("/")
            odd = "//" in folder or ".." in folder.split("/") or "?" in item or "#" in item
            if not _is_bucket(f"{item.partition('://')[0]}://{bucket}") or odd:
                raise ValueError(f"{item}: must be like s3://bucket or s3://bucket/folder/")
        return value

    @field_validator("fetch_allow_networks")
    @classmethod
    def _known_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            ip_network(item)
        return value

    @property
    def storage_folder(self) -> Path | None:
        """Folder that STORAGE_URL names; None where it names none."""
        if self.storage_url is None or not self.storage_url.startswith("file:"):
            return None
        return Path(unquote(urlsplit(self.storage_url).path))


def _is_bucket(address: str) -> bool:
    scheme, _, bucket = address.partition("://")
    return scheme in BUCKET_SCHEMES and _BUCKET.fullmatch(bucket) is not None
