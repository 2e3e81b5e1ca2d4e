"""Files that callers have, and a check of calls that name some."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import Field

from gateway.db.uploads import Upload
from gateway.errors import InvalidParameters
from gateway.inputs import Inline, Inputs
from gateway.job import Artifact, Source
from gateway.media import ImageUrl, MaskUrl, ModelUrl, VideoUrl
from gateway.pictures import Picture
from gateway.tool import ToolParams

JOB = "01890000-0000-7000-8000-000000000000"
PUBLIC = "https://media.example.com/gw"
MEBIBYTE = 1024 * 1024


class Params(ToolParams):
    image_url: ImageUrl | None = None
    mask_url: MaskUrl | None = None
    video_url: VideoUrl | None = None
    model_url: ModelUrl | None = None
    face_images: Annotated[tuple[ImageUrl, ...], Field(max_length=5)] = ()


@dataclass
class Files:
    """The artifacts of callers."""

    owned: dict[tuple[str, str], Artifact] = field(default_factory=dict)

    async def file_of(self, caller: str, filename: str) -> Artifact | None:
        return self.owned.get((caller, filename))

    def add(self, filename: str, media_type: str = "image/png", caller: str = "alice") -> Artifact:
        made = Artifact(
            job_id=JOB,
            output="images",
            n=0,
            key=f"generated/2026/03/09/{JOB}/{filename}",
            filename=filename,
            media_type=media_type,
            bytes=5,
            sha256="a" * 64,
        )
        self.owned[caller, filename] = made
        return made


@dataclass
class Uploaded:
    """What callers have uploaded."""

    owned: dict[tuple[str, str], Upload] = field(default_factory=dict)

    async def file_of(self, caller: str, filename: str) -> Upload | None:
        return self.owned.get((caller, filename))

    def add(self, filename: str, caller: str = "alice", **columns: Any) -> Upload:
        made = Upload(
            **{
                "id": "01HZ0000000000000000000000",
                "caller": caller,
                "kind": "media",
                "status": "ready",
                "name": None,
                "key": f"uploads/2026/03/09/{JOB}/{filename}",
                "filename": filename,
                "media_type": "image/png",
                "bytes": 5,
                "sha256": "a" * 64,
                "width": 4,
                "height": 3,
                "created_at": datetime(2026, 3, 9, tzinfo=UTC),
                "expires_at": None,
                **columns,
            }
        )
        self.owned[caller, filename] = made
        return made


class NoPictures:
    """No template or style has a picture."""

    async def at(self, path: str) -> Picture | None:
        del path


async def only(inputs: Inputs, **params: Any) -> Source | Inline:
    found = await inputs.check(Params(**params), "alice")
    ((one,),) = found.values()
    return one


async def refused(inputs: Inputs, **params: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        await inputs.check(Params(**params), "alice")
    return [(error.field, error.code) for error in caught.value.errors]
