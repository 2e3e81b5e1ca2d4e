"""Pictures made from pictures: what is taken over, what stays, and where the mark is."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from .client import Graph, Simulator
from .scenes import RED, SUBJECT, Pixels, bundled, busy, has_mark, plain, titled, uploaded

HOLE = (slice(80, 160), slice(40, 280))


def read(content: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(content)))


def scene() -> Pixels:
    """A smooth gradient, so that nothing of it looks like what is painted."""
    down, across = np.mgrid[0:240, 0:320]
    return np.stack([down, across // 2, 255 - down], axis=2).astype(np.uint8)


def inpainting(**inputs: object) -> Graph:
    graph = bundled("inpaint-flux2-klein-9b", **inputs)
    titled(graph, "Scene Image")["image"] = "scene.png"
    titled(graph, "Mask (red channel)")["image"] = "hole.png"
    titled(graph, "Reference Image")["image"] = "product.png"
    return graph


@pytest.fixture
def painting(sim: Simulator) -> Simulator:
    hole = np.zeros((240, 320, 3), np.uint8)
    hole[HOLE] = (255, 0, 0)
    uploaded(sim, scene=scene(), hole=hole, product=np.full((64, 64, 3), RED, np.uint8))
    return sim


def outside() -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    where = np.ones((240, 320), bool)
    where[HOLE] = False
    return where


def test_inpainting_changes_the_masked_region_and_not_one_bit_outside(painting: Simulator) -> None:
    painted = read(painting.output(inpainting()))
    assert np.array_equal(painted[outside()], scene()[outside()])
    assert np.abs(painted[HOLE].astype(int) - scene()[HOLE]).mean() > 20


def test_inpainting_puts_the_product_and_the_mark_into_the_masked_region(
    painting: Simulator,
) -> None:
    painted = read(painting.output(inpainting()))
    inside = painted[HOLE].astype(int)
    reddish = np.abs(inside - RED).sum(axis=2) < 60
    assert reddish.mean() > 0.1
    assert (inside > 180).all(axis=2).any(), "the mark's letters are white"
    assert not has_mark(painted)


def test_a_lower_denoise_keeps_more_of_what_was_masked(painting: Simulator) -> None:
    distances = [
        float(np.abs(read(painting.output(inpainting(denoise=share))).astype(int) - scene()).mean())
        for share in (0.0, 0.25, 0.5, 1.0)
    ]
    assert distances[0] < 1
    assert distances == sorted(set(distances))


def test_an_empty_mask_changes_nothing(painting: Simulator) -> None:
    uploaded(painting, hole=np.zeros((240, 320, 3), np.uint8))
    assert np.array_equal(read(painting.output(inpainting())), scene())


def test_a_seed_and_a_prompt_each_change_what_is_painted(painting: Simulator) -> None:
    drawn = [
        read(painting.output(inpainting(**change)))
        for change in ({}, {"noise_seed": 5}, {"text": "a vase"})
    ]
    assert not any(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert np.array_equal(drawn[0], read(painting.output(inpainting())))


def test_an_edit_shows_its_reference_and_depends_on_it(sim: Simulator) -> None:
    graph = bundled(
        "concept-flux2-klein-4b", image="reference.png", width=512, height=512, batch_size=1
    )
    uploaded(sim, reference=plain())
    with_red = read(sim.output(graph))
    uploaded(sim, reference=busy())
    with_noise = read(sim.output(graph))
    assert with_red.shape == (512, 512, 3)
    assert has_mark(with_red)
    assert (np.abs(with_red.astype(int) - RED).sum(axis=2) < 90).mean() > 0.02
    assert np.abs(with_red.astype(int) - with_noise).mean() > 10


def test_a_concept_shows_its_picture_and_that_of_its_style(sim: Simulator) -> None:
    graph = bundled("concept-flux2-klein-4b", width=512, height=512, batch_size=1)
    uploaded(
        sim,
        own=np.full((64, 64, 3), (250, 10, 10), np.uint8),
        style=np.full((64, 64, 3), (10, 10, 250), np.uint8),
    )
    titled(graph, "Reference Image")["image"] = "own.png"
    titled(graph, "Style Image")["image"] = "style.png"
    drawn = read(sim.output(graph)).astype(int)
    for colour in ((250, 10, 10), (10, 10, 250)):
        assert (np.abs(drawn - colour).sum(axis=2) < 120).mean() > 0.01


def test_a_portrait_shows_every_picture_it_is_given(sim: Simulator) -> None:
    graph = bundled("portrait-qwen-edit-2511")
    colours = {"one": (250, 10, 10), "two": (10, 250, 10), "three": (10, 10, 250)}
    uploaded(sim, **{name: np.full((64, 64, 3), c, np.uint8) for name, c in colours.items()})
    for title, name in zip(("Image 1", "Image 2", "Image 3"), colours, strict=True):
        titled(graph, title)["image"] = f"{name}.png"
    drawn = read(sim.output(graph)).astype(int)
    for colour in colours.values():
        assert (np.abs(drawn - colour).sum(axis=2) < 120).mean() > 0.01


def test_edges_of_the_control_image_are_seen_as_strongly_as_asked(sim: Simulator) -> None:
    uploaded(sim, control=plain())
    seen = {share: upper_edge(sim, share) for share in (0.0, 0.5, 1.0)}
    assert seen[1.0] > 250
    assert seen[0.0] < seen[0.5] < seen[1.0]


def upper_edge(sim: Simulator, strength: float) -> float:
    """How light the picture is where the upper edge of the square lies."""
    drawn = read(
        sim.output(bundled("control-z-image-turbo", image="control.png", strength=strength))
    )
    scale = drawn.shape[0] / 240
    row, first, last = (
        round(edge * scale) for edge in (SUBJECT[0].start, SUBJECT[1].start, SUBJECT[1].stop)
    )
    band = drawn[row - 4 : row + 4, first + 8 : last - 8].mean(axis=2)
    return float(band.max(axis=0).mean())


@pytest.mark.parametrize("guide", ["depth", "pose"])
def test_a_guide_that_a_model_draws_changes_with_its_picture(sim: Simulator, guide: str) -> None:
    graph = bundled(f"control-z-image-turbo-{guide}", image="guide.png")
    uploaded(sim, guide=plain())
    first = read(sim.output(graph))
    uploaded(sim, guide=np.roll(plain(), 40, axis=1))
    assert not np.array_equal(first, read(sim.output(graph)))
    assert has_mark(first)
