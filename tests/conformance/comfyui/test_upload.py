import json
import secrets
from io import BytesIO

import httpx
import pytest
from PIL import Image

from .graphs import fresh_prefix, node, picture
from .wire import Comfy, Json, images


def png(color: str, size: int = 8, mode: str = "RGB") -> bytes:
    buffer = BytesIO()
    Image.new(mode, (size, size), color).save(buffer, "png")
    return buffer.getvalue()


def upload(comfy: Comfy, name: str, content: bytes, **fields: str) -> httpx.Response:
    files = {"image": (name, content, "image/png")}
    return comfy.http.post("/upload/image", files=files, data=fields)


def stored(comfy: Comfy, name: str, content: bytes, **fields: str) -> Json:
    answer = upload(comfy, name, content, **fields)
    assert answer.status_code == 200, answer.text
    file: Json = answer.json()
    return file


@pytest.fixture
def folder() -> str:
    """A subfolder of input/ that no other test uses."""
    return f"conformance/{secrets.token_hex(6)}"


def test_an_upload_is_answered_with_name_subfolder_and_type(comfy: Comfy, folder: str) -> None:
    file = stored(comfy, "a.png", png("red"), subfolder=folder)
    assert file == {"name": "a.png", "subfolder": folder, "type": "input"}


def test_the_same_name_with_the_same_bytes_is_the_same_file(comfy: Comfy, folder: str) -> None:
    first = stored(comfy, "a.png", png("red"), subfolder=folder)
    assert stored(comfy, "a.png", png("red"), subfolder=folder) == first


def test_the_same_name_with_other_bytes_gets_a_number(comfy: Comfy, folder: str) -> None:
    stored(comfy, "a.png", png("red"), subfolder=folder)
    assert stored(comfy, "a.png", png("blue"), subfolder=folder)["name"] == "a (1).png"
    assert stored(comfy, "a.png", png("green"), subfolder=folder)["name"] == "a (2).png"
    again = stored(comfy, "a.png", png("blue"), subfolder=folder)
    assert again["name"] == "a (1).png"


@pytest.mark.parametrize(
    ("flag", "name"), [("true", "a.png"), ("1", "a.png"), ("True", "a (1).png")]
)
def test_overwriting_takes_the_word_true_in_lower_case_or_1(
    comfy: Comfy, folder: str, flag: str, name: str
) -> None:
    stored(comfy, "a.png", png("red"), subfolder=folder)
    file = stored(comfy, "a.png", png("blue"), subfolder=folder, overwrite=flag)
    assert file["name"] == name
    where = {"filename": file["name"], "subfolder": folder, "type": "input"}
    assert comfy.view(where) == png("blue")


@pytest.mark.parametrize("name", ["Bär 日本.png", "with space & (1).png", "100%.png"])
def test_names_are_kept_as_they_are(comfy: Comfy, folder: str, name: str) -> None:
    file = stored(comfy, name, png("red"), subfolder=folder)
    assert file["name"] == name
    where = {"filename": name, "subfolder": folder, "type": "input"}
    assert comfy.view(where) == png("red")


@pytest.mark.parametrize("kind", ["input", "temp", "output"])
def test_the_type_chooses_the_folder(comfy: Comfy, folder: str, kind: str) -> None:
    file = stored(comfy, "a.png", png("red"), subfolder=folder, type=kind)
    assert file["type"] == kind
    assert comfy.view({"filename": "a.png", "subfolder": folder, "type": kind}) == png("red")


def test_any_kind_of_file_is_taken(comfy: Comfy, folder: str) -> None:
    file = stored(comfy, "a.mp3", b"no music", subfolder=folder)
    where = {"filename": file["name"], "subfolder": folder, "type": "input"}
    assert comfy.view(where) == b"no music"


@pytest.mark.parametrize("subfolder", ["../outside", "a/../../../outside", "/etc"])
def test_a_subfolder_outside_is_refused(comfy: Comfy, subfolder: str) -> None:
    assert upload(comfy, "a.png", png("red"), subfolder=subfolder).status_code == 400


def test_a_name_that_climbs_out_is_refused(comfy: Comfy) -> None:
    assert upload(comfy, "../a.png", png("red")).status_code == 400


def test_a_name_in_a_folder_that_does_not_exist_is_a_500(comfy: Comfy, folder: str) -> None:
    assert upload(comfy, f"{folder}/a.png", png("red")).status_code == 500


def test_an_unknown_type_is_a_500(comfy: Comfy, folder: str) -> None:
    answer = upload(comfy, "a.png", png("red"), subfolder=folder, type="bogus")
    assert answer.status_code == 500


