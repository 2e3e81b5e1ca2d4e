"""What a video or mesh really is, by its first bytes: what its sender calls it proves nothing."""

_SIGNATURES = (
    (4, b"ftypqt  ", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"glTF", "model/gltf-binary"),
)
_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})


def media_type_of(data: bytes) -> str | None:
    """Name the media type; None when it is none that a tool reads."""
    if data[4:8] == b"ftyp" and data[8:12] in _IMAGE_BRANDS:
        return None
    for at, signature, media_type in _SIGNATURES:
        if data[at : at + len(signature)] == signature:
            return media_type
    return None
