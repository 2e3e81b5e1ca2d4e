"""Video and sound without their metadata: the packets go into a new file, nothing is decoded.

ComfyUI writes prompt and workflow as tags of the container. The only module of `finish` that
speaks to PyAV; everything in it blocks.
"""

# PyAV's own stubs leave the type parameters of packets and streams open.
# pyright: reportUnknownMemberType=false

from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from gpu_server.finish.facts import FULL, Facts, Unreadable

FORMATS = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "matroska",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
}
"""Name of the container by media type."""
_MARK = ("engine", "simulator")
"""The tag by which a file says that no model made it."""
_MICROSECONDS = 1_000_000


def probed(source: Path) -> Facts:
    """Read what a file says of itself. Raises Unreadable."""
    try:
        with av.open(str(source)) as container:
            video = container.streams.video[0] if container.streams.video else None
            frames = video.frames if video else 0
            if video and not frames:
                # not in every container's header
                frames = sum(packet.size > 0 for packet in container.demux(video))
            return _facts(container, frames)
    except (FFmpegError, ValueError):
        raise Unreadable("a file with video or sound that can't be read") from None


def remuxed(source: Path, target: Path, media_type: str) -> Facts:
    """Copy streams without the file's metadata, and without that of each stream.

    Raises Unreadable, OSError.
    """
    options = {"fflags": "+bitexact"}  # the same packets give the same file, whenever it is made
    if media_type in {"video/mp4", "video/quicktime"}:
        options["movflags"] = "+faststart+use_metadata_tags"
    try:
        with (
            av.open(str(source)) as container,
            av.open(str(target), "w", format=FORMATS[media_type], options=options) as made,
        ):
            frames = _copied(container, made)
            return _facts(container, frames)
    except (FFmpegError, ValueError) as error:
        if isinstance(error, FFmpegError) and error.errno in FULL:
            raise OSError(error.errno, error.strerror) from None
        raise Unreadable("a file with video or sound that can't be read") from None


def _copied(container: InputContainer, made: OutputContainer) -> int:
    """Copy every packet; how many the first video has, of which each is a frame."""
    if _MARK in {(key.lower(), value) for key, value in container.metadata.items()}:
        made.metadata.update([_MARK])
    copies: dict[int, Stream] = {}
    for stream in container.streams:
        if isinstance(stream, VideoStream | AudioStream | SubtitleStream):
            copies[stream.index] = made.add_stream_from_template(stream, opaque=True)
    first = container.streams.video[0].index if container.streams.video else None
    frames = 0
    for packet in container.demux([container.streams[index] for index in copies]):
        if not packet.size:
            # it only ends a stream
            continue
        frames += packet.stream.index == first
        packet.stream = copies[packet.stream.index]
        made.mux(packet)
    return frames


def _facts(container: InputContainer, frames: int) -> Facts:
    seconds = None if container.duration is None else container.duration / _MICROSECONDS
    if not container.streams.video:
        return Facts(duration_s=seconds)
    video = container.streams.video[0]
    return Facts(width=video.width, height=video.height, frames=frames or None, duration_s=seconds)
