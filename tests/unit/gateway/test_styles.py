import re
from collections.abc import Sequence

import pytest

from gateway.errors import InvalidParameters
from gateway.media import MAX_PROMPT
from gateway.pictures import Picture
from gateway.styles import BUNDLED, SLUG, Style, styled
from gateway.templates import variables_in

PICTURE = Picture(key="styles/x/a.png", media_type="image/png", bytes=5, sha256="a" * 64)
INK = Style(id="ink", name="Ink", prompt="ink drawing of {prompt}, {{flat}}", image=PICTURE)


class Book:
    def __init__(self, *styles: Style) -> None:
        self.styles = {style.id: style for style in styles}

    async def get(self, style_id: str, /) -> Style | None:
        return self.styles.get(style_id)

    async def list(
        self, cursor: str | None = None, limit: int = 50
    ) -> tuple[Sequence[Style], str | None]:
        assert cursor is None
        every = list(self.styles.values())
        return every[:limit], "more" if len(every) > limit else None


async def test_the_prompt_goes_where_the_style_says() -> None:
    made = await styled(Book(INK), "ink", "a {braced} fox")
    assert made.text == "ink drawing of a {braced} fox, {flat}"


async def test_the_reference_is_a_file_that_outlives_the_job() -> None:
    reference = (await styled(Book(INK), "ink", "a fox")).reference
    assert reference is not None
    assert (reference.key, reference.media_type, reference.stored) == (
        PICTURE.key,
        "image/png",
        False,
    )
    assert (await styled(Book(*BUNDLED.values()), "clay", "a fox")).reference is None


async def test_an_unknown_style_names_the_known_ones() -> None:
    with pytest.raises(InvalidParameters) as caught:
        await styled(Book(INK, *BUNDLED.values()), "inc", "a fox")
    (error,) = caught.value.errors
    assert (error.field, error.code) == ("styleId", "unknown_style")
    for known in ("ink", *BUNDLED):
        assert known in error.message


async def test_a_prompt_too_long_with_its_style_is_refused() -> None:
    with pytest.raises(InvalidParameters) as caught:
        await styled(Book(INK), "ink", "x" * MAX_PROMPT)
    (error,) = caught.value.errors
    assert (error.field, error.code) == ("styleId", "string_too_long")


@pytest.mark.parametrize("style", BUNDLED.values(), ids=lambda style: style.id)
def test_every_bundled_style_is_one_that_could_be_sent(style: Style) -> None:
    assert re.fullmatch(SLUG, style.id)
    assert BUNDLED[style.id] is style
    assert variables_in(style.prompt) == ("prompt",)
    assert 0 < len(style.name) <= 200
