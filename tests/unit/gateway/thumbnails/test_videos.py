"""Videos: the frame at 0.1 s, turned as it is to be seen, from what may be anything."""

import socket
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from gateway.thumbnails import film
from gateway.thumbnails.kinds import HEAD, media_type_of
from gateway.thumbnails.order import Looked, MediaLimits
from gateway.thumbnails.unfit import UnfitMedia
from tests.support import media

UPRIGHT = ("red", "green", "blue", "grey")
EVERY = [
    ("a.mp4", "libx264", "video/mp4"),
    ("a.mp4", "libx265", "video/mp4"),
    ("a.mp4", "libsvtav1", "video/mp4"),
    ("a.mp4", "mpeg4", "video/mp4"),
    ("a.mov", "libx264", "video/quicktime"),
    ("a.webm", "libvpx", "video/webm"),
    ("a.webm", "libvpx-vp9", "video/webm"),
    ("a.mkv", "libx264", "video/x-matroska"),
]


def read(
    path: Path, side: int | None = 100, limits: MediaLimits | None = None
) -> tuple[Looked, Image.Image]:
    with path.open("rb") as file:
        kind = media_type_of(file.read(HEAD))
        file.seek(0)
        looked, small = film.read(file, kind, side=side, limits=limits or MediaLimits())
    return looked, small or Image.new("1", (0, 0))


def refusal(path: Path, **limits: float) -> str:
    with pytest.raises(UnfitMedia) as caught:
        read(path, limits=MediaLimits(**limits))
    return caught.value.code


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "codec", "kind"), EVERY)
def test_a_video_is_seen_and_measured(tmp_path: Path, name: str, codec: str, kind: str) -> None:
    looked, small = read(media.video(tmp_path / name, codec, frames=3))
    assert (looked.media_type, looked.width, looked.height) == (kind, 400, 200)
    assert looked.duration_s == pytest.approx(3 / 24, abs=0.05)
    assert small.size == (100, 50)
    assert media.corners(small) == UPRIGHT
    assert looked.frames in {3, None}


def test_it_is_the_frame_that_is_seen_at_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        # one frame each twentieth of a second, ten shades brighter each
        for n in range(10):
            shade = np.full((64, 64, 3), 20 * n, dtype=np.uint8)
            container.mux(stream.encode(VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode(None))
    shown = read(path)[1].getpixel((30, 30))
    assert isinstance(shown, tuple)
    assert shown[0] == pytest.approx(40, abs=4)


def test_of_a_shorter_video_it_is_the_last_frame(tmp_path: Path) -> None:
    _, small = read(media.video(tmp_path / "a.mp4", frames=2))
    # the first one is black
    assert media.corners(small) == UPRIGHT


def test_a_video_of_one_frame_has_that_one(tmp_path: Path) -> None:
    looked, small = read(media.video(tmp_path / "a.mp4", frames=1))
    assert (looked.frames, small.getpixel((5, 5))) == (1, (0, 0, 0))


MATRICES = {
    (1, 0, 0, 1): (100, 50, UPRIGHT),
    (0, 1, -1, 0): (50, 100, ("blue", "red", "grey", "green")),
    (-1, 0, 0, -1): (100, 50, ("grey", "blue", "green", "red")),
    (0, -1, 1, 0): (50, 100, ("green", "grey", "red", "blue")),
    (-1, 0, 0, 1): (100, 50, ("green", "red", "grey", "blue")),
    (1, 0, 0, -1): (100, 50, ("blue", "grey", "red", "green")),
    (0, 1, 1, 0): (50, 100, ("red", "blue", "green", "grey")),
    (0, -1, -1, 0): (50, 100, ("grey", "green", "blue", "red")),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_video_is_turned_as_it_was_held(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    plain = media.video(tmp_path / "a.mp4", frames=3).read_bytes()
    looked, small = read(written(tmp_path / "b.mp4", media.with_matrix(plain, *matrix)))
    width, height, colours = MATRICES[matrix]
    assert small.size == (width, height)
    assert (looked.width, looked.height) == (width * 4, height * 4)
    assert media.corners(small) == colours


def test_a_video_that_is_slanted_is_shown_straight(tmp_path: Path) -> None:
    plain = media.video(tmp_path / "a.mp4", frames=3).read_bytes()
    slanted = written(tmp_path / "b.mp4", media.with_matrix(plain, 1, 1, -1, 1))
    assert media.corners(read(slanted)[1]) == UPRIGHT


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    looked, small = read(media.video(tmp_path / "a.mp4", frames=3, squeezed=Fraction(2)))
    assert (looked.width, looked.height) == (800, 200)
    assert small.size == (100, 25)


def test_a_small_video_is_not_enlarged(tmp_path: Path) -> None:
    assert read(media.video(tmp_path / "a.mp4", frames=3), side=1024)[1].size == (400, 200)


def test_a_video_that_never_says_how_long_it_is_is_taken(tmp_path: Path) -> None:
    # as browsers record them
    path = tmp_path / "a.webm"
    media.video(path, "libvpx", frames=3, options={"live": "1"})
    looked, small = read(path)
    assert (looked.duration_s, looked.frames) == (None, None)
    assert media.corners(small) == UPRIGHT


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mov", "mpeg4", {}),
        ("a.webm", "libvpx", {}),
        ("a.mkv", "libx264", {}),
    ],
)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_video_that_was_cut_off_is_refused(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], part: float
) -> None:
    data = media.video(tmp_path / name, codec, options=options).read_bytes()
    cut = written(tmp_path / f"cut-{name}", data[: int(len(data) * part)])
    assert refusal(cut) == "unreadable_video"


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    assert refusal(path) == "unreadable_video"


