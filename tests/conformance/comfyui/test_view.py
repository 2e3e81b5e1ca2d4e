from io import BytesIO

import pytest
from PIL import Image

from .graphs import picture
from .wire import Comfy, Json, images


@pytest.fixture
def file(comfy: Comfy) -> Json:
    """A PNG in a subfolder of output/."""
    _, entry = comfy.run(picture())
    return images(entry)[0]


def test_a_file_is_served_with_its_type_and_length(comfy: Comfy, file: Json) -> None:
    answer = comfy.http.get("/view", params=file)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["accept-ranges"] == "bytes"
    assert "last-modified" in answer.headers
    assert answer.headers["content-disposition"] == f'filename="{file["filename"]}"'


def test_the_type_is_output_unless_said_otherwise(comfy: Comfy, file: Json) -> None:
    where = {"filename": file["filename"], "subfolder": file["subfolder"]}
    assert comfy.view(where) == comfy.view(file)


def test_a_range_is_answered_in_part(comfy: Comfy, file: Json) -> None:
    whole = comfy.view(file)
    answer = comfy.http.get("/view", params=file, headers={"Range": "bytes=4-11"})
    assert answer.status_code == 206
    assert answer.content == whole[4:12]
    assert answer.headers["content-range"] == f"bytes 4-11/{len(whole)}"


def test_a_range_beyond_the_end_is_416(comfy: Comfy, file: Json) -> None:
    answer = comfy.http.get("/view", params=file, headers={"Range": "bytes=99999999-"})
    assert answer.status_code == 416


def test_head_tells_the_length_alone(comfy: Comfy, file: Json) -> None:
    answer = comfy.http.head("/view", params=file)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(comfy.view(file))
    assert answer.content == b""


def test_a_missing_file_is_404(comfy: Comfy, file: Json) -> None:
    assert comfy.http.get("/view", params={**file, "filename": "x.png"}).status_code == 404
    assert comfy.http.get("/view", params={**file, "subfolder": "x"}).status_code == 404
    assert comfy.http.get("/view", params={**file, "type": "input"}).status_code == 404


def test_a_path_in_the_name_is_dropped_so_the_subfolder_must_be_passed(
    comfy: Comfy, file: Json
) -> None:
    path = {"filename": f"{file['subfolder']}/{file['filename']}"}
    assert comfy.http.get("/view", params=path).status_code == 404


@pytest.mark.parametrize("name", ["../x.png", "/etc/hostname", "a..b.png", ""])
def test_a_name_that_climbs_out_is_refused(comfy: Comfy, name: str) -> None:
    assert comfy.http.get("/view", params={"filename": name}).status_code == 400


def test_a_subfolder_that_climbs_out_is_forbidden(comfy: Comfy, file: Json) -> None:
    answer = comfy.http.get("/view", params={**file, "subfolder": "../.."})
    assert answer.status_code == 403


def test_an_unknown_type_is_refused(comfy: Comfy, file: Json) -> None:
    assert comfy.http.get("/view", params={**file, "type": "bogus"}).status_code == 400


def test_no_filename_at_all_is_404(comfy: Comfy) -> None:
    assert comfy.http.get("/view").status_code == 404


@pytest.mark.parametrize(("preview", "kind"), [("webp;80", "WEBP"), ("jpeg;50", "JPEG")])
def test_a_preview_is_encoded_anew(comfy: Comfy, file: Json, preview: str, kind: str) -> None:
    answer = comfy.http.get("/view", params={**file, "preview": preview})
    assert answer.status_code == 200
    with Image.open(BytesIO(answer.content)) as image:
        assert image.format == kind
        assert image.size == (64, 64)


def test_an_annotated_name_chooses_the_folder(comfy: Comfy, file: Json) -> None:
    where = {"filename": f"{file['filename']} [output]", "subfolder": file["subfolder"]}
    assert comfy.view({**where, "type": "input"}) == comfy.view(file)


def test_active_content_is_served_as_a_download(comfy: Comfy) -> None:
    files = {"image": ("page.html", b"<script>1</script>", "text/html")}
    fields = {"overwrite": "true", "subfolder": "conformance/html"}
    assert comfy.http.post("/upload/image", files=files, data=fields).status_code == 200
    where = {"filename": "page.html", "subfolder": "conformance/html", "type": "input"}
    answer = comfy.http.get("/view", params=where)
    assert answer.headers["content-type"] == "application/octet-stream"
    attached = answer.headers["content-disposition"].startswith("attachment")
    assert attached == (comfy.version >= (0, 27, 1))
