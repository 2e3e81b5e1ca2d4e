"""What can be configured, read from the environment once at start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_server.addresses import FetchRules

_CHECKOUT = Path(__file__).resolve().parent.parent


def _comma_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for part in (raw.strip() for raw in value.split(",")) if part)
    return value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)]
PortList = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_535)], ...], NoDecode, BeforeValidator(_comma_list)
]


class Settings(BaseSettings):
    """The GPU service's settings; each field is the environment variable of the same name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    gpu_server_host: str = "0.0.0.0"
    """Address to listen on."""
    gpu_server_port: int = Field(default=8001, ge=0, le=65_535)
    """Port to listen on."""
    gpu_service_token: SecretStr | None = None
    """Bearer token shared with the gateway; unset = everybody who reaches the port may run."""
    comfyui_api_url: str = "http://localhost:8188"
    """ComfyUI's address; it belongs on loopback, it has no authentication."""
    comfyui_path: Path | None = None
    """ComfyUI's folder, to remove a finished run's files; unset = they stay."""
    models_path: Path = Path("/workspace/models")
    """Where models lie beyond ComfyUI's own folder; ComfyUI must list it too."""
    workflows_path: Path = _CHECKOUT / "workflows"
    """Folder of workflow graphs and manifests."""
    workspace: Path = _CHECKOUT
    """Root of what the service writes: `data/gpu_server.sqlite`, `data/finishing`, `cache`."""
    internal_url: str | None = None
    """The gateway's address on this host, whose links are fetched although they are private."""
    backend_port: int = Field(default=8000, ge=0, le=65_535)
    """The gateway's port on this host, for `internal_url` when that is unset."""
    fetch_ports: PortList = Field(default=(80, 443), min_length=1)
    """Ports files are fetched from by callers' addresses."""
    fetch_allow_networks: CommaList = ()
    """Private networks callers' addresses may lead to: `10.1.0.0/16`."""
    input_cache_mb: int = Field(default=1024, ge=0, le=100_000_000)
    """Megabytes of files kept that runs have read; 0 = none."""
    max_concurrent_tasks: int = Field(default=1, ge=1, le=16)
    """Runs executing at once; one ComfyUI executes one."""
    queue_ahead: int = Field(default=2, ge=1, le=64)
    """Runs kept in ComfyUI, the executing one included, so that it never waits for the next."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe message that is logged."""
    log_format: Literal["standard", "json"] = "standard"
    """Lines for people, or one JSON object a line."""

    @field_validator("fetch_allow_networks")
    @classmethod
    def _known_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        FetchRules.of((), value)
        return value

    @property
    def fetch_rules(self) -> FetchRules:
        """Where callers' addresses may lead."""
        return FetchRules.of(self.fetch_ports, self.fetch_allow_networks)

    @property
    def input_cache_path(self) -> Path:
        """The folder of files that runs have read."""
        return self.workspace / "cache" / "inputs"

    @property
    def journal_path(self) -> Path:
        """The file that survives the process."""
        return self.workspace / "data" / "gpu_server.sqlite"

    @property
    def finishing_path(self) -> Path:
        """The folder of files under work on their way out."""
        return self.workspace / "data" / "finishing"

    @property
    def trusted_origin(self) -> str:
        """The gateway on this host."""
        return self.internal_url or f"http://127.0.0.1:{self.backend_port}"

    @property
    def capacity(self) -> int:
        """Runs accepted at once; more is 429."""
        return max(self.queue_ahead, self.max_concurrent_tasks)
