"""`python -m gateway.thumbnails.worker`: one file looked at, its answer to standard output.

The process is confined before it reads the first byte of what a stranger sent.
"""

import hashlib
import io
import os
import struct
import sys
import traceback
import zlib
from contextlib import ExitStack
from io import FileIO
from typing import IO

from PIL import Image

from gateway.thumbnails import still
from gateway.thumbnails.kinds import DEMUXERS, HEAD, media_type_of
from gateway.thumbnails.order import Looked, Made, MediaAnswer, MediaOrder
from gateway.thumbnails.unfit import UnfitMedia, too_costly
from gpu_server.workers import confine, end_with_parent, open_no_more

_QUALITY = 82
# what Pillow raises for damaged files, and PyAV, whose errors are ValueErrors and OSErrors
_EXPECTED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def main() -> None:
    """Carry out one order."""
    order = MediaOrder.model_validate_json(sys.stdin.buffer.readline())
    limits = order.limits
    confine(
        memory_bytes=limits.memory_bytes,
        cpu_seconds=limits.cpu_seconds,
        file_bytes=limits.made_bytes,
    )
    os.nice(10)
    end_with_parent()
    sys.stdout.write(answer(order).model_dump_json())
    sys.stdout.flush()


def answer(order: MediaOrder) -> MediaAnswer:
    """Read the file, write its thumbnail."""
    with ExitStack() as stack:
        source = stack.enter_context(order.source.open("rb"))
        try:
            # unbuffered: what did not go through would be tried again when it is closed
            target = (
                None
                if order.target is None
                else stack.enter_context(order.target.open("wb", buffering=0))
            )
        except OSError as error:
            return MediaAnswer(errno=error.errno)
        try:
            looked, small = _read(source, order)
            encoded = b"" if small is None else _encoded(small)
        except UnfitMedia as unfit:
            _complain(unfit.__cause__)
            return MediaAnswer(code=unfit.code, message=unfit.message)
        except MemoryError:
            unfit = too_costly()
            return MediaAnswer(code=unfit.code, message=unfit.message)
        if target is None or small is None:
            return MediaAnswer(looked=looked)
        try:
            _write(target, encoded)
        except OSError as error:
            return MediaAnswer(errno=error.errno)
        made = Made(
            width=small.width,
            height=small.height,
            bytes=len(encoded),
            sha256=hashlib.sha256(encoded).hexdigest(),
        )
        return MediaAnswer(looked=looked, made=made)


def _read(source: IO[bytes], order: MediaOrder) -> tuple[Looked, Image.Image | None]:
    media_type = media_type_of(source.read(HEAD))
    source.seek(0)
    side = None if order.target is None else order.side
    if media_type in DEMUXERS:
        # ffmpeg takes a while to load, and most files are pictures
        from gateway.thumbnails import film  # noqa: PLC0415

        open_no_more()
        return film.read(source, media_type, side=side, limits=order.limits)
    open_no_more()
    return still.read(source, media_type, side=side, moving=order.moving, limits=order.limits)


def _write(target: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


def _complain(cause: BaseException | None) -> None:
    """Have what a decoder should not raise logged: it is refused all the same, and may be ours."""
    if cause is not None and not isinstance(cause, _EXPECTED):
        traceback.print_exception(cause)


def _encoded(small: Image.Image) -> bytes:
    made = io.BytesIO()
    profile = small.info.get("icc_profile")
    small.save(made, "WEBP", quality=_QUALITY, method=4, icc_profile=profile)
    return made.getvalue()


if __name__ == "__main__":
    main()
