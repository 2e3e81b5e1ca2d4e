"""Sizes, edges, crops and joins, computed for real."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpu_server.simulator import edges, motion, png
from gpu_server.simulator.editing import fitted

from .client import Graph, Json, Simulator, ending, node
from .scenes import RED, SUBJECT, Pixels, bundled, busy, has_mark, plain, uploaded


def through(class_type: str, **inputs: Any) -> Graph:
    """A picture from input/ through one node into a file."""
    taken: Json = {"image": ["1", 0], **inputs}
    return {
        "1": node("LoadImage", image="scene.png"),
        "2": node(class_type, **taken),
        "3": node("SaveImage", images=["2", 0], filename_prefix="test/scaled"),
    }


@pytest.mark.parametrize(
    ("megapixels", "steps", "size"),
    [(1.0, 16, (880, 1184)), (1.0, 1, (887, 1182)), (0.01, 16, (96, 112)), (0.25, 64, (448, 576))],
)
def test_a_picture_is_scaled_to_so_many_pixels(
    sim: Simulator, megapixels: float, steps: int, size: tuple[int, int]
) -> None:
    uploaded(sim, scene=plain())
    graph = through(
        "ImageScaleToTotalPixels",
        upscale_method="lanczos",
        megapixels=megapixels,
        resolution_steps=steps,
    )
    (scaled,) = sim.pixels(graph)
    assert scaled.shape[:2] == size


@pytest.mark.parametrize(
    ("size", "expected"),
    [((240, 320), (880, 1184)), ((64, 64), (1024, 1024)), ((400, 100), (1568, 672))],
)
def test_a_picture_is_scaled_to_the_nearest_size_that_kontext_knows(
    sim: Simulator, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    uploaded(sim, scene=np.zeros((*size, 3), np.uint8))
    (scaled,) = sim.pixels(through("FluxKontextImageScale"))
    assert scaled.shape[:2] == expected


def test_an_upscale_model_enlarges_four_times_and_leaves_the_mark(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    graph = through("ImageUpscaleWithModel", upscale_model=["0", 0])
    graph["0"] = node("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")
    (scaled,) = sim.pixels(graph)
    assert scaled.shape == (960, 1280, 3)
    assert has_mark(scaled)
    assert scaled[480, 640].tolist() == list(RED)


def test_an_upscale_ends_at_the_factor_asked_for(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    (scaled,) = sim.pixels(bundled("upscale-realesrgan", image="scene.png", scale_by=0.75))
    assert scaled.shape == (720, 960, 3)


def test_edges_are_thin_white_and_where_the_picture_changes(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    (drawn,) = sim.pixels(through("Canny", low_threshold=0.1, high_threshold=0.3))
    white = drawn[..., 0] == 255
    assert set(np.unique(drawn)) == {0, 255}
    assert 400 < white.sum() < 1000
    rows, columns = np.nonzero(white)
    border = [
        min(abs(r - SUBJECT[0].start), abs(r - SUBJECT[0].stop)) <= 2
        or min(abs(c - SUBJECT[1].start), abs(c - SUBJECT[1].stop)) <= 2
        for r, c in zip(rows, columns, strict=True)
    ]
    assert all(border)


def test_a_weak_edge_counts_where_a_strong_one_goes_on_in_it() -> None:
    seeds, allowed = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
    seeds[2, 0] = True
    allowed[2, 1:4] = allowed[3, 4] = allowed[0, 5] = True
    found = edges.connected(seeds, allowed, diagonal=True)
    assert np.argwhere(found).tolist() == [[2, 0], [2, 1], [2, 2], [2, 3], [3, 4]]
    straight = edges.connected(seeds, allowed, diagonal=False)
    assert np.argwhere(straight).tolist() == [[2, 0], [2, 1], [2, 2], [2, 3]]


def test_what_is_connected_does_not_run_over_the_edge_of_the_picture() -> None:
    seeds, allowed = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    seeds[1, 3] = True
    allowed[:, 1] = allowed[:, 2] = False
    assert np.argwhere(edges.connected(seeds, allowed, diagonal=True))[:, 1].min() == 3


def test_a_crop_to_a_mask_shows_the_subject_on_one_colour(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    crop = through(
        "ImageCropToMask",
        images=["1", 0],
        masks=["4", 0],
        width=128,
        height=128,
        pad_factor=1.5,
        grow_mask=0,
        background="#0000ff",
    )
    del crop["2"]["inputs"]["image"]
    crop["0"] = node("LoadBackgroundRemovalModel", bg_removal_name="birefnet.safetensors")
    crop["4"] = node("RemoveBackground", bg_removal_model=["0", 0], image=["1", 0])
    (cut,) = sim.pixels(crop)
    assert cut.shape == (128, 128, 3)
    assert cut[64, 64].tolist() == list(RED)
    assert cut[4, 4].tolist() == [0, 0, 255]
    reddish = (np.abs(cut.astype(int) - RED).sum(axis=2) < 60).mean()
    assert abs(reddish - 1 / 1.5**2) < 0.05


@pytest.mark.parametrize(("width", "height"), [(40, 40), (80, 20), (20, 80)])
def test_a_picture_is_fitted_by_cutting_both_sides(width: int, height: int) -> None:
    cut = fitted(plain(), width, height)
    assert cut.shape == (height, width, 3)
    assert np.abs(cut[height // 2, width // 2].astype(int) - RED).max() <= 2


def test_a_large_batch_lies_in_a_file_that_nobody_sees(tmp_path: Path) -> None:
    large = motion.batch(tmp_path, 30, 1000, 1000)
    large[29] = 7
    assert isinstance(large, np.memmap)
    assert int(large[29].sum()) == 7 * 3_000_000
    assert list(tmp_path.iterdir()) == []
    assert not isinstance(motion.batch(tmp_path, 1, 8, 8), np.memmap)


@pytest.mark.parametrize("width", [1, 700])
def test_a_png_is_written_in_blocks_that_read_back_exactly(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "_BLOCK", 10_000)
    noise: Pixels = np.random.default_rng(2).integers(0, 256, (50, width, 3), np.uint8)
    assert np.array_equal(read(png.encode(noise, {})), noise)
    assert np.array_equal(read(png.encode(busy(), {})), busy())


def read(content: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(content)))


def test_a_blur_wider_than_its_picture_fails_as_the_real_one_does(sim: Simulator) -> None:
    def blurred(radius: int) -> Json:
        graph = {
            "1": node("EmptyImage", width=40, height=9, batch_size=1, color=0),
            "2": node("ImageBlur", image=["1", 0], blur_radius=radius, sigma=1.0),
            "3": node("SaveImage", images=["2", 0], filename_prefix="test/blur"),
        }
        return sim.run(graph)

    assert ending(blurred(8)) == "execution_success"
    failed = blurred(9)
    assert ending(failed) == "execution_error"
    (error,) = [each[1] for each in failed["status"]["messages"] if each[0] == "execution_error"]
    assert error["exception_type"] == "RuntimeError"
    assert "Padding size" in error["exception_message"]


def test_of_a_photo_with_a_copy_in_it_the_first_picture_is_read(sim: Simulator) -> None:
    file = BytesIO()
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    first.save(file, "MPO", save_all=True, append_images=[second])
    sim.http.post(
        "/upload/image", files={"image": ("both.jpg", file.getvalue())}, data={"overwrite": "true"}
    )
    graph = {
        "1": node("LoadImage", image="both.jpg"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="test/both"),
    }
    (pixels,) = sim.pixels(graph)
    assert pixels[3, 4, 0] > 200