def test_a_form_without_an_image_is_refused(comfy: Comfy) -> None:
    answer = comfy.http.post("/upload/image", files={"other": ("a.png", png("red"))})
    assert answer.status_code == 400


def test_a_mask_puts_its_alpha_into_the_original(comfy: Comfy, folder: str) -> None:
    original = stored(comfy, "a.png", png("red"), subfolder=folder)
    reference = {"filename": original["name"], "subfolder": folder, "type": "input"}
    answer = comfy.http.post(
        "/upload/mask",
        files={"image": ("mask.png", png("#00000040", mode="RGBA"), "image/png")},
        data={"subfolder": folder, "original_ref": json.dumps(reference)},
    )
    assert answer.status_code == 200
    assert answer.json() == {"name": "mask.png", "subfolder": folder, "type": "input"}
    where = {"filename": "mask.png", "subfolder": folder, "type": "input"}
    with Image.open(BytesIO(comfy.view(where))) as masked:
        assert masked.mode == "RGBA"
        assert masked.getpixel((0, 0)) == (255, 0, 0, 0x40)


def test_a_mask_for_a_missing_original_is_answered_200_but_never_written(
    comfy: Comfy, folder: str
) -> None:
    reference = {"filename": "nobody.png", "subfolder": folder, "type": "input"}
    answer = comfy.http.post(
        "/upload/mask",
        files={"image": ("mask.png", png("#00000040", mode="RGBA"), "image/png")},
        data={"subfolder": folder, "original_ref": json.dumps(reference)},
    )
    assert answer.status_code == 200
    where = {"filename": "mask.png", "subfolder": folder, "type": "input"}
    assert comfy.http.get("/view", params=where).status_code == 404


def test_a_mask_without_its_original_named_is_a_500(comfy: Comfy, folder: str) -> None:
    files = {"image": ("mask.png", png("#00000040", mode="RGBA"), "image/png")}
    answer = comfy.http.post("/upload/mask", files=files, data={"subfolder": folder})
    assert answer.status_code == 500


def load_and_save(image: str) -> dict[str, Json]:
    return {
        "1": node("LoadImage", image=image),
        "2": node("SaveImage", images=["1", 0], filename_prefix=fresh_prefix()),
    }


def test_load_image_reads_an_upload_by_its_subfolder_path(comfy: Comfy, folder: str) -> None:
    file = stored(comfy, "a.png", png("#102030"), subfolder=folder)
    _, entry = comfy.run(load_and_save(f"{folder}/{file['name']}"))
    with Image.open(BytesIO(comfy.view(images(entry)[0]))) as copy:
        assert copy.size == (8, 8)
        assert copy.getpixel((0, 0)) == (0x10, 0x20, 0x30)


@pytest.mark.parametrize("kind", ["output", "temp", "input"])
def test_load_image_reads_other_folders_by_annotation(comfy: Comfy, folder: str, kind: str) -> None:
    stored(comfy, "a.png", png("#102030"), subfolder=folder, type=kind)
    _, entry = comfy.run(load_and_save(f"{folder}/a.png [{kind}]"))
    with Image.open(BytesIO(comfy.view(images(entry)[0]))) as copy:
        assert copy.getpixel((0, 0)) == (0x10, 0x20, 0x30)


def test_a_result_can_be_the_next_input_without_an_upload(comfy: Comfy) -> None:
    _, entry = comfy.run(picture())
    (file,) = images(entry)
    _, second = comfy.run(load_and_save(f"{file['subfolder']}/{file['filename']} [output]"))
    assert second["status"]["status_str"] == "success"


def test_a_file_that_is_no_image_is_accepted_and_fails_in_the_run(
    comfy: Comfy, folder: str
) -> None:
    stored(comfy, "broken.png", b"no image at all", subfolder=folder)
    events, entry = comfy.run(load_and_save(f"{folder}/broken.png"))
    assert entry["status"]["messages"][-1][0] == "execution_error"
    assert events[-2].data["exception_type"] == "PIL.UnidentifiedImageError"
    assert events[-2].data["node_type"] == "LoadImage"


def test_a_replaced_upload_is_read_anew(comfy: Comfy, folder: str) -> None:
    stored(comfy, "a.png", png("red"), subfolder=folder)
    graph = load_and_save(f"{folder}/a.png")
    comfy.run(graph)
    stored(comfy, "a.png", png("blue"), subfolder=folder, overwrite="true")
    events, entry = comfy.run(graph)
    (cached,) = [event for event in events if event.type == "execution_cached"]
    assert cached.data["nodes"] == []
    with Image.open(BytesIO(comfy.view(images(entry)[0]))) as copy:
        assert copy.getpixel((0, 0)) == (0, 0, 255)
