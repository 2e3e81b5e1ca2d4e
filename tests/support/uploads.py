"""Files to upload, and forms to send them in piece by piece."""

import functools
import io
import struct
import wave
import zipfile
from collections.abc import AsyncIterator
from fractions import Fraction

import av
import httpx
import numpy as np

BOUNDARY = "a-boundary-of-this-test"


@functools.cache
def video(kind: str = "mp4", *, width: int = 64, height: int = 48, frames: int = 10) -> bytes:
    """A short video of a plain colour, which changes."""
    file = io.BytesIO()
    codec = "libvpx" if kind == "webm" else "mpeg4"
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            shade = np.full((height, width, 3), 20 * n % 255, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def archive(**files: bytes) -> bytes:
    """A ZIP of some files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in (files or {"readme": b"hello"}).items():
            made.writestr(name, data)
    return file.getvalue()


def sound() -> bytes:
    """A tenth of a second of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(8000)
        made.writeframes(bytes(1600))
    return file.getvalue()


def mesh() -> bytes:
    """The smallest GLB there is."""
    text = b'{"asset":{"version":"2.0"}}'
    text += b" " * (-len(text) % 4)
    chunk = struct.pack("<I4s", len(text), b"JSON") + text
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk


def around(name: str = "a file", field: str = "file") -> tuple[bytes, bytes]:
    """What comes before a file in a form, and what comes behind it."""
    head = (
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: text/html\r\n\r\n"
    )
    return head.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


CONTENT_TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


async def streamed(head: bytes, count: int, piece: int = 64 * 1024) -> AsyncIterator[bytes]:
    """A form with a file of that many bytes, made as it is sent."""
    before, behind = around()
    yield before + head
    left = count - len(head)
    zeros = bytes(piece)
    while left:
        yield zeros[: min(piece, left)]
        left -= min(piece, left)
    yield behind


async def uploaded(
    http: httpx.AsyncClient,
    path: str,
    data: bytes,
    name: str = "its name",
    media_type: str = "application/octet-stream",
) -> httpx.Response:
    """Send a file as a form."""
    # written by hand: httpx leaves out what a hostile client would send in a name
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
    before = f"{head}Content-Type: {media_type}\r\n\r\n".encode()
    body = before + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    return await http.post(path, content=body, headers=CONTENT_TYPE)
