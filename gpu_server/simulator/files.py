"""Routes for files: uploads, and looking at what is there."""

import asyncio
import hashlib
import io
import json
import mimetypes
import re
import shutil
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image as Pillow
from PIL import PngImagePlugin
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from gpu_server.simulator.folders import FOLDERS, annotated
from gpu_server.simulator.middleware import limited
from gpu_server.simulator.simulation import Simulation

_SERVED_AS_BYTES = {
    "text/html",
    "text/html-sandboxed",
    "application/xhtml+xml",
    "text/javascript",
    "text/css",
}
_TYPES = {
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".mp4": "video/mp4",
    ".opus": "audio/ogg",
    ".webp": "image/webp",
}
_LARGEST_HEADER = 1 << 20
_CHUNK = 1 << 20
_ONE_RANGE = re.compile(r"bytes=(\d+-\d*|-\d+)")


async def upload_image(simulation: Simulation, request: Request) -> Response:
    """Store an uploaded file of any kind."""
    return await _upload(simulation, request, mask=False)


async def upload_mask(simulation: Simulation, request: Request) -> Response:
    """Copy an uploaded mask's alpha into a picture that is already there."""
    return await _upload(simulation, request, mask=True)


async def _upload(simulation: Simulation, request: Request, *, mask: bool) -> Response:
    bounded = limited(request, simulation.knobs.current.max_upload_size)
    async with bounded.form() as form:
        upload = form.get("image")
        if upload is None or upload == "":
            return Response(status_code=400)
        if not isinstance(upload, UploadFile):
            raise TypeError("the field image is no file")
        if not upload.filename:
            return Response(status_code=400)
        kind = str(form.get("type", "input"))
        subfolder = str(form.get("subfolder", ""))
        folder = simulation.folders.within(kind, subfolder)
        target = simulation.folders.within(kind, str(Path(subfolder) / upload.filename))
        if target is None or folder is None:
            return Response(status_code=400)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        overwrite = form.get("overwrite") in {"true", "1"}
        target, same = (
            (target, False) if overwrite else await asyncio.to_thread(_free, target, upload)
        )
        if not same and mask:
            await asyncio.to_thread(_store_mask, simulation, form, upload, target)
        elif not same:
            await asyncio.to_thread(_store, upload, target)
        simulation.counts.uploads += 1
        return JSONResponse({"name": target.name, "subfolder": subfolder, "type": kind})


def _free(target: Path, upload: UploadFile) -> tuple[Path, bool]:
    """Find a name that is free, or one that holds the same bytes already."""
    candidate, number = target, 1
    uploaded = _digest(upload.file)
    while candidate.exists():
        with candidate.open("rb") as there:
            if _digest(there) == uploaded:
                return candidate, True
        candidate = target.with_name(f"{target.stem} ({number}){target.suffix}")
        number += 1
    return candidate, False


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(_CHUNK):
        digest.update(block)
    return digest.digest()


def _store(upload: UploadFile, target: Path) -> None:
    upload.file.seek(0)
    with target.open("wb") as file:
        shutil.copyfileobj(upload.file, file, _CHUNK)


def _store_mask(simulation: Simulation, form: FormData, upload: UploadFile, target: Path) -> None:
    reference: dict[str, Any] = json.loads(str(form["original_ref"]))
    name, kind = annotated(reference["filename"])
    kind = kind or reference.get("type", "output")
    original = simulation.folders.within(kind, f"{reference.get('subfolder', '')}/{name}")
    if original is None or not original.is_file():
        return
    upload.file.seek(0)
    with Pillow.open(original) as picture, Pillow.open(upload.file) as mask:
        texts = PngImagePlugin.PngInfo()
        for key, text in getattr(picture, "text", {}).items():
            texts.add_text(key, text)
        combined = picture.convert("RGBA")
        combined.putalpha(mask.convert("RGBA").getchannel("A"))
        combined.save(target, compress_level=4, pnginfo=texts)


