"""Pictures: what they depend on, their size, and where the mark is and is not."""

import json
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gpu_server.simulator import pictures, png
from gpu_server.simulator.values import key_of

from .client import Graph, Simulator, node, saved_files, text_to_image
from .scenes import Pixels, has_mark


def test_the_same_inputs_give_the_same_pixels_after_everything_is_forgotten(sim: Simulator) -> None:
    (first,) = sim.pixels(text_to_image(seed=11))
    sim.knobs(lose_queue=True)
    (second,) = sim.pixels(text_to_image(seed=11))
    assert np.array_equal(first, second)


def test_each_input_changes_the_picture(sim: Simulator) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"seed": 12},
        {"steps": 4},
        {"cfg": 6.0},
        {"text": "a harbour"},
        {"negative_text": "dark"},
        {"strength_model": 0.5},
        {"strength_clip": 0.5},
        {"lora_name": "demo-style.safetensors"},
        {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
    ]
    drawn = [sim.pixels(text_to_image(**change))[0] for change in changes]
    for one, other in combinations(range(len(drawn)), 2):
        same = np.array_equal(drawn[one], drawn[other])
        assert not same, f"{changes[one]} and {changes[other]} look the same"


def test_the_negative_text_does_not_count_at_cfg_1(sim: Simulator) -> None:
    (first,) = sim.pixels(text_to_image(cfg=1.0, negative_text="dark"))
    (second,) = sim.pixels(text_to_image(cfg=1.0, negative_text="bright"))
    assert np.array_equal(first, second)


def test_a_lora_of_strength_0_changes_nothing(sim: Simulator) -> None:
    nothing = {"strength_model": 0.0, "strength_clip": 0.0}
    (first,) = sim.pixels(text_to_image(lora_name="demo-ink.safetensors", **nothing))
    (second,) = sim.pixels(text_to_image(lora_name="demo-style.safetensors", **nothing))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (1024, 768), (64, 2048), (1536, 640)])
def test_a_picture_has_the_size_asked_for_and_the_mark(
    sim: Simulator, width: int, height: int
) -> None:
    (picture,) = sim.pixels(text_to_image(width=width, height=height))
    assert picture.shape == (height, width, 3)
    assert has_mark(picture)


def test_every_frame_of_a_batch_differs_and_carries_the_mark(sim: Simulator) -> None:
    frames = sim.pixels(text_to_image(batch_size=4))
    assert len(frames) == 4
    assert all(has_mark(frame) for frame in frames)
    assert not any(np.array_equal(one, other) for one, other in combinations(frames, 2))


def test_a_lower_denoise_keeps_more_of_the_first_picture(sim: Simulator) -> None:
    first = text_to_image(seed=21)
    (start,) = sim.pixels(first)

    def again(denoise: float) -> Pixels:
        graph: Graph = first | {
            "20": node("VAEEncode", pixels=["8", 0], vae=["4", 2]),
            "21": {**first["3"], "inputs": {**first["3"]["inputs"], "seed": 22}},
            "22": node("VAEDecode", samples=["21", 0], vae=["4", 2]),
            "9": node("SaveImage", images=["22", 0], filename_prefix="test/i2i"),
        }
        graph["21"]["inputs"] |= {"latent_image": ["20", 0], "denoise": denoise}
        return sim.pixels(graph)[0]

    distances = [
        float(np.abs(again(denoise).astype(int) - start).mean()) for denoise in (0.0, 0.3, 0.7, 1.0)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] < distances[3] / 2


def test_masks_never_carry_the_mark(sim: Simulator) -> None:
    graph = {
        "1": node("SolidMask", value=1.0, width=256, height=256),
        "2": node("GrowMask", mask=["1", 0], expand=2, tapered_corners=True),
        "3": node("MaskToImage", mask=["2", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="test/mask"),
        "5": node("MaskPreview", mask=["2", 0]),
    }
    saved = sim.pixels(graph)
    assert len(saved) == 2
    assert all((picture == 255).all() for picture in saved)


def test_pictures_made_without_a_model_carry_no_mark(sim: Simulator) -> None:
    graph = {
        "1": node("EmptyImage", width=256, height=256, batch_size=1, color=0xFF0000),
        "2": node("SaveImage", images=["1", 0], filename_prefix="test/plain"),
    }
    (picture,) = sim.pixels(graph)
    assert (picture == (255, 0, 0)).all()


def test_a_saved_file_says_what_made_it(sim: Simulator) -> None:
    graph = text_to_image(seed=31)
    entry = sim.run(graph, extra_data={"extra_pnginfo": {"workflow": {"a": "ü"}}})
    (file,) = saved_files(entry)
    with Image.open(BytesIO(sim.download(file))) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        texts = picture.text
    assert texts["engine"] == "simulator"
    assert json.loads(texts["prompt"]) == graph
    assert json.loads(texts["workflow"]) == {"a": "ü"}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("at_least", [0, 5_000])
def test_a_written_png_reads_back_exactly(channels: int, at_least: int) -> None:
    dice = np.random.default_rng(1)
    picture = dice.integers(0, 256, (7, 5, channels), np.uint8)
    encoded = png.encode(picture, {"plain": "text", "schlüssel": "日本"})
    with Image.open(BytesIO(encoded)) as read:
        assert isinstance(read, PngImagePlugin.PngImageFile)
        assert np.array_equal(np.asarray(read), picture)
        assert read.text == {"plain": "text", "schlüssel": "日本"}
    assert at_least == 0 or len(encoded) < at_least


def test_drawing_is_the_same_in_every_process_and_differs_by_key() -> None:
    keys = [key_of("a", number) for number in range(8)]
    drawn = [pictures.draw(key, 96, 64) for key in keys]
    assert all(
        np.array_equal(pictures.draw(key, 96, 64), one)
        for key, one in zip(keys, drawn, strict=True)
    )
    assert not any(np.array_equal(one, other) for one, other in combinations(drawn, 2))
