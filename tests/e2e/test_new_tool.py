"""What it takes to add a tool: a graph, its manifest, a declaration, a name in the catalogue."""

import base64
import filecmp
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageChops

from gateway.examples import MUG
from tests.support.stack import ROOT, running

GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["2", 0], "upscale_method": "lanczos", "scale_by": 1.0},
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "negative"}},
}
MANIFEST = """\
manifest: 1
tool: negative
variant: plain
title: The negative of a picture
comfyui: {min: "0.3.64", tested: ["0.3.64", "0.33.0"]}
vram_gb: 0
models: []
guard: {"1": LoadImage, "3": ImageScaleBy, "4": SaveImage}
params:
  image_url: {required: true, upload: image, bind: "1.image"}
  scale: {bind: "3.scale_by", limits: {minimum: 0.5, maximum: 2}}
fixed: {"4.filename_prefix": "jobs/{run_id}/negative"}
outputs:
  images: {node: "4", kind: image, min: 1, max: 1}
"""
DECLARATION = '''\
"""Negatives: a picture with its colours turned over."""

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import ImageUrl
from gateway.tool import Tool, ToolParams, ToolResult


class NegativeParams(ToolParams):
    """Parameters of `POST /api/negative`."""

    image_url: ImageUrl = Field(description="The picture.")
    scale: float = Field(default=1.0, gt=0, description="How many times as large.")


class UsedNegativeParams(BaseModel):
    """Every value really used."""

    scale: float


class NegativeResult(ToolResult):
    """The negative."""

    image_url: str = Field(description="Stable path of the picture.")
    negative_params: UsedNegativeParams


NEGATIVE = Tool(
    name="negative",
    summary="Turn a picture's colours over",
    description="Makes the negative of a picture.",
    path="/api/negative",
    files_path="/api/images",
    prefix="negatives",
    params=NegativeParams,
    result=NegativeResult,
    url_key="image_url",
    params_key="negative_params",
    reported={"scale": "scale"},
    default_variant="plain",
    timeout_s=60,
    deadline_s=600,
    examples={"a mug": {"image_url": MUG}},
)
'''
CODE = ("gateway", "gpu_server", "workflows", "migrations")
WRITTEN = {
    "workflows/negative-plain.json",
    "workflows/negative-plain.yaml",
    "gateway/tools/negative.py",
    "gateway/tools/__init__.py",
}


def add_tool(root: Path) -> None:
    """Write exactly what the design names."""
    (root / "workflows" / "negative-plain.json").write_text(json.dumps(GRAPH))
    (root / "workflows" / "negative-plain.yaml").write_text(MANIFEST)
    (root / "gateway" / "tools" / "negative.py").write_text(DECLARATION)
    catalogue = root / "gateway" / "tools" / "__init__.py"
    before = catalogue.read_text()
    opening = "TOOLS: tuple[AnyTool, ...] = (\n"
    assert opening in before
    listed = before.replace(
        opening, f"from gateway.tools.negative import NEGATIVE\n\n{opening}    NEGATIVE,\n"
    )
    catalogue.write_text(listed)


def differing(before: Path, after: Path) -> set[str]:
    """Files below both folders that are not the same, or in one only."""
    found: set[str] = set()
    for folder in CODE:
        paths = {
            path.relative_to(root)
            for root in (before, after)
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        found |= {
            str(path)
            for path in paths
            if not (before / path).exists()
            or not filecmp.cmp(before / path, after / path, shallow=False)
        }
    return found


def test_a_new_tool_is_two_files_of_workflow_one_of_code_and_a_word_in_the_catalogue(
    tmp_path: Path,
) -> None:
    root = tmp_path / "checkout"
    for folder in CODE:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    add_tool(root)
    assert differing(ROOT, root) == WRITTEN
    with running(tmp_path / "workspace", root=root, SIM_STEP_MS="1") as stack:
        with stack.client() as client:
            its_routes_work(client)
        written = subprocess.run(
            [sys.executable, "-m", "gateway", "docs", "--out", str(tmp_path)],
            cwd=root,
            env=stack.env(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert written.returncode == 0, written.stderr
    assert "/api/negative" in (tmp_path / "tools.md").read_text()


def its_routes_work(client: httpx.Client) -> None:
    """Sync, async, status, file, errors, catalogue and documentation."""
    answer = client.post("/api/negative", json={"image_url": MUG}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["negative_params"] == {"scale": 1.0}
    made = Image.open(io.BytesIO(client.get(result["image_url"]).content)).convert("RGB")
    mug = Image.open(io.BytesIO(base64.b64decode(MUG.partition(",")[2]))).convert("RGB")
    assert ImageChops.difference(ImageChops.invert(made), mug).getextrema() == ((0, 0),) * 3

    begun = client.post("/api/negative/async", json={"image_url": result["image_url"], "scale": 2})
    assert begun.status_code == 202, begun.text
    job = client.get(begun.headers["location"], params={"wait": 60}).json()
    assert job["status"] == "completed"
    assert job["result"]["files"][0]["width"] == 2 * made.width

    refused = client.post("/api/negative", json={"image_url": MUG, "scale": 3})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "scale")
    named = [tool["name"] for tool in client.get("/api/tools").json()["items"]]
    assert "negative" in named
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/negative", "/api/negative/async", "/api/negative/{job_id}"} <= paths.keys()
