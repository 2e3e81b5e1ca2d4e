"""Styles: what `styleId` stands for, and those that every installation has.

The bundled ones are never written to the database: they are there unless a row of their id says
otherwise (a changed one, or one that was removed). So there is nothing to seed: replicas that start
at once cannot get in each other's way, what somebody removed does not come back with the next
start, and a better wording of a later version arrives where nobody has changed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol

from pydantic import Field

from gateway.errors import FieldError, InvalidParameters
from gateway.job import Source
from gateway.media import MAX_PROMPT
from gateway.pictures import Picture
from gateway.templates import TooLong, fill

STYLE_IMAGE = "style_image"
"""The file parameter of a workflow that takes a style's reference picture."""
MOST_NAMED = 50
"""Most styles an error names."""

SLUG = r"^[a-z0-9]+(-[a-z0-9]+)*$"
StyleId = Annotated[str, Field(min_length=1, max_length=64, pattern=SLUG)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A look that a picture or a model can be asked for."""

    id: str
    name: str
    prompt: str
    """Has `{prompt}` where the caller's own goes."""
    image: Picture | None = None
    created_at: datetime | None = None
    """None = bundled, as it came."""
    updated_at: datetime | None = None


class StyleBook(Protocol):
    """Who knows the styles."""

    async def get(self, style_id: str, /) -> Style | None:
        """Look up a style."""
        ...

    async def list(
        self, cursor: str | None = None, limit: int = ...
    ) -> tuple[Sequence[Style], str | None]:
        """One page in order of their ids, and the cursor of the next one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Styled:
    """A prompt in a style."""

    text: str
    """What the model is told."""
    reference: Source | None
    """The style's picture, for a workflow that has a file parameter named `style_image`."""


async def styled(styles: StyleBook, style_id: str, prompt: str) -> Styled:
    """Put a prompt into a style.

    A tool has nothing to do for it: parameters derived from `gateway.tool.StyledParams` have
    `styleId`, and submission calls this, sends `text` as `prompt` and keeps reporting the caller's
    own. Raises InvalidParameters for `styleId`: unknown (it names the known ones), or together with
    the prompt longer than a prompt may be.
    """
    style = await styles.get(style_id)
    if style is None:
        known, more = await styles.list(None, MOST_NAMED)
        named = ", ".join(one.id for one in known) + (" or another one" if more else "")
        raise _refused("unknown_style", f"use one of {named} (GET /api/styles lists them)")
    try:
        text = fill(style.prompt, {"prompt": prompt})
    except TooLong:
        message = f"makes the prompt too long: at most {MAX_PROMPT} characters together"
        raise _refused("string_too_long", message) from None
    return Styled(text=text, reference=style.image.source() if style.image else None)


def _refused(code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field="styleId", code=code, message=message)])


BUNDLED: Mapping[str, Style] = {
    style_id: Style(id=style_id, name=name, prompt=prompt)
    for style_id, name, prompt in (
        (
            "cartoon",
            "Cartoon",
            "{prompt}. Style: a cartoon with simple shapes, bold outlines and flat colours",
        ),
        (
            "clay",
            "Clay model",
            "{prompt}. Style: an unpainted clay model, matte grey, soft shadows",
        ),
        (
            "figurine",
            "Vinyl figurine",
            "{prompt}. Style: a painted vinyl figurine with smooth surfaces and rounded edges",
        ),
        (
            "line-art",
            "Line art",
            "{prompt}. Style: a black line drawing on white, without shading",
        ),
        (
            "low-poly",
            "Low poly",
            "{prompt}. Style: a low-poly model with large flat faces and few colours",
        ),
        (
            "oil-painting",
            "Oil painting",
            "{prompt}. Style: an oil painting on canvas, visible brush strokes, warm light",
        ),
        (
            "photo",
            "Studio photograph",
            "{prompt}. Style: a studio photograph, soft light, fine detail",
        ),
        (
            "product",
            "Product render",
            "{prompt}. Style: a clean product render, neutral materials, studio light",
        ),
        (
            "watercolor",
            "Watercolour",
            "{prompt}. Style: a watercolour on white paper, soft edges, light washes",
        ),
    )
}
