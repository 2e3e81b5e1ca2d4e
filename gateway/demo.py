"""The first picture: what `./startup.sh demo` shows a newcomer, through the public API alone."""

import json
import shlex
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

PROMPT = "a lighthouse on a cliff at dawn, soft light, oil painting"
SIZE = (768, 512)
STEPS = 20
READY_SECONDS = 60
JOB_SECONDS = 1800

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """The demo could not finish; the message says why and what to do."""


def make_picture(url: str, key: str | None, out: Path) -> Path:
    """Generate one picture and save it under `out`; its path. Raises DemoFailed."""
    try:
        return _make_picture(url, key, out)
    except httpx.TransportError as error:
        raise DemoFailed(
            f"The gateway at {url} does not answer ({type(error).__name__}): ./startup.sh starts it"
        ) from error


def _make_picture(url: str, key: str | None, out: Path) -> Path:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
        body: dict[str, Any] = {
            "prompt": PROMPT,
            "variant": _ready_variant(http),
            "width": SIZE[0],
            "height": SIZE[1],
            "num_inference_steps": STEPS,
        }
        console.print(f"Asking [bold]{body['variant']}[/] for “{PROMPT}”")
        job_id = _answer(http.post("/api/generate/async", json=body))["job_id"]
        _show_progress(http, job_id)
        job = _answer(http.get(f"/api/generate/{job_id}", params={"wait": 5}))
        if job["status"] != "completed":
            error = job["error"] or {"code": job["status"], "message": "it did not complete"}
            raise DemoFailed(f"Job {job_id} {job['status']}: {error['code']}: {error['message']}")
        result = job["result"]
        path = _download(http, result["files"][0]["url"], out / f"{job_id}.png")
    console.print(f"[green]Done[/] in {result['duration_seconds']:.1f} s: [bold]{path}[/]")
    if result["engine"] == "simulator":
        console.print(
            "[yellow]The simulator drew it.[/] Set COMFYUI_API_URL to a ComfyUI for a real one."
        )
    _print_call(url, body, keyed=bool(key))
    return path


def _ready_variant(http: httpx.Client) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        catalogue = _answer(http.get("/api/tools"))
        tool = next(t for t in catalogue["items"] if t["name"] == "generate")
        ready = [v["name"] for v in tool["variants"] if v["readiness"] == "ready"]
        if ready:
            default = tool["default_variant"]
            return str(default if default in ready else ready[0])
        if time.monotonic() > deadline:
            raise DemoFailed(_what_is_missing(tool))
        time.sleep(0.3)


def _what_is_missing(tool: dict[str, Any]) -> str:
    lines = ["No variant of image generation can run yet."]
    for variant in tool["variants"]:
        for item in variant["missing"]:
            where = f" into models/{item['directory']}" if item.get("directory") else ""
            source = f" from {item['url']}" if item.get("url") else ""
            lines.append(f"  {variant['name']} needs {item['name']}{where}{source}")
    if len(lines) == 1:
        lines.append("  The GPU service or its ComfyUI does not answer: see ./startup.sh logs")
    return "\n".join(lines)


def _show_progress(http: httpx.Client, job_id: str) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("pending", total=1.0)
        for kind, data in _events(http, job_id):
            if kind == "progress":
                bar.update(task, description="processing", completed=float(data["fraction"]))
            elif kind == "completed":
                bar.update(task, description=kind, completed=1.0)
            elif kind in {"failed", "cancelled"}:
                bar.update(task, description=kind)


def _events(http: httpx.Client, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events of a job until its last one."""
    timeout = httpx.Timeout(30, read=JOB_SECONDS)
    with http.stream("GET", f"/api/jobs/{job_id}/events", timeout=timeout) as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line[6:].strip()
            elif line.startswith("data:"):
                yield kind, json.loads(line[5:])


def _download(http: httpx.Client, url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with http.stream("GET", url) as answer, path.open("wb") as file:
        if answer.is_error:
            answer.read()
            _answer(answer)
        for chunk in answer.iter_bytes():
            file.write(chunk)
    with path.open("rb") as file:
        head = file.read(24)
    size = struct.unpack(">II", head[16:24]) if head[:8] == b"\x89PNG\r\n\x1a\n" else None
    if size != SIZE:
        raise DemoFailed(f"{path} is not a PNG of {SIZE[0]}x{SIZE[1]} pixels: {size}")
    return path


def _answer(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    if response.is_error:
        raise DemoFailed(f"{response.request.url}: {body.get('detail', body)}")
    return body


def _print_call(url: str, body: dict[str, Any], *, keyed: bool) -> None:
    auth = ' -H "Authorization: Bearer $GATEWAY_API_KEY"' if keyed else ""
    console.print("The same call by hand:")
    keys = Path(".env").absolute()
    if keyed and keys.is_file():
        console.print(f". {shlex.quote(str(keys))}", markup=False)
    console.print(
        f"curl -sS {url}/api/generate{auth} -H 'Content-Type: application/json'"
        f" -d {shlex.quote(json.dumps(body))}",
        markup=False,
    )
