"""Video and sound lose their tags and keep every frame."""

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from gpu_server.finish.containers import probed, remuxed
from gpu_server.finish.facts import Facts, Unreadable

SECRET = "a prompt nobody else may read"
FRAMES = 33
RATE = 16
SECONDS = FRAMES / RATE
SOUND_RATE = 48_000
SOUND_CODECS = {"aac", "flac", "libopus", "libmp3lame", "pcm_s16le"}


def encode_video(container: OutputContainer, stream: VideoStream) -> None:
    for n in range(FRAMES):
        pixels = np.full((96, 128, 3), n * 7, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())


def encode_sound(container: OutputContainer, stream: AudioStream) -> None:
    wave = (np.sin(np.arange(SOUND_RATE) * 0.05) * 8000).astype(np.int16)
    for at in range(0, len(wave), 960):
        part = np.ascontiguousarray(wave[None, at : at + 960])
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
        frame.sample_rate, frame.pts = SOUND_RATE, at
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def written(path: Path, *codecs: str, **tags: str) -> Path:
    """As ComfyUI's nodes write it: prompt and workflow are tags of the container."""
    flags = {"movflags": "use_metadata_tags"} if path.suffix in {".mp4", ".mov"} else {}
    with av.open(str(path), "w", options=flags) as container:
        container.metadata.update({"prompt": SECRET, "workflow": SECRET, "comment": SECRET} | tags)
        streams: list[Any] = []
        for codec in codecs:
            sound = codec in SOUND_CODECS
            streams.append(container.add_stream(codec, rate=SOUND_RATE if sound else RATE))
            if not sound:
                streams[-1].width, streams[-1].height = 128, 96
                streams[-1].pix_fmt = "yuv420p"
        for stream in streams:
            if isinstance(stream, VideoStream):
                encode_video(container, stream)
            else:
                encode_sound(container, stream)
    return path


def decoded(path: Path) -> list[list[bytes]]:
    found: list[list[bytes]] = []
    with av.open(str(path)) as container:
        for stream in container.streams:
            container.seek(0)
            found.append([bytes(f.to_ndarray()) for f in container.decode(stream)])
    return found


VIDEOS = [
    ("a.mp4", ("libx264",), "video/mp4"),
    ("a.mp4", ("libx264", "aac"), "video/mp4"),
    ("a.mov", ("libx264",), "video/quicktime"),
    ("a.webm", ("libvpx-vp9",), "video/webm"),
    ("a.webm", ("libsvtav1", "libopus"), "video/webm"),
    ("a.mkv", ("libx264", "aac"), "video/x-matroska"),
]
SOUNDS = [
    ("a.flac", ("flac",), "audio/flac"),
    ("a.opus", ("libopus",), "audio/ogg"),
    ("a.mp3", ("libmp3lame",), "audio/mpeg"),
    ("a.wav", ("pcm_s16le",), "audio/wav"),
]


@pytest.mark.parametrize(
    ("name", "codecs", "media_type"),
    VIDEOS + SOUNDS,
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)
def test_nothing_is_lost_but_the_tags(
    tmp_path: Path, name: str, codecs: tuple[str, ...], media_type: str
) -> None:
    before, after = written(tmp_path / name, *codecs), tmp_path / f"made-{name}"
    remuxed(before, after, media_type)
    assert SECRET.encode() not in after.read_bytes()
    assert decoded(after) == decoded(before)
    with av.open(str(before)) as one, av.open(str(after)) as other:
        assert [s.codec.name for s in other.streams] == [s.codec.name for s in one.streams]
        rates = [[s.average_rate for s in c.streams.video] for c in (one, other)]
        assert rates[0] == rates[1]


@pytest.mark.parametrize(("name", "codecs", "media_type"), VIDEOS)
def test_size_frames_and_duration_are_told(
    tmp_path: Path, name: str, codecs: tuple[str, ...], media_type: str
) -> None:
    before, after = written(tmp_path / name, *codecs), tmp_path / f"made-{name}"
    for facts in (remuxed(before, after, media_type), probed(before), probed(after)):
        assert (facts.width, facts.height, facts.frames, facts.faces) == (128, 96, FRAMES, None)
        assert facts.duration_s == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.parametrize(("name", "codecs", "media_type"), SOUNDS)
def test_sound_has_a_duration_and_no_size(
    tmp_path: Path, name: str, codecs: tuple[str, ...], media_type: str
) -> None:
    facts = remuxed(written(tmp_path / name, *codecs), tmp_path / "made", media_type)
    assert facts == Facts(duration_s=facts.duration_s)
    assert facts.duration_s == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("name", "codecs", "media_type"), VIDEOS)
def test_only_the_simulators_mark_survives(
    tmp_path: Path, name: str, codecs: tuple[str, ...], media_type: str
) -> None:
    before, after = written(tmp_path / name, *codecs, engine="simulator"), tmp_path / "made"
    remuxed(before, after, media_type)
    with av.open(str(after)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert tags["engine"] == "simulator"
    assert not {"prompt", "workflow", "comment"} & tags.keys()


def test_an_mp4_can_be_played_while_it_loads(tmp_path: Path) -> None:
    after = tmp_path / "made"
    remuxed(written(tmp_path / "a.mp4", "libx264"), after, "video/mp4")
    made = after.read_bytes()
    assert made.index(b"moov") < made.index(b"mdat")


def test_the_same_file_is_made_whenever_it_is_made(tmp_path: Path) -> None:
    before = written(tmp_path / "a.webm", "libvpx-vp9")
    for name in ("one", "other"):
        remuxed(before, tmp_path / name, "video/webm")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"nothing of the kind" * 50, b"\0\0\0\x20ftypisom" + bytes(999)]
)
def test_what_is_no_video_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    before = tmp_path / "a.mp4"
    before.write_bytes(content)
    with pytest.raises(Unreadable, match="can't be read"):
        remuxed(before, tmp_path / "made", "video/mp4")
    with pytest.raises(Unreadable):
        probed(before)


def test_a_truncated_video_is_said_to_be_unreadable(tmp_path: Path) -> None:
    before = written(tmp_path / "a.mp4", "libx264")
    before.write_bytes(before.read_bytes()[:-400])
    with pytest.raises(Unreadable):
        remuxed(before, tmp_path / "made", "video/mp4")


@pytest.mark.parametrize(("name", "codecs", "media_type"), [VIDEOS[0], VIDEOS[3], SOUNDS[0]])
def test_a_full_disk_is_not_the_files_fault(
    tmp_path: Path, name: str, codecs: tuple[str, ...], media_type: str
) -> None:
    before = written(tmp_path / name, *codecs)
    with pytest.raises(OSError, match="No space left") as caught:
        remuxed(before, Path("/dev/full"), media_type)
    assert caught.value.errno == errno.ENOSPC
    remuxed(before, tmp_path / "made", media_type)


def test_a_webm_that_breaks_off_is_not_the_disks_fault(tmp_path: Path) -> None:
    # FFmpeg says EIO of it
    before = written(tmp_path / "a.webm", "libvpx-vp9")
    content = before.read_bytes()
    before.write_bytes(content[: content.index(b"\x1a\x45\xdf\xa3") + 60])
    with pytest.raises(Unreadable):
        remuxed(before, tmp_path / "made", "video/webm")


def test_rate_survives_as_a_fraction(tmp_path: Path) -> None:
    after = tmp_path / "made"
    remuxed(written(tmp_path / "a.mp4", "libx264"), after, "video/mp4")
    with av.open(str(after)) as container:
        assert container.streams.video[0].average_rate == Fraction(RATE)
