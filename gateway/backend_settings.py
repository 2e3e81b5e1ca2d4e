"""Settings about the places where work is carried out: RunPod, and which is chosen."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from gateway.files_settings import CommaList

_ENDPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]+")


def _by_tool(value: object) -> object:
    """Read `generate=one,video=other`; a value may be a list, `gpu|runpod`."""
    if not isinstance(value, str):
        return value
    found: list[tuple[str, tuple[str, ...]]] = []
    for part in filter(None, (raw.strip() for raw in value.split(","))):
        name, equals, chosen = part.partition("=")
        words = tuple(filter(None, (word.strip() for word in chosen.split("|"))))
        if not equals or not words:
            raise ValueError(
                f"{part!r} is not a tool and what is meant for it, such as video=runpod"
            )
        found.append((name.strip(), words))
    return tuple(found)


def _named_once(
    value: tuple[tuple[str, tuple[str, ...]], ...],
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = [name for name, _ in value]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names {min(twice)} twice")
    return value


ByTool = Annotated[
    tuple[tuple[str, tuple[str, ...]], ...],
    NoDecode,
    BeforeValidator(_by_tool),
    AfterValidator(_named_once),
]


def bare_address(value: str) -> str:
    """Take an http(s) address that others go below; raises ValueError, which does not repeat it."""
    try:
        parts = urlsplit(value)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not value.isprintable() or " " in value:
        raise ValueError("is not an http(s) address")
    if set("@?#") & set(value):
        raise ValueError("must have no login, query or fragment")
    return value.rstrip("/")


class BackendSettings(BaseSettings):
    """The part of the configuration that is about backends other than GPU services."""

    runpod_api_key: SecretStr | None = Field(
        default=None, description="API key of RunPod, for its serverless endpoints."
    )
    runpod_endpoint_id: str | None = Field(
        default=None,
        max_length=64,
        description="Serverless endpoint that serves every tool `RUNPOD_ENDPOINTS` does not name.",
    )
    runpod_endpoints: ByTool = Field(
        default=(),
        description="Serverless endpoints of single tools: `generate=abc123,video=def456`.",
    )
    runpod_workflows: CommaList = Field(
        default=(),
        description="Workflows whose models are on the serverless endpoints, comma-separated. "
        "Not set: all workflows of the tools they serve.",
    )
    runpod_max_jobs: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Jobs one endpoint holds at once, queued ones included: its workers, or a few "
        "more. The others wait here, where they can still go elsewhere.",
    )
    runpod_queue_s: int = Field(
        default=900,
        ge=10,
        le=86_400,
        description="Seconds a job may wait at RunPod for a worker, before it is taken back.",
    )
    runpod_previews: bool = Field(
        default=True,
        description="Have serverless workers show what a picture looks like so far, for who asks.",
    )
    runpod_api_url: str = Field(
        default="https://api.runpod.ai/v2", description="Address of RunPod's serverless API."
    )
    backends: CommaList = Field(
        default=("gpu", "runpod"),
        min_length=1,
        description="Where work goes, in this order: `gpu` (any GPU service), `runpod`, or the "
        "name of one as `/health` shows it. The next is taken only while those before it cannot "
        "carry the work out.",
    )
    tool_backends: ByTool = Field(
        default=(),
        description="The same for single tools: `video=runpod,generate=gpu|runpod`.",
    )
    fallback_after_s: float = Field(
        default=15,
        ge=0,
        le=86_400,
        description="Seconds a backend must have been away before work goes to the next one.",
    )

    @field_validator("runpod_endpoint_id")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not _ENDPOINT.fullmatch(value):
            raise ValueError("must be an endpoint's id, letters and digits")
        return value

    @field_validator("runpod_endpoints")
    @classmethod
    def _one_endpoint_each(
        cls, value: tuple[tuple[str, tuple[str, ...]], ...]
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        for tool, ids in value:
            if len(ids) != 1 or not _ENDPOINT.fullmatch(ids[0]):
                raise ValueError(f"{tool}= needs the id of one endpoint")
        return value

    @field_validator("runpod_api_url")
    @classmethod
    def _api_address(cls, value: str) -> str:
        return bare_address(value)

    @field_validator("runpod_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _KEY.fullmatch(value.get_secret_value()):
            raise ValueError("must be ASCII characters without blanks and line ends")
        return value
