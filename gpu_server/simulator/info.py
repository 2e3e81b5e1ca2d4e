"""Routes that describe the server: node classes, models, features, system."""

import os
import sys
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from gpu_server import __version__
from gpu_server.simulator import COMFYUI_VERSION
from gpu_server.simulator.folders import FOLDERS
from gpu_server.simulator.nodes import NODE_CLASSES
from gpu_server.simulator.simulation import Simulation


async def object_info(simulation: Simulation, _: Request) -> Response:
    """Describe every node class."""
    folders = simulation.folders
    return JSONResponse({name: known.describe(folders) for name, known in NODE_CLASSES.items()})


async def object_info_of(simulation: Simulation, request: Request) -> Response:
    """Describe one node class; an empty object for an unknown one."""
    known = NODE_CLASSES.get(request.path_params["class_type"])
    described = {} if known is None else {known.name: known.describe(simulation.folders)}
    return JSONResponse(described)


async def system_stats(_: Simulation, __: Request) -> Response:
    """Describe the machine; the argv says that this is the simulator."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = {
        "os": os.name,
        "ram_total": memory,
        "ram_free": free,
        "comfyui_version": COMFYUI_VERSION,
        "required_frontend_version": None,
        "python_version": sys.version,
        "pytorch_version": "none (simulator)",
        "embedded_python": False,
        "argv": ["simulator", *sys.argv[1:]],
    }
    device = {
        "name": "cpu",
        "type": "cpu",
        "index": None,
        "vram_total": memory,
        "vram_free": free,
        "torch_vram_total": memory,
        "torch_vram_free": free,
    }
    return JSONResponse({"system": system, "devices": [device]})


def feature_flags(simulation: Simulation) -> dict[str, Any]:
    """Return what the server supports."""
    limit = simulation.knobs.current.max_upload_size
    return {"supports_preview_metadata": True, "max_upload_size": limit}


async def features(simulation: Simulation, _: Request) -> Response:
    """Answer `/features`."""
    return JSONResponse(feature_flags(simulation))


async def models(_: Simulation, __: Request) -> Response:
    """List the model folders."""
    return JSONResponse(FOLDERS)


async def model_files(simulation: Simulation, request: Request) -> Response:
    """List the files of one model folder."""
    folder = request.path_params["folder"]
    if folder not in FOLDERS:
        return Response(status_code=404)
    return JSONResponse(simulation.folders.model_files(folder))


async def model_details(simulation: Simulation, request: Request) -> Response:
    """List the files of one model folder with size and times; built-in names are empty files."""
    folder = request.path_params["folder"]
    if folder not in FOLDERS:
        return Response(status_code=404)
    listed: list[dict[str, Any]] = []
    for name in simulation.folders.model_files(folder):
        path = simulation.folders.model_path(folder, name)
        facts = path.stat() if path else None
        details = {
            "modified": facts.st_mtime if facts else 0,
            "created": facts.st_ctime if facts else 0,
            "size": facts.st_size if facts else 0,
        }
        listed.append({"name": name, "pathIndex": 0, **details})
    return JSONResponse(listed)


async def embeddings(simulation: Simulation, _: Request) -> Response:
    """List embeddings by name, without extension."""
    names = simulation.folders.model_files("embeddings")
    return JSONResponse([name.rpartition(".")[0] for name in names])


async def folder_paths(simulation: Simulation, _: Request) -> Response:
    """List where model files are looked for."""
    base = simulation.folders.root / "models"
    return JSONResponse({folder: [str(base / folder)] for folder in FOLDERS})


async def start_page(_: Simulation, __: Request) -> Response:
    """Tell a browser what it found."""
    return HTMLResponse(
        f"<!doctype html><title>ComfyUI simulator</title><h1>ComfyUI simulator</h1>"
        f"<p>Version {__version__}. This is not ComfyUI: "
        f"it speaks the protocol of {COMFYUI_VERSION} and draws procedural pictures marked "
        f"SIMULATED. Its knobs: <a href='/_sim'>/_sim</a>.</p>"
    )