def test_sound_is_no_video(tmp_path: Path) -> None:
    assert refusal(media.sound(tmp_path / "a.mp4")) == "no_picture"


def test_a_format_nobody_asked_for_is_not_decoded(tmp_path: Path) -> None:
    assert refusal(media.video(tmp_path / "a.mkv", "ffv1")) == "unreadable_video"


def test_a_video_too_large_or_too_long_is_refused(tmp_path: Path) -> None:
    path = media.video(tmp_path / "a.mp4", frames=3)
    assert refusal(path, video_side=399) == "too_large"
    assert refusal(path, video_pixels=79_999) == "too_large"
    assert refusal(path, video_seconds=0.1) == "too_large"
    assert read(path, limits=MediaLimits(video_side=400, video_pixels=80_000))[0].width == 400


def test_a_video_that_says_it_lasts_for_years_is_refused(tmp_path: Path) -> None:
    path = media.video(tmp_path / "a.mp4", frames=3, options={"use_editlist": "0"})
    data = bytearray(path.read_bytes())
    # of the film, of its track, and how long each frame is shown
    for box, at in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16), (b"stts", 12)):
        place = data.index(box) + 4 + at
        data[place : place + 4] = b"\x3f\xff\xff\xff"
    assert refusal(written(tmp_path / "b.mp4", bytes(data))) == "too_large"


@pytest.mark.parametrize("seed", range(12))
def test_damage_anywhere_is_a_refusal_or_a_picture_and_nothing_else(
    tmp_path: Path, seed: int
) -> None:
    name, codec, _ = EVERY[seed % len(EVERY)]
    data = bytearray(media.video(tmp_path / name, codec, frames=3).read_bytes())
    chance = np.random.default_rng(seed)
    for at in chance.integers(HEAD, len(data), 20):
        data[at] = chance.integers(256)
    try:
        looked, _ = read(written(tmp_path / f"b-{name}", bytes(data)))
    except UnfitMedia:
        return
    assert looked.width > 0


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/x.mp4", "secret.mp4"])
def test_media_that_a_video_says_lie_elsewhere_are_not_looked_for(
    tmp_path: Path, target: str
) -> None:
    media.video(tmp_path / "secret.mp4", frames=3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = target.format(port=listener.getsockname()[1]).encode() + b"\0"
        data = media.video(tmp_path / "a.mp4", frames=3, options={"movflags": "faststart"})
        hostile = written(tmp_path / "b.mp4", _elsewhere(data.read_bytes(), address))
        with pytest.raises(UnfitMedia):
            read(hostile)
        with pytest.raises(BlockingIOError):
            listener.accept()


def _elsewhere(movie: bytes, address: bytes) -> bytes:
    """The same film, its samples said to lie at an address, and none of them in it."""
    at = movie.index(b"url \x00\x00\x00\x01") - 4
    reference = struct.pack(">I4sI", 12 + len(address), b"url ", 0) + address
    grown = bytearray(movie[:at] + reference + movie[at + 12 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = grown.index(box) - 4
        (size,) = struct.unpack_from(">I", grown, place)
        struct.pack_into(">I", grown, place, size + len(reference) - 12)
    return bytes(grown[: grown.index(b"mdat") - 4])


@pytest.mark.parametrize(
    "inside",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile {address}\n",
        b"<?xml version='1.0'?><MPD><BaseURL>{address}</BaseURL></MPD>",
        b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("head", [b"\x00\x00\x00\x18ftypisom", b"\x1aE\xdf\xa3"])
def test_a_playlist_behind_the_first_bytes_of_a_video_leads_nowhere(
    tmp_path: Path, head: bytes, inside: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/".encode()
        path = written(tmp_path / "a.mp4", head + inside.replace(b"{address}", address))
        assert refusal(path) == "unreadable_video"
        with pytest.raises(BlockingIOError):
            listener.accept()
