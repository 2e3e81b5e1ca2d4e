"""The GPU service in this process over a simulator in its own, told to fetch one file."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gpu_server.protocol import InputFile, RunRequest
from gpu_server.service import Service, running_service
from gpu_server.settings import Settings
from gpu_server.workflow import Workflow, make_workflow
from tests.support.gpu import gpu_stack
from tests.support.hostile_urls import ALLOWED
from tests.support.recordings import files

PATIENCE_S = 120


@asynccontextmanager
async def gpu_service(folder: Path, ports: Sequence[int] = ()) -> AsyncIterator[Service]:
    """One that may fetch from those ports too, and from the one address that is allowed."""
    with gpu_stack(folder, "simulator") as stack:
        settings = Settings.model_validate(
            {
                "workspace": folder / "service",
                "comfyui_api_url": stack.comfyui,
                "fetch_ports": (80, 443, *ports),
                "fetch_allow_networks": (f"{ALLOWED}/32",),
            }
        )
        async with running_service(settings) as service:
            yield service


def reading(kind: str) -> tuple[Workflow, dict[str, Any]]:
    """A workflow that reads a file of that kind, and what of a request names it."""
    graph, manifest = files("checkpoint")
    graph["30"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    graph["8"]["inputs"]["images"] = ["30", 0]
    manifest["params"] = {"file": {"upload": kind, "bind": "30.image", "required": True}}
    manifest["outputs"]["images"]["max"] = 1
    workflow = make_workflow("inline", graph, manifest, digest="0" * 64)
    return workflow, {"graph": graph, "manifest": manifest}


async def failure_of(service: Service, slot: str, file: InputFile, kind: str = "image") -> str:
    """Code of a run that reads such a file."""
    workflow, named = reading(kind)
    request = RunRequest.model_validate(
        {
            **named,
            "inputs": {"file": [file.model_dump(exclude_unset=True)]},
            "outputs": [{"name": "images/0", "url": slot}],
        }
    )
    run = service.runs.accept(str(uuid.uuid4()), request, workflow)
    async with asyncio.timeout(PATIENCE_S):
        failure = (await run.wait()).failure
    assert failure is not None, f"{file.url} was read"
    assert "secret" not in failure.message
    return failure.code
