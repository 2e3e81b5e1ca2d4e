"""What a caller sees: the same seed gives the same picture, and every input matters."""

import json
import secrets
from io import BytesIO

from PIL import Image, PngImagePlugin

from .graphs import Graph, fresh_prefix, picture, text_to_image
from .wire import Comfy, Json, images


def seed() -> int:
    return secrets.randbelow(2**53)


def rendered(comfy: Comfy, graph: Graph) -> bytes:
    _, entry = comfy.run(graph)
    (file,) = images(entry)
    with Image.open(BytesIO(comfy.view(file))) as image:
        return image.tobytes()


def chunks(comfy: Comfy, file: Json) -> dict[str, str]:
    with Image.open(BytesIO(comfy.view(file))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        return {key: str(value) for key, value in image.text.items()}


def test_a_picture_has_the_size_asked_for(comfy: Comfy) -> None:
    _, entry = comfy.run(text_to_image(seed=seed(), size=128))
    with Image.open(BytesIO(comfy.view(images(entry)[0]))) as image:
        assert (image.size, image.mode, image.format) == ((128, 128), "RGB", "PNG")


def test_the_same_seed_gives_the_same_pixels_even_when_nothing_is_cached(comfy: Comfy) -> None:
    chosen = seed()
    first = rendered(comfy, text_to_image(seed=chosen))
    rendered(comfy, text_to_image(seed=chosen + 1, text="something else"))
    assert rendered(comfy, text_to_image(seed=chosen)) == first


def test_another_seed_gives_other_pixels(comfy: Comfy) -> None:
    chosen = seed()
    first = rendered(comfy, text_to_image(seed=chosen))
    assert rendered(comfy, text_to_image(seed=chosen + 1)) != first


def test_another_text_gives_other_pixels(comfy: Comfy) -> None:
    chosen = seed()
    first = rendered(comfy, text_to_image(seed=chosen, text="a red cat"))
    assert rendered(comfy, text_to_image(seed=chosen, text="a blue house")) != first


def test_a_loras_strength_changes_the_pixels_and_zero_is_as_good_as_none(comfy: Comfy) -> None:
    chosen = seed()
    full = rendered(comfy, text_to_image(seed=chosen, strength=1.0))
    none = rendered(comfy, text_to_image(seed=chosen, strength=None))
    assert full != none
    assert rendered(comfy, text_to_image(seed=chosen, strength=0.5)) not in (full, none)
    assert rendered(comfy, text_to_image(seed=chosen, strength=0.0)) == none


def test_a_png_carries_its_graph(comfy: Comfy) -> None:
    graph = text_to_image(seed=seed())
    _, entry = comfy.run(graph)
    assert json.loads(chunks(comfy, images(entry)[0])["prompt"]) == graph


def test_extra_pnginfo_becomes_text_chunks_beside_the_graph(comfy: Comfy) -> None:
    extra = {"extra_pnginfo": {"workflow": {"a": 1}, "ours": "x"}}
    _, entry = comfy.run(picture(), extra_data=extra)
    found = chunks(comfy, images(entry)[0])
    assert {"prompt", "workflow", "ours"} <= set(found)
    assert json.loads(found["workflow"]) == {"a": 1}


def test_other_pnginfo_alone_does_not_make_a_new_file(comfy: Comfy) -> None:
    graph = picture(fresh_prefix())
    _, first = comfy.run(graph, extra_data={"extra_pnginfo": {"ours": "1"}})
    _, second = comfy.run(graph, extra_data={"extra_pnginfo": {"ours": "2"}})
    assert images(first) == images(second)
    assert json.loads(chunks(comfy, images(second)[0])["ours"]) == "1"


def test_a_batch_is_saved_as_one_numbered_file_each(comfy: Comfy) -> None:
    _, entry = comfy.run(picture("conformance/" + secrets.token_hex(4) + "/x", batch=3))
    names = [file["filename"] for file in images(entry)]
    assert names == ["x_00001_.png", "x_00002_.png", "x_00003_.png"]


def test_two_runs_with_one_prefix_get_two_numbers(comfy: Comfy) -> None:
    prefix = fresh_prefix()
    names = [images(comfy.run(picture(prefix))[1])[0]["filename"] for _ in range(2)]
    assert names == ["image_00001_.png", "image_00002_.png"]


def test_a_colour_comes_out_as_it_went_in_give_or_take_the_rounding(comfy: Comfy) -> None:
    _, entry = comfy.run(picture(color=0x804020))
    with Image.open(BytesIO(comfy.view(images(entry)[0]))) as image:
        found = image.getpixel((0, 0))
    assert isinstance(found, tuple)
    pairs = zip(found, (0x80, 0x40, 0x20), strict=True)
    assert all(abs(left - right) <= 1 for left, right in pairs)
