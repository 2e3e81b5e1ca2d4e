"""Image and mask nodes compute what they say, and the table describes them truly."""

import inspect
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpu_server.simulator.nodes import NODE_CLASSES, NodeClass

from .client import Graph, Json, Simulator, node


def mask_pixels(sim: Simulator, graph: Graph, source: str) -> np.ndarray[Any, Any]:
    shown = {
        "m": node("MaskToImage", mask=[source, 0]),
        "s": node("SaveImage", images=["m", 0], filename_prefix="test/mask"),
    }
    (pixels,) = sim.pixels(graph | shown)
    return pixels[..., 0]


def solid(value: float, width: int = 6, height: int = 4) -> Json:
    return node("SolidMask", value=value, width=width, height=height)


@pytest.mark.parametrize("node_class", NODE_CLASSES.values(), ids=lambda known: known.name)
def test_a_node_takes_exactly_the_inputs_it_declares(node_class: NodeClass) -> None:
    parameters = list(inspect.signature(node_class.execute).parameters.values())[1:]
    named = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    declared = {*node_class.required, *node_class.optional}
    # A function that ends in ** does not look at every input.
    ignores = any(one.kind is one.VAR_KEYWORD for one in parameters)
    assert named <= declared if ignores else named == declared
    # What a dynamic choice brings has a dot in its name and can come in no other way.
    kinds = {
        spec[0]
        for spec in (*node_class.required.values(), *node_class.optional.values())
        if isinstance(spec[0], str)
    }
    assert ignores or "COMFY_DYNAMICCOMBO_V3" not in kinds
    assert len(node_class.outputs) == len(node_class.output_names)
    assert node_class.outputs or node_class.output_node


@pytest.mark.parametrize(
    ("operation", "inside"),
    [
        ("multiply", 51),
        ("add", 204),
        ("subtract", 51),
        ("and", 0),
        ("or", 255),
        ("xor", 255),
    ],
)
def test_masks_combine_where_they_overlap(sim: Simulator, operation: str, inside: int) -> None:
    values = (
        (0.5, 0.4) if operation == "multiply" else (0.6, 0.2) if operation == "add" else (0.6, 0.4)
    )
    graph = {
        "1": solid(values[0]),
        "2": solid(values[1], 2, 2),
        "3": node(
            "MaskComposite", destination=["1", 0], source=["2", 0], x=1, y=1, operation=operation
        ),
    }
    pixels = mask_pixels(sim, graph, "3")
    outside = int(values[0] * 255)
    assert abs(int(pixels[0, 0]) - outside) <= 1
    assert abs(int(pixels[1, 1]) - inside) <= 1
    assert abs(int(pixels[3, 3]) - outside) <= 1


def test_a_mask_composite_beyond_the_edge_is_cut(sim: Simulator) -> None:
    graph = {
        "1": solid(0.0),
        "2": solid(1.0),
        "3": node(
            "MaskComposite", destination=["1", 0], source=["2", 0], x=5, y=100, operation="add"
        ),
    }
    assert (mask_pixels(sim, graph, "3") == 0).all()


@pytest.mark.parametrize(("tapered", "white"), [(True, 5), (False, 9)])
def test_a_mask_grows_by_pixels(sim: Simulator, *, tapered: bool, white: int) -> None:
    graph = {
        "1": solid(0.0, 7, 7),
        "2": solid(1.0, 1, 1),
        "3": node(
            "MaskComposite", destination=["1", 0], source=["2", 0], x=3, y=3, operation="add"
        ),
        "4": node("GrowMask", mask=["3", 0], expand=1, tapered_corners=tapered),
    }
    assert int((mask_pixels(sim, graph, "4") == 255).sum()) == white


def test_a_composite_goes_through_its_mask(sim: Simulator) -> None:
    graph = {
        "1": node("EmptyImage", width=4, height=4, batch_size=1, color=0x000000),
        "2": node("EmptyImage", width=2, height=2, batch_size=1, color=0xFFFFFF),
        "3": solid(0.5, 2, 2),
        "4": node(
            "ImageCompositeMasked",
            destination=["1", 0],
            source=["2", 0],
            x=1,
            y=1,
            resize_source=False,
            mask=["3", 0],
        ),
        "5": node("SaveImage", images=["4", 0], filename_prefix="test/composite"),
    }
    (pixels,) = sim.pixels(graph)
    expected = np.zeros((4, 4, 3), np.uint8)
    expected[1:3, 1:3] = 127
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(32, 8, (8, 32)), (0, 8, (8, 16)), (8, 0, (4, 8)), (0, 0, (8, 16))],
)
def test_scaling_follows_the_side_that_is_given(
    sim: Simulator, width: int, height: int, size: tuple[int, int]
) -> None:
    graph = {
        "1": node("EmptyImage", width=16, height=8, batch_size=1, color=7),
        "2": node(
            "ImageScale",
            image=["1", 0],
            upscale_method="bilinear",
            width=width,
            height=height,
            crop="disabled",
        ),
        "3": node("SaveImage", images=["2", 0], filename_prefix="test/scale"),
    }
    (pixels,) = sim.pixels(graph)
    assert pixels.shape[:2] == size


def test_a_loaded_picture_keeps_its_pixels_and_its_transparency_is_the_mask(
    sim: Simulator,
) -> None:
    dice = np.random.default_rng(3)
    original = dice.integers(0, 256, (5, 9, 4), np.uint8)
    file = BytesIO()
    Image.fromarray(original).save(file, "PNG")
    sim.http.post("/upload/image", files={"image": ("clear.png", file.getvalue())})
    graph = {
        "1": node("LoadImage", image="clear.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="test/loaded"),
        "3": node("MaskToImage", mask=["1", 1]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="test/alpha"),
    }
    pixels, mask = sim.pixels(graph)
    assert np.array_equal(pixels, original[..., :3])
    assert np.abs(mask[..., 0].astype(int) - (255 - original[..., 3])).max() <= 1


def test_another_upload_of_the_same_name_is_not_served_from_the_cache(sim: Simulator) -> None:
    def load(color: tuple[int, int, int]) -> list[int]:
        file = BytesIO()
        Image.new("RGB", (4, 4), color).save(file, "PNG")
        upload = {"image": ("again.png", file.getvalue())}
        sim.http.post("/upload/image", files=upload, data={"overwrite": "true"})
        graph = {
            "1": node("LoadImage", image="again.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="test/again"),
        }
        return sim.pixels(graph)[0][0, 0].tolist()

    assert load((1, 2, 3)) == [1, 2, 3]
    assert load((4, 5, 6)) == [4, 5, 6]


def test_a_text_where_a_picture_belongs_is_accepted_and_fails_in_execution(sim: Simulator) -> None:
    graph = {
        "1": node("ImageInvert", image="x"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="a"),
    }
    event, data = sim.run(graph)["status"]["messages"][-1]
    assert event == "execution_error"
    assert data["node_id"] == "1"
