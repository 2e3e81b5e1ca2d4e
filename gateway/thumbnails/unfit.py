"""What can be wrong with a picture or video, with codes a caller may rely on."""

from typing import Literal

UnfitCode = Literal[
    "animated_image",
    "no_picture",
    "too_large",
    "unreadable_image",
    "unreadable_video",
    "wrong_kind",
]


class UnfitMedia(Exception):
    """A file that is no picture or video that can be shown; the message goes behind a name."""

    def __init__(self, code: UnfitCode, message: str) -> None:
        super().__init__(message)
        self.code: UnfitCode = code
        self.message = message


def damaged(media_type: str) -> UnfitMedia:
    """A file of a known type that its decoder gives up on."""
    code: UnfitCode = "unreadable_video" if media_type.startswith("video/") else "unreadable_image"
    return UnfitMedia(code, "is damaged or cut off: save it anew and send it again")


def too_many_pixels(width: int, height: int, most: int) -> UnfitMedia:
    """A file that unfolds to more than is decoded."""
    return UnfitMedia(
        "too_large", f"has {width}x{height} pixels: at most {most // 1_000_000} megapixels"
    )


def too_long_a_side(width: int, height: int, most: int) -> UnfitMedia:
    """A file whose picture is wider or higher than is decoded."""
    return UnfitMedia("too_large", f"is {width}x{height} pixels: at most {most} on each side")


def too_costly() -> UnfitMedia:
    """A file that took all the time or memory there was for it."""
    return UnfitMedia("too_large", "takes too much time or memory to read: send a smaller one")
