"""Videos: what they say of themselves, and the frame at a tenth of a second."""

import math
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, NoReturn, cast

import av
import av.logging

# PyAV would import it when it meets the first stream: by then nothing can be opened any more
import av.subtitles.stream  # pyright: ignore[reportUnusedImport]
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import SideData, Type
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from gateway.thumbnails.kinds import DEMUXERS
from gateway.thumbnails.order import Looked, MediaLimits
from gateway.thumbnails.unfit import UnfitMedia, damaged, too_long_a_side, too_many_pixels

_AT_S = 0.1
_MOST_FRAMES = 500
"""Decoded to come to that time: none has so many that early, unless it is made to be slow."""
_DECODERS = frozenset(
    {"av1", "h264", "hevc", "libaom-av1", "libdav1d", "libvpx-vp9", "mjpeg", "mpeg4", "prores"}
    | {"vp8", "vp9"}
)
_OPTIONS = {
    # the file is all there is: what it names beside itself is not looked for
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "protocol_whitelist": "",
    # ffmpeg decodes a little to find out what a stream is, before it is asked to
    "codec_whitelist": ",".join(sorted(_DECODERS)),
}
_TURNS = {
    # signs of a, b, c, d of the display matrix: (x, y) becomes (a·x + c·y, b·x + d·y)
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = frozenset(turn for signs, turn in _TURNS.items() if signs[0] == 0)
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_HEADERS = 4096
_SQUEEZED = 4
"""Pixels that are more than so many times as wide as high are a fault of the file."""


def read(
    file: IO[bytes], media_type: str, *, side: int | None, limits: MediaLimits
) -> tuple[Looked, Image.Image | None]:
    """Decode a video's frame at 0.1 s; with `side`, make it that small.

    Raises UnfitMedia, MemoryError.
    """
    av.logging.set_level(None)
    if matroska_end(file.read(_HEADERS)) > os.fstat(file.fileno()).st_size:
        raise damaged(media_type)
    file.seek(0)
    try:
        with av.open(
            file, "r", format=DEMUXERS[media_type], options=dict(_OPTIONS), io_open=_refuse
        ) as container:
            return _read(container, file, media_type, side=side, limits=limits)
    except (UnfitMedia, MemoryError):
        raise
    except Exception as error:  # what damaged files make a decoder raise is anything
        raise damaged(media_type) from error


def _read(
    container: InputContainer,
    file: IO[bytes],
    media_type: str,
    *,
    side: int | None,
    limits: MediaLimits,
) -> tuple[Looked, Image.Image | None]:
    stream = _picture_stream(container, media_type)
    duration = _duration(container, stream)
    if duration is not None and duration > limits.video_seconds:
        hours = limits.video_seconds / 3600
        raise UnfitMedia("too_large", f"is too long: at most {hours:g} hours")
    if _last_sample(container) > os.fstat(file.fileno()).st_size:
        raise damaged(media_type)
    frame = _frame(container, stream, limits)
    if frame is None:
        raise damaged(media_type)
    turn = _turn(frame)
    width, height = _shape(frame, stream)
    seen = (height, width) if turn in _ON_ITS_SIDE else (width, height)
    looked = Looked(
        media_type=media_type,
        width=seen[0],
        height=seen[1],
        frames=stream.frames or None,
        duration_s=duration,
    )
    if side is None:
        return looked, None
    scale = min(1, side / max(width, height))
    small = _image(frame, max(1, round(width * scale)), max(1, round(height * scale)))
    return looked, small if turn is None else small.transpose(turn)


def _image(frame: VideoFrame, width: int, height: int) -> Image.Image:
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    plane = small.planes[0]
    # rows are longer in memory than what they show
    return Image.frombuffer("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size, 1)


def _picture_stream(container: InputContainer, media_type: str) -> VideoStream:
    # a cover is no video
    found = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not found and container.streams.audio:
        raise UnfitMedia("no_picture", "has no picture in it: sound is no video")
    if not found:
        raise damaged(media_type)
    stream = found[0]
    # PyAV has none for what there is no decoder of
    codec = cast("VideoCodecContext | None", stream.codec_context)
    if codec is None or codec.name not in _DECODERS:
        message = "is in a format that is not read: save it as H.264 (MP4) or VP9 (WebM)"
        raise UnfitMedia("unreadable_video", message)
    return stream


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    if max(width, height) > limits.video_side:
        raise too_long_a_side(width, height, limits.video_side)
    if width * height > limits.video_pixels:
        raise too_many_pixels(width, height, limits.video_pixels)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    else:
        return None
    return duration if math.isfinite(duration) and duration > 0 else None


def _last_sample(container: InputContainer) -> int:
    """Where the last sample of an index ends: behind the file's end if it was cut off."""
    last = 0
    for stream in container.streams:
        entries = stream.index_entries
        if container.format.name.startswith("mov") and len(entries):
            entry = entries[len(entries) - 1]
            last = max(last, entry.pos + entry.size)
    return last


def _frame(
    container: InputContainer, stream: VideoStream, limits: MediaLimits
) -> VideoFrame | None:
    """The frame that is seen at 0.1 s, or the last one of a shorter video."""
    _check_size(stream.codec_context.width, stream.codec_context.height, limits)
    stream.codec_context.thread_count = 1
    shown: VideoFrame | None = None
    began: float | None = None
    for frame in islice(_frames(container, stream), _MOST_FRAMES):
        _check_size(frame.width, frame.height, limits)
        # PyAV's own types forget that a frame may have no time
        at = cast("float | None", frame.time)
        began = at if began is None else began
        if shown is not None and at is not None and began is not None and at - began > _AT_S:
            break
        shown = frame
    return shown


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    first = True
    try:
        for frame in container.decode(stream):
            yield frame
            first = False
    except FFmpegError:
        # what comes behind the first picture need not be whole for it to be seen
        if first:
            raise


def _shape(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height in square pixels."""
    ratio = stream.sample_aspect_ratio
    if ratio and 1 / _SQUEEZED <= ratio <= _SQUEEZED:
        return max(1, round(frame.width * ratio)), frame.height
    return frame.width, frame.height


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """How the video wants to be turned or mirrored; None for slanted ones, too."""
    # its types say it has names in it
    for side_data in cast("Iterable[SideData]", frame.side_data):
        if side_data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data))
            return _TURNS.get((_sign(a), _sign(b), _sign(c), _sign(d)))
    return None


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def matroska_end(head: bytes) -> int:
    """Where a Matroska file says that it ends; 0 where it does not say it, or is none."""
    if not head.startswith(_EBML):
        return 0
    size, begins = _length(head, len(_EBML))
    segment = begins + size
    if head[segment : segment + 4] != _SEGMENT:
        return 0
    size, begins = _length(head, segment + len(_SEGMENT))
    return begins + size


def _length(head: bytes, at: int) -> tuple[int, int]:
    """A length as EBML writes it, 0 for an open one, and where what it is about begins."""
    first = head[at] if at < len(head) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(head[at : at + width]) & ((1 << 7 * width) - 1)
    is_open = value == (1 << 7 * width) - 1
    return (0 if is_open else value), at + width


def _refuse(*_: object) -> NoReturn:
    raise PermissionError("a video is one file")
