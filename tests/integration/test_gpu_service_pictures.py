"""Pictures at foreign addresses: looked at before ComfyUI gets them, through real processes."""

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from PIL import Image

from tests.support.gpu import Gpu, Json, gpu_stack
from tests.support.recordings import bundled
from tests.support.slots import Slots
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gpu_stack(
        tmp_path_factory.mktemp("gpu"), "simulator", "gpu_server", SIM_STEP_MS="1"
    ) as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        yield gpu


def saved(
    kind: str = "PNG", size: tuple[int, int] = (64, 48), *, frames: int = 1, **options: Any
) -> bytes:
    """A red thing on white, or several frames of it."""
    made = Image.new("RGB", size, "white")
    made.paste("red", (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    if frames > 1:
        options |= {"save_all": True, "append_images": [Image.new("RGB", size)] * (frames - 1)}
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    """The camera was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def call(slots: Slots, name: str, params: Json, **files: bytes) -> Json:
    """A run of a workflow with these files."""
    for param, data in files.items():
        slots.files[f"/{param}"] = data
    inputs = {p: [{"url": f"{slots.url}/{p}", "media_type": "image/png"}] for p in files}
    ref = {"name": name, "digest": bundled()[name].digest}
    (output,) = bundled()[name].outputs
    outputs = slots.slots("r", 1, output)
    return {"workflow": ref, "params": params, "inputs": inputs, "outputs": outputs}


async def failure(gpu: Gpu, request: Json) -> tuple[str, str]:
    """Code and message of what is refused before ComfyUI has it."""
    before = gpu.sim()["prompts"]
    status = await gpu.run(request)
    assert status["failure"]["kind"] == "usage", status
    assert gpu.sim()["prompts"] == before
    return status["failure"]["code"], status["failure"]["message"]


BAD = {
    "cut off": (saved("PNG")[:80], "unreadable_image"),
    "half a photo": (saved("JPEG", (400, 300))[:1500], "unreadable_image"),
    "garbage behind a header": (saved("PNG")[:33] + bytes(200), "unreadable_image"),
    "a gif that moves": (saved("GIF", frames=2), "animated_image"),
    "a png that moves": (saved("PNG", frames=2), "animated_image"),
    "a webp that moves": (saved("WEBP", frames=2), "animated_image"),
    "nothing": (b"", "wrong_kind"),
    "a pdf": (b"%PDF-1.7", "wrong_kind"),
    "a line": (saved("PNG", (2000, 10)), "wrong_size"),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
async def test_a_file_that_is_no_good_picture_is_named_with_its_parameter(
    gpu: Gpu, slots: Slots, data: bytes, code: str
) -> None:
    found = await failure(gpu, call(slots, "upscale-realesrgan", {}, image_url=data))
    assert found[0] == code
    assert found[1].startswith("image_url: ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "MPO"])
async def test_a_good_picture_of_each_kind_is_worked_on(gpu: Gpu, slots: Slots, kind: str) -> None:
    data = saved(kind, frames=2 if kind == "MPO" else 1)
    status = await gpu.run(call(slots, "upscale-realesrgan", {}, image_url=data))
    (output,) = status["outputs"]
    assert (output["width"], output["height"]) == (128, 96)


async def test_a_mask_of_another_size_than_its_scene_is_refused(gpu: Gpu, slots: Slots) -> None:
    def inpainted(scene: bytes, mask: bytes) -> Json:
        files = {"scene_url": scene, "mask_url": mask, "reference_url": saved()}
        return call(slots, "inpaint-flux2-klein-9b", {"steps": 1}, **files)

    assert await failure(gpu, inpainted(saved(), saved(size=(32, 48)))) == (
        "wrong_size",
        "mask_url: is 32x48 pixels: scene_url is 64x48, and both must have one size",
    )
    upright = saved("JPEG", (48, 64), exif=turned())
    assert (await failure(gpu, inpainted(upright, saved(size=(48, 64)))))[0] == "wrong_size"
    status = await gpu.run(inpainted(upright, saved()))
    (output,) = status["outputs"]
    assert (output["width"], output["height"]) == (64, 48)


async def test_a_guide_too_long_to_be_followed_is_refused_unless_a_size_is_given(
    gpu: Gpu, slots: Slots
) -> None:
    long = saved(size=(500, 100))
    request = call(slots, "control-z-image-turbo", {"prompt": "x"}, image_url=long)
    code, message = await failure(gpu, request)
    assert (code, message[-24:]) == ("wrong_size", "or give width and height")
    size = {"prompt": "x", "width": 512, "height": 256}
    status = await gpu.run(call(slots, "control-z-image-turbo", size, image_url=long))
    (output,) = status["outputs"]
    assert (output["width"], output["height"]) == (512, 256)


@pytest.mark.parametrize(
    ("size", "blur"), [((240, 200), 50), ((120, 90), 27), ((40, 30), 7), ((12, 7), 0), ((1, 1), 0)]
)
async def test_the_mask_of_a_small_picture_is_blurred_as_far_as_it_can_be(
    gpu: Gpu, slots: Slots, size: tuple[int, int], blur: float
) -> None:
    params = {"object_name": "mug", "mask_dilation": 1}
    status = await gpu.run(call(slots, "mask-sam3", params, image_url=saved(size=size)))
    assert status["state"] == "completed", status["failure"]
    (output,) = status["outputs"]
    assert (output["width"], output["height"]) == size
    assert status["params"]["mask_blur"] == blur
