"""Videos: real files, frames that move, the mark on each of them."""

from io import BytesIO
from itertools import pairwise

import av
import numpy as np
import pytest

from .client import Graph, Simulator, node
from .scenes import Pixels, bundled, mark_error, plain, titled, uploaded

LOSS = 25
"""Mean error that encoding makes at the hard edges of the mark."""


def decoded(content: bytes) -> tuple[list[Pixels], float, dict[str, str]]:
    with av.open(BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate is not None
        return frames, float(stream.average_rate), dict(container.metadata)


def small(name: str = "video-wan2.1-480p", **inputs: object) -> Graph:
    return bundled(
        name, **{"image": "start.png", "width": 320, "height": 256, "length": 9, **inputs}
    )


@pytest.mark.parametrize(
    ("name", "fps"), [("video-wan2.1-480p", 16), ("video-wan2.2-14b", 16), ("video-wan2.2-5b", 24)]
)
def test_a_video_has_the_frames_size_and_rate_asked_for(
    sim: Simulator, name: str, fps: float
) -> None:
    uploaded(sim, start=plain())
    graph = bundled(name, image="start.png", length=33)
    frames, rate, texts = decoded(sim.output(graph))
    assert len(frames) == 33
    assert {frame.shape for frame in frames} == {(480, 832, 3)}
    assert rate == fps
    assert texts["engine"] == "simulator"


def test_a_video_is_shown_under_images_as_animated(sim: Simulator) -> None:
    uploaded(sim, start=plain())
    graph = small()
    entry = sim.run(graph)
    (shown,) = entry["outputs"].values()
    assert shown["animated"] == [True]
    (file,) = shown["images"]
    assert file["filename"].endswith(".mp4")
    assert file["subfolder"] == "video"


def test_every_frame_carries_the_mark_and_differs_from_the_one_before(sim: Simulator) -> None:
    uploaded(sim, start=plain())
    frames, _, _ = decoded(sim.output(small()))
    assert max(mark_error(frame) for frame in frames) < LOSS
    changes = [np.abs(one.astype(int) - other).mean() for one, other in pairwise(frames)]
    assert min(changes) > 0.5


def test_a_video_begins_with_its_picture_and_depends_on_it(sim: Simulator) -> None:
    uploaded(sim, start=plain())
    frames, _, _ = decoded(sim.output(small()))
    # 320 by 240 fills 320 by 256 when its sides are cut: the red square stays in the middle.
    assert np.abs(frames[0][128, 160].astype(int) - (200, 40, 30)).max() < 20
    assert np.abs(frames[0][20, 160].astype(int) - 230).max() < 20
    other = small()
    titled(other, "Sampler")["seed"] = 99
    others, _, _ = decoded(sim.output(other))
    assert np.abs(frames[0].astype(int) - others[0])[:200].mean() < 3
    assert np.abs(frames[-1].astype(int) - others[-1]).mean() > 3


@pytest.mark.parametrize(("length", "frames"), [(1, 1), (8, 5), (10, 9)])
def test_a_length_is_cut_to_one_more_than_a_multiple_of_4(
    sim: Simulator, length: int, frames: int
) -> None:
    uploaded(sim, start=plain())
    assert len(decoded(sim.output(small(length=length)))[0]) == frames


@pytest.mark.parametrize(
    ("changes", "suffix", "codec"),
    [
        ({"format": "auto"}, "mp4", "h264"),
        ({"format": "mkv"}, "mkv", "h264"),
        ({"format": "webm"}, "webm", "av1"),
        ({"format": "mp4", "codec": "av1"}, "mp4", "av1"),
        ({"format": "mp4", "format.codec": "av1", "codec": "auto"}, "mp4", "av1"),
        ({"format": "webm", "format.codec": "auto", "codec": "h264"}, "webm", "av1"),
    ],
)
def test_a_video_is_saved_in_the_container_asked_for(
    sim: Simulator, changes: dict[str, str], suffix: str, codec: str
) -> None:
    graph = {
        "1": node("EmptyImage", width=64, height=48, batch_size=3, color=0x804020),
        "2": node("CreateVideo", images=["1", 0], fps=12.0),
        "3": node("SaveVideo", video=["2", 0], filename_prefix="test/v", **changes),
    }
    ((name, content),) = sim.outputs(graph)
    assert name.endswith(suffix)
    with av.open(BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == codec
        assert len(list(container.decode(stream))) == 3


def test_frames_can_be_saved_as_webm(sim: Simulator) -> None:
    graph = {
        "1": node("EmptyImage", width=64, height=48, batch_size=3, color=0x3070A0),
        "2": node(
            "SaveWEBM", images=["1", 0], filename_prefix="test/w", codec="vp9", fps=6.0, crf=32.0
        ),
    }
    frames, rate, _ = decoded(sim.output(graph))
    assert (len(frames), rate) == (3, 6)
    assert np.abs(frames[0].astype(int) - (0x30, 0x70, 0xA0)).max() < 12


def test_a_picture_with_odd_sides_loses_its_last_row_and_column(sim: Simulator) -> None:
    graph = {
        "1": node("EmptyImage", width=65, height=49, batch_size=2, color=0),
        "2": node("CreateVideo", images=["1", 0], fps=12.0),
        "3": node("SaveVideo", video=["2", 0], filename_prefix="test/odd", format="auto"),
    }
    frames, _, _ = decoded(sim.output(graph))
    assert frames[0].shape == (48, 64, 3)


def test_a_video_can_have_ten_bits(sim: Simulator) -> None:
    graph = {
        "1": node("EmptyImage", width=64, height=48, batch_size=2, color=0x808080),
        "2": node("CreateVideo", images=["1", 0], fps=12.0, bit_depth=10),
        "3": node("SaveVideo", video=["2", 0], filename_prefix="test/deep", format="auto"),
    }
    with av.open(BytesIO(sim.output(graph))) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
        assert len(list(container.decode(video=0))) == 2
