"""PNG files without their texts, chunk by chunk as they stream: nothing is decoded.

ComfyUI writes prompt and workflow as `tEXt` before the pixels; into animated ones as `comf`
behind the first frame.
"""

import struct
import sys
import zlib
from typing import Literal

from gpu_server.finish.facts import Facts

_KEPT = frozenset(
    [
        *b"tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT cICP mDCV mDCv cLLI cLLi".split(),
        *b"acTL fcTL fdAT".split(),
        # the simulator's padding: a file asked for by its size arrives in that size
        b"siMd",
    ]
)
"""What says how pixels are shown. All else goes: a chunk nobody has heard of may hold anything."""
_MARK = b"engine\0simulator"
"""The text by which a file says that no model made it."""
_PADDING = b"paDd"
"""Ancillary, private, safe to copy: readers skip it."""
_SIGNATURE, _HEADER, _CHECKSUM = 8, 8, 4
_LONGEST = 2**31 - 1
_LARGEST_HEAD = 1 << 20
"""Bytes that wait in memory for the pixels."""
_ANCILLARY = 0x20
_TO_THE_END = sys.maxsize


class PngFilter:
    """Takes a PNG piece by piece and gives it back without metadata.

    Chunks before the pixels are left out. Once the pixels come the length of the result has been
    announced (a bucket takes nothing else): what is to go then is blanked at its own length.
    A file that is broken passes as it is from there.
    """

    def __init__(self, facts: Facts, total: int | None) -> None:
        """`total`: bytes of the file, where known."""
        self.facts = facts
        self.removed = 0
        self.settled = False
        self.blocks = False
        self._total = total
        self._begin = 0
        """Where in the file the present chunk begins."""
        self._whole = self._left = _SIGNATURE
        self._way: Literal["keep", "drop", "blank", "zero"] = "keep"
        self._last = False
        self._checksum = 0
        self._held = b""
        """The beginning of a chunk of which too little is known yet."""

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes, return those that are ready."""
        if self._way == "keep" and self._left >= len(piece) and not self._held:
            # within the pixels, as most pieces are: not even copied
            self._left -= len(piece)
            return piece
        had = bool(self._held)
        data = memoryview(self._held + piece if had else piece)
        self._held = b""
        out: list[bytes | memoryview] = []
        at = kept_from = 0
        while at < len(data):
            if not self._left and not self._judge(data[at:]):
                self._held = bytes(data[at:])
                break
            step = min(self._left, len(data) - at)
            if self._way != "keep":
                out += [data[kept_from:at], self._replaced(step)]
                kept_from = at + step
            self._left -= step
            at += step
        if not had and len(piece) == at - kept_from:
            return piece
        return b"".join([*out, data[kept_from:at]])

    def end(self) -> bytes:
        """Return what was held back: the file ended at the beginning of a chunk."""
        held, self._held, self.settled = self._held, b"", True
        return held

    def _judge(self, ahead: memoryview) -> bool:
        """Settle what becomes of the chunk that begins here; False: more of it must be seen."""
        begin = self._begin + self._whole
        if self._last:
            # no reader looks behind the end, so nobody would find what hides there
            self._take("zero", begin, _TO_THE_END)
            return True
        if len(ahead) < _HEADER:
            return False
        length, kind = struct.unpack(">I4s", ahead[:_HEADER])
        whole = _HEADER + length + _CHECKSUM
        broken = self._total is not None and begin + whole > self._total
        if broken or length > _LONGEST or not kind.isalpha():
            self.settled = True
            self._take("keep", begin, _TO_THE_END)
            return True
        kept = not kind[0] & _ANCILLARY or kind in _KEPT
        if kind == b"tEXt" and length == len(_MARK):
            if len(ahead) < _HEADER + length:
                return False
            kept = bytes(ahead[_HEADER : _HEADER + length]) == _MARK
        if kind == b"IDAT" or begin - self.removed > _LARGEST_HEAD:
            self.settled = True
        self._last = kind == b"IEND"
        if kept:
            self._take("keep", begin, whole)
        elif self.settled:
            self._checksum = zlib.crc32(_PADDING)
            self._take("blank", begin, whole)
        else:
            self.removed += whole
            self._take("drop", begin, whole)
        return True

    def _take(self, way: Literal["keep", "drop", "blank", "zero"], begin: int, whole: int) -> None:
        self._way, self._begin, self._whole, self._left = way, begin, whole, whole

    def _replaced(self, count: int) -> bytes:
        """Make what stands in the place of the next bytes."""
        match self._way:
            case "blank":
                return self._blanked(count)
            case "zero":
                return bytes(count)
            case _:
                return b""

    def _blanked(self, count: int) -> bytes:
        """Make the next bytes of a chunk of zeros in the place of the present one."""
        begin = self._whole - self._left
        length = self._whole - _HEADER - _CHECKSUM
        made = bytearray(count)
        body = min(begin + count, _HEADER + length) - max(begin, _HEADER)
        self._checksum = zlib.crc32(bytes(max(0, body)), self._checksum)
        header = struct.pack(">I4s", length, _PADDING)
        for at, content in ((0, header), (_HEADER + length, struct.pack(">I", self._checksum))):
            for place, byte in enumerate(content, at - begin):
                if 0 <= place < count:
                    made[place] = byte
        return bytes(made)