async def view(simulation: Simulation, request: Request) -> Response:
    """Serve a file of input/, output/ or temp/."""
    query = request.query_params
    if "filename" not in query:
        return Response(status_code=404)
    name, kind = annotated(query["filename"])
    if not name or name.startswith("/") or ".." in name:
        return Response(status_code=400)
    kind = kind or query.get("type", "output")
    try:
        folder = simulation.folders.within(kind, query.get("subfolder", ""))
    except KeyError:
        return Response(status_code=400)
    if folder is None:
        return Response(status_code=403)
    # ComfyUI drops a directory that stands in the filename; only `subfolder` counts.
    path = folder / Path(name).name
    if not path.is_file():
        return Response(status_code=404)
    return await _shown(path, request)


async def _shown(path: Path, request: Request) -> Response:
    query = request.query_params
    channel = query.get("channel", "")
    if "preview" in query:
        encoded, kind = await asyncio.to_thread(_preview, path, query["preview"], channel)
        response = Response(encoded, media_type=kind)
    elif channel in {"rgb", "a"}:
        encoded = await asyncio.to_thread(_channel, path, channel)
        response = Response(encoded, media_type="image/png")
    else:
        response = _file(path, request)
    # Raw UTF-8, as ComfyUI sends it; the framework would insist on Latin-1.
    name = f'filename="{path.name}"'.encode()
    response.raw_headers.append((b"content-disposition", name))
    return response


def _file(path: Path, request: Request) -> Response:
    facts = path.stat()
    since = request.headers.get("if-modified-since")
    if since is not None and _not_newer(facts.st_mtime, since):
        return Response(status_code=304)
    wanted = request.headers.get("range")
    if wanted is not None and not _ONE_RANGE.fullmatch(wanted):
        return Response(status_code=416, headers={"content-range": f"bytes */{facts.st_size}"})
    kind = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    if kind is None or kind in _SERVED_AS_BYTES:
        kind = "application/octet-stream"
    response = FileResponse(path, stat_result=facts)
    response.chunk_size = _CHUNK
    response.headers["content-type"] = kind
    return response


def _not_newer(modified: float, since: str) -> bool:
    try:
        return int(modified) <= parsedate_to_datetime(since).timestamp()
    except ValueError:
        return False


def _preview(path: Path, wanted: str, channel: str) -> tuple[bytes, str]:
    parts = wanted.split(";")
    kind = parts[0] if parts[0] in {"webp", "jpeg"} and "a" not in channel else "webp"
    quality = int(parts[-1]) if parts[-1].isdigit() else 90
    buffer = io.BytesIO()
    with Pillow.open(path) as picture:
        plain = picture.convert("RGB") if kind == "jpeg" or channel == "rgb" else picture
        plain.save(buffer, kind, quality=quality)
    return buffer.getvalue(), f"image/{kind}"


def _channel(path: Path, channel: str) -> bytes:
    buffer = io.BytesIO()
    with Pillow.open(path) as picture:
        if channel == "rgb":
            shown = picture.convert("RGB")
        else:
            shown = Pillow.new("RGBA", picture.size)
            shown.putalpha(picture.convert("RGBA").getchannel("A"))
        shown.save(buffer, "PNG")
    return buffer.getvalue()


async def view_metadata(simulation: Simulation, request: Request) -> Response:
    """Return the metadata in the header of a safetensors file that was dropped in."""
    folder, name = request.path_params["folder"], request.query_params.get("filename", "")
    if folder not in FOLDERS or not name.endswith(".safetensors"):
        return Response(status_code=404)
    path = simulation.folders.model_path(folder, name)
    metadata = None if path is None else await asyncio.to_thread(_metadata, path)
    return Response(status_code=404) if metadata is None else JSONResponse(metadata)


def _metadata(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            return None
        return json.loads(file.read(length)).get("__metadata__")
