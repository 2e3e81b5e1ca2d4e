"""A plain call that rescales a mesh: the one that needs no ComfyUI."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue, ValidationError

from gpu_server.mesh.calls import ENGINE, INPUT, RescaleCall, extension, rescaled, sizes
from gpu_server.mesh.files import fetch
from gpu_server.mesh.order import MeshLimits, MeshOrder
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.calls import file_at, key_of
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.inline import InlineFetcher
from gpu_server.serverless.meshes import Handover, carried_out, working
from gpu_server.serverless.results import Result
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.tools import CHOOSING

_SLOT, _FILE = "models/0", "models-0"


def read_rescale(asked: Mapping[str, JsonValue]) -> RescaleCall:
    """Read the parameters of a rescaling; raises CallFailed naming the one that is wrong."""
    given = {k: v for k, v in asked.items() if v is not None and k not in CHOOSING}
    try:
        return RescaleCall.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and place not in RescaleCall.model_fields:
        takes = ", ".join(RescaleCall.model_fields)
        message = f"rescale has no {place[:80]!r}; it takes {takes}."
        raise CallFailed("usage", "unknown_param", message)
    if first["type"] == "missing":
        raise CallFailed("usage", "missing_param", f"{place} is required.")
    raise CallFailed("usage", "invalid_param", f"{place}: {first['msg']}")


async def rescale(
    asked: Mapping[str, JsonValue], settings: WorkerSettings, root: Path, bucket: Bucket | None
) -> Result:
    """The answer to a rescaling; `root`: where files under work lie. Raises CallFailed."""
    call = read_rescale(asked)
    file = await file_at(call.model_url, INPUT, "model", bucket)
    began = time.monotonic()
    used = cast("Result", call.model_dump(mode="json", exclude={INPUT}))
    async with working(root, ours=False) as folder:
        work = MeshOrder(
            source=folder / "source.glb",
            target=folder / "target",
            steps=rescaled(call.model_dump()),
            format=call.format,
        )
        async with InlineFetcher(rules=settings.fetch_rules) as fetcher:
            await fetch(fetcher, file, work.source, most=MeshLimits().file_bytes)
        report = await carried_out(work)
        seconds = round(time.monotonic() - began, 3)
        name = f"{_FILE}.{extension(call.format)}"
        key = None if bucket is None else key_of(str(uuid.uuid4()), name, bucket)
        handed = await Handover(settings, bucket).of(work, report, slot=_SLOT, key=key)
    result: Result = {
        "files": [handed],
        "params": {**used, **sizes(report)},
        "engine": ENGINE,
        "duration_seconds": seconds,
    }
    if "url" in handed:
        result["rescaled_model_url"] = handed["url"]
    return result
