from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from gateway.media import (
    MAX_ADDRESS,
    ImageUrl,
    MaskUrl,
    MediaField,
    MediaInput,
    MediaUrl,
    VideoUrl,
    media_fields,
)
from gateway.tool import ToolParams, body_of
from tests.support.reading import INVERT


class Params(ToolParams):
    image_url: ImageUrl = Field(description="The picture.")
    mask_url: MaskUrl | None = None
    clip: Annotated[MediaUrl, MediaInput("video")] | None = None
    face_images: Annotated[tuple[ImageUrl, ...], Field(min_length=1, max_length=5)] = ()
    clips: list[VideoUrl] | None = Field(default=None, max_length=3)
    prompt: str = Field(default="", max_length=100)


class One(BaseModel):
    address: MediaUrl


def refusal(address: str) -> str:
    with pytest.raises(ValidationError) as caught:
        One(address=address)
    return caught.value.errors()[0]["type"]


def test_a_class_of_parameters_says_which_of_them_are_files() -> None:
    assert media_fields(Params) == {
        "image_url": MediaField(kind="image", most=1),
        "mask_url": MediaField(kind="mask", most=1),
        "clip": MediaField(kind="video", most=1),
        "face_images": MediaField(kind="image", most=5),
        "clips": MediaField(kind="video", most=3),
    }


def test_the_body_of_a_call_has_the_same_files_as_its_parameters() -> None:
    assert media_fields(body_of(INVERT)) == media_fields(INVERT.params)
    assert media_fields(ToolParams) == {}


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/a.png?x=1#y",
        "HTTP://example.com/a.png",
        "r2://bucket/key",
        "s3://bucket/key.png",
        "gs://bucket/key",
        "local://files/generated/2026/01/01/x/y.png",
        "/api/images/abc.png?expires=1&signature=x",
        "data:image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
    ],
)
def test_an_address_that_may_lead_to_a_file_is_taken_as_it_is(address: str) -> None:
    assert One(address=address).address == address


@pytest.mark.parametrize(
    "address",
    [
        "file:/etc/passwd",
        "ftp://example.com/a.png",
        "//example.com/a.png",
        "images/a.png",
        "https://",
        "https://exa mple.com/a.png",
        "https://example.com/a\n.png",
        "javascript:alert(1)",
        "C:\\a.png",
        " https://example.com/a.png",
    ],
)
def test_what_is_no_address_of_a_file_is_refused(address: str) -> None:
    assert refusal(address) == "not_a_file_address"


def test_only_what_is_inside_the_call_may_be_long() -> None:
    long = "x" * MAX_ADDRESS
    assert refusal(f"https://example.com/{long}") == "address_too_long"
    assert One(address=f"data:image/png;base64,{long}")
    assert refusal("") == "string_too_short"


def test_the_documentation_shows_what_an_address_may_be() -> None:
    schema = Params.model_json_schema()["properties"]
    assert schema["image_url"]["description"] == "The picture."
    assert schema["image_url"]["format"] == "uri-reference"
    assert any(example.startswith("/api/") for example in schema["image_url"]["examples"])
    assert schema["face_images"]["maxItems"] == 5
    assert "data:" in schema["face_images"]["items"]["description"]
