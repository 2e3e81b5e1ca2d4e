"""Masks: found, not found, and never with the mark on them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gpu_server.simulator import subjects

from .client import Graph, Simulator, node
from .scenes import SUBJECT, Pixels, bundled, busy, plain, titled, uploaded

MASKS = ["mask-sam3", "mask-florence2-sam2"]


def asked(name: str, wanted: str) -> Graph:
    """A bundled graph that looks for something, without growing or blurring what it finds."""
    graph = bundled(name, image="scene.png", expand=0)
    if name == "mask-sam3":
        titled(graph, "Object Name")["text"] = wanted
        titled(graph, "Blur Mask").update(blur_radius=1, sigma=0.1)
    else:
        titled(graph, "Detect Object")["text_input"] = wanted
        titled(graph, "Dilate and Blur Mask")["blur_radius"] = 0.0
    return graph


def grey(content: bytes) -> Pixels:
    pixels = np.asarray(Image.open(BytesIO(content)))
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]


@pytest.mark.parametrize("name", MASKS)
def test_a_subject_before_a_plain_background_is_found_where_it_is(
    sim: Simulator, name: str
) -> None:
    uploaded(sim, scene=plain())
    mask = grey(sim.output(asked(name, "square")))
    expected = np.zeros((240, 320), np.uint8)
    expected[SUBJECT] = 255
    # The graph with SAM 3 shrinks the mask and scales it up again, which softens its border.
    assert (np.abs(mask.astype(int) - expected) > 128).mean() < 0.01
    assert (mask[SUBJECT] == 255).all()
    assert mask[:40].max() == mask[-40:].max() == 0


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("wanted", ["nothing", "Nothing at all", " nothing, nothing else:2"])
def test_what_begins_with_nothing_is_not_found_and_the_mask_is_black(
    sim: Simulator, name: str, wanted: str
) -> None:
    uploaded(sim, scene=busy())
    mask = grey(sim.output(asked(name, wanted)))
    assert mask.shape == (240, 320)
    assert not mask.any()


@pytest.mark.parametrize("name", MASKS)
def test_in_a_busy_picture_each_name_has_a_place_of_its_own(sim: Simulator, name: str) -> None:
    uploaded(sim, scene=busy())
    cup, spoon = (grey(sim.output(asked(name, wanted))) for wanted in ("cup", "spoon"))
    again = grey(sim.output(asked(name, "cup")))
    assert np.array_equal(cup, again)
    assert not np.array_equal(cup, spoon)
    for mask in (cup, spoon):
        assert 0.03 < (mask > 127).mean() < 0.5


def test_growing_and_blurring_reach_as_far_as_asked(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    graph = asked("mask-florence2-sam2", "square")
    titled(graph, "Dilate and Blur Mask").update(expand=20, blur_radius=0.0)
    grown = grey(sim.output(graph))
    middle = (SUBJECT[0].start + SUBJECT[0].stop) // 2
    row = np.flatnonzero(grown[middle] == 255)
    assert (row[0], row[-1]) == (SUBJECT[1].start - 20, SUBJECT[1].stop + 19)
    titled(graph, "Dilate and Blur Mask")["blur_radius"] = 10.0
    blurred = grey(sim.output(graph))
    assert 90 < blurred[middle, SUBJECT[1].start - 20] < 165
    assert blurred[middle, SUBJECT[1].start - 60] == 0


def test_several_names_and_counts_are_several_masks() -> None:
    assert len(subjects.named(busy(), "cup, spoon:3, nothing")) == 4
    assert len(subjects.named(busy(), "cup:1000000")) == 32
    assert subjects.named(busy(), "") == []


def test_individual_masks_come_one_by_one(sim: Simulator) -> None:
    uploaded(sim, scene=busy())
    graph = {
        "1": node("LoadImage", image="scene.png"),
        "2": node("CheckpointLoaderSimple", ckpt_name="sam3.1_multiplex_fp16.safetensors"),
        "3": node("CLIPTextEncode", text="cup:3", clip=["2", 1]),
        "4": node(
            "SAM3_Detect",
            model=["2", 0],
            image=["1", 0],
            conditioning=["3", 0],
            threshold=0.5,
            refine_iterations=2,
            individual_masks=True,
        ),
        "5": node("MaskToImage", mask=["4", 0]),
        "6": node("SaveImage", images=["5", 0], filename_prefix="test/each"),
    }
    masks = [mask[..., 0] for mask in sim.pixels(graph)]
    assert len(masks) == 3
    assert len({mask.tobytes() for mask in masks}) == 3


def test_points_choose_and_exclude(sim: Simulator) -> None:
    uploaded(sim, scene=busy())
    graph = {
        "1": node("LoadImage", image="scene.png"),
        "2": node(
            "DownloadAndLoadSAM2Model",
            model="sam2.1_hiera_large.safetensors",
            segmentor="single_image",
            device="cpu",
            precision="fp32",
        ),
        "3": node(
            "Sam2Segmentation",
            sam2_model=["2", 0],
            image=["1", 0],
            keep_model_loaded=False,
            coordinates_positive='[{"x": 80, "y": 120}, {"x": 240, "y": 120}]',
            coordinates_negative='[{"x": 240, "y": 120}]',
        ),
        "4": node("MaskToImage", mask=["3", 0]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="test/points"),
    }
    (mask,) = sim.pixels(graph)
    assert mask[120, 80, 0] == 255
    assert mask[120, 240, 0] == 0
    assert mask[10, 10, 0] == 0


def test_a_cut_out_keeps_its_pixels_and_loses_its_background(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    content = sim.output(bundled("background-removal-birefnet", image="scene.png"))
    with Image.open(BytesIO(content)) as picture:
        assert picture.mode == "RGBA"
        cut = np.asarray(picture)
    assert np.array_equal(cut[..., :3], plain())
    expected = np.zeros((240, 320), np.uint8)
    expected[SUBJECT] = 255
    assert np.array_equal(cut[..., 3], expected)


def test_a_busy_picture_keeps_its_middle(sim: Simulator) -> None:
    uploaded(sim, scene=busy())
    content = sim.output(bundled("background-removal-birefnet", image="scene.png"))
    alpha = np.asarray(Image.open(BytesIO(content)))[..., 3]
    assert alpha[120, 160] == 255
    assert alpha[0].max() == alpha[-1].max() == 0
