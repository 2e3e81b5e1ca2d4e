"""Tools one after the other: what one answers is what the next one takes."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import trimesh
from PIL import Image, ImageChops

from gateway.examples import MUG
from tests.support.stack import KEY, ROOT, Stack, running, wait_readiness


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), SIM_STEP_MS="1") as stack:
        with stack.client() as client:
            wait_readiness(client, "flux1-dev", "ready")
        yield stack


def made(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body, headers={"Prefer": "wait=90"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(client: httpx.Client, address: str) -> Image.Image:
    return Image.open(io.BytesIO(client.get(address).content))


def test_the_product_story_runs_by_curl_alone(stack: Stack, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "examples" / "product_story.sh"), str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "GATEWAY_URL": stack.url, "GATEWAY_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[simulated]" in done.stdout
    for name in ("scene", "mask", "placed"):
        with Image.open(tmp_path / f"{name}.png") as found:
            assert found.size == (768, 512)
    with av.open(str(tmp_path / "video.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 17
    model, printable = (trimesh.load_scene(tmp_path / f"{n}.glb") for n in ("model", "printable"))
    assert max(model.extents) == pytest.approx(1, rel=1e-6)
    assert printable.extents[1] == pytest.approx(0.1, rel=1e-6)
    assert max(printable.extents / model.extents) == pytest.approx(
        min(printable.extents / model.extents), rel=1e-5
    )


def test_inpainting_leaves_what_is_not_masked_as_it_was(client: httpx.Client) -> None:
    scene = made(client, "/api/generate", prompt="a table", width=512, height=512)["image_url"]
    mask = made(
        client, "/api/mask", image_url=scene, object_name="cup", mask_dilation=0, mask_blur=0
    )["image_url"]
    result = made(client, "/api/inpaint", scene_url=scene, mask_url=mask, reference_url=MUG)
    before, after = (picture(client, a).convert("RGB") for a in (scene, result["image_url"]))
    unmasked = picture(client, mask).convert("L").point(lambda value: 0 if value else 255)
    changed = ImageChops.difference(before, after)
    assert changed.getbbox() is not None
    assert ImageChops.multiply(changed, unmasked.convert("RGB")).getbbox() is None


def test_a_thing_that_is_not_in_the_picture_is_a_clear_error(client: httpx.Client) -> None:
    answer = client.post(
        "/api/mask",
        json={"image_url": MUG, "object_name": "nothing"},
        headers={"Prefer": "wait=90"},
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "object_not_found")


def test_a_cut_out_is_transparent_around_what_was_cut_out(client: httpx.Client) -> None:
    cut = picture(client, made(client, "/api/background-removal", image_url=MUG)["image_url"])
    assert cut.mode == "RGBA"
    assert cut.getchannel("A").getextrema() == (0, 255)


def test_what_was_cut_away_does_not_come_back_in_the_next_tool(client: httpx.Client) -> None:
    before = picture(client, made(client, "/api/upscale", image_url=MUG)["image_url"])
    cut = made(client, "/api/background-removal", image_url=MUG)["image_url"]
    after = picture(client, made(client, "/api/upscale", image_url=cut)["image_url"])
    assert before.convert("RGB").getpixel((2, 2)) != (255, 255, 255)
    assert after.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_upscaled_four_times_is_four_times_as_wide(client: httpx.Client) -> None:
    result = made(client, "/api/upscale", image_url=MUG, scale=4)
    assert picture(client, result["image_url"]).size == (1024, 1024)


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/api/video", "length", {"image_url": MUG, "length": 34}),
        ("/api/video", "width", {"image_url": MUG, "width": 833}),
        ("/api/control", "control", {"image_url": MUG, "prompt": "x", "control": "depth",
                                     "variant": "z-image-turbo"}),
        ("/api/caption", "detail", {"image_url": MUG, "detail": "tags", "variant": "florence2"}),
        ("/api/portrait", "face_images", {"face_images": [MUG] * 4, "prompt": "x",
                                          "variant": "qwen-edit-2511"}),
        ("/api/portrait", "face_images", {"face_images": [MUG] * 6, "prompt": "x"}),
        ("/api/upscale", "scale", {"image_url": MUG, "scale": 3}),
        ("/api/mask", "mask_blur", {"image_url": MUG, "object_name": "x", "mask_blur": 80}),
    ],
)  # fmt: skip
def test_what_a_variant_cannot_do_is_said_before_anything_is_queued(
    client: httpx.Client, path: str, field: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].startswith(field)
