"""Everything that can be configured, in one class; `docs/settings.md` is written from it."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Literal, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from gateway.backend_settings import BackendSettings, bare_address
from gateway.files_settings import CommaList, FilesSettings


def _tool_timeouts(value: object) -> object:
    """Read `generate=600,video=3600`."""
    if not isinstance(value, str):
        return value
    found: list[tuple[str, str]] = []
    for part in filter(None, (raw.strip() for raw in value.split(","))):
        name, equals, seconds = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not a tool and its seconds, such as generate=600")
        found.append((name.strip(), seconds.strip()))
    return tuple(found)


ToolTimeouts = Annotated[
    tuple[tuple[str, Annotated[float, Field(ge=1, le=7 * 86_400)]], ...],
    NoDecode,
    BeforeValidator(_tool_timeouts),
]


_DATABASES = ("postgresql://", "postgres://", "postgresql+asyncpg://", "sqlite+aiosqlite:///")
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::", "localhost"})


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError(f"{value!r} is not an http(s) address")
    return value.rstrip("/")


def _is_webhook_secret(text: str) -> bool:
    """Whether that is a secret as Standard Webhooks write one."""
    prefix, _, encoded = text.partition("_")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return False
    return prefix == "whsec" and len(secret) in range(24, 65)


def _words(secret: SecretStr) -> tuple[str, ...]:
    return tuple(secret.get_secret_value().split())


class Settings(FilesSettings, BackendSettings):
    """The gateway's configuration: an environment variable of the same name in capitals each."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # what was set may be a secret, also where none belongs
        hide_input_in_errors=True,
    )

    backend_host: str = Field(
        default="0.0.0.0", description="Address the gateway listens on.", max_length=255
    )
    backend_port: int = Field(
        default=8000, ge=1, le=65_535, description="Port the gateway listens on."
    )
    gpu_service_url: CommaList = Field(
        default=("http://localhost:8001",),
        min_length=1,
        description="Where the GPU service is; a comma-separated list names several.",
    )
    request_timeout: int = Field(
        default=180,
        ge=1,
        le=3600,
        description="Most seconds a call may wait for its job (`Prefer: wait=N`, `?wait=N`).",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severity that is logged."
    )
    log_format: Literal["standard", "json"] = Field(
        default="standard", description="`standard` for people, `json` for one object a line."
    )
    max_face_images: int = Field(
        default=5, ge=0, le=20, description="Most `face_images` one call of `POST /generate` takes."
    )
    max_image_size_mb: int = Field(
        default=10, ge=1, le=100, description="Largest picture inside a JSON body, in MB, decoded."
    )
    api_title: str = Field(
        default="AI Image Generation API",
        max_length=200,
        description="Title of the documentation page.",
    )
    api_version: str = Field(
        default="1.0.0", max_length=50, description="Version shown by `/health` and `/docs`."
    )
    database_url: str | None = Field(
        default=None,
        description="Database address, `postgresql://user:password@host:5432/name`. "
        "Not set: SQLite in `$WORKSPACE/data/gateway.sqlite`.",
    )
    database_connections: int = Field(
        default=10,
        ge=2,
        le=500,
        description="Most connections one gateway opens to PostgreSQL, beside one it listens on "
        "and one for its heartbeat.",
    )
    replica_lease_s: float = Field(
        default=15,
        ge=1,
        le=3600,
        description="Seconds after which a silent gateway is taken for dead and another one on "
        "the same PostgreSQL goes on with its jobs.",
    )
    gateway_api_key: SecretStr | None = Field(
        default=None,
        description="The API key every call must carry as `Authorization: Bearer …`. "
        "Not set: anyone who reaches the port may call.",
    )
    gpu_service_token: SecretStr | None = Field(
        default=None, description="Bearer token shared with the GPU service."
    )
    public_url: str | None = Field(
        default=None, description="How GPU services on other machines reach this gateway."
    )
    internal_url: str | None = Field(
        default=None,
        description="How a GPU service on this machine reaches this gateway. "
        "Not set: `http://127.0.0.1:$BACKEND_PORT`.",
    )
    cors_origins: CommaList = Field(
        default=(),
        description="Origins whose pages may call this API, comma-separated. Not set: none.",
    )
    backend_lost_after: int = Field(
        default=120,
        ge=1,
        le=86_400,
        description="Seconds after which an unreachable GPU service's work is started elsewhere.",
    )
    max_queued_jobs_per_caller: int = Field(
        default=20_000,
        ge=0,
        le=10_000_000,
        description="Jobs of one caller that may wait; more are refused with 429. 0: no limit. "
        "Several gateways on one database may let in slightly more.",
    )
    max_queued_jobs: int = Field(
        default=100_000,
        ge=0,
        le=10_000_000,
        description="Jobs that may wait altogether; more are refused with 429. 0: no limit.",
    )
    max_running_per_caller: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Jobs of one caller that may run at once, over all gateways and GPU services; "
        "the others wait. 0: no limit.",
    )
    tool_timeouts: ToolTimeouts = Field(
        default=(),
        description="Most seconds one execution of a tool may take where that is not to be the "
        "tool's own: `generate=600,video=3600`.",
    )
    batch_max_items: int = Field(
        default=1000, ge=1, le=10_000, description="Most jobs one batch may have."
    )
    job_retention_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days after its end a job is removed with its files. 0: never.",
    )
    file_retention_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days after its end a job's files are removed; the job stays. 0: never.",
    )
    mesh_workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Meshes worked on at once, each in a process of its own that may take 4 GiB of "
        "memory; over all gateways.",
    )
    min_free_disk_mb: int = Field(
        default=1024,
        ge=0,
        le=100_000_000,
        description="Free megabytes of disk below which no new work is taken. 0: not looked at.",
    )
    workspace: Path = Field(
        default=Path(),
        description="Folder in which `data/` is kept: database, files, the signing secret.",
    )
    workflows_path: Path | None = Field(
        default=None,
        description="Folder of the workflows. Not set: `workflows` in the checkout.",
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What webhooks are signed with, `whsec_…`; several, separated by spaces, all "
        "sign. Not set: one made for this installation; `python -m gateway webhook-secret` shows "
        "it.",
    )
    webhook_allow_private: bool = Field(
        default=False,
        description="Whether webhooks may go to loopback and private addresses.",
    )

    own_workflows: bool | None = Field(
        default=None,
        description="Whether callers may bring ComfyUI graphs of their own, which run any node "
        "that is installed there. Not set: yes where `GATEWAY_API_KEY` is set.",
    )
    own_workflows_max: int = Field(
        default=100, ge=1, le=10_000, description="Most workflows of their own a caller may have."
    )

    policy: str = Field(
        default="default",
        max_length=300,
        pattern=r"^(default|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="What calls must pass before they are taken: `default`, or `module:factory` "
        "of your own.",
    )
    policy_extra_terms: Path | None = Field(
        default=None,
        description="Text file of further words and phrases the default policy refuses, one a "
        "line. Not set: none.",
    )

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        if isinstance(value, str):
            return value.lower() if value.lower() in {"standard", "json"} else value.upper()
        return value

    @field_validator("gpu_service_url")
    @classmethod
    def _service_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_web_address(item) for item in value)

    @field_validator("public_url", "internal_url")
    @classmethod
    def _own_address(cls, value: str | None) -> str | None:
        return value if value is None else bare_address(value)

    @field_validator("webhook_secret")
    @classmethod
    def _signing_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(map(_is_webhook_secret, _words(value))):
            raise ValueError("each secret must be whsec_ and 24 to 64 bytes in base64")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_DATABASES):
            raise ValueError(
                "must begin with postgresql:// (postgresql://user:password@host:5432/name) or "
                "sqlite+aiosqlite:///"
            )
        return value

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """What webhooks are signed with; none where the installation's own is used."""
        return () if self.webhook_secret is None else _words(self.webhook_secret)

    @property
    def takes_own_workflows(self) -> bool:
        """Whether callers may bring graphs of their own, the default filled in."""
        if self.own_workflows is not None:
            return self.own_workflows
        return self.gateway_api_key is not None

    @property
    def data(self) -> Path:
        """Folder of everything the gateway keeps."""
        return self.workspace.absolute() / "data"

    @property
    def files(self) -> Path | None:
        """Folder of the stored files; None where they lie in a bucket."""
        return self.data / "files" if self.storage_url is None else self.storage_folder

    @property
    def database(self) -> str:
        """Database address, the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data / 'gateway.sqlite'}"

    @property
    def written_folders(self) -> tuple[Path, ...]:
        """Folders this installation writes to on local disks."""
        sqlite = self.database.partition(":///")
        database = (Path(sqlite[2]).parent,) if sqlite[0] == "sqlite+aiosqlite" else ()
        # in `data` uploads and thumbnails are under work, wherever files end up
        return (*((self.files,) if self.files else ()), self.data, *database)

    @property
    def workflows(self) -> Path:
        """Folder of the workflows, the default filled in."""
        return self.workflows_path or Path(__file__).resolve().parent.parent / "workflows"

    @property
    def local_url(self) -> str:
        """How a GPU service on this machine reaches this gateway, the default filled in."""
        if self.internal_url is not None:
            return self.internal_url
        host = "127.0.0.1" if self.backend_host in _EVERY_ADDRESS else self.backend_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.backend_port}"

    @property
    def default_wait(self) -> int:
        """Seconds a call waits for its job unless it says otherwise."""
        # RunPod's HTTP proxy cuts a connection at 100 seconds.
        return min(90, self.request_timeout)


def environment_name(field: str) -> str:
    """Name of the environment variable behind a field."""
    return field.upper()


def shown_default(field: str) -> str:
    """A field's default as it would be written into the environment."""
    default = cast("object", Settings.model_fields[field].default)
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, cast("tuple[object, ...]", default)))
    return str(default)
