"""Writing video files with PyAV, frame by frame."""

# PyAV's own stubs leave the type parameters of packets and streams open.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream

from gpu_server.simulator.values import Image, Video

_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "23"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "35", "svtav1-params": "lp=2"},
}
_DEEP = 10
_FINEST_RATE = 1000
"""Frame rates are kept to a thousandth of a frame."""


def write(
    path: Path, video: Video, encoder: str, texts: Mapping[str, str], crf: float | None = None
) -> None:
    """Encode a video; the ending of the path says in which container."""
    rate = Fraction(round(video.fps * _FINEST_RATE), _FINEST_RATE)
    options = _OPTIONS[encoder] | ({} if crf is None else {"crf": f"{crf:g}"})
    # mp4 drops texts under names of its own making unless it is told to keep them.
    flags = {"movflags": "use_metadata_tags+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=flags) as container:
        container.metadata.update(texts)
        stream = container.add_stream(encoder, rate=rate, options=options)
        if not isinstance(stream, VideoStream):
            raise TypeError(f"{encoder} encodes no video")
        # Colour is stored for 2 by 2 pixels, so both sides must be even.
        stream.height, stream.width = (side // 2 * 2 for side in video.images.shape[1:3])
        stream.pix_fmt = "yuv420p10le" if video.bit_depth == _DEEP else "yuv420p"
        for picture in video.images:
            container.mux(stream.encode(_frame(picture, stream.width, stream.height)))
        container.mux(stream.encode())


def _frame(picture: Image, width: int, height: int) -> av.VideoFrame:
    pixels = picture[:height, :width, :3]
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")
