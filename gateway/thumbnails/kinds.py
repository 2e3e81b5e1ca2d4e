"""What a file is, by its first bytes alone: names and what senders say prove nothing."""

from gateway.thumbnails.unfit import UnfitMedia

HEAD = 64
"""Bytes that are looked at."""

_PICTURES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
)
_IMAGE_BRANDS = frozenset(
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
)
# a demuxer each, named: left to find one by itself, ffmpeg also takes playlists, which name others
DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
}
_WANTED = "must be a picture (PNG, JPEG, WebP or GIF) or a video (MP4, MOV or WebM)"


def media_type_of(head: bytes) -> str:
    """Name the media type; raises UnfitMedia for what is neither picture nor video."""
    for at, signature, media_type in _PICTURES:
        if head[at : at + len(signature)] == signature:
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        return _by_brand(head[8:12])
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/x-matroska" if b"matroska" in head else "video/webm"
    raise UnfitMedia("wrong_kind", _WANTED)


def _by_brand(brand: bytes) -> str:
    if brand in _IMAGE_BRANDS:
        message = "is a HEIC or AVIF picture: save it as PNG, JPEG or WebP"
        raise UnfitMedia("wrong_kind", message)
    return "video/quicktime" if brand == b"qt  " else "video/mp4"


def has_thumbnail(media_type: str) -> bool:
    """Whether a file of that type may have a thumbnail."""
    return media_type in DEMUXERS or media_type in {
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
    }
