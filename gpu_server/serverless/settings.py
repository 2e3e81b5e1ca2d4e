"""What can be configured of the serverless worker beyond the GPU service's own settings."""

import re
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from gpu_server.settings import CommaList, Settings

_BUCKET = re.compile(r"(r2|s3|gs)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/?")


class WorkerSettings(Settings):
    """The worker's settings; each field is the environment variable of the same name."""

    runpod_tool: CommaList = ()
    """Tools this endpoint serves by plain calls, comma-separated; the only one is the default one.
    Unset = every tool, and a call names its own."""
    runpod_workflows: CommaList = ()
    """Workflows whose models are on this endpoint, comma-separated; the first of a tool is its
    default. Unset = those that ComfyUI has everything for."""
    runpod_result_mb: float = Field(default=9, gt=0, le=20)
    """Largest result that is handed to RunPod, which carries 10 MB of a `/run` and 20 MB of a
    `/runsync`; more fails with what to configure."""
    runpod_progress_s: float = Field(default=1, ge=0.1, le=60)
    """Least seconds between two progress updates of a job."""
    runpod_preview_s: float = Field(default=2, ge=0.5, le=600)
    """Least seconds between two previews of a job, for runs that ask for them."""
    comfyui_start_s: float = Field(default=300, gt=0, le=3600)
    """How long a starting worker waits for ComfyUI before it gives itself up."""
    storage_url: str | None = None
    """Bucket that plain calls leave their files in: `r2://bucket`, `s3://bucket`, `gs://bucket`."""
    storage_link_hours: int = Field(default=168, ge=1, le=168)
    """How long the links in a plain call's result can be followed; signatures allow a week."""
    project_name: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")
    """What every key in the bucket begins with."""
    r2_endpoint_url: str | None = None
    """Address of the account for `r2://`."""
    r2_access_key_id: str | None = None
    """Access key for `r2://`."""
    r2_secret_access_key: SecretStr | None = None
    """Secret access key for `r2://`."""
    s3_endpoint_url: str | None = None
    """Address of the store for `s3://`; unset = AWS."""
    s3_region: str = "auto"
    """Region for `s3://`; AWS needs its own."""
    s3_access_key_id: str | None = None
    """Access key for `s3://`."""
    s3_secret_access_key: SecretStr | None = None
    """Secret access key for `s3://`."""
    gcs_endpoint_url: str = "https://storage.googleapis.com"
    """Address of the store for `gs://`."""
    gcs_access_key_id: str | None = None
    """HMAC access key for `gs://`."""
    gcs_secret_access_key: SecretStr | None = None
    """HMAC secret for `gs://`."""

    @field_validator("storage_url")
    @classmethod
    def _is_a_bucket(cls, value: str | None) -> str | None:
        if value is not None and not _BUCKET.fullmatch(value):
            raise ValueError(
                "must be r2://bucket, s3://bucket or gs://bucket: a worker's own disk is gone with "
                "the worker"
            )
        return value

    @model_validator(mode="after")
    def _keys_are_there(self) -> Self:
        if self.bucket is None:
            return self
        prefix = {"r2": "r2", "s3": "s3", "gs": "gcs"}[self.bucket[0]]
        needed = ["access_key_id", "secret_access_key"]
        needed += ["endpoint_url"] if prefix == "r2" else []
        missing = [
            f"{prefix}_{n}".upper() for n in needed if getattr(self, f"{prefix}_{n}") is None
        ]
        if missing:
            raise ValueError(f"STORAGE_URL needs {' and '.join(missing)}")
        return self

    @property
    def bucket(self) -> tuple[str, str] | None:
        """Scheme and name of the bucket that STORAGE_URL names."""
        named = _BUCKET.fullmatch(self.storage_url or "")
        return None if named is None else (named[1], named[2])

    @property
    def result_bytes(self) -> int:
        """Most bytes of a result."""
        return int(self.runpod_result_mb * 1024**2)
