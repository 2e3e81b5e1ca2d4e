import pytest

from gateway.sniffing import media_type_of


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\0\0\0\x18ftypisom", "video/mp4"),
        (b"\0\0\0\x18ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x18ftypavif", None),
        (b"\0\0\0\x18ftypheic", None),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "video/webm"),
        (b"glTF\x02\0\0\0", "model/gltf-binary"),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"%PDF-1.7", None),
        (b"", None),
    ],
)
def test_videos_and_meshes_are_told_from_everything_else(
    data: bytes, media_type: str | None
) -> None:
    assert media_type_of(data) == media_type
