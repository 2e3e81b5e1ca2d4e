"""Files of the tools as callers ask for them: format, quality, metadata, what is told of them."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import av
import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from gateway.tool import FileParams, PictureParams
from gateway.tools import TOOLS
from tests.support.stack import Stack, running, wait_readiness

SOFTWARE, MODEL = 0x0131, 0x0110
PATIENCE = {"Prefer": "wait=90"}
PROMPT = "a lighthouse at dawn"
SMALL = {"prompt": PROMPT, "width": 256, "height": 256, "num_inference_steps": 1}
EXAMPLES = {tool.name: next(iter(tool.examples.values())) for tool in TOOLS}
PATHS = {tool.name: tool.path for tool in TOOLS}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), SIM_STEP_MS="1") as stack:
        with stack.client() as client:
            wait_readiness(client, "flux1-dev", "ready")
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


def made(client: httpx.Client, tool: str, **body: Any) -> tuple[dict[str, Any], bytes]:
    """Call a tool with its smallest example; its first file as told, and as it is."""
    answer = client.post(PATHS[tool], json=EXAMPLES[tool] | body, headers=PATIENCE)
    assert answer.status_code == 200, answer.text
    told = answer.json()["files"][0]
    kept = client.get(told["url"])
    assert kept.headers["content-type"] == told["media_type"]
    assert len(kept.content) == told["bytes"]
    return told, kept.content


def shown(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


@pytest.mark.parametrize(("wanted", "ending"), [("webp", ".webp"), ("jpeg", ".jpg")])
def test_a_picture_comes_in_the_format_asked_for_without_its_prompt(
    client: httpx.Client, wanted: str, ending: str
) -> None:
    told, content = made(client, "generate", **SMALL, output_format=wanted)
    assert (told["media_type"], told["width"], told["height"]) == (f"image/{wanted}", 256, 256)
    assert told["url"].endswith(ending)
    assert told["r2_path"].endswith(ending)
    picture = shown(content)
    assert (picture.format, picture.size) == (wanted.upper(), (256, 256))
    assert dict(picture.getexif()) == {SOFTWARE: "simulator"}
    assert PROMPT.encode() not in content


def test_a_picture_is_a_png_that_tells_nothing_unless_something_else_is_said(
    client: httpx.Client,
) -> None:
    told, content = made(client, "generate", **SMALL)
    picture = shown(content)
    assert isinstance(picture, PngImageFile)
    assert (told["media_type"], picture.text) == ("image/png", {"engine": "simulator"})


def test_kept_metadata_holds_the_prompt(client: httpx.Client) -> None:
    _, content = made(client, "generate", **SMALL, keep_metadata=True)
    picture = shown(content)
    assert isinstance(picture, PngImageFile)
    assert PROMPT in picture.text["prompt"]
    _, content = made(client, "generate", **SMALL, keep_metadata=True, output_format="webp")
    assert PROMPT in shown(content).getexif()[MODEL]


def test_a_lower_quality_is_a_smaller_file(client: httpx.Client) -> None:
    call = SMALL | {"seed": 3, "output_format": "jpeg"}
    fine, _ = made(client, "generate", **call)
    coarse, _ = made(client, "generate", **call, output_quality=5)
    assert coarse["bytes"] < fine["bytes"]


def test_every_picture_of_a_run_has_the_format(client: httpx.Client) -> None:
    body = SMALL | {"num_images": 2, "output_format": "webp"}
    answer = client.post("/api/generate", json=body, headers=PATIENCE).json()
    assert [file["media_type"] for file in answer["files"]] == ["image/webp"] * 2


@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
def test_the_next_tool_reads_every_format(client: httpx.Client, wanted: str) -> None:
    told, _ = made(client, "generate", **SMALL, output_format=wanted)
    larger, content = made(client, "upscale", image_url=told["url"], output_format="jpeg")
    assert (larger["width"], larger["height"]) == (512, 512)
    assert shown(content).format == "JPEG"


def test_a_cut_out_as_webp_stays_transparent_and_is_never_a_jpeg(client: httpx.Client) -> None:
    _, content = made(client, "background-removal", output_format="webp")
    picture = shown(content)
    assert (picture.format, picture.mode) == ("WEBP", "RGBA")
    assert picture.getchannel("A").getextrema()[0] == 0
    body = EXAMPLES["background-removal"] | {"output_format": "jpeg"}
    answer = client.post("/api/background-removal", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "output_format")


def test_a_mask_is_always_a_png(client: httpx.Client) -> None:
    body = EXAMPLES["mask"] | {"output_format": "webp"}
    answer = client.post("/api/mask", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "output_format")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"output_format": "gif"}, "output_format"),
        ({"output_quality": 0}, "output_quality"),
        ({"output_quality": True}, "output_quality"),
        ({"keep_metadata": "yes"}, "keep_metadata"),
    ],
)
def test_what_is_no_option_is_named(client: httpx.Client, body: Any, field: str) -> None:
    answer = client.post("/api/generate", json=SMALL | body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_a_video_tells_frames_and_duration(client: httpx.Client) -> None:
    call = {"length": 9, "steps": 1, "width": 256, "height": 256}
    told, content = made(client, "video", **call)
    assert (told["width"], told["height"], told["frames"]) == (256, 256, 9)
    assert told["duration_s"] == pytest.approx(9 / 16, abs=0.01)
    with av.open(io.BytesIO(content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
        assert "prompt" not in container.metadata


def test_what_a_mode_answers_in_base64_is_the_file(client: httpx.Client) -> None:
    call = {"mode": "free", "prompt": PROMPT}
    extra = {name: value for name, value in SMALL.items() if name != "prompt"}
    body = call | {"extra_params": extra | {"output_format": "webp"}}
    answer = client.post("/generate", json=body, headers=PATIENCE).json()
    assert answer["status"] == "done", answer
    inline = base64.b64decode(answer["image"])
    (told,) = client.get(f"/api/jobs/{answer['task_id']}").json()["result"]["files"]
    assert client.get(told["url"]).content == inline
    assert shown(inline).format == "WEBP"


def test_another_format_is_another_call_to_an_idempotency_key(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "the same"}
    first = client.post("/api/generate/async", json=SMALL, headers=headers)
    again = client.post(
        "/api/generate/async", json=SMALL | {"output_format": "webp"}, headers=headers
    )
    assert (first.status_code, again.status_code) == (202, 422)


def test_every_tool_that_makes_files_says_what_may_be_asked_of_them() -> None:
    files = {tool.name for tool in TOOLS if tool.files_path is not None}
    assert {tool.name for tool in TOOLS if issubclass(tool.params, FileParams)} <= files
    pictures = {tool.name for tool in TOOLS if issubclass(tool.params, PictureParams)}
    assert pictures >= {"generate", "inpaint", "upscale", "portrait", "control"}
